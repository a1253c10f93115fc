"""A small tokenizer that can write any text, as GGUF metadata; knows nothing of models.

Both kinds hold a token for every byte and a few longer pieces, so that merging is exercised as well.
"""

from __future__ import annotations

from dataclasses import dataclass

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

_PAIRS = ("t h", "th e", "i n", "a n", "e r", "o n", "r e", "o u", "y ou", "in g", "an d", "o r", "h e")

# Token types of GGUF.
_NORMAL, _UNKNOWN, _CONTROL, _UNUSED, _BYTE = 1, 2, 3, 5, 6


@dataclass(frozen=True)
class Vocabulary:
    """A vocabulary in GGUF's terms; merges only for byte-level BPE, scores only for SentencePiece."""

    model: str
    tokens: list[str]
    types: list[int]
    bos: int
    eos: int
    end_of_turn: int
    add_bos: bool
    add_space: bool
    merges: list[str]
    scores: list[float]


def vocabulary(kind: str, n_vocab: int) -> Vocabulary:
    """The tokenizer of a kind ("bpe", "spm", "spm-plain"), filled up to n_vocab with unused tokens."""
    pieces = [pair.replace(" ", "") for pair in _PAIRS]
    if kind == "bpe":
        words = [(_byte_letter(byte), _NORMAL) for byte in range(256)]
        words += [(piece, _NORMAL) for piece in pieces]
        words += [("<|endoftext|>", _CONTROL), ("<|im_start|>", _CONTROL), ("<|im_end|>", _CONTROL)]
        bos, eos = "<|endoftext|>", "<|im_end|>"
    else:
        words = [("<unk>", _UNKNOWN), ("<s>", _CONTROL), ("</s>", _CONTROL)]
        words += [(f"<0x{byte:02X}>", _BYTE) for byte in range(256)]
        # U+2581 is how SentencePiece writes a space.
        words += [("\u2581", _NORMAL), *((piece, _NORMAL) for piece in pieces)]
        words += [("<|im_start|>", _CONTROL), ("<|im_end|>", _CONTROL)]
        bos, eos = "<s>", "</s>"
    if n_vocab < len(words):
        raise ValueError(f"the {kind} tokenizer has {len(words)} tokens, more than n_vocab = {n_vocab}")
    words += [(f"[PAD{n}]", _UNUSED) for n in range(len(words), n_vocab)]
    tokens = [text for text, _ in words]
    return Vocabulary(
        model="gpt2" if kind == "bpe" else "llama",
        tokens=tokens,
        types=[type for _, type in words],
        bos=tokens.index(bos),
        eos=tokens.index(eos),
        end_of_turn=tokens.index("<|im_end|>"),
        add_bos=kind != "bpe",
        add_space=kind == "spm",
        merges=list(_PAIRS) if kind == "bpe" else [],
        scores=[] if kind == "bpe" else [-float(n) for n in range(n_vocab)],
    )


def _byte_letter(byte: int) -> str:
    """The letter that stands for a byte in byte-level BPE: itself when printable, else one from 256 upwards."""
    if _is_printable(byte):
        return chr(byte)
    return chr(256 + sum(not _is_printable(earlier) for earlier in range(byte)))


def _is_printable(byte: int) -> bool:
    return 0x21 <= byte <= 0x7E or (0xA1 <= byte <= 0xFF and byte != 0xAD)
