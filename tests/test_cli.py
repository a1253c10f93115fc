"""The command line around the commands: lean start, global options, errors to exit codes."""

from __future__ import annotations

import importlib
import io
import json
import re
import subprocess
import sys
import types
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import pytest
import typer

from deltamem_cli import cli
from deltamem_cli.bindings import Native
from deltamem_cli.errors import DeltamemError, UsageError

HEAVY = {
    *("numpy", "rich", "llama_cpp", "sqlite_utils", "gguf", "torch", "jinja2", "prompt_toolkit", "sqlite3"),
    *("tomlkit", "tomllib", "tomli", "huggingface_hub", "faker", "platformdirs", "click"),
}

Register = Callable[[Callable[..., None]], None]


@pytest.fixture
def register(monkeypatch: pytest.MonkeyPatch) -> Register:
    """Puts a function into the table of commands as `dmem probe`."""

    def add(function: Callable[..., None]) -> None:
        module = types.ModuleType("deltamem_cli.commands.probe")
        module.app = typer.Typer()  # type: ignore[attr-defined]
        module.app.command()(function)
        monkeypatch.setitem(sys.modules, module.__name__, module)
        monkeypatch.setattr(cli, "COMMANDS", [*cli.COMMANDS, ("probe", module.__name__, "A probe.")])

    return add


def imported_by(arguments: str) -> set[str]:
    code = f"import sys, deltamem_cli.cli as cli; {arguments}; print(*sorted(sys.modules), file=sys.stderr)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return set(result.stderr.split())


@pytest.mark.parametrize("arguments", ["pass", "cli.main(['--version'])", "cli.main(['--help'])"])
def test_start_imports_nothing_heavy_and_no_command(arguments: str) -> None:
    modules = imported_by(arguments)
    assert not modules & HEAVY
    assert not {name for name in modules if name.startswith("deltamem_cli.commands.")}


def test_version_is_the_distribution_s(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out.splitlines()[0] == f"dmem {version('deltamem-cli')}"


def test_version_names_the_commit_of_llama_cpp_and_the_pinned_release(capsys: pytest.CaptureFixture[str]) -> None:
    pins = json.loads((Path(__file__).parent.parent / "native" / "pins.json").read_text())
    assert cli.main(["--version"]) == 0
    line = capsys.readouterr().out.splitlines()[1]
    assert re.fullmatch(r"llama\.cpp [0-9a-f]{12} \([\d.]+\), llama-cpp-python [\d.]+", line)
    assert pins["llama_cpp_python"]["requirement"].replace("==", " ") in line


@pytest.mark.parametrize("said", [None, "", "[]", "{", '{"llama_cpp_commit": 3}'])
def test_version_does_without_what_the_build_should_have_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], said: str | None
) -> None:
    (tmp_path / "lib").mkdir()
    if said is not None:
        (tmp_path / "build.json").write_text(said)
    monkeypatch.setenv("DELTAMEM_NATIVE_DIR", str(tmp_path))
    assert cli.main(["--version"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_help_lists_every_command_with_its_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == 0
    shown = capsys.readouterr().out
    for name, _, text in cli.COMMANDS:
        assert f"  {name} " in shown and text.split()[0] in shown


@pytest.mark.parametrize("name, module", [(name, module) for name, module, _ in cli.COMMANDS])
def test_command_in_the_table_exists_and_has_help(name: str, module: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert isinstance(importlib.import_module(module).app, typer.Typer)
    assert cli.main([name, "--help"]) == 0
    assert f"dmem {name}" in capsys.readouterr().out


def test_module_runs_as_the_command_does() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "deltamem_cli", "--version"], capture_output=True, text=True, check=False
    )
    assert result.stdout.startswith("dmem ")


@pytest.mark.parametrize("error, code", [(DeltamemError, 1), (UsageError, 2)])
def test_our_errors_are_one_sentence_on_stderr(
    register: Register, capsys: pytest.CaptureFixture[str], error: type[DeltamemError], code: int
) -> None:
    def fail() -> None:
        raise error("x.gguf is not there: name another file.")

    register(fail)
    assert cli.main(["probe"]) == code
    assert capsys.readouterr() == ("", "x.gguf is not there: name another file.\n")


def test_unexpected_errors_are_one_sentence_that_names_debug(
    register: Register, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        raise ValueError("odd")

    register(fail)
    assert cli.main(["probe"]) == 1
    out, err = capsys.readouterr()
    assert out == "" and len(err.splitlines()) == 1 and "ValueError: odd" in err and "--debug" in err


@pytest.mark.parametrize("line", [["--debug", "probe"], ["probe", "--debug"]])
def test_debug_shows_the_traceback_wherever_it_stands(
    register: Register, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, line: list[str]
) -> None:
    monkeypatch.setattr(Native, "log_to_stderr", False)  # --debug sets it for the process

    def fail(ctx: typer.Context) -> None:
        assert ctx.obj.debug
        raise DeltamemError("x.gguf is not there: name another file.")

    register(fail)
    assert cli.main(line) == 1
    err = capsys.readouterr().err
    assert "Traceback" in err and err.endswith("x.gguf is not there: name another file.\n")


def test_debug_after_a_double_dash_belongs_to_the_command(
    register: Register, capsys: pytest.CaptureFixture[str]
) -> None:
    def show(ctx: typer.Context, text: str) -> None:
        typer.echo(f"{text} {ctx.obj.debug}")

    register(show)
    assert cli.main(["probe", "--", "--debug"]) == 0
    assert capsys.readouterr().out == "--debug False\n"


def test_interrupt_exits_130_without_a_traceback(register: Register, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    register(interrupted)
    assert cli.main(["probe"]) == 130
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("line", [["nonsense"], ["--nonsense"]])
def test_usage_errors_exit_2_and_name_the_wrong_word(line: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(line) == 2
    assert "nonsense" in capsys.readouterr().err


def test_a_mistyped_command_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["memroy"]) == 2
    assert "Did you mean 'memory'?" in capsys.readouterr().err


@pytest.fixture
def nothing_piped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO()))


@pytest.mark.parametrize("text", ["x" * 5000, "a few words " * 400], ids=["a word", "words"])
@pytest.mark.parametrize(
    "line",
    [
        "{}",
        "--{}",
        "memory {}",
        "memory --{}",
        "memory diff {} 3",
        "ask --threads {} Hello",
        "ask -o {} 1 Hello",
        "ask -o temperature {} Hello",
        "ask -m {} Hello",
        "ask --adapter {} Hello",
        "chat --write {} Hello",
        "chat -p {} Hello",
        "config get {}",
        "config set {} 1",
        "config set ctx_size {}",
        "log show --cid {}",
        "log show -d {}",
        "memory forget {}",
        "model show {}",
        "model pull {}",
        "adapter show {}",
        "adapter default {} x",
        "profile create {}",
        "profile create work -o {}=1",
        "profile create work -o temperature={}",
        "eval recall --facts {}",
    ],
)
@pytest.mark.usefixtures("home", "nothing_piped")
def test_what_a_sentence_quotes_is_shortened(line: str, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([part.format(text) for part in line.split()]) in (1, 2)
    *_, sentence = capsys.readouterr().err.splitlines()
    assert "…" in sentence and len(sentence) < 1000


@pytest.mark.parametrize(
    "setting", ["{} = 1", '"{}" = 1', "ctx_size = '{}'", "[models.x]\npath = 1\n{} = 1", "[models]\n{} = 1"]
)
def test_what_a_sentence_quotes_of_the_configuration_is_shortened(
    home: Path, capsys: pytest.CaptureFixture[str], setting: str
) -> None:
    home.mkdir()
    (home / "config.toml").write_text(setting.format("x" * 5000))
    assert cli.main(["model", "list"]) == 1
    (sentence,) = capsys.readouterr().err.splitlines()
    assert str(home) in sentence or "models.x" in sentence
    assert len(sentence) < 1000


@pytest.mark.usefixtures("nothing_piped")
def test_an_ordinary_path_is_told_whole(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = f"{home}/{'x' * (280 - len(str(home)))}.gguf"
    assert cli.main(["ask", "-m", path, "Hello"]) == 1
    assert path in capsys.readouterr().err
