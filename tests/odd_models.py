"""Tiny random models of the kinds that no chat is made of, or that keep no positions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from deltamem_cli.synthetic.model import _add_tokenizer

N_EMBD, N_VOCAB = 64, 288
Vocabulary = Callable[[Any], None]


def chat_vocabulary(writer: Any) -> None:
    _add_tokenizer(writer, "bpe", N_VOCAB)


def split_by_regex(writer: Any) -> None:
    """Words as Mistral's newer models have them, which llama.cpp finds with std::regex."""
    chat_vocabulary(writer)
    writer.kv_data[0].pop("tokenizer.ggml.pre")
    writer.add_tokenizer_pre("tekken")


def numbers_by_threes(writer: Any) -> None:
    """Numbers cut from behind, for which llama.cpp looks, for each digit, at all that follow it."""
    chat_vocabulary(writer)
    writer.kv_data[0].pop("tokenizer.ggml.pre")
    writer.add_tokenizer_pre("superbpe")


def no_vocabulary(writer: Any) -> None:
    writer.add_tokenizer_model("none")
    writer.add_vocab_size(N_VOCAB)


def vocabulary_without_bytes(writer: Any) -> None:
    """SentencePiece's, which spells letters that it does not know as bytes, and has none."""
    writer.add_tokenizer_model("llama")
    writer.add_token_list([f"t{i}" for i in range(N_VOCAB)])
    writer.add_token_scores([0.0] * N_VOCAB)
    writer.add_token_types([1] * N_VOCAB)


def llama(path: Path, arch: str = "llama", vocabulary: Vocabulary = chat_vocabulary, **keys: Any) -> Path:
    """keys: metadata in place of what such a model says, without the architecture's prefix; dots as __."""
    shape = {"attention__head_count": 4, "attention__layer_norm_rms_epsilon": 1e-6, "rope__dimension_count": 16}
    weights = {"token_embd": (N_VOCAB, N_EMBD), "output_norm": (N_EMBD,), "output": (N_VOCAB, N_EMBD)}
    layer = {name: (N_EMBD, N_EMBD) for name in ("attn_q", "attn_k", "attn_v", "attn_output")}
    layer |= {"attn_norm": (N_EMBD,), "ffn_norm": (N_EMBD,)}
    layer |= {"ffn_gate": (128, N_EMBD), "ffn_up": (128, N_EMBD), "ffn_down": (N_EMBD, 128)}
    return _write(
        path, arch, {**shape, **keys}, weights | {f"blk.0.{name}": size for name, size in layer.items()}, vocabulary
    )


def encoder_and_decoder(path: Path) -> Path:
    keys = {
        "attention__head_count": 4,
        "attention__key_length": 16,
        "attention__value_length": 16,
        "attention__layer_norm_rms_epsilon": 1e-6,
        "attention__layer_norm_epsilon": 1e-6,
        "attention__relative_buckets_count": 32,
        "decoder_start_token_id": 0,
    }
    weights = {"token_embd": (N_VOCAB, N_EMBD), "output": (N_VOCAB, N_EMBD)}
    for side in ("enc", "dec"):
        weights[f"{side}.output_norm"] = (N_EMBD,)
        kinds = ["attn", "cross_attn"] if side == "dec" else ["attn"]
        for kind in kinds:
            weights |= {f"{side}.blk.0.{kind}_{name}": (N_EMBD, N_EMBD) for name in "qkvo"}
            weights |= {f"{side}.blk.0.{kind}_rel_b": (32, 4), f"{side}.blk.0.{kind}_norm": (N_EMBD,)}
        weights |= {f"{side}.blk.0.ffn_norm": (N_EMBD,), f"{side}.blk.0.ffn_up": (128, N_EMBD)}
        weights |= {f"{side}.blk.0.ffn_down": (N_EMBD, 128)}
    return _write(path, "t5", keys, weights, chat_vocabulary)


def recurrent(path: Path) -> Path:
    inner, state, step, kernel = 128, 16, 4, 4
    keys = {
        "attention__head_count": 0,
        "attention__layer_norm_rms_epsilon": 1e-5,
        "feed_forward_length": 0,
        "ssm__conv_kernel": kernel,
        "ssm__inner_size": inner,
        "ssm__state_size": state,
        "ssm__time_step_rank": step,
    }
    layer = {
        "attn_norm": (N_EMBD,),
        "ssm_in": (2 * inner, N_EMBD),
        "ssm_conv1d": (inner, kernel),
        "ssm_x": (step + 2 * state, inner),
        "ssm_dt": (inner, step),
        "ssm_out": (N_EMBD, inner),
        "ssm_conv1d.bias": (inner,),
        "ssm_dt.bias": (inner,),
        "ssm_a.": (inner, state),
        "ssm_d.": (inner,),
    }
    weights = {"token_embd": (N_VOCAB, N_EMBD), "output_norm": (N_EMBD,)}
    return _write(
        path, "mamba", keys, weights | {f"blk.0.{name}": size for name, size in layer.items()}, chat_vocabulary
    )


def _write(path: Path, arch: str, keys: dict[str, Any], weights: dict[str, tuple[int, ...]], words: Vocabulary) -> Path:
    writer = gguf.GGUFWriter(path, arch)
    writer.add_type("model")
    usual = {"block_count": 1, "context_length": 512, "embedding_length": N_EMBD, "feed_forward_length": 128}
    add = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32}
    for name, value in (usual | keys).items():
        add[type(value)](f"{arch}.{name.replace('__', '.')}", value)
    words(writer)
    rng = np.random.default_rng(0)
    for name, shape in weights.items():
        data = rng.standard_normal(shape) * 0.1
        if name.endswith("norm"):
            data = np.ones(shape)
        elif "ssm_a" in name:
            data = -np.ones(shape)  # it decays
        full = name.rstrip(".") if name.endswith((".", ".bias")) else f"{name}.weight"
        writer.add_tensor(full, data.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
