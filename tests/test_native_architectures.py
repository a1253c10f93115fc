"""Every architecture that llama.cpp's common builders serve: corrected, remembered, and untouched where it must be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import LoadModel, MakeAdapter, MakeModel
from raw_context import FLASH_AUTO, RawContext, rows

from deltamem_cli.bindings import COMPUTE
from deltamem_cli.synthetic import ARCHITECTURES

LOGITS, STATE = 1e-4, 1e-5
TOKENS = [int(token) for token in np.random.default_rng(11).integers(3, 258, 29)]


@pytest.fixture(scope="module", params=ARCHITECTURES)
def path(request: pytest.FixtureRequest, tiny_model: MakeModel) -> Path:
    return tiny_model(request.param, n_layer=4)  # smollm3 leaves RoPE out of every fourth


@pytest.fixture(scope="module")
def model(path: Path, loaded: LoadModel) -> Any:
    return loaded(path)


@pytest.fixture
def adapter(path: Path, tiny_adapter: MakeAdapter) -> Path:
    return tiny_adapter(path, delta_heads=("q", "k", "v", "o"))


@pytest.mark.parametrize("compute", COMPUTE[1:])
def test_an_adapter_changes_the_logits_and_moves_every_layers_state(model: Any, adapter: Path, compute: str) -> None:
    with RawContext(model) as context:
        plain = context.decode(rows(TOKENS))
    with RawContext(model, adapter, compute=compute) as context:
        corrected = context.decode(rows(TOKENS))
        state = context.state()
    assert np.isfinite(corrected).all()
    assert np.abs(corrected - plain).max() > 0.05
    np.testing.assert_allclose(corrected[0], plain[0], rtol=0, atol=LOGITS)  # the zero state reads nothing
    assert (np.abs(state).max(axis=(1, 2, 3)) > 0.01).all()


@pytest.mark.parametrize("head", ["q", "k", "v", "o"])
def test_each_head_alone_changes_the_logits(path: Path, model: Any, tiny_adapter: MakeAdapter, head: str) -> None:
    with RawContext(model) as context:
        plain = context.decode(rows(TOKENS))
    for compute in COMPUTE[1:]:
        with RawContext(model, tiny_adapter(path, delta_heads=(head,)), compute=compute) as context:
            assert np.abs(context.decode(rows(TOKENS)) - plain).max() > 0.01


@pytest.mark.parametrize("compute", COMPUTE[1:])
def test_zero_corrections_give_the_plain_models_bits(
    path: Path, model: Any, tiny_adapter: MakeAdapter, compute: str
) -> None:
    zero = tiny_adapter(path, delta_heads=("q", "k", "v", "o"), zero_delta=True)
    for micro_batch in (1, 512):
        with RawContext(model, n_ubatch=micro_batch) as context:
            plain = context.decode(rows(TOKENS))
        with RawContext(model, zero, compute=compute, n_ubatch=micro_batch) as context:
            assert context.decode(rows(TOKENS)).tobytes() == plain.tobytes()
            assert np.abs(context.state()).max() > 0.01


def test_micro_batches_change_nothing(model: Any, adapter: Path) -> None:
    # ggml looks GELU up in a table of float16, so a last bit of its input may become 1e-3 of its output
    rough = 30 if model.architecture in ("gemma2", "gemma3", "gptneox") else 1
    results = []
    for micro_batch in (512, 1, 8):
        with RawContext(model, adapter, n_ubatch=micro_batch) as context:
            results.append((context.decode(rows(TOKENS)), context.state()))
    for logits, state in results[1:]:
        np.testing.assert_allclose(logits, results[0][0], rtol=0, atol=rough * LOGITS)
        np.testing.assert_allclose(state, results[0][1], rtol=0, atol=rough * STATE)


def test_reading_without_writing_uses_the_state_and_leaves_its_bits(model: Any, adapter: Path) -> None:
    with RawContext(model, adapter) as context:
        context.decode(rows(TOKENS))
        state = context.state()
        context.llama.llama_memory_clear(context.memory, True)
        context.call("set_write", False)
        read_only = context.decode(rows(TOKENS))
        assert context.state().tobytes() == state.tobytes()
    with RawContext(model) as context:
        assert np.abs(context.decode(rows(TOKENS)) - read_only).max() > 0.05


def test_logits_of_the_last_token_alone_are_those_of_all(model: Any, adapter: Path) -> None:
    """Models drop the rows that give no logits inside the last layer."""
    with RawContext(model, adapter) as context:
        everything, state = context.decode(rows(TOKENS)), context.state()
    with RawContext(model, adapter) as context:
        batch = context.llama.llama_batch_init(len(TOKENS), 0, 1)
        batch.n_tokens = len(TOKENS)
        for i, token in enumerate(TOKENS):
            batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = token, i, 1, i == len(TOKENS) - 1
            batch.seq_id[i][0] = 0
        assert context.llama.llama_decode(context.handle, batch) == 0
        context.llama.llama_batch_free(batch)
        last = np.ctypeslib.as_array(context.llama.llama_get_logits(context.handle), (model.n_vocab,))
        np.testing.assert_allclose(last, everything[-1], rtol=0, atol=LOGITS)
        np.testing.assert_allclose(context.state(), state, rtol=0, atol=STATE)


def test_the_default_cache_and_flash_attention_stay_near(model: Any, adapter: Path) -> None:
    with RawContext(model, adapter) as context:
        exact, state = context.decode(rows(TOKENS)), context.state()
    with RawContext(model, adapter, type_k=1, type_v=1, flash_attn_type=FLASH_AUTO) as context:
        np.testing.assert_allclose(context.decode(rows(TOKENS)), exact, rtol=0, atol=0.1)
        np.testing.assert_allclose(context.state(), state, rtol=0, atol=0.01)
