"""The installed package on this machine: its command, its memory, its libraries.

Runs against any installation, a wheel's included: pytest tests/test_installed.py
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from deltamem_cli import paths

GOLDEN = Path(__file__).resolve().parent / "golden"
SHORT = ["-o", "max_tokens", "8", "-o", "temperature", "0", "-o", "seed", "1"]


def dmem(*args: str, stdin: str = "", env: Mapping[str, str] | None = None, **options: Any) -> str:
    """What the installed command prints; it must succeed."""
    command = Path(sys.executable).with_name("dmem.exe" if os.name == "nt" else "dmem")
    result = subprocess.run(
        [str(command), *args], input=stdin, env={**os.environ, "DMEM_OFFLINE": "1", **(env or {})},
        capture_output=True, text=True, encoding="utf-8", check=False, **options,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    return result.stdout


def build() -> dict[str, Any]:
    return json.loads((paths.native_dir() / "build.json").read_text(encoding="utf-8"))  # type: ignore[no-any-return]


def cpu_libraries() -> list[Path]:
    """The CPU libraries of a portable build, one per instruction set."""
    return sorted(path for path in (paths.native_dir() / "lib").iterdir() if "ggml-cpu-" in path.name)


# says what ggml says while the libraries are loaded
LOADING = """
from deltamem_cli.bindings import Native, native
Native._on_log = lambda self, level, text, _: print(text.decode(), end="")
native()
"""


def loaded(native: Path) -> str:
    """The CPU library that a process chooses in this build, by the name of its instruction set."""
    env = {**os.environ, "DELTAMEM_NATIVE_DIR": str(native)}
    result = subprocess.run([sys.executable, "-c", LOADING], env=env, capture_output=True, text=True, check=True)
    found = re.search(r"loaded CPU backend from .*ggml-cpu-(\S+)\.(?:so|dll)", result.stdout)
    return found[1] if found else ""


def test_command_knows_its_version() -> None:
    assert dmem("--version").startswith("dmem ")


def test_output_shows_what_its_encoding_has() -> None:
    assert r"keeps a \u03b4-mem memory" in dmem("--help", env={"PYTHONIOENCODING": "cp1252"})


def test_memory_persists_between_two_runs_in_an_empty_folder(tmp_path: Path) -> None:
    env = {"DMEM_HOME": str(tmp_path / "home")}
    assert dmem("chat", *SHORT, stdin="My name is Ana.\n", env=env, cwd=tmp_path).strip()
    assert dmem("chat", *SHORT, stdin="And a cat.\n", env=env, cwd=tmp_path).strip()
    turns = json.loads(dmem("memory", "history", "--json", env=env))["turns"]
    assert len(turns) == 2 and turns[0]["norm"] > 0
    assert 0 < turns[1]["change"] < turns[1]["norm"], "the second run began with the first one's state"


def test_parity_with_the_published_code_holds() -> None:
    assert "0 failed" in dmem("adapter", "verify", str(GOLDEN / "qwen3_tsw_qo"))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads ELF files")
def test_libraries_find_each_other_and_name_no_folder_of_the_building_machine() -> None:
    readelf = shutil.which("readelf")
    if not readelf:
        pytest.skip("readelf is missing: install binutils")
    libraries = sorted((paths.native_dir() / "lib").glob("*.so"))
    assert libraries
    for library in libraries:
        shown = subprocess.run([readelf, "-d", library], capture_output=True, text=True, check=True).stdout
        assert set(re.findall(r"\((?:RPATH|RUNPATH)\).*\[(.*)\]", shown)) == {"$ORIGIN"}, library.name
        needed = set(re.findall(r"\(NEEDED\).*\[(.*)\]", shown))
        assert {name for name in needed if "ggml" in name} <= {path.name for path in libraries}, library.name


@pytest.mark.skipif(not build().get("DELTAMEM_PORTABLE"), reason="only builds with DELTAMEM_PORTABLE hold several")
@pytest.mark.parametrize("library", [path.name for path in cpu_libraries()])
def test_parity_holds_with_every_cpu_library_that_this_processor_can_run(library: str, tmp_path: Path) -> None:
    native = tmp_path / "native"
    shutil.copytree(paths.native_dir(), native, ignore=shutil.ignore_patterns("*.gguf", "*ggml-cpu-*"))
    shutil.copy(paths.native_dir() / "lib" / library, native / "lib")
    env = {"DELTAMEM_NATIVE_DIR": str(native)}
    name = library.partition("ggml-cpu-")[2].rpartition(".")[0]
    try:
        assert loaded(native) == name
    except subprocess.CalledProcessError as error:
        assert "has no CPU library for this processor" in error.stderr
        pytest.skip(f"this processor cannot run {name}")
    for case in ("qwen3_tsw_qo", "qwen3_msw_qo", "smollm3_tsw_qo"):
        dmem("adapter", "verify", str(GOLDEN / case), "-u", "8", env=env)


@pytest.mark.skipif(not build().get("DELTAMEM_PORTABLE"), reason="only builds with DELTAMEM_PORTABLE hold several")
def test_cpu_library_of_the_current_folder_is_never_loaded(tmp_path: Path) -> None:
    for path in cpu_libraries():
        (tmp_path / path.name).write_bytes(b"not a library")
    dmem("adapter", "verify", str(GOLDEN / "qwen3_tsw_qo"), "-u", "8", cwd=tmp_path)
