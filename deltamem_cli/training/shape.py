"""What the metadata of a GGUF make a frozen model's layers compute; refuses by name what training would not compute.

Keys, their defaults and what they do are those of llama.cpp's loaders (src/llama-model.cpp, src/models).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deltamem_cli.errors import DeltamemError
from deltamem_cli.formats.head_widths import head_widths
from deltamem_cli.text import short

ARCHITECTURES = ("llama", "qwen2", "qwen3", "smollm3", "gemma2", "gemma3", "phi3")
# llama.cpp rotates neighbouring numbers for these, and its converter permutes the rows of wq and wk to fit
PAIRED = ("llama", "smollm3")
GEMMA = ("gemma2", "gemma3")
NO_ROPE_STEP = {"smollm3": 4}
# layers of the largest ones, whose scores are scaled by the width of the model and not by that of a head
WIDE_SCORES = {"gemma2": 46, "gemma3": 62}
# every so many layers one looks at all tokens, and the others at a window
WINDOW_PATTERN = {"gemma2": 2, "gemma3": 6}
# llama.cpp reads these keys of all models, or of this architecture, and computes nothing with them
IDLE = (
    "vocab_size", "context_length", "feed_forward_length", "tensor_data_layout",
    "rope.scaling.original_context_length", "rope.scaling.finetuned",
)  # fmt: skip
IDLE_IN = {"phi3": ("attention.sliding_window",)}
# what a key says where it changes nothing
NEUTRAL: Mapping[str, Any] = {
    "attention.causal": True,
    "attention.sliding_window": 0,
    "attn_logit_softcapping": 0,
    "final_logit_softcapping": 0,
    "expert_count": 0,
    "expert_used_count": 0,
    "logit_scale": 1,
    "pooling_type": 0,
    "rope.scaling.type": "none",
    "rope.scaling.factor": 1,
    "rope.scaling.attn_factor": 1,
    "rope.scale_linear": 1,
}


@dataclass(frozen=True)
class BackboneShape:
    """What a model's header says of its computation, as far as training computes it."""

    architecture: str
    n_layer: int
    hidden: int
    n_head: int
    n_head_kv: int
    head_dim: int
    rope_dim: int
    rope_base: float
    norm_eps: float
    name: str = ""
    rope_scale: float = 1.0  # positions are divided by it, but for layers with a window
    window: int = 0  # tokens that a layer with a window sees; 0: no layer has one
    windowed: tuple[bool, ...] = ()  # of each layer, whether it has a window
    window_rope_base: float = 0.0
    score_cap: float = 0.0  # of attention scores, and of logits; 0: none
    logit_cap: float = 0.0

    @property
    def rope_pairs(self) -> bool:
        """Whether RoPE turns neighbouring numbers rather than halves."""
        return self.architecture in PAIRED

    @property
    def gemma(self) -> bool:
        """Scaled embeddings, GELU, and norms after attention and feed-forward, too."""
        return self.architecture in GEMMA

    @property
    def score_scale(self) -> float:
        """What products of queries and keys are multiplied by."""
        wide = WIDE_SCORES.get(self.architecture) == self.n_layer
        return (self.hidden // self.n_head if wide else self.head_dim) ** -0.5

    @property
    def embedding_scale(self) -> float:
        """What embeddings are multiplied with."""
        return math.sqrt(self.hidden) if self.gemma else 1.0

    def turns(self, layer: int) -> bool:
        """Whether the layer uses RoPE."""
        step = NO_ROPE_STEP.get(self.architecture)
        return step is None or (layer + 1) % step != 0

    def slides(self, layer: int) -> bool:
        """Whether the layer sees a window of the last tokens only."""
        return bool(self.window) and self.windowed[layer]


def checked_architecture(architecture: str, source: Path, known: tuple[str, ...] = ARCHITECTURES) -> str:
    """The architecture, if training knows it. Raises DeltamemError."""
    if architecture not in known:
        raise DeltamemError(
            f"{source} is a model of the architecture {short(architecture)}, and training knows only {', '.join(known)}; "
            "choose another base model"
        )
    return architecture


def shape_of(source: Path, metadata: Mapping[str, Any]) -> BackboneShape:
    """The shape that a GGUF's metadata name. Raises DeltamemError for what training does not compute."""
    arch = checked_architecture(metadata.get("general.architecture", "unknown"), source)
    said = {key.removeprefix(f"{arch}."): value for key, value in metadata.items() if key.startswith(f"{arch}.")}
    keys = _Keys(source, arch, said)
    n_head, hidden = keys.number("attention.head_count"), keys.number("embedding_length")
    n_layer = keys.number("block_count")
    head_dim, value_width = head_widths(keys.number)
    if value_width != head_dim:
        raise keys.refused("attention.value_length")
    rope_base = keys.real("rope.freq_base", 10000.0)
    shape = BackboneShape(
        architecture=arch,
        n_layer=n_layer,
        hidden=hidden,
        n_head=n_head,
        n_head_kv=keys.number("attention.head_count_kv", n_head),
        head_dim=head_dim,
        rope_dim=keys.number("rope.dimension_count", head_dim),
        rope_base=rope_base,
        norm_eps=keys.real("attention.layer_norm_rms_epsilon"),
        name=metadata.get("general.name", ""),
        **(_gemma(keys, n_layer, rope_base) if arch in GEMMA else {}),
    )
    keys.check_rest()
    return shape


def _gemma(keys: _Keys, n_layer: int, rope_base: float) -> dict[str, Any]:
    """Windows, caps and the scale of positions."""
    second = keys.arch == "gemma2"
    found: dict[str, Any] = {
        "window": keys.number("attention.sliding_window", 4096 if second else 0),
        "window_rope_base": keys.real("rope.freq_base_swa", rope_base if second else 10000.0),
        "score_cap": keys.real("attn_logit_softcapping", 50.0) if second else 0.0,
        "logit_cap": keys.real("final_logit_softcapping", 30.0 if second else 0.0),
    }
    pattern = keys.take("attention.sliding_window_pattern", WINDOW_PATTERN[keys.arch])
    if isinstance(pattern, list):
        found["windowed"] = tuple(bool(one) for one in pattern)
    else:
        found["windowed"] = tuple(pattern == 0 or n % pattern < pattern - 1 for n in range(n_layer))
    if len(found["windowed"]) != n_layer:
        raise keys.refused("attention.sliding_window_pattern")
    if not second and keys.said.get("rope.scaling.type", "linear") == "linear":
        keys.take("rope.scaling.type", None)
        found["rope_scale"] = keys.real("rope.scaling.factor", 0.0) or keys.real("rope.scale_linear", 0.0) or 1.0
    return found


class _Keys:
    """A model's keys without the architecture's prefix, of which those that are asked for count as computed."""

    def __init__(self, source: Path, arch: str, said: Mapping[str, Any]) -> None:
        self.source, self.arch, self.said = source, arch, said
        self.taken = {*IDLE, *IDLE_IN.get(arch, ())}

    def take(self, key: str, default: Any) -> Any:
        self.taken.add(key)
        return self.said.get(key, default)

    def real(self, key: str, default: float | None = None) -> float:
        value = self.take(key, default)
        if isinstance(value, list) and value and len(set(value)) == 1:  # per layer, alike in all
            value = value[0]
        if isinstance(value, list):
            raise self.refused(key)
        if not isinstance(value, (int, float)):
            raise DeltamemError(f"{self.source} does not say its {self.arch}.{key}; choose another base model")
        return float(value)

    def number(self, key: str, default: int | None = None) -> int:
        return int(self.real(key, default))

    def refused(self, key: str) -> DeltamemError:
        value = self.said[key]
        shown = "differs from layer to layer" if isinstance(value, list) else f"is {value}"
        return DeltamemError(
            f"{self.source} says that {self.arch}.{key} {shown}, and training does not compute that; "
            "choose another base model"
        )

    def check_rest(self) -> None:
        """Raises DeltamemError for a key that may change what the model computes and was not asked for."""
        for key in self.said.keys() - self.taken:
            if key not in NEUTRAL or self.said[key] != NEUTRAL[key]:
                if key in ("rope.scaling.type", "rope.scaling.factor") and self._scales_nothing():
                    continue
                raise self.refused(key)

    def _scales_nothing(self) -> bool:
        """Whether positions are what they would be without any word of scaling."""
        kind, factor = self.said.get("rope.scaling.type", "linear"), self.said.get("rope.scaling.factor", 1)
        return kind == "none" or (kind == "linear" and factor in (0, 1))
