"""Which tensors and keys a GGUF of each architecture holds; knows nothing of numbers or of files.

The names, shapes and keys are what the architecture's loader in llama.cpp (src/models) asks for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

Key = float | bool | str  # a float stands for int as well
Tensors = dict[str, tuple[str, ...]]


@dataclass(frozen=True)
class Shape:
    """The sizes of a model; the defaults are those of the tiny test models."""

    n_layer: int = 4
    n_embd: int = 64
    n_head: int = 4
    n_head_kv: int = 2
    head_dim: int = 16
    n_ff: int = 128
    n_vocab: int = 288
    n_ctx: int = 512
    n_expert: int = 4  # read by mixtures of experts only, as is the next
    n_expert_used: int = 2
    n_swa: int = 8  # tokens that a sliding window sees; read by architectures that have one
    tied: bool = False  # the embedding is the output matrix, too

    def size(self, symbol: str) -> int:
        """What a symbol of the tables below stands for."""
        q, kv = self.n_head * self.head_dim, self.n_head_kv * self.head_dim
        sizes = {"d": self.n_embd, "q": q, "kv": kv, "qkv": q + 2 * kv, "h": self.head_dim, "v": self.n_vocab}
        return (sizes | {"f": self.n_ff, "2f": 2 * self.n_ff, "e": self.n_expert})[symbol]


@dataclass(frozen=True)
class Architecture:
    """One architecture as llama.cpp names it.

    layer: tensors of a layer, name to symbols of its numpy shape (outputs first), without "blk.N."
    keys: metadata beyond what every model has, without the architecture's prefix
    tokenizer: "bpe", "spm" (text gets a leading space) or "spm-plain" (it does not)
    square: the loader wants n_head * head_dim = n_embd
    always_tied: the loader knows no separate output matrix
    layer_norm: normalises with LayerNorm and biases instead of RMS norm
    """

    layer: Tensors
    keys: Callable[[Shape], Mapping[str, Key]] = lambda shape: {}
    tokenizer: str = "bpe"
    square: bool = False
    always_tied: bool = False
    layer_norm: bool = False

    def tensors(self, shape: Shape) -> dict[str, tuple[int, ...]]:
        """Every tensor of a model: name to numpy shape (the reverse of GGUF's), in file order."""
        symbols: Tensors = {"token_embd.weight": ("v", "d")}
        for n in range(shape.n_layer):
            symbols |= {f"blk.{n}.{name}": sizes for name, sizes in self.layer.items()}
        symbols["output_norm.weight"] = ("d",)
        if self.layer_norm:
            symbols["output_norm.bias"] = ("d",)
        if not (shape.tied or self.always_tied):
            symbols["output.weight"] = ("v", "d")
        return {name: tuple(shape.size(symbol) for symbol in sizes) for name, sizes in symbols.items()}

    def metadata(self, shape: Shape) -> dict[str, Key]:
        """Every key of a model, without the architecture's prefix."""
        epsilon = "layer_norm_epsilon" if self.layer_norm else "layer_norm_rms_epsilon"
        common: dict[str, Key] = {
            "block_count": shape.n_layer,
            "context_length": shape.n_ctx,
            "embedding_length": shape.n_embd,
            "feed_forward_length": shape.n_ff,
            "attention.head_count": shape.n_head,
            "attention.head_count_kv": shape.n_head_kv,
            "attention.key_length": shape.head_dim,
            "attention.value_length": shape.head_dim,
            f"attention.{epsilon}": 1e-6,
            "rope.dimension_count": shape.head_dim,
            "rope.freq_base": 10000.0,
            "vocab_size": shape.n_vocab,
        }
        return common | dict(self.keys(shape))


_NORM: Tensors = {"attn_norm.weight": ("d",), "ffn_norm.weight": ("d",)}
_POST_NORM: Tensors = {"post_attention_norm.weight": ("d",), "post_ffw_norm.weight": ("d",)}
_QKV: Tensors = {"attn_q.weight": ("q", "d"), "attn_k.weight": ("kv", "d"), "attn_v.weight": ("kv", "d")}
_QKV_BIAS: Tensors = {"attn_q.bias": ("q",), "attn_k.bias": ("kv",), "attn_v.bias": ("kv",)}
_QK_NORM: Tensors = {"attn_q_norm.weight": ("h",), "attn_k_norm.weight": ("h",)}
_WIDE_QK_NORM: Tensors = {"attn_q_norm.weight": ("q",), "attn_k_norm.weight": ("kv",)}
_OUT: Tensors = {"attn_output.weight": ("d", "q")}
_FFN: Tensors = {"ffn_gate.weight": ("f", "d"), "ffn_up.weight": ("f", "d"), "ffn_down.weight": ("d", "f")}
_EXPERTS: Tensors = {
    "ffn_gate_inp.weight": ("e", "d"),
    "ffn_gate_exps.weight": ("e", "f", "d"),
    "ffn_up_exps.weight": ("e", "f", "d"),
    "ffn_down_exps.weight": ("e", "d", "f"),
}
_FUSED_QKV: Tensors = {"attn_qkv.weight": ("qkv", "d")}
_PLAIN_FFN: Tensors = {"ffn_up.weight": ("f", "d"), "ffn_down.weight": ("d", "f")}
_LLAMA: Tensors = _NORM | _QKV | _OUT | _FFN


def _with_biases(weights: Tensors) -> Tensors:
    return weights | {name.replace("weight", "bias"): sizes[:1] for name, sizes in weights.items()}


def _sliding(shape: Shape) -> dict[str, Key]:
    # Every second layer slides, so that two layers already hold one of each kind.
    return {"attention.sliding_window": shape.n_swa, "attention.sliding_window_pattern": 2}


def _experts(shape: Shape) -> dict[str, Key]:
    return {
        "expert_count": shape.n_expert,
        "expert_used_count": shape.n_expert_used,
        "expert_feed_forward_length": shape.n_ff,
    }


ARCHITECTURES: Mapping[str, Architecture] = {
    "llama": Architecture(_LLAMA),
    "smollm3": Architecture(_LLAMA),  # llama.cpp leaves RoPE out of every fourth layer, by itself
    "qwen2": Architecture(_LLAMA | _QKV_BIAS, square=True),
    "qwen3": Architecture(_LLAMA | _QK_NORM),
    "qwen3moe": Architecture(_NORM | _QKV | _QK_NORM | _OUT | _EXPERTS, keys=_experts),
    "gemma2": Architecture(_LLAMA | _POST_NORM, keys=_sliding, tokenizer="spm-plain", always_tied=True),
    "gemma3": Architecture(_LLAMA | _QK_NORM | _POST_NORM, keys=_sliding, tokenizer="spm-plain"),
    # No norm before attention: what a layer reads is the residual stream itself.
    "olmo2": Architecture(_QKV | _WIDE_QK_NORM | _OUT | _FFN | _POST_NORM, square=True),
    "phi3": Architecture(
        _NORM | _FUSED_QKV | _OUT | _PLAIN_FFN | {"ffn_up.weight": ("2f", "d")},
        tokenizer="spm",
        square=True,
    ),
    # Attention and feed-forward side by side, one fused qkv with its bias, half of each head without RoPE.
    "gptneox": Architecture(
        _with_biases(_NORM | _FUSED_QKV | _OUT | _PLAIN_FFN),
        keys=lambda shape: {"use_parallel_residual": True, "rope.dimension_count": shape.head_dim // 2},
        square=True,
        layer_norm=True,
    ),
}

# Shapes of well-known models, name to (architecture, sizes).
SHAPES: Mapping[str, tuple[str, Shape]] = {
    "qwen3-4b": (
        "qwen3",
        Shape(
            n_layer=36,
            n_embd=2560,
            n_head=32,
            n_head_kv=8,
            head_dim=128,
            n_ff=9728,
            n_vocab=151936,
            n_ctx=40960,
            tied=True,
        ),
    ),
}
