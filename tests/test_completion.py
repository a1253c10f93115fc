"""What Tab offers: driven as bash, zsh and fish drive it, and once by a real bash."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from chat_support import Terminal, dmem, environment
from conftest import MakeModel

from deltamem_cli import cli, config
from deltamem_cli.store import conversations, profiles
from deltamem_cli.store.database import Store

Complete = Callable[..., list[str]]


@pytest.fixture
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("DMEM_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def complete(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Complete:
    """complete("dmem chat -p w"): what bash is offered for the last word; with a blank at the end for the next one."""

    def ask(line: str) -> list[str]:
        words = line.split(" ")
        monkeypatch.setenv("_DMEM_COMPLETE", "complete_bash")
        monkeypatch.setenv("COMP_WORDS", line)
        monkeypatch.setenv("COMP_CWORD", str(len(words) - 1))
        cli.main([])
        out, err = capsys.readouterr()
        assert err == ""
        return out.split()

    return ask


@pytest.fixture
def talks(home: Path) -> list[str]:
    """Profiles default and work; the ids of work's two conversations, the last one first."""
    import stored

    with Store.open(home / "memory.db") as store:
        profiles.ensure(store, "default")
        profiles.ensure(store, "work")
        for title in (1, 2):
            stored.conversation(store, title, profile="work")
        return [one.id for one in conversations.all_of(store, profiles.get(store, "work"))]


def test_commands_subcommands_and_options_are_offered(complete: Complete) -> None:
    assert complete("dmem ") == [name for name, _, _ in cli.COMMANDS]
    assert complete("dmem mem") == ["memory"]
    assert {"inspect", "probe", "forget"} <= set(complete("dmem memory "))
    assert complete("dmem memory for") == ["forget"]
    assert complete("dmem chat --prof") == ["--profile"]
    assert "--version" in complete("dmem --")
    assert complete("dmem log export --format ") == ["md", "json"]


def test_profiles_are_offered_wherever_one_is_named(complete: Complete, talks: list[str]) -> None:
    for line in (
        "dmem chat -p ",
        "dmem memory inspect --profile ",
        "dmem profile delete ",
        "dmem ask -p ",
        "dmem config set profile ",
    ):
        assert complete(line) == ["default", "work"], line
    assert complete("dmem chat -p w") == ["work"]
    assert complete("dmem memory copy --to ") == ["NEW", "default", "work"]
    assert complete("dmem profile create ") == []


def test_conversations_are_those_of_the_profile_before_the_last_one_first(complete: Complete, talks: list[str]) -> None:
    assert len(talks) == 2
    assert complete("dmem chat -p work --cid ") == talks
    assert complete(f"dmem chat -p work --cid {talks[1]}") == [talks[1]]
    assert complete("dmem chat --cid ") == []
    config.set_value("profile", "work")
    assert complete("dmem log show --cid ") == talks


def test_another_database_is_heeded(complete: Complete, home: Path, tmp_path: Path) -> None:
    with Store.open(tmp_path / "other.db") as store:
        profiles.ensure(store, "there")
    assert complete(f"dmem chat -d {tmp_path / 'other.db'} -p ") == ["there"]


def test_models_and_adapters_are_offered_by_name(complete: Complete, home: Path, tiny_model: MakeModel) -> None:
    config.set_entry("models", "tiny", {"path": str(tiny_model("qwen3"))})
    config.set_entry("models", "away", {"repo": "someone/something"})
    config.set_entry("adapters", "mine", {"path": str(tiny_model("qwen3"))})
    for line in ("dmem chat -m t", "dmem config set model t", "dmem model show t", "dmem bench --model t"):
        assert complete(line) == ["tiny"], line
    assert "away" not in complete("dmem chat -m ") and "away" in complete("dmem model pull ")
    assert complete("dmem chat --adapter m") == ["mine"]


def test_settings_and_what_they_can_be_are_offered(complete: Complete, home: Path) -> None:
    assert complete("dmem config get ") == list(config.KEYS)
    assert complete("dmem config set options.te") == ["options.temperature"]
    assert complete("dmem config set markdown ") == ["true", "false"]
    assert complete("dmem config set flash_attention o") == ["on", "off"]
    assert complete("dmem config set nonsense ") == []
    assert complete("dmem chat -o temp") == ["temperature"]
    assert complete("dmem chat -o temperature 0.3 --prof") == ["--profile"]


def test_what_is_broken_offers_nothing_and_prints_nothing(
    complete: Complete, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home.mkdir()
    (home / "memory.db").write_bytes(b"nothing of the kind" * 100)
    assert complete("dmem chat -p ") == [] and complete("dmem chat --cid ") == []
    (home / "config.toml").write_text("a =")
    assert complete("dmem chat -m ") == [] and complete("dmem chat -p ") == []
    assert complete("dmem nonsense --x ") == [name for name, _, _ in cli.COMMANDS]
    monkeypatch.setattr(cli, "COMMANDS", [("chat", "deltamem_cli.commands.not_there", "x")])
    assert complete("dmem chat ") == []


def test_completing_makes_nothing_on_disk(complete: Complete, home: Path) -> None:
    assert complete("dmem chat -p ") == [] and not home.exists()


def test_commands_are_completed_without_importing_one(home: Path) -> None:
    code = "import sys; from deltamem_cli import cli; cli.main([]); print(*sorted(sys.modules), file=sys.stderr)"
    line = {"_DMEM_COMPLETE": "complete_bash", "COMP_WORDS": "dmem ", "COMP_CWORD": "1"}
    result = subprocess.run(
        [sys.executable, "-c", code], env=environment(home, **line), capture_output=True, text=True, check=True
    )
    assert "chat" in result.stdout.split()
    modules = set(result.stderr.split())
    assert not {"rich", "numpy", "sqlite3", "platformdirs"} & modules
    assert not {name for name in modules if name.startswith("deltamem_cli.commands.")}


@pytest.mark.parametrize(
    "shell, extra, said",
    [
        ("zsh", {}, '"work"'),
        ("fish", {"_TYPER_COMPLETE_FISH_ACTION": "get-args"}, "work"),
    ],
)
def test_zsh_and_fish_are_answered_in_their_ways(
    home: Path, talks: list[str], shell: str, extra: dict[str, str], said: str
) -> None:
    def ask(line: str) -> str:
        env = environment(home, _DMEM_COMPLETE=f"complete_{shell}", _TYPER_COMPLETE_ARGS=line, **extra)
        result = subprocess.run(dmem(), env=env, capture_output=True, text=True, check=True)
        assert result.stderr == ""
        return result.stdout

    assert said in ask("dmem chat -p ")
    assert "Talk to a model that remembers." in ask("dmem cha")
    assert talks[0] in ask("dmem chat -p work --cid ")


@pytest.mark.parametrize("shell, said", [("bash", "complete -o"), ("zsh", "#compdef dmem"), ("fish", "--command dmem")])
def test_the_script_for_each_shell_is_printed(home: Path, shell: str, said: str) -> None:
    env = environment(home, _TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION="1")
    result = subprocess.run(dmem("--show-completion", shell), env=env, capture_output=True, text=True, check=True)
    assert said in result.stdout and "_DMEM_COMPLETE" in result.stdout and result.stderr == ""


def test_zsh_is_told_to_complete_at_the_tab_that_loads_the_script(home: Path) -> None:
    env = environment(home, _TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION="1")
    script = subprocess.run(
        dmem("--show-completion", "zsh"), env=env, capture_output=True, text=True, check=True
    ).stdout
    assert script.rstrip().endswith('== loadautofunc ]]; then _dmem_completion "$@"; fi')


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_installed_for_a_shell_it_completes_at_the_tab_key(
    home: Path, talks: list[str], tmp_path: Path, shell: str
) -> None:
    if os.name != "posix" or not shutil.which(shell):
        pytest.skip(f"{shell} is not here")
    user = tmp_path / "user"
    user.mkdir()
    scripts = str(Path(dmem()[0]).parent)
    env = environment(home, HOME=str(user), PATH=f"{scripts}{os.pathsep}{os.environ['PATH']}", PS1="$ ")
    installed = subprocess.run(
        [shell, "-c", "dmem --install-completion; true"], env=env, capture_output=True, text=True, check=False
    )
    assert "completion installed" in installed.stdout, installed.stderr
    started = ["bash", "--rcfile", str(user / ".bashrc"), "-i"] if shell == "bash" else [shell, "-i"]
    with Terminal(started, env) as terminal:
        terminal.expect(r"[$>#]\s*$")
        terminal.send("dmem prof\t")
        terminal.expect("ile ")
        terminal.send("delete wo\t")
        terminal.expect("rk ")
        terminal.send("--dry-run\r")
        terminal.expect("would delete profile work with 2 conversations")
        terminal.send("exit\r")
