"""Reads a frozen model's tensors under GGUF names, each when it is asked for; computes nothing with them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deltamem_cli.errors import DeltamemError
from deltamem_cli.formats.gguf_header import read_header
from deltamem_cli.text import short
from deltamem_cli.training.shape import BackboneShape, shape_of

_TOP = ("token_embd.weight", "output_norm.weight")
_TOP_MAYBE = ("output.weight",)
_LAYER = ("attn_norm.weight", "attn_output.weight", "ffn_norm.weight", "ffn_up.weight", "ffn_down.weight")
_POST_NORMS = ("post_attention_norm.weight", "post_ffw_norm.weight")
_QK_NORMS = ("attn_q_norm.weight", "attn_k_norm.weight")
_QKV = tuple(f"attn_{h}.weight" for h in "qkv")
_QKV_MAYBE = tuple(f"attn_{h}.bias" for h in "qkv")


def load_weights(source: Path) -> tuple[BackboneShape, Mapping[str, Tensor]]:
    """Raises DeltamemError for a model that cannot be read, or that has what training would not compute."""
    if source.is_dir():
        from deltamem_cli.training.directory import from_directory

        shape, tensors = from_directory(source)
    else:
        shape, tensors = _from_gguf(source)
    _check_names(source, shape, tensors)
    return shape, tensors


def _check_names(source: Path, shape: BackboneShape, tensors: Mapping[str, Tensor]) -> None:
    needed, maybe = set(_TOP), set(_TOP_MAYBE)
    if shape.architecture == "llama":
        maybe.add("rope_freqs.weight")
    for n in range(shape.n_layer):
        names: tuple[str, ...] = _LAYER
        fused = f"blk.{n}.attn_qkv.weight" in tensors
        names += ("attn_qkv.weight",) if fused else _QKV
        names += _POST_NORMS if shape.gemma else ()
        names += _QK_NORMS if shape.architecture in ("qwen3", "gemma3") else ()
        names += () if shape.architecture == "phi3" else ("ffn_gate.weight",)
        needed |= {f"blk.{n}.{name}" for name in names}
        # beside a fused bias llama.cpp reads no single ones
        one = f"blk.{n}.attn_qkv.bias"
        maybe |= {one} if fused and one in tensors else {f"blk.{n}.{name}" for name in _QKV_MAYBE}
    if unknown := [name for name in tensors if name not in needed | maybe]:
        more = f" and {len(unknown) - 1} more tensors" if len(unknown) > 1 else ""
        raise DeltamemError(
            f"{source} has the tensor {short(unknown[0])}{more}, and training does not compute that; choose another base model"
        )
    if missing := sorted(needed - set(tensors)):
        raise DeltamemError(
            f"{source} has no tensor {short(missing[0])}, which a {shape.architecture} model needs; download it again"
        )


def _from_gguf(source: Path) -> tuple[BackboneShape, Mapping[str, Tensor]]:
    import gguf

    read_header(source)  # gguf's reader believes what a damaged one says
    try:
        reader = gguf.GGUFReader(source)
    except (OSError, ValueError) as error:
        raise DeltamemError(
            f"{source} cannot be read as a GGUF model ({error}); check the path or download it again"
        ) from None
    # a vocabulary has a hundred thousand words, and is read elsewhere
    metadata = {key: f.contents() for key, f in reader.fields.items() if not key.startswith(("tokenizer.", "GGUF."))}
    if metadata.get("split.count", 1) > 1:
        raise DeltamemError(
            f"{source} is a part of a model in {metadata['split.count']} files; join them with llama-gguf-split --merge"
        )
    return shape_of(source, metadata), _Dequantized(source, reader.tensors)


class _Dequantized(Mapping[str, Tensor]):
    """float32 in GGUF's shape, outputs first; the whole model at once would be many times its file."""

    def __init__(self, source: Path, tensors: Any) -> None:
        self._source = source
        self._tensors = {t.name: t for t in tensors}

    def __getitem__(self, name: str) -> Tensor:
        import gguf

        t = self._tensors[name]
        try:
            data = gguf.dequantize(t.data, t.tensor_type)
        except NotImplementedError:
            raise DeltamemError(
                f"{self._source} holds {name} as {t.tensor_type.name}, which cannot be read for training; choose "
                "another quantisation of the model"
            ) from None
        return torch.from_numpy(data.copy()).reshape([int(n) for n in reversed(t.shape)])

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)
