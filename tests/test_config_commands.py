"""`dmem config`: what it prints, what it changes, and an edit that never breaks the file."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from deltamem_cli import cli, config
from deltamem_cli.config.keys import KEYS

Run = Callable[..., tuple[int, str, str]]


pytestmark = pytest.mark.usefixtures("home")


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """run("set", "threads", "2"): exit code, stdout, stderr of `dmem config set threads 2`."""

    def run_config(*words: str) -> tuple[int, str, str]:
        code = cli.main(["config", *words])
        return code, *capsys.readouterr()

    return run_config


@pytest.fixture
def editor(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], None]:
    """editor(code): $EDITOR runs this Python with the text as `text`, and writes `text` back."""

    def use(code: str) -> None:
        script = tmp_path / "editor.py"
        script.write_text(
            "import sys\npath = sys.argv[1]\ntext = open(path).read()\n" + code + "\nopen(path, 'w').write(text)\n"
        )
        monkeypatch.delenv("VISUAL", raising=False)
        monkeypatch.setenv("EDITOR", f"{sys.executable} {script}")

    return use


def test_list_shows_every_setting_with_value_source_and_help(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    run("set", "threads", "2")
    monkeypatch.setenv("DMEM_MARKDOWN", "off")
    code, out, _ = run("list")
    assert code == 0
    for key in KEYS.values():
        assert f"\n{key.name} " in f"\n{out}" and key.help in out
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert "threads 2 (file)" in lines
    assert "markdown false (environment DMEM_MARKDOWN)" in lines
    assert "gpu_layers 0" in lines
    assert "model (the packaged starter)" in lines


def test_list_as_json_documents_every_setting(run: Run) -> None:
    run("set", "database", "/tmp/x.db")
    code, out, err = run("list", "--json")
    listed = {one["key"]: one for one in json.loads(out)}
    assert code == 0 and err == "" and list(listed) == list(KEYS)
    assert listed["database"]["value"] == "/tmp/x.db" and listed["database"]["source"] == "file"
    assert listed["history"]["variable"] == "DMEM_NOHISTORY"
    assert listed["threads"]["expects"] == "a whole number, 1 to 512"


def test_get_prints_the_value_alone_and_nothing_when_there_is_none(run: Run) -> None:
    run("set", "system", "Be brief.\nBe kind.")
    assert run("get", "system") == (0, "Be brief.\nBe kind.\n", "")
    assert run("get", "markdown") == (0, "true\n", "")
    assert run("get", "threads") == (0, "", "(one per idle core)\n")
    code, out, _ = run("get", "threads", "--json")
    assert code == 0 and json.loads(out) == {"key": "threads", "value": None, "source": "default"}


def test_set_says_what_holds_now_even_when_the_environment_wins(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run("set", "gpu-layers", "-1") == (0, "", "gpu_layers is -1\n")
    monkeypatch.setenv("DMEM_GPU_LAYERS", "3")
    assert run("set", "gpu_layers", "2")[2] == "gpu_layers is 3, as environment DMEM_GPU_LAYERS says\n"


def test_unset_falls_back_and_may_be_repeated(run: Run) -> None:
    run("set", "threads", "2")
    assert run("unset", "threads") == (0, "", "threads is (one per idle core)\n")
    code, _, err = run("unset", "threads")
    assert code == 0 and "was not set" in err


@pytest.mark.parametrize("words", [("get", "modle"), ("set", "modle", "x"), ("unset", "modle")])
def test_an_unknown_setting_is_a_usage_error_that_names_the_nearest(run: Run, words: tuple[str, ...]) -> None:
    code, out, err = run(*words)
    assert (code, out) == (2, "") and "did you mean model?" in err and len(err.splitlines()) == 1


def test_path_prints_where_the_file_is_even_when_it_is_broken(run: Run, home: Path) -> None:
    home.mkdir()
    (home / "config.toml").write_text("a =")
    assert run("path") == (0, f"{home / 'config.toml'}\n", "")
    code, out, err = run("list")
    assert code == 1 and out == "" and str(home / "config.toml") in err


# edit


def test_edit_of_a_new_file_explains_every_setting_and_sets_none(
    run: Run, home: Path, editor: Callable[[str], None], tmp_path: Path
) -> None:
    editor(f"open({str(tmp_path / 'seen')!r}, 'w').write(text)")
    assert run("edit") == (0, "", "Nothing was changed.\n")
    seen = (tmp_path / "seen").read_text()
    assert all(key.help in seen for key in KEYS.values())
    assert list(home.iterdir()) == []
    (home / "config.toml").write_text(seen)
    assert config.checked() == {}


def test_edit_writes_what_is_sound(run: Run, home: Path, editor: Callable[[str], None]) -> None:
    config.set_value("threads", "1")
    editor("text = '# mine\\n' + text.replace('1', '2')")
    code, _, err = run("edit")
    assert code == 0 and err == f"wrote {home / 'config.toml'}\n"
    assert (home / "config.toml").read_text() == "# mine\nthreads = 2\n"
    assert [path.name for path in home.iterdir()] == ["config.toml"]


def test_edit_keeps_both_the_file_and_the_text_when_it_is_not_sound_and_goes_on_with_it(
    run: Run, home: Path, editor: Callable[[str], None]
) -> None:
    config.set_value("threads", "1")
    editor("text = 'treads = 2\\n'")
    code, _, err = run("edit")
    assert code == 1 and "did you mean threads?" in err and "your text is kept" in err and len(err.splitlines()) == 1
    assert (home / "config.toml").read_text() == "threads = 1\n"
    editor("text = text.replace('treads', 'threads')")
    code, _, err = run("edit")
    assert code == 0 and "Continuing with the draft" in err
    assert (home / "config.toml").read_text() == "threads = 2\n"
    assert not (home / "config.edit.toml").exists()


def test_edit_repairs_a_broken_file_and_says_so_when_it_does_not(
    run: Run, home: Path, editor: Callable[[str], None]
) -> None:
    home.mkdir()
    (home / "config.toml").write_text("threads =\n")
    editor("")
    code, _, err = run("edit")
    assert code == 1 and "is not valid TOML" in err and "draft" not in err and "kept" not in err
    assert not (home / "config.edit.toml").exists()
    editor("text = 'threads = 2\\n'")
    assert run("edit")[0] == 0
    assert config.value("threads") == 2


def test_edit_does_not_undo_what_another_wrote_meanwhile(run: Run, home: Path, editor: Callable[[str], None]) -> None:
    config.set_value("threads", "1")
    editor(f"open({str(home / 'config.toml')!r}, 'w').write('threads = 9\\n'); text = 'threads = 2\\n'")
    code, _, err = run("edit")
    assert code == 1 and "was changed by another program" in err
    assert (home / "config.toml").read_text() == "threads = 9\n"
    assert (home / "config.edit.toml").read_text() == "threads = 2\n"


@pytest.mark.parametrize("command", ["false", "no-such-editor"])
def test_an_editor_that_fails_is_named_and_leaves_nothing_behind(
    run: Run, home: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    config.set_value("threads", "1")
    monkeypatch.setenv("VISUAL", command)
    code, _, err = run("edit")
    assert code == 1 and command in err and "EDITOR" in err
    assert [path.name for path in home.iterdir()] == ["config.toml"]


@pytest.mark.parametrize("key", ["model", "adapter", "template"])
def test_a_folder_is_no_file_to_use(run: Run, tmp_path: Path, key: str) -> None:
    code, _, err = run("set", key, str(tmp_path))
    assert code == 2 and "is a folder" in err and err.count("\n") == 1
    assert config.value(key) is None or str(config.value(key)) != str(tmp_path)
    # what is not there yet may come: a model that is pulled later, a disk that is not plugged in
    assert run("set", key, str(tmp_path / "later.gguf"))[0] == 0
