"""Adapters in the layout that the published δ-mem code saves; knows nothing of GGUF.

A folder with delta_mem_config.json, 49 settings of which most have one legal value, and one file of tensors named
model.layers.N.self_attn.X.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deltamem_cli import reading
from deltamem_cli.adapter.format import DELTA_HEADS, STATE_UPDATES, WRITE_GRANULARITIES
from deltamem_cli.adapter.limits import MAX_RANK, MAX_STATE_HEADS
from deltamem_cli.formats.errors import AdapterError, shown
from deltamem_cli.formats.safetensors_file import read_safetensors_file
from deltamem_cli.formats.torch_file import read_torch_file
from deltamem_cli.formats.weight import Weight

CONFIG_FILE = "delta_mem_config.json"
# The published name first; the others are what people who convert to safetensors call it.
WEIGHT_FILES = (
    "delta_mem_adapter.pt",
    "delta_mem_adapter.safetensors",
    "adapter_model.safetensors",
    "model.safetensors",
)


@dataclass(frozen=True)
class Settings:
    """The settings that decide what is computed, under their published names and with the published defaults."""

    rank: int = 8
    alpha: float = 16.0
    normalize_qk: bool = True
    couple_lambda: bool = True
    state_update_mode: str = "standard"
    rankwise_gates: bool = True
    num_state_heads: int = 1
    memory_write_granularity: str = "token"
    target_layers: tuple[int, ...] = ()
    delta_heads: tuple[str, ...] = DELTA_HEADS
    delta_o_rmsnorm: bool = False
    delta_o_rmsnorm_eps: float = 1e-6
    trainable_delta_scale: bool = False
    delta_scale_max: float = 2.0
    delta_scale_granularity: str = "layer"

    def parameter_names(self) -> tuple[set[str], set[str]]:
        """The parameters that a layer must have, and those that it may have and that change nothing."""
        needed = {"memory_q_proj", "memory_k_proj", "memory_v_proj", "beta_proj", "beta_bias"}
        needed |= {f"delta_{head}_proj" for head in self.delta_heads}
        unused = {f"delta_{head}_proj" for head in DELTA_HEADS if head not in self.delta_heads}
        if not self.couple_lambda:
            # The published code keeps lambda's parameters with no_lambda, and then does not read them.
            (unused if self.state_update_mode == "no_lambda" else needed).update({"lambda_proj", "lambda_bias"})
        if self.delta_o_rmsnorm:
            (needed if "o" in self.delta_heads else unused).add("delta_o_rmsnorm_weight")
        if self.trainable_delta_scale:
            needed.add("delta_scale_raw")
        return needed, unused

    def delta_factors(self, delta_scale_raw: Weight | None) -> dict[str, float]:
        """What each of the heads' matrices is multiplied with: alpha / rank and the learned scale."""
        factors = dict.fromkeys(self.delta_heads, self.alpha / self.rank)
        if delta_scale_raw is not None:
            raw = [float(number) for number in delta_scale_raw.float32]
            for head in self.delta_heads:
                number = raw[DELTA_HEADS.index(head)] if self.delta_scale_granularity == "head" else raw[0]
                # Written so that no exponent overflows.
                sigmoid = 1 / (1 + math.exp(-number)) if number >= 0 else math.exp(number) / (1 + math.exp(number))
                factors[head] *= sigmoid * self.delta_scale_max
        return factors


@dataclass(frozen=True)
class PublishedAdapter:
    """Settings and tensors; layers: layer number -> parameter name -> weight, complete for the settings."""

    settings: Settings
    layers: dict[int, dict[str, Weight]]


def _whole(low: int, high: int) -> Callable[[Any], Any]:
    def convert(value: Any) -> int | None:
        return value if isinstance(value, int) and not isinstance(value, bool) and low <= value <= high else None

    return convert


def _real(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if abs(value) <= 1e30 else None  # also refuses NaN, which JSON files of Python may hold


def _positive(value: Any) -> float | None:
    number = _real(value)
    return number if number is not None and number > 0 else None


def _truth(value: Any) -> bool | None:
    return value if isinstance(value, bool) else None


def _word(*words: str) -> Callable[[Any], Any]:
    def convert(value: Any) -> str | None:
        # The published code strips and lowers such words.
        word = value.strip().lower() if isinstance(value, str) else None
        return word if word in words else None

    return convert


def _delta_heads(value: Any) -> tuple[str, ...] | None:
    items = value.split(",") if isinstance(value, str) else value
    if not isinstance(items, list) or not all(isinstance(item, str) for item in items):
        return None
    heads = {item.strip().lower() for item in items if item.strip()}
    # An empty choice is legal there but makes an adapter that changes nothing.
    return tuple(head for head in DELTA_HEADS if head in heads) if heads and heads <= set(DELTA_HEADS) else None


def _layers(value: Any) -> tuple[int, ...] | None:
    is_layer = _whole(0, 1 << 16)
    if not isinstance(value, list) or any(is_layer(item) is None for item in value):
        return None
    return tuple(sorted(set(value)))


# Settings that are used: how a value becomes ours (None: not legal), and the legal values in words.
_USED: dict[str, tuple[Callable[[Any], Any], str]] = {
    "rank": (_whole(1, MAX_RANK), f"a whole number from 1 to {MAX_RANK}"),
    "alpha": (_real, "a number"),
    "normalize_qk": (_truth, "true or false"),
    "couple_lambda": (_truth, "true or false"),
    "state_update_mode": (_word(*STATE_UPDATES), " or ".join(STATE_UPDATES)),
    "rankwise_gates": (_truth, "true or false"),
    "num_state_heads": (_whole(1, MAX_STATE_HEADS), f"a whole number from 1 to {MAX_STATE_HEADS}"),
    "memory_write_granularity": (_word(*WRITE_GRANULARITIES), " or ".join(WRITE_GRANULARITIES)),
    "target_layers": (_layers, "a list of layer numbers"),
    "delta_heads": (_delta_heads, "a choice of q, k, v and o"),
    "delta_o_rmsnorm": (_truth, "true or false"),
    "delta_o_rmsnorm_eps": (_positive, "a number above 0"),
    "trainable_delta_scale": (_truth, "true or false"),
    "delta_scale_max": (_positive, "a number above 0"),
    "delta_scale_granularity": (_word("layer", "head"), "layer or head"),
}

# Settings of archived experiments: any other value would mean a mechanism that the published code no longer has.
_FIXED: dict[str, Any] = {
    "num_memory_partitions": 1,
    "num_global_memory_partitions": 0,
    "memory_partition_routing": "soft",
    "memory_partition_basis": "shared",
    "tie_memory_partition_read_write": False,
    "memory_partition_read_mode": "softmax",
    "slot_read_top_k": 0,
    "global_memory_mode": "shared_rw",
    "global_memory_read_top_k": 0,
    "global_memory_merge_mode": "gated_residual",
    "memory_reader_layers": [],
    "memory_readout_mode": "delta",
    "memory_write_source": "learned_hidden",
    "memory_write_proposals_per_message": 2,
    "synthetic_memory_slots": 1,
    "latent_memory_layers": [],
    "target_modules": ["self_attn"],
    "delta_scale_parameterization": "alpha_over_rank",
}

# Settings that only say how parameters were initialised, or that belong to a fixed mechanism that is off.
_WITHOUT_EFFECT = frozenset(
    {
        "beta_bias_init", "output_init", "base_slice_ref_width", "online_gain", "delta_scale_init",
        "memory_partition_sigmoid_gate_bias_init", "global_memory_gate_bias_init", "global_memory_read_logit_bias",
        "memory_reader_hidden_size", "memory_reader_residual_scale", "memory_reader_read_only",
        "latent_memory_hidden_size", "latent_memory_residual_scale", "latent_memory_slots", "latent_memory_init_std",
        "latent_gate_init",
    }
)  # fmt: skip


def read_settings(path: Path) -> Settings:
    """Reads delta_mem_config.json.

    Raises AdapterError naming the first setting that is unknown or has a value that cannot be converted.
    """
    try:
        config = json.loads(reading.whole_file(path))
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise AdapterError(f"{path} cannot be read ({reason}); give the folder of a published adapter") from None
    except (ValueError, RecursionError):
        raise AdapterError(f"{path} is not JSON; download the adapter again") from None
    if not isinstance(config, dict):
        raise AdapterError(f"{path} does not hold settings by name; download the adapter again")
    values: dict[str, Any] = {}
    for name, value in config.items():
        if name in _USED:
            convert, legal = _USED[name]
            values[name] = convert(value)
            if values[name] is None:
                raise AdapterError(_illegal(path, name, value, legal))
        elif name in _FIXED:
            fixed = _FIXED[name]
            text = value.strip().lower() if isinstance(value, str) else value
            if type(text) is not type(fixed) or text != fixed:
                raise AdapterError(_illegal(path, name, value, f"{json.dumps(fixed)}, all that δ-mem still has"))
        elif name not in _WITHOUT_EFFECT:
            raise AdapterError(
                f"{path} has the setting {shown(name)} = {shown(json.dumps(value))}, which is unknown, so the adapter "
                "may compute something else; look for a newer deltamem-cli"
            )
    return Settings(**values)


def _illegal(path: Path, name: str, value: Any, legal: str) -> str:
    return (
        f"{path} has {name} = {shown(json.dumps(value))}, which cannot be converted: it must be {legal}; "
        "choose an adapter with that setting"
    )


def read_published(folder: Path) -> PublishedAdapter:
    """Reads settings and tensors of a published adapter's folder and checks that they belong together.

    Raises AdapterError when a file is missing or unsound, or a parameter is missing, unknown or of the wrong rank.
    """
    if not folder.is_dir():
        why = "is not a folder" if folder.exists() else "does not exist"
        raise AdapterError(f"{folder} {why}; give the folder that holds {CONFIG_FILE}")
    if not (folder / CONFIG_FILE).is_file():
        raise AdapterError(f"{folder} has no {CONFIG_FILE}; give the folder of a published adapter")
    settings = read_settings(folder / CONFIG_FILE)
    file = next((folder / name for name in WEIGHT_FILES if (folder / name).is_file()), None)
    if file is None:
        raise AdapterError(f"{folder} has none of {', '.join(WEIGHT_FILES)}; download the whole adapter")
    tensors = read_torch_file(file) if file.suffix == ".pt" else read_safetensors_file(file)
    return PublishedAdapter(settings, _by_layer(file, settings, tensors))


_PARAMETER = re.compile(r"model\.layers\.(0|[1-9][0-9]{0,4})\.self_attn\.([a-z_]+)")


def _by_layer(file: Path, settings: Settings, tensors: dict[str, Weight]) -> dict[int, dict[str, Weight]]:
    needed, unused = settings.parameter_names()
    layers: dict[int, dict[str, Weight]] = {}
    for name, weight in tensors.items():
        match = _PARAMETER.fullmatch(name)
        if match is None or match[2] not in needed | unused:
            raise AdapterError(
                f"{file} has the parameter {shown(name)}, which an adapter with these settings does not have; "
                f"check that {CONFIG_FILE} belongs to it"
            )
        layers.setdefault(int(match[1]), {})[match[2]] = weight
    if not layers:
        raise AdapterError(f"{file} holds no tensors; download the adapter again")
    wanted = settings.target_layers or tuple(sorted(layers))
    if tuple(sorted(layers)) != wanted:
        raise AdapterError(
            f"{file} has the layers {ranges(sorted(layers))} but target_layers in {CONFIG_FILE} says {ranges(wanted)}; "
            "download the adapter again"
        )
    for layer in wanted:
        for name in sorted(needed - set(layers[layer])):
            raise AdapterError(f"{file} lacks model.layers.{layer}.self_attn.{name}; download the adapter again")
        _check_scale(file, settings, layer, layers[layer].get("delta_scale_raw"))
    return {layer: {name: layers[layer][name] for name in needed} for layer in wanted}


def _check_scale(file: Path, settings: Settings, layer: int, raw: Weight | None) -> None:
    if raw is None:
        return
    shape = (len(DELTA_HEADS),) if settings.delta_scale_granularity == "head" else (1,)
    if raw.shape != shape or not raw.is_finite:
        raise AdapterError(
            f"{file} has a delta_scale_raw in layer {layer} that is not {shape[0]} finite numbers, as "
            f"delta_scale_granularity = {settings.delta_scale_granularity} needs; download the adapter again"
        )


def ranges(numbers: list[int] | tuple[int, ...]) -> str:
    """Ascending whole numbers in short: 0-3, 7."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][1] + 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    return ", ".join(str(low) if low == high else f"{low}-{high}" for low, high in parts)
