"""What a model's file says of itself: kind, sizes, quantisation, template. Reads headers, no weights."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deltamem_cli.adapter.parts import PART
from deltamem_cli.adapter.parts import parts as named_parts
from deltamem_cli.formats.head_widths import head_widths
from deltamem_cli.models.errors import ModelError

_CACHE_BYTES = 2  # of one number in an f16 KV cache


@dataclass(frozen=True)
class Facts:
    """Zero or None: the file does not say."""

    name: str | None = None
    architecture: str = ""
    parameters: int = 0
    quantization: str = ""
    context_length: int = 0
    embedding_length: int = 0
    layers: int = 0
    cache_bytes: int = 0  # of one token in an f16 KV cache
    license: str | None = None


def parts(path: Path) -> list[Path]:
    """The files of a model that may be split, from any one of them. Raises ModelError when one is missing."""
    files = named_parts(path)
    for file in files:
        if not file.is_file() and len(files) > 1:
            raise ModelError(
                f"{path} is one of {len(files)} parts and {file.name} is missing: put all of them in one folder."
            )
    return files


def stem(file: str) -> str:
    """A model's file name without what marks it as one file or as one of several."""
    name = file.rpartition("/")[2]
    match = PART.search(name)
    return name[: match.start()] if match else re.sub(r"\.gguf$", "", name, flags=re.IGNORECASE)


def read_facts(files: Sequence[Path]) -> Facts:
    """What a model says of itself; `files` are all its parts in order. Raises DeltamemError for what is no model."""
    from deltamem_cli.formats.errors import shown
    from deltamem_cli.formats.gguf_header import read_header

    headers = [read_header(file) for file in files]
    first = headers[0]
    kind = first.get("general.type", "model")
    architecture = first.get("general.architecture")
    if kind != "model" or not isinstance(architecture, str):
        raise ModelError(f"{files[0]} is a GGUF file of the kind {shown(kind)}, not a model: give the model's file.")

    def number(key: str, default: int = 0) -> int:
        value = first.get(f"{architecture}.{key}")
        return value if isinstance(value, int) else default

    def text(key: str) -> str | None:
        value = first.get(key)
        return value if isinstance(value, str) and value else None

    tensors = [place for header in headers for place in header.tensors.values()]
    return Facts(
        name=text("general.name"),
        architecture=architecture,
        parameters=sum(_product(place.shape) for place in tensors),
        quantization=_quantization(first.get("general.file_type"), [(t.type, _product(t.shape)) for t in tensors]),
        context_length=number("context_length"),
        embedding_length=number("embedding_length"),
        layers=number("block_count"),
        cache_bytes=_cache_bytes(first.get(f"{architecture}.attention.head_count_kv"), number),
        license=text("general.license"),
    )


def chat_template(path: Path) -> str | None:
    """The template that a model's file carries."""
    from deltamem_cli.formats.gguf_header import read_header

    template = read_header(path).get("tokenizer.chat_template")
    return template if isinstance(template, str) and template else None


def _cache_bytes(heads_kv: Any, number: Any) -> int:
    widths = sum(head_widths(number))
    if isinstance(heads_kv, list):  # one for each layer
        return sum(count for count in heads_kv if isinstance(count, int)) * widths * _CACHE_BYTES
    return number("block_count") * (heads_kv if isinstance(heads_kv, int) else 0) * widths * _CACHE_BYTES


def _quantization(file_type: Any, tensors: Sequence[tuple[int, int]]) -> str:
    """The name of the mixture that the file says it is, else of the type that most weights have."""
    from gguf import GGMLQuantizationType, LlamaFileType

    try:
        return LlamaFileType(file_type).name.removeprefix("MOSTLY_").removeprefix("ALL_")
    except ValueError:
        weights: Counter[int] = Counter()
        for type, count in tensors:
            weights[type] += count
    try:
        return GGMLQuantizationType(weights.most_common(1)[0][0]).name
    except (ValueError, IndexError):
        return "unknown"


def _product(shape: Sequence[int]) -> int:
    result = 1
    for extent in shape:
        result *= extent
    return result
