"""Reads a frozen model's tensors under GGUF names from a GGUF or a Hugging Face directory; computes nothing with them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deltamem_cli.errors import DeltamemError

ARCHITECTURES = ("llama", "qwen2", "qwen3", "smollm3")
# llama.cpp rotates neighbouring numbers for these, and its converter permutes the rows of wq and wk to fit
PAIRED = ("llama", "smollm3")
NO_ROPE_STEP = {"smollm3": 4}


@dataclass(frozen=True)
class BackboneShape:
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

    @property
    def rope_pairs(self) -> bool:
        return self.architecture in PAIRED

    def turns(self, layer: int) -> bool:
        """Whether the layer uses RoPE."""
        step = NO_ROPE_STEP.get(self.architecture)
        return step is None or (layer + 1) % step != 0


def load_weights(source: Path) -> tuple[BackboneShape, dict[str, Tensor]]:
    return _from_directory(source) if source.is_dir() else _from_gguf(source)


def _checked(architecture: str, source: Path) -> str:
    if architecture not in ARCHITECTURES:
        raise DeltamemError(
            f"{source} is a model of the architecture {architecture}, and training knows only {', '.join(ARCHITECTURES)}; "
            "choose another base model"
        )
    return architecture


def _from_gguf(source: Path) -> tuple[BackboneShape, dict[str, Tensor]]:
    import gguf

    try:
        reader = gguf.GGUFReader(source)
    except (OSError, ValueError) as error:
        raise DeltamemError(
            f"{source} cannot be read as a GGUF model ({error}); check the path or download it again"
        ) from None

    def get(key: str, default: Any = None) -> Any:
        field = reader.get_field(key)
        return default if field is None else field.contents()

    arch = _checked(get("general.architecture", "unknown"), source)
    n_head, hidden = get(f"{arch}.attention.head_count"), get(f"{arch}.embedding_length")
    head_dim = get(f"{arch}.attention.key_length", hidden // n_head)
    shape = BackboneShape(
        architecture=arch,
        n_layer=get(f"{arch}.block_count"),
        hidden=hidden,
        n_head=n_head,
        n_head_kv=get(f"{arch}.attention.head_count_kv", n_head),
        head_dim=head_dim,
        rope_dim=get(f"{arch}.rope.dimension_count", head_dim),
        rope_base=get(f"{arch}.rope.freq_base", 10000.0),
        norm_eps=get(f"{arch}.attention.layer_norm_rms_epsilon"),
        name=get("general.name", ""),
    )
    tensors = {}
    for t in reader.tensors:
        data = gguf.dequantize(t.data, t.tensor_type)
        tensors[t.name] = torch.from_numpy(data.copy()).reshape([int(n) for n in reversed(t.shape)])
    return shape, tensors


_NAMES = {
    "input_layernorm.weight": "attn_norm.weight",
    "post_attention_layernorm.weight": "ffn_norm.weight",
    "mlp.gate_proj.weight": "ffn_gate.weight",
    "mlp.up_proj.weight": "ffn_up.weight",
    "mlp.down_proj.weight": "ffn_down.weight",
    "self_attn.o_proj.weight": "attn_output.weight",
    "self_attn.q_norm.weight": "attn_q_norm.weight",
    "self_attn.k_norm.weight": "attn_k_norm.weight",
} | {f"self_attn.{h}_proj.{kind}": f"attn_{h}.{kind}" for h in "qkv" for kind in ("weight", "bias")}
_TOP = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}


def _from_directory(source: Path) -> tuple[BackboneShape, dict[str, Tensor]]:
    from safetensors.torch import load_file

    try:
        config = json.loads((source / "config.json").read_bytes())
        files = sorted(source.glob("*.safetensors"))
        found = {name: t for f in files for name, t in load_file(f).items()}
    except (OSError, ValueError) as error:
        raise DeltamemError(
            f"{source} cannot be read as a Hugging Face model ({error}); it needs config.json and safetensors"
        ) from None
    arch = _checked(config.get("model_type", "unknown"), source)
    if config.get("rope_scaling") or config.get("rope_parameters", {}).get("rope_type", "default") != "default":
        raise DeltamemError(
            f"{source} scales its rotary positions, which training from a directory does not know; convert it to GGUF first"
        )
    n_head = config["num_attention_heads"]
    head_dim = config.get("head_dim") or config["hidden_size"] // n_head
    rope_base = config.get("rope_theta") or config.get("rope_parameters", {}).get("rope_theta", 10000.0)
    shape = BackboneShape(
        architecture=arch,
        n_layer=config["num_hidden_layers"],
        hidden=config["hidden_size"],
        n_head=n_head,
        n_head_kv=config.get("num_key_value_heads", n_head),
        head_dim=head_dim,
        rope_dim=head_dim,
        rope_base=rope_base,
        norm_eps=config["rms_norm_eps"],
        name=source.name,
    )
    tensors = {}
    for name, tensor in found.items():
        if name in _TOP:
            tensors[_TOP[name]] = tensor
            continue
        _, _, number, rest = name.split(".", 3)
        if rest in _NAMES:
            heads = {"attn_q": shape.n_head, "attn_k": shape.n_head_kv}.get(_NAMES[rest].split(".")[0])
            if shape.rope_pairs and heads:
                tensor = paired_rows(tensor, heads)
            tensors[f"blk.{number}.{_NAMES[rest]}"] = tensor
    return shape, tensors


def paired_rows(tensor: Tensor, heads: int) -> Tensor:
    """Rows of wq or wk (or of their biases) from halves that turn together to neighbours that turn together."""
    return tensor.unflatten(0, (heads, 2, -1)).transpose(1, 2).reshape(tensor.shape)
