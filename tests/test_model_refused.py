"""Models that can't chat are refused when they are loaded, in a sentence; none hangs or ends the process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import odd_models
import pytest

from deltamem_cli.engine import Engine, EngineError, EngineOptions, Model, Seat

REFUSED: dict[str, tuple[Callable[[Path], Path], str]] = {
    "encoder-decoder": (odd_models.encoder_and_decoder, "read a whole text before"),
    "diffusion": (lambda path: odd_models.llama(path, "llada", attention__causal=False), "write a whole text at once"),
    "embeddings": (lambda path: odd_models.llama(path, attention__causal=False), "reads text in both directions"),
    "no vocabulary": (lambda path: odd_models.llama(path, vocabulary=odd_models.no_vocabulary), "has no vocabulary"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_model_that_cannot_chat_is_refused_when_it_is_loaded(kind: str, tmp_path: Path) -> None:
    make, words = REFUSED[kind]
    with pytest.raises(EngineError, match=f"odd.gguf can't chat: .*{words}.*see: dmem model list"):
        Model(make(tmp_path / "odd.gguf")).check_speaks()


def test_a_model_that_keeps_nothing_of_what_it_has_read_gets_no_context(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Model(odd_models.llama(tmp_path / "odd.gguf")) as model:
        monkeypatch.setattr(model.native.llama, "llama_get_memory", lambda context: None)
        with pytest.raises(EngineError, match="keep no memory of what they read"):
            Engine(model, None, EngineOptions(ctx_size=256, threads=1))


def test_feeding_a_model_that_keeps_nothing_is_an_error_and_no_endless_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (
        Model(odd_models.llama(tmp_path / "odd.gguf")) as model,
        Engine(model, None, EngineOptions(ctx_size=256, threads=1)) as engine,
    ):
        monkeypatch.setattr(model.native.llama, "llama_memory_seq_pos_max", lambda memory, sequence: -1)
        with pytest.raises(EngineError, match="does not keep what it reads"):
            Seat(engine).feed([1, 2, 3])
