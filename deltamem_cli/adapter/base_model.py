"""What an adapter must know of the base model: widths per layer and the row order of wq and wk; reads no weights."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deltamem_cli.adapter.limits import MAX_LAYERS
from deltamem_cli.formats.errors import AdapterError, shown
from deltamem_cli.formats.gguf_header import Header, read_header
from deltamem_cli.formats.head_widths import head_widths
from deltamem_cli.text import short

# Architectures whose llama.cpp converter reorders the rows of wq and wk (LlamaModel.permute in conversion/llama.py
# and its copies). Their checkpoints keep the two halves of a rotated pair half a head apart, as Transformers rotates
# them, and llama.cpp's RoPE for these architectures (LLAMA_ROPE_TYPE_NORM) rotates neighbours. A correction is added
# to what wq and wk put out, so the rows of Dq and Dk must move with theirs. Architectures of the same RoPE type that
# are missing here (command-r, cohere2, chatglm, ernie4_5, llama4, maincoder, ...) have checkpoints that rotate
# neighbours themselves; all others (qwen2, qwen3, gemma, phi3, ...) have RoPE of the NEOX type and are not reordered.
PERMUTED_ARCHITECTURES = frozenset(
    {
        "llama", "llama-embed", "smollm3", "arcee", "mistral3", "nanbeige", "granite", "granitemoe", "granitehybrid",
        "graniteswitch", "granite_swa", "internlm2", "minicpm", "deepseek", "bailingmoe", "olmo", "llada", "deci",
        "arctic", "chameleon", "muse-glimmer", "baichuan", "xverse",
    }
)  # fmt: skip

# For these two the converter divides where the others take the number of key-value heads.
_DIVIDED_KV_HEADS = frozenset({"baichuan", "xverse"})

# Architectures whose converter changes attention weights in a way that corrections cannot follow.
_UNSUPPORTED = {
    "falcon-h1": "its converter scales the attention weights",
    "plamo": "its converter shuffles the attention heads",
    "dflash": "it is a drafter that reads another model's hidden states",
    "eagle3": "it is a drafter that reads another model's hidden states",
}


@dataclass(frozen=True)
class AttentionLayer:
    """Output widths of one attention layer; a width is None where the layer has no such projection."""

    widths: dict[str, int | None]  # by head: q, k, v, o
    row_blocks: dict[str, int]  # q and k of permuted architectures: in how many blocks the converter reorders rows


@dataclass(frozen=True)
class BaseModel:
    """The shape of a base model; layers holds its attention layers only."""

    architecture: str
    name: str | None
    embedding_length: int
    block_count: int
    layers: dict[int, AttentionLayer]

    def matrix_rows(self, head: str, layer: int, matrix: NDArray[Any]) -> NDArray[Any]:
        """The rows of Dq, Dk, Dv or Do in the order in which this model's file has the rows of its weight."""
        blocks = self.layers[layer].row_blocks.get(head)
        if blocks is None:
            return matrix
        halves = matrix.reshape(blocks, 2, matrix.shape[0] // blocks // 2, *matrix.shape[1:])
        return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(matrix.shape))


def read_base_model(path: Path) -> BaseModel:
    """Reads the shape of a base model from its GGUF header (0.2 s for a vocabulary of 150,000 tokens).

    Raises AdapterError when the file is unsound, is not a model, or is one that adapters cannot be made for.
    """
    header = read_header(path)
    kind = header.get("general.type", "model")
    if kind != "model":
        raise AdapterError(f"{path} is a GGUF file of the kind {shown(kind)}, not a model; give the base model's file")
    architecture = header.get("general.architecture")
    if not isinstance(architecture, str) or not architecture or not architecture.isprintable():
        raise AdapterError(f"{path} does not name its architecture; give the base model's GGUF file")
    if architecture in _UNSUPPORTED:
        raise AdapterError(
            f"{path} has the architecture {short(architecture)}, for which adapters cannot be converted because "
            f"{_UNSUPPORTED[architecture]}; choose another base model"
        )
    reader = _Reader(header, architecture)
    block_count = reader.number("block_count")
    if block_count > MAX_LAYERS:
        raise AdapterError(f"{path} claims to have {block_count} layers; convert or download the model again")
    # The layers that predict further tokens are counted among the blocks but are no part of the published model.
    plain_blocks = block_count - reader.number("nextn_predict_layers", 0)
    layers = {layer: reader.attention(layer) for layer in range(plain_blocks) if reader.has_attention(layer)}
    name = header.get("general.name")
    return BaseModel(
        architecture, name if isinstance(name, str) else None, reader.number("embedding_length"), block_count, layers
    )


class _Reader:
    """Takes the shape out of a header: from the tensors where they are, else from the keys."""

    def __init__(self, header: Header, architecture: str) -> None:
        self.header = header
        self.architecture = architecture
        # The first file of a split model has all keys and only some of the tensors.
        self.is_split = header.get("split.count", 0) > 1

    def number(self, key: str, default: int | None = None, layer: int | None = None) -> int:
        value = self.header.get(f"{self.architecture}.{key}", default)
        if isinstance(value, list) and layer is not None:
            value = value[layer] if layer < len(value) else None
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 31:
            raise AdapterError(
                f"{self.header.path} has no usable {self.architecture}.{key}; convert or download the model again"
            )
        return value

    def rows(self, layer: int, name: str) -> int | None:
        place = self.header.tensors.get(f"blk.{layer}.{name}.weight")
        return place.shape[0] if place is not None and len(place.shape) == 2 else None

    def has_attention(self, layer: int) -> bool:
        if self.is_split:
            counts = ("attention.head_count", "attention.head_count_kv")
            return all(self.number(key, 1, layer=layer) > 0 for key in counts)
        # Of the layers with a linear recurrence some have an attn_qkv too, but none has attention's own output.
        return any(self.rows(layer, name) for name in ("attn_output", "attn_q", "attn_q_b"))

    def attention(self, layer: int) -> AttentionLayer:
        hidden = self.number("embedding_length")
        n_head = self.number("attention.head_count", layer=layer)
        n_head_kv = self.number("attention.head_count_kv", n_head, layer=layer)
        key_length, value_length = head_widths(partial(self.number, layer=layer))
        widths: dict[str, int | None] = {
            "q": n_head * key_length,
            "k": n_head_kv * key_length,
            "v": n_head_kv * value_length,
        }
        fused = self.rows(layer, "attn_qkv")
        if fused is not None and fused != sum(width or 0 for width in widths.values()):
            widths = dict.fromkeys(widths)
        if fused is None and not self.is_split:
            widths = {name: self.rows(layer, f"attn_{name}") for name in widths}
        blocks: dict[str, int] = {}
        if self.architecture in PERMUTED_ARCHITECTURES:
            is_divided = self.architecture in _DIVIDED_KV_HEADS and n_head_kv and n_head_kv != n_head
            blocks = {"q": n_head, "k": n_head // n_head_kv if is_divided else n_head_kv}
        for name, count in blocks.items():
            width = widths[name]
            if width is not None and (count == 0 or width % (2 * count)):
                raise AdapterError(
                    f"{self.header.path} has {width} rows in the {name} projection of layer {layer}, which {count} "
                    "heads cannot share; convert or download the model again"
                )
        return AttentionLayer({**widths, "o": hidden}, blocks)
