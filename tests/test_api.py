"""The package from Python: the README's example does what it says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

import deltamem_cli
from deltamem_cli import Chat, DeltamemError

README = Path(__file__).parents[1] / "README.md"


@pytest.fixture
def tiny_default(home: Path, tiny_model: Any, tiny_adapter: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    home.mkdir()
    path = tiny_model("qwen3")
    (home / "config.toml").write_text("threads = 1\nctx_size = 512\n[options]\nmax_tokens = 8\nseed = 1\n")
    monkeypatch.setenv("DMEM_MODEL", str(path))
    monkeypatch.setenv("DMEM_ADAPTER", str(tiny_adapter(path)))


def test_the_example_of_the_readme_runs(tiny_default: None, capsys: pytest.CaptureFixture[str]) -> None:
    example = re.search(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert example
    exec(example[1], {})  # noqa: S102
    assert capsys.readouterr().out.splitlines()[-1] == "(2, 1, 8, 8)"


def test_a_conversation_goes_on_where_the_last_one_ended(tiny_default: None) -> None:
    with Chat(profile="work") as chat:
        assert chat.state is not None and not chat.state.any()
        chat.remember("My dog is called Rex.")
        told = chat.state
    with Chat(profile="work") as chat:
        assert chat.state is not None and told is not None and chat.state.tobytes() == told.tobytes()
        chat.ask("What is my dog called?")
        assert chat.state.tobytes() != told.tobytes()
    with Chat() as chat:
        assert chat.state is not None and not chat.state.any()


def test_what_can_not_be_opened_is_an_error_of_the_package(home: Path) -> None:
    with pytest.raises(DeltamemError):
        Chat(model=home / "none.gguf")
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = deltamem_cli.Nothing
