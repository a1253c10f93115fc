"""Files may hold what steers a terminal: names, templates, errors. None of it arrives there."""

from __future__ import annotations

from pathlib import Path

import pytest
from chat_support import Dmem, Terminal, dmem

TITLE = "\x1b]0;x\x07"  # would name the window


def _with(source: Path, target: Path, old: str, new: str) -> Path:
    """A copy in which the one string `old`, length and all, has become `new`."""

    def stored(text: str) -> bytes:
        return len(text.encode()).to_bytes(8, "little") + text.encode()

    data = source.read_bytes()
    assert data.count(stored(old)) == 1 and len(stored(old)) == len(stored(new))
    target.write_bytes(data.replace(stored(old), stored(new)))
    return target


def _as_long(text: str, length: int) -> str:
    return text + "n" * (length - len(text.encode()))


@pytest.fixture
def source(tiny: Dmem) -> Path:
    return Path(tiny.model[1])


def _metadata(path: Path, key: str) -> str:
    from gguf import GGUFReader

    return str(GGUFReader(path).get_field(key).contents())


def test_names_of_models_and_adapters(tiny: Dmem, source: Path, tmp_path: Path) -> None:
    name = _metadata(source, "general.name")
    model = _with(source, tmp_path / f"m{TITLE}.gguf", name, _as_long(TITLE, len(name)))
    adapter = tmp_path / f"a{TITLE}.gguf"
    adapter.write_bytes(Path(tiny.adapter[1]).read_bytes())
    tiny.model, tiny.adapter = ["-m", str(model)], ["--adapter", str(adapter)]
    with tiny.terminal() as chat:
        for line, answer in {
            "/show": "hardware",
            "/model": "with",
            "Hello.": ">>> Hello",
            "/stats": "tokens",
        }.items():
            chat.line(line)
            chat.expect(answer)
        chat.line("/exit")
        assert chat.wait() == 0
        assert TITLE not in chat.shown
    for command in (["memory", "inspect"], ["log", "show"], ["model", "show", str(model)], ["memory", "forget", "1"]):
        with Terminal(dmem(*command), tiny.env) as terminal:
            if command[1] == "forget":
                terminal.expect("y/N")
                terminal.send("n\r")
            terminal.wait()
            assert TITLE not in terminal.shown


@pytest.mark.parametrize("key", ["general.architecture", "tokenizer.chat_template"])
def test_what_is_wrong_with_a_file(tiny: Dmem, source: Path, tmp_path: Path, key: str) -> None:
    old = _metadata(source, key)
    new = TITLE[: len(old)]
    if key == "tokenizer.chat_template":
        new = "{{ raise_exception('" + TITLE + "') }}"
    model = _with(source, tmp_path / "m.gguf", old, _as_long(new, len(old.encode())))
    tiny.model, tiny.adapter = ["-m", str(model)], ["--no-memory"]
    for argv in (tiny.chat_arguments(), tiny.chat_arguments("--debug"), tiny.chat_arguments("Hello.")):
        with Terminal(argv, tiny.env) as terminal:
            assert terminal.wait() == 1
            assert "m.gguf" in terminal.shown
            assert TITLE[:4] not in terminal.shown
            assert ("llama_model_loader: " in terminal.shown) == ("--debug" in argv)
            if key == "general.architecture":
                assert "unknown model architecture" in terminal.shown
