"""The configuration: precedence, what is refused and how, and a file that keeps its comments."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from deltamem_cli import config, files
from deltamem_cli.config import file
from deltamem_cli.config.errors import ConfigError, UnknownKey, WrongValue
from deltamem_cli.config.keys import KEYS
from deltamem_cli.errors import DeltamemError, UsageError

pytestmark = pytest.mark.usefixtures("home")


@pytest.fixture
def written(home: Path) -> Path:
    """The configuration file, for tests that write it themselves."""
    home.mkdir()
    return home / "config.toml"


# reading


def test_environment_beats_file_beats_default(monkeypatch: pytest.MonkeyPatch, written: Path) -> None:
    assert (config.value("gpu_layers"), config.source("gpu_layers")) == (0, "default")
    written.write_text("gpu_layers = 7\n")
    assert (config.value("gpu_layers"), config.source("gpu_layers")) == (7, "file")
    monkeypatch.setenv("DMEM_GPU_LAYERS", "-1")
    assert (config.value("gpu_layers"), config.source("gpu_layers")) == (-1, "environment DMEM_GPU_LAYERS")
    monkeypatch.setenv("DMEM_GPU_LAYERS", "")
    assert config.value("gpu_layers") == 7


def test_a_changed_file_is_read_again(written: Path) -> None:
    written.write_text('system = "a"\n')
    assert config.value("system") == "a"
    written.write_text('system = "bb"\n')
    assert config.value("system") == "bb"


def test_a_whole_number_in_the_file_will_do_for_a_number(written: Path) -> None:
    written.write_text("options.temperature = 1\n")
    value = config.value("options.temperature")
    assert value == 1.0 and isinstance(value, float)


def test_an_unchanged_file_is_read_once(written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written.write_text("threads = 1\n")
    assert config.value("threads") == 1
    monkeypatch.setattr(file, "parse", None)
    assert config.value("threads") == 1 and config.value("model") is None


def test_any_text_in_DMEM_NOHISTORY_turns_the_history_off(monkeypatch: pytest.MonkeyPatch) -> None:
    assert config.value("history") is True
    monkeypatch.setenv("DMEM_NOHISTORY", "1")
    assert config.value("history") is False
    assert config.source("history") == "environment DMEM_NOHISTORY"


def test_paths_in_the_file_count_from_its_folder_and_the_user_s_home(
    monkeypatch: pytest.MonkeyPatch, written: Path, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    written.write_text('database = "other.db"\ntemplate = "~/t.jinja"\n')
    assert config.value("database") == written.parent / "other.db"
    assert config.value("template") == tmp_path / "t.jinja"


def test_reading_without_a_file_loads_no_parser_and_takes_under_a_millisecond(home: Path) -> None:
    code = (
        "import sys, time; from deltamem_cli import config\n"
        "def took():\n"
        "    start = time.perf_counter(); config.value('model'); return time.perf_counter() - start\n"
        "best = min(took() for _ in range(50))\n"
        "assert best < 0.001, best\n"
        "assert not {'tomllib', 'tomli', 'tomlkit', 'difflib', 'numpy', 'platformdirs'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "DMEM_HOME": str(home)})


@pytest.mark.parametrize(
    "text, said",
    [
        ('modle = "x"', "sets modle, which is not a setting; did you mean model?"),
        ("temperature = 1.0", "did you mean options.temperature?"),
        ("[options]\ntop-q = 3", "sets options.top-q, which is not a setting; did you mean options.top_p?"),
        ("zzz = 1", "sets zzz, which is not a setting; see: dmem config list"),
        ('ctx_size = "big"', "sets ctx_size to 'big'; it must be a whole number, 0 or more."),
        ("ctx_size = 1.5", "sets ctx_size to 1.5; it must be a whole number"),
        ("threads = true", "sets threads to true; it must be a whole number, 1 to 512."),
        ("markdown = 1", "sets markdown to 1; it must be true or false."),
        ('flash_attention = "yes"', "it must be one of auto, on, off."),
        ('model = " "', "it must be the name of a model or the path of a GGUF file."),
        ('database = ""', "it must be the path of a file."),
        ("options.temperature = nan", "it must be a number, 0 or more."),
        ("options = 3", "sets options to 3; it must be a table"),
        ("models = [1]", "it must hold tables, such as [models.NAME]."),
        ("adapters.a = 1", "it must hold tables, such as [adapters.NAME]."),
        ('model = "x"\nctx_size =\n', "is not valid TOML: Invalid value (at line 2, column 11)"),
        ('model = "a"\nmodel = "b"\n', "is not valid TOML: Cannot overwrite a value (at line 2"),
    ],
)
def test_what_the_file_may_not_say_is_one_sentence_with_file_and_cause(written: Path, text: str, said: str) -> None:
    written.write_text(text)
    with pytest.raises(ConfigError) as error:
        config.value("profile")
    assert str(error.value).startswith(f"{written} ") and said in str(error.value)
    assert "\n" not in str(error.value)


def test_a_file_that_cannot_be_read_says_so(written: Path) -> None:
    written.write_bytes(b"\xff")
    with pytest.raises(ConfigError, match="is not UTF-8 text"):
        config.value("model")
    written.unlink()
    written.mkdir()
    with pytest.raises(ConfigError, match="could not be read"):
        config.value("model")


def test_a_wrong_environment_variable_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DMEM_OPTIONS_TOP_P", "2")
    with pytest.raises(ConfigError, match="DMEM_OPTIONS_TOP_P is '2'; it must be a number above 0, at most 1."):
        config.value("options.top_p")


# writing

COMMENTED = """# my settings
model = "a"  # small

[models.mine]  # on the other disk
path = "/x.gguf"

[options]
# calm
temperature = 0.5
"""


def test_comments_and_tables_survive_every_change(written: Path) -> None:
    written.write_text(COMMENTED)
    config.set_value("ctx-size", "2048")
    config.set_value("model", "b")
    config.set_value("options.top_k", "5")
    config.set_entry("models", "other", {"path": "/y.gguf"})
    config.set_entry("adapters", "one", {"path": "/z.gguf"})
    assert config.unset("options.temperature")
    config.set_entry("models", "mine", None)
    text = written.read_text()
    for comment in ("# my settings", "# small", "# calm"):
        assert comment in text
    assert config.checked() == {"model": "b", "ctx_size": 2048, "options.top_k": 5}
    assert config.table("models") == {"other": {"path": "/y.gguf"}}
    assert config.table("adapters") == {"one": {"path": "/z.gguf"}}


def test_tables_written_in_any_toml_style_are_changed(written: Path) -> None:
    written.write_text('options.temperature = 0.5\nmodels = {a = {path = "/x"}}\n')
    config.set_value("options.top_k", "5")
    config.set_value("system", 'say "hi"\n')
    config.set_entry("models", "b", {"path": "/y"})
    assert config.checked() == {"options.temperature": 0.5, "options.top_k": 5, "system": 'say "hi"\n'}
    assert config.table("models") == {"a": {"path": "/x"}, "b": {"path": "/y"}}


def test_a_setting_set_twice_and_unset_is_gone(home: Path) -> None:
    config.set_value("threads", "2")
    config.set_value("threads", "3")
    assert config.value("threads") == 3
    assert config.unset("threads")
    assert not config.unset("threads")
    assert config.source("threads") == "default"


def test_the_file_is_private_and_left_alone(home: Path) -> None:
    config.set_value("threads", "2")
    assert stat.S_IMODE((home / "config.toml").stat().st_mode) == 0o600
    assert stat.S_IMODE(home.stat().st_mode) == 0o700
    assert [path.name for path in home.iterdir()] == ["config.toml"]


def test_a_link_to_the_file_stays_a_link(written: Path, tmp_path: Path) -> None:
    real = tmp_path / "dotfiles.toml"
    real.write_text("threads = 1\n")
    written.symlink_to(real)
    config.set_value("threads", "2")
    assert written.is_symlink() and real.read_text() == "threads = 2\n"


def test_a_failed_write_leaves_the_old_file(written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written.write_text("threads = 1\n")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ConfigError, match=r"could not be written \(No space left on device\)"):
        config.set_value("threads", "2")
    assert written.read_text() == "threads = 1\n"
    assert [path.name for path in written.parent.iterdir()] == ["config.toml"]


def test_many_who_write_at_once_lose_nothing(home: Path) -> None:
    names = ["system", "threads", "replay", "options.top_k"]
    code = (
        "import sys; from deltamem_cli import config\n"
        "for n in range(1, 7):\n"
        "    config.set_value(sys.argv[1], str(n)); config.set_entry('models', f'{sys.argv[1]} {n}', {'path': 'x'})\n"
    )
    env = {**os.environ, "DMEM_HOME": str(home)}
    children = [subprocess.Popen([sys.executable, "-c", code, name], env=env) for name in names]
    assert [child.wait(60) for child in children] == [0] * len(names)
    assert {name: str(value) for name, value in config.checked().items()} == dict.fromkeys(names, "6")
    assert len(config.table("models")) == 6 * len(names)
    assert [path.name for path in home.iterdir()] == ["config.toml"]


@pytest.mark.parametrize("name", ["config.toml.new", "config.toml.lock"])
def test_what_a_writer_that_died_left_behind_holds_nobody_up_whatever_its_date(
    written: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    left = written.with_name(name)
    left.write_text("half a fi")
    os.utime(left, (4e9, 4e9))
    monkeypatch.setattr(file, "_PATIENCE", 0.1)
    config.set_value("threads", "2")
    assert config.value("threads") == 2


def test_a_writer_that_does_not_end_is_named_after_a_while(written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written.write_text("threads = 1\n")
    monkeypatch.setattr(file, "_PATIENCE", 0.1)
    lock = written.with_name("config.toml.lock")
    held = files.take_lock(lock)
    assert held is not None
    with pytest.raises(ConfigError, match="is being changed by another dmem"):
        config.set_value("threads", "2")
    files.drop_lock(lock, held)
    assert config.value("threads") == 1


@pytest.mark.parametrize(
    "text, said",
    [
        ("ctx_size = " + "9" * 5000, "is not valid TOML"),
        ("ctx_size = 0x" + "f" * 6000, "ctx_size to a number that is too large; it must be"),
        ("options.temperature = 0x" + "f" * 400, "it must be a number"),
        ("options = 0x" + "f" * 6000, "must be a table"),
        ("a = " + "[" * 2000 + "]" * 2000, "nests its values too deeply"),
        ('database = "~nouser/x.db"', "~nouser"),
        ('template = "a\\u0000b"', "null byte"),
    ],
    ids=["digits", "hex", "float", "table", "nested", "nobody", "zero"],
)
def test_values_that_python_itself_refuses_are_one_short_sentence(written: Path, text: str, said: str) -> None:
    written.write_text(text)
    with pytest.raises(DeltamemError) as caught:
        config.checked()
    shown = str(caught.value)
    assert said in shown and "\n" not in shown and len(shown) < 400


def test_a_pipe_in_the_files_place_is_not_waited_for(written: Path) -> None:
    os.mkfifo(written)
    with pytest.raises(ConfigError, match="it is not a file"):
        config.checked()


def test_text_that_the_next_command_would_refuse_is_not_written(written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import tomlkit

    written.write_text("threads = 1\n")
    monkeypatch.setattr(tomlkit, "dumps", lambda document: "threads =")
    with pytest.raises(ConfigError):
        config.set_value("threads", "2")
    assert written.read_text() == "threads = 1\n"
    assert [path.name for path in written.parent.iterdir()] == ["config.toml"]


def test_a_broken_file_is_not_built_upon(written: Path) -> None:
    written.write_text("a =\n")
    with pytest.raises(ConfigError):
        config.set_value("threads", "2")
    with pytest.raises(ConfigError):
        config.set_entry("models", "a", {"path": "/x"})
    assert written.read_text() == "a =\n"


def test_paths_given_on_the_command_line_count_from_where_they_are_given(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here.gguf").touch()
    config.set_value("model", "here.gguf")
    config.set_value("adapter", "elsewhere.gguf")
    config.set_value("database", "my.db")
    assert config.value("model") == str(tmp_path / "here.gguf")
    assert config.value("adapter") == "elsewhere.gguf"
    assert config.value("database") == tmp_path / "my.db"


@pytest.mark.parametrize(
    "name, text, error, said",
    [
        ("modle", "x", UnknownKey, "There is no setting modle; did you mean model?"),
        ("top-k", "5", UnknownKey, "did you mean options.top_k?"),
        ("threads", "many", WrongValue, "threads can't be 'many'; it must be a whole number, 1 to 512."),
        ("threads", "0", WrongValue, "1 to 512"),
        ("history", "perhaps", WrongValue, "true or false"),
        ("options.temperature", "inf", WrongValue, "a number, 0 or more"),
        ("template", "", WrongValue, "the path of a file"),
    ],
)
def test_what_the_command_line_may_not_say_is_a_usage_error(
    home: Path, name: str, text: str, error: type[DeltamemError], said: str
) -> None:
    with pytest.raises(error) as caught:
        config.set_value(name, text)
    assert said in str(caught.value) and isinstance(caught.value, UsageError)
    assert not home.exists()


@pytest.mark.parametrize("text, meant", [("true", True), ("On", True), ("yes", True), ("0", False), ("off", False)])
def test_switches_take_the_usual_words(home: Path, text: str, meant: bool) -> None:
    config.set_value("markdown", text)
    assert config.value("markdown") is meant


# the table of settings


def test_presets_and_ranges_are_the_engine_s() -> None:
    from deltamem_cli.engine import EngineOptions, Sampling
    from deltamem_cli.engine.options import FLASH_ATTENTION

    assert set(KEYS["flash_attention"].kind.choices) == set(FLASH_ATTENTION)
    for name in ("cache_type_k", "cache_type_v", "flash_attention"):
        assert KEYS[name].default == getattr(EngineOptions(), name)
    for field in fields(Sampling):
        key = KEYS[f"options.{field.name}"]
        assert key.default == (None if field.name == "seed" else field.default), field.name
        for text in ("-1", "-0.001", "0", "0.5", "1", "1.001", "2", "1000", str(2**32 - 1), str(2**32)):
            try:
                meant = key.kind.type(text)
            except ValueError:
                continue
            if meant > 2**31 and field.name != "seed":
                continue  # llama.cpp has no such numbers
            assert _accepts(lambda k=key, t=text: k.kind.from_text(t)) == _accepts(
                lambda n=field.name, m=meant: Sampling(**{n: m})
            ), (field.name, text)
    for threads in ("0", "1", "512", "513"):
        assert _accepts(lambda t=threads: KEYS["threads"].kind.from_text(t)) == _accepts(
            lambda t=threads: EngineOptions(threads=int(t))
        )


def _accepts(make: object) -> bool:
    try:
        make()  # type: ignore[operator]
    except (ValueError, DeltamemError):
        return False
    return True


def test_every_setting_is_documented_and_its_preset_fits() -> None:
    for key in KEYS.values():
        assert key.help.endswith(".") and len(key.help) < 100
        assert (key.default is None) == bool(key.otherwise)
        if key.default is not None:
            assert key.kind.fits(key.default) and isinstance(key.default, key.kind.type)


def test_the_last_reading_is_kept_per_file(written: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    written.write_text("threads = 1\n")
    assert config.value("threads") == 1
    monkeypatch.setenv("DMEM_HOME", str(tmp_path / "other"))
    assert config.value("threads") is None
    assert file.location() == tmp_path / "other" / "config.toml"
