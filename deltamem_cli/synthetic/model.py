"""Writes a whole random GGUF model, or finds it in a cache folder; knows nothing of running it."""

from __future__ import annotations

import hashlib
import math
import os
import shutil
import time
import zlib
from dataclasses import astuple, replace
from pathlib import Path
from typing import Any

from deltamem_cli import files
from deltamem_cli.errors import DeltamemError
from deltamem_cli.synthetic.architectures import ARCHITECTURES, SHAPES, Key, Shape

# Raise it when the same plan comes to give other bytes, so that cached files are made anew.
_VERSION = 1
_HEADER_ROOM = 16 * 2**20
_STALE_SECONDS = 3600


def write_model(
    path: Path, arch: str, shape: Shape | None = None, *, seed: int = 0, type: str = "F32", **overrides: Any
) -> Path:
    """Writes a model with random weights; it appears at path whole or not at all. Returns path.

    arch: a name in ARCHITECTURES; shape: the tiny test shape unless given; overrides: fields of Shape
    type: what matrices are stored in, F32, F16, Q8_0 or Q4_0; the same arguments give the same bytes.
    Raises DeltamemError when the file cannot be written, ValueError for sizes the architecture cannot have.
    """
    shape = replace(shape or Shape(), **overrides)
    if ARCHITECTURES[arch].square and shape.n_head * shape.head_dim != shape.n_embd:
        raise ValueError(f"{arch} needs n_head * head_dim = n_embd, not {shape.n_head} * {shape.head_dim}")
    try:
        with files.replacing(path) as draft:
            _write(draft, arch, shape, seed, type)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise DeltamemError(
            f"the model {path} cannot be written ({reason}); free some space or choose another folder"
        ) from None
    return path


def cached_model(name: str, folder: Path, *, seed: int = 0, type: str = "Q4_0") -> Path:
    """The model of a shape in SHAPES, from the folder when it is there, else written into it.

    The file's name carries a fingerprint of all that decides its contents.
    Raises DeltamemError for an unknown name, too little space or a folder that cannot be written.
    """
    if name not in SHAPES:
        known = ", ".join(SHAPES)
        raise DeltamemError(f"there is no synthetic model called {name}; choose one of: {known}")
    arch, shape = SHAPES[name]
    needed = data_nbytes(arch, shape, type)
    path = folder / f"synthetic-{name}-{type}-{_fingerprint(arch, shape, seed, type)}.gguf"
    # The rename at the end of writing makes a file complete; its size tells of copies that were cut short since.
    if path.is_file() and path.stat().st_size >= needed:
        return path
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _remove_stale_parts(folder)
        free = shutil.disk_usage(folder).free
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise DeltamemError(
            f"the folder {folder} for synthetic models cannot be used ({reason}); choose another folder"
        ) from None
    if free < needed + _HEADER_ROOM:
        raise DeltamemError(
            f"the synthetic model {name} needs {needed / 1e9:.1f} GB in {folder}, which has {free / 1e9:.1f} GB free; "
            "free some space or choose another folder"
        )
    return write_model(path, arch, shape, seed=seed, type=type)


def _fingerprint(arch: str, shape: Shape, seed: int, type: str) -> str:
    description = ARCHITECTURES[arch]
    plan = (_VERSION, arch, astuple(shape), seed, type, description.tensors(shape), description.metadata(shape))
    return hashlib.sha256(repr(plan).encode()).hexdigest()[:12]


def data_nbytes(arch: str, shape: Shape, type: str) -> int:
    """How many bytes the tensors of such a model take in its file."""
    from deltamem_cli.synthetic import weights

    tensors = ARCHITECTURES[arch].tensors(shape).values()
    return sum(weights.stored_nbytes(sizes, weights.storable_type(sizes, type)) for sizes in tensors)


def _remove_stale_parts(folder: Path) -> None:
    """A process that was killed while writing leaves gigabytes; a running one has written in the last hour."""
    for part in folder.glob("synthetic-*.part"):
        if time.time() - part.stat().st_mtime > _STALE_SECONDS:
            part.unlink(missing_ok=True)


def _write(path: Path, arch: str, shape: Shape, seed: int, type: str) -> None:
    """Writes tensor by tensor, so that memory holds only one of them."""
    import gguf
    import numpy as np

    from deltamem_cli.synthetic import weights

    description = ARCHITECTURES[arch]
    tensors = {name: (sizes, weights.storable_type(sizes, type)) for name, sizes in description.tensors(shape).items()}
    writer = gguf.GGUFWriter(path, arch)
    writer.add_type("model")
    # Not the architecture's name: llama.cpp gives tokens other properties when "phi3" stands in a model's name.
    writer.add_name("synthetic")
    writer.add_file_type(weights.file_type_number(type))
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    for key, value in description.metadata(shape).items():
        _add_key(writer, f"{arch}.{key}", value)
    _add_tokenizer(writer, description.tokenizer, shape.n_vocab)
    for name, (sizes, stored) in tensors.items():
        writer.add_tensor_info(
            name,
            weights.stored_shape(sizes, stored),
            np.dtype(np.uint8 if stored.startswith("Q") else np.float32),
            weights.stored_nbytes(sizes, stored),
            raw_dtype=gguf.GGMLQuantizationType(weights.type_number(stored)),
        )
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for name, (sizes, stored) in tensors.items():
            # Seeded by name, so that a tensor's numbers do not hang on those drawn before it.
            rng = np.random.Generator(np.random.SFC64([seed, zlib.crc32(name.encode())]))
            mean, std = _distribution(name, sizes)
            writer.write_tensor_data(weights.draw(rng, sizes, stored, std=std, mean=mean))
        writer.flush()
        assert writer.fout is not None
        os.fsync(writer.fout[0].fileno())
    finally:
        writer.close()


def _distribution(name: str, sizes: tuple[int, ...]) -> tuple[float, float]:
    """Mean and deviation that keep activations near 1 through any number of layers."""
    if name.endswith(".bias"):
        return 0.0, 0.1
    if len(sizes) == 1:
        return 1.0, 0.1
    # Twice the usual for the two ends, so that logits are spread over several units and a change in them shows.
    return 0.0, (2.0 if name in ("token_embd.weight", "output.weight") else 1.0) / math.sqrt(sizes[-1])


def _add_key(writer: Any, key: str, value: Key) -> None:
    # bool before int, because a bool is an int.
    add = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
    add[value.__class__](key, value)


def _add_tokenizer(writer: Any, kind: str, n_vocab: int) -> None:
    from deltamem_cli.synthetic.vocabulary import CHAT_TEMPLATE, vocabulary

    words = vocabulary(kind, n_vocab)
    writer.add_tokenizer_model(words.model)
    if words.merges:
        writer.add_tokenizer_pre("qwen2")
        writer.add_token_merges(words.merges)
    else:
        writer.add_token_scores(words.scores)
        writer.add_add_space_prefix(words.add_space)
    writer.add_token_list(words.tokens)
    writer.add_token_types(words.types)
    writer.add_bos_token_id(words.bos)
    writer.add_eos_token_id(words.eos)
    writer.add_eot_token_id(words.end_of_turn)
    writer.add_add_bos_token(words.add_bos)
    writer.add_chat_template(CHAT_TEMPLATE)
