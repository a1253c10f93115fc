"""A context that the machine has no memory for is refused: nothing is ended, and nothing else pushed out."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import LoadModel, MakeModel

from deltamem_cli.engine import Engine, EngineError, EngineOptions, Model, Seat, context, room

resource = pytest.importorskip("resource")

LITTLE = 300 * 2**20


@pytest.fixture
def model(tiny_model: MakeModel, loaded: LoadModel) -> Model:
    found: Model = loaded(tiny_model("qwen3"))
    return found


@pytest.fixture(autouse=True)
def little(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (room, context):
        monkeypatch.setattr(module, "available", lambda: LITTLE)


@pytest.mark.parametrize("size", [2**21, 2**26, 2**31 - 1])
def test_a_context_beyond_the_memory_is_refused(model: Model, size: int) -> None:
    """2**21 tokens of this model take 512 MB of keys and values, which llama.cpp asks for; more is refused before."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    with pytest.raises(EngineError, match=f"A context of {size} tokens can't be created .*smaller --ctx-size") as error:
        Engine(model, None, EngineOptions(ctx_size=size, threads=1))
    assert "\n" not in str(error.value)
    assert resource.getrlimit(resource.RLIMIT_AS) == before
    with Engine(model, None, EngineOptions(ctx_size=256, threads=1)) as engine:
        Seat(engine).feed([1, 2, 3])


@pytest.mark.parametrize("size", [2**26, 2**31 - 1, 2**31, 2**32 - 1])
def test_so_is_one_that_the_file_names(tiny_model: MakeModel, tmp_path: Path, size: int) -> None:
    data = bytearray(tiny_model("qwen3").read_bytes())
    at = data.index(b"qwen3.context_length") + len("qwen3.context_length") + 4
    data[at : at + 4] = size.to_bytes(4, "little")
    (tmp_path / "m.gguf").write_bytes(data)
    with Model(tmp_path / "m.gguf") as model:
        with pytest.raises(EngineError, match="--ctx-size") as error:
            Engine(model, None, EngineOptions(ctx_size=0, threads=1))
        assert "\n" not in str(error.value)
        Engine(model, None, EngineOptions(threads=1)).close()


def test_what_is_available_is_told_by_the_system(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(room, "_MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(room, "_GROUP", tmp_path)
    assert room.available() is None
    with room.bounded():
        pass
    (tmp_path / "meminfo").write_text("MemTotal: 9999 kB\nMemAvailable:    1000 kB\n")
    assert room.available() == 921_600
    (tmp_path / "memory.current").write_text("300000\n")
    (tmp_path / "memory.max").write_text("max\n")
    assert room.available() == 921_600
    (tmp_path / "memory.max").write_text("800000\n")
    assert room.available() == 450_000
