"""Where things lie: DMEM_HOME, platform folders, and the native build in each kind of install."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from deltamem_cli import paths
from deltamem_cli.errors import DeltamemError

ROOT = Path(__file__).resolve().parent.parent


def test_dmem_home_holds_data_config_and_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DMEM_HOME", str(tmp_path))
    assert paths.data_dir() == paths.config_dir() == tmp_path
    assert paths.cache_dir() == tmp_path / "cache"


def test_without_dmem_home_the_platform_decides(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import platformdirs

    monkeypatch.delenv("DMEM_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    for variable in ("XDG_DATA_HOME", "XDG_CONFIG_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(variable, raising=False)
    assert paths.data_dir() == platformdirs.user_data_path("dmem", appauthor=False)
    assert paths.data_dir() != paths.cache_dir()


def test_a_file_whose_name_begins_with_a_tilde_is_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert paths.expanded("~notes.txt") == Path("~notes.txt")
    assert paths.expanded("~/notes.txt") == tmp_path / "notes.txt"


@pytest.mark.skipif(os.name != "posix", reason="other users' homes are a POSIX matter")
def test_the_home_of_nobody_and_no_home_at_all_are_a_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import pwd

    def nobody(_: object) -> None:
        raise KeyError

    monkeypatch.setenv("DMEM_HOME", "~nouser/x")
    with pytest.raises(DeltamemError, match="home folder of ~nouser"):
        paths.data_dir()
    monkeypatch.delenv("DMEM_HOME")
    for variable in ("HOME", "XDG_DATA_HOME"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", nobody)
    with pytest.raises(DeltamemError, match="set HOME"):
        paths.data_dir()


def test_native_dir_is_found_in_this_install() -> None:
    native = paths.native_dir()
    assert (native / "build.json").is_file() and (native / "llama_cpp" / "llama_cpp.py").is_file()


def test_native_dir_is_found_when_the_package_runs_from_a_checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    # as in an editable install: the sources have no _native beside them, the installed distribution has
    command = "from deltamem_cli import paths; print(paths.__file__); print(paths.native_dir())"
    environ = {name: value for name, value in os.environ.items() if name != "DELTAMEM_NATIVE_DIR"}
    result = subprocess.run(
        [sys.executable, "-c", command], cwd=ROOT, env=environ, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    source, native = result.stdout.split()
    assert Path(source).is_relative_to(ROOT)
    assert (Path(native) / "lib").is_dir() and not Path(native).is_relative_to(ROOT / "deltamem_cli")


def test_native_dir_of_the_environment_wins_and_must_be_a_build(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("DELTAMEM_NATIVE_DIR", str(tmp_path))
    with pytest.raises(DeltamemError, match="DELTAMEM_NATIVE_DIR names .* no lib folder"):
        paths.native_dir()
    (tmp_path / "lib").mkdir()
    assert paths.native_dir() == tmp_path


def test_missing_native_build_says_how_to_get_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("DELTAMEM_NATIVE_DIR", raising=False)
    monkeypatch.setattr(paths, "_native_candidates", lambda: [tmp_path / "_native"])
    with pytest.raises(DeltamemError, match="pip install"):
        paths.native_dir()


def test_build_without_starter_model_asks_for_a_model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "lib").mkdir()
    monkeypatch.setenv("DELTAMEM_NATIVE_DIR", str(tmp_path))
    with pytest.raises(DeltamemError, match="--model"):
        paths.starter_model()


@pytest.mark.filterwarnings("error")
def test_a_system_without_a_runtime_folder_is_no_news(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DMEM_HOME", "XDG_RUNTIME_DIR"):
        monkeypatch.delenv(name, raising=False)
    assert paths.runtime_dir().is_absolute()
