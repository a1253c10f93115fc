"""Reads a Hugging Face directory's config and tensors under GGUF names; refuses by name what training would not compute."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from deltamem_cli import reading
from deltamem_cli.errors import DeltamemError
from deltamem_cli.text import short
from deltamem_cli.training.model_files import settings_of
from deltamem_cli.training.shape import NO_ROPE_STEP, BackboneShape, checked_architecture

ARCHITECTURES = ("llama", "qwen2", "qwen3", "smollm3")
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
_LAYERS = "model.layers."


def from_directory(source: Path) -> tuple[BackboneShape, Mapping[str, Tensor]]:
    """Raises DeltamemError."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    config = settings_of(source / "config.json")
    try:
        files = sorted(source.glob("*.safetensors"))
        for file in files:
            reading.check_regular(file)
        found = {name: t for f in files for name, t in load_file(f).items()}
    except (OSError, ValueError, SafetensorError) as error:
        raise DeltamemError(
            f"{source} cannot be read as a Hugging Face model ({error}); it needs config.json and safetensors"
        ) from None
    arch = checked_architecture(config.get("model_type", "unknown"), source, ARCHITECTURES)
    try:
        _check(source, config)
        shape = _shape(source.name, arch, config)
    except (KeyError, TypeError, ValueError, AttributeError, ZeroDivisionError) as error:
        raise DeltamemError(
            f"{source / 'config.json'} does not say what training has to know ({short(repr(error))}); download the model again"
        ) from None
    tensors = {}
    for name, tensor in found.items():
        number, _, rest = name.removeprefix(_LAYERS).partition(".")
        if name in _TOP:
            tensors[_TOP[name]] = tensor
        elif name.startswith(_LAYERS) and rest in _NAMES:
            heads = {"attn_q": shape.n_head, "attn_k": shape.n_head_kv}.get(_NAMES[rest].split(".")[0])
            if shape.rope_pairs and heads:
                tensor = paired_rows(tensor, heads)
            tensors[f"blk.{number}.{_NAMES[rest]}"] = tensor
        elif not rest.endswith("rotary_emb.inv_freq"):  # old files hold what follows from the config
            tensors[name] = tensor  # refused by name, as one of a GGUF
    return shape, tensors


def _shape(name: str, arch: str, config: dict[str, Any]) -> BackboneShape:
    n_head = config["num_attention_heads"]
    head_dim = config.get("head_dim") or config["hidden_size"] // n_head
    rope_base = config.get("rope_theta") or config.get("rope_parameters", {}).get("rope_theta", 10000.0)
    return BackboneShape(
        architecture=arch,
        n_layer=config["num_hidden_layers"],
        hidden=config["hidden_size"],
        n_head=n_head,
        n_head_kv=config.get("num_key_value_heads", n_head),
        head_dim=head_dim,
        rope_dim=head_dim,
        rope_base=rope_base,
        norm_eps=config["rms_norm_eps"],
        name=name,
    )


def _check(source: Path, config: dict[str, Any]) -> None:
    """Raises DeltamemError for settings that change what the model computes."""
    if config.get("rope_scaling") or config.get("rope_parameters", {}).get("rope_type", "default") != "default":
        raise DeltamemError(
            f"{source} scales its rotary positions, which training from a directory does not know; convert it to GGUF first"
        )
    step = NO_ROPE_STEP.get(config["model_type"])
    layers = config.get("no_rope_layers")
    wanted = [int((n + 1) % step != 0) for n in range(config["num_hidden_layers"])] if step else None
    differing = {
        "hidden_act": config.get("hidden_act", "silu") != "silu",
        "use_sliding_window": bool(config.get("use_sliding_window")),
        "partial_rotary_factor": config.get("partial_rotary_factor", 1) != 1,
        "no_rope_layers": bool(layers) and layers != wanted,
    }
    for key in (key for key, differs in differing.items() if differs):
        raise DeltamemError(
            f"{source} sets {key} to {config[key]}, which training does not compute; choose another base model"
        )


def paired_rows(tensor: Tensor, heads: int) -> Tensor:
    """Rows of wq or wk (or of their biases) from halves that turn together to neighbours that turn together."""
    return tensor.unflatten(0, (heads, 2, -1)).transpose(1, 2).reshape(tensor.shape)
