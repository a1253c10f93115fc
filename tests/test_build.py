"""The build: what it fetches, verifies and patches, and how it stops."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from deltamem_cli import paths

ROOT = Path(__file__).resolve().parent.parent
NATIVE = ROOT / "native"
PREPARE = NATIVE / "prepare.py"
PATCHES = NATIVE / "patches"


def load_prepare() -> ModuleType:
    spec = importlib.util.spec_from_file_location("prepare", PREPARE)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


prepare = load_prepare()


@pytest.fixture(scope="module")
def downloads() -> Path:
    """Holds the pinned sdist: the one of the last build, or fetched now; a machine with neither fails, never skips."""
    folder = ROOT / "build" / "downloads"
    prepare.obtain(prepare.read_pins()["llama_cpp_python"], folder)
    return folder


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory, downloads: Path) -> Path:
    out: Path = tmp_path_factory.mktemp("prepared") / "upstream"
    prepare.prepare(out, downloads, starter=False)
    return out


def one_sentence(text: str) -> str:
    assert len(text.strip().splitlines()) == 1, text
    assert text.strip().endswith(".") and "Traceback" not in text
    return text


def run_prepare(out: Path, downloads: Path, **environ: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(PREPARE), "--out", str(out), "--downloads", str(downloads), "--no-starter"]
    return subprocess.run(command, env={**os.environ, **environ}, capture_output=True, text=True, check=False)


def file_times(tree: Path) -> dict[str, int]:
    return {str(path.relative_to(tree)): path.stat().st_mtime_ns for path in tree.rglob("*") if path.is_file()}


def changed_lines(patch: str) -> int:
    lines = [line for line in patch.splitlines() if not line.startswith(("+++ ", "--- "))]
    return sum(line.startswith(("+", "-")) for line in lines)


def test_patches_change_at_most_40_lines_in_at_most_5_files_of_upstream() -> None:
    patches = prepare.patch_files(PATCHES)
    assert patches
    assert 0 < sum(changed_lines(patch.read_text(encoding="utf-8")) for patch in patches) <= 40
    assert 0 < len({name for patch in patches for name in prepare.patched_paths(patch)}) <= 5


def test_patches_apply_to_the_pin(prepared: Path) -> None:
    done = json.loads((prepared / "prepared.json").read_text(encoding="utf-8"))
    assert list(done["patches"]) == [patch.name for patch in prepare.patch_files(PATCHES)]
    assert done["patched"]
    for patch in prepare.patch_files(PATCHES):
        for line in patch.read_text(encoding="utf-8").splitlines():
            if line.startswith("+++ b/"):
                target = (prepared / "llama.cpp" / line.removeprefix("+++ b/")).read_text(encoding="utf-8")
            elif line.startswith("+"):
                assert line[1:] + "\n" in target


def test_prepared_tree_has_what_is_compiled_and_none_of_the_rest(prepared: Path) -> None:
    assert {path.name for path in (prepared / "llama.cpp").iterdir()} == set(prepare.LLAMA_CPP_PARTS)
    assert (prepared / "llama_cpp" / "llama_cpp.py").is_file()
    assert not (prepared / "llama_cpp" / "server").exists()
    assert {"llama.cpp.txt", "llama-cpp-python.txt"} <= {path.name for path in (prepared / "licenses").iterdir()}


def test_preparing_again_writes_nothing(prepared: Path, downloads: Path) -> None:
    before = file_times(prepared)
    prepare.prepare(prepared, downloads, starter=False)
    assert file_times(prepared) == before


def test_a_further_patch_writes_its_file_and_no_other_and_can_be_withdrawn(
    prepared: Path, downloads: Path, tmp_path: Path
) -> None:
    tree, patches = tmp_path / "upstream", tmp_path / "patches"
    shutil.copytree(prepared, tree)
    shutil.copytree(PATCHES, patches)
    before, name = file_times(tree), "src/llama-io.h"
    first, second = (tree / "llama.cpp" / name).read_text(encoding="utf-8").splitlines()[:2]
    (patches / "0009-note.patch").write_text(
        f"--- a/{name}\n+++ b/{name}\n@@ -1,2 +1,3 @@\n {first}\n+// a note\n {second}\n", encoding="utf-8"
    )
    prepare.prepare(tree, downloads, starter=False, patches=patches)
    after = file_times(tree)
    assert {path for path in after if after[path] != before.get(path)} == {
        f"llama.cpp/{name}",
        f"pristine/{name}",
        "prepared.json",
    }
    assert "// a note" in (tree / "llama.cpp" / name).read_text(encoding="utf-8")

    prepare.prepare(tree, downloads, starter=False, patches=PATCHES)
    assert (tree / "llama.cpp" / name).read_bytes() == (prepared / "llama.cpp" / name).read_bytes()


def test_without_patches_the_tree_is_upstream_s(prepared: Path, downloads: Path, tmp_path: Path) -> None:
    tree, none = tmp_path / "upstream", tmp_path / "patches"
    shutil.copytree(prepared, tree)
    none.mkdir()
    patched = prepare.prepare(prepared, downloads, starter=False)["patched"]
    prepare.prepare(tree, downloads, starter=False, patches=none)
    for name in patched:
        assert "deltamem" not in (tree / "llama.cpp" / name).read_text(encoding="utf-8")


def test_patch_that_does_not_apply_stops_with_one_sentence_and_leaves_the_tree(
    prepared: Path, downloads: Path, tmp_path: Path
) -> None:
    tree, patches = tmp_path / "upstream", tmp_path / "patches"
    shutil.copytree(prepared, tree)
    patches.mkdir()
    first, *_ = prepare.patch_files(PATCHES)
    shutil.copy(first, patches)
    text = first.read_text(encoding="utf-8")
    context = next(line for line in text.splitlines() if line.startswith(" ") and line.strip())
    (patches / first.name).write_text(text.replace(context, context + " // moved on", 1), encoding="utf-8")
    before = file_times(tree)
    with pytest.raises(prepare.PrepareError) as failure:
        prepare.prepare(tree, downloads, starter=False, patches=patches)
    assert first.name in one_sentence(str(failure.value))
    assert file_times(tree) == before


def test_patch_for_a_file_that_upstream_lacks_stops_with_one_sentence(prepared: Path, tmp_path: Path) -> None:
    patch = tmp_path / "0009-nowhere.patch"
    patch.write_text(
        "--- a/src/nowhere.cpp\n+++ b/src/nowhere.cpp\n@@ -1,1 +1,2 @@\n int a;\n+int b;\n", encoding="utf-8"
    )
    with pytest.raises(prepare.PrepareError, match="0009-nowhere.patch does not apply"):
        prepare.apply_patch(patch, prepared / "llama.cpp")


def test_wrong_hash_stops_with_one_sentence(tmp_path: Path, downloads: Path) -> None:
    other = tmp_path / "other.tar.gz"
    other.write_bytes(b"not the pinned file")
    result = run_prepare(tmp_path / "out", downloads, DELTAMEM_LLAMA_SDIST=str(other))
    assert result.returncode == 1
    sentence = one_sentence(result.stderr)
    assert str(other) in sentence and "sha256" in sentence and "DELTAMEM_LLAMA_SDIST" in sentence
    assert not (tmp_path / "out").exists()


def test_missing_file_stops_with_one_sentence(tmp_path: Path, downloads: Path) -> None:
    result = run_prepare(tmp_path / "out", downloads, DELTAMEM_LLAMA_SDIST=str(tmp_path / "gone.tar.gz"))
    assert result.returncode == 1
    sentence = one_sentence(result.stderr)
    assert "gone.tar.gz" in sentence and "DELTAMEM_LLAMA_SDIST" in sentence


def test_fetch_error_names_no_address() -> None:
    stderr = "WARNING: slow\nERROR: Could not reach https://packages.example/simple/x/ (timed out)\n\n"
    assert prepare.last_error(stderr) == "Could not reach … (timed out)"


def test_failed_download_stops_with_one_sentence_that_names_the_offline_way(tmp_path: Path) -> None:
    # pip's own switches for "no index": nothing is asked of the network
    environ = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(tmp_path), "DELTAMEM_LLAMA_SDIST": ""}
    result = run_prepare(tmp_path / "out", tmp_path / "downloads", **environ)
    assert result.returncode == 1
    sentence = one_sentence(result.stderr)
    assert "llama-cpp-python" in sentence and "DELTAMEM_LLAMA_SDIST" in sentence and "://" not in sentence


def test_damaged_download_is_fetched_again_and_not_used(tmp_path: Path) -> None:
    pin = prepare.read_pins()["llama_cpp_python"]
    (tmp_path / pin["file"]).write_bytes(b"half a file")
    fetched = []
    original, prepare.download = prepare.download, lambda pin, downloads: fetched.append(pin["file"])
    try:
        with pytest.raises(prepare.PrepareError):
            prepare.obtain(pin, tmp_path, environ={})
    finally:
        prepare.download = original
    assert fetched == [pin["file"]]


def test_missing_compiler_stops_with_one_sentence(tmp_path: Path) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("cmake", "ninja"):
        program = shutil.which(name)
        assert program, f"{name} is missing: install the dev extra"
        (tools / name).symlink_to(program)
    environ = {"PATH": str(tools), "HOME": str(tmp_path), "CC": "", "CXX": ""}
    command = ["cmake", "-S", str(NATIVE), "-B", str(tmp_path / "build"), "-G", "Ninja"]
    result = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    assert result.returncode
    sentences = [line for line in result.stderr.splitlines() if line.strip() and "CMakeLists.txt" not in line]
    assert len(sentences) <= 4 and sum("No C++ compiler found: install one" in line for line in sentences) == 1


def test_installed_library_was_built_from_these_patches() -> None:
    build = json.loads((paths.native_dir() / "build.json").read_text(encoding="utf-8"))
    ours = {patch.name: prepare.sha256_of(patch) for patch in prepare.patch_files(PATCHES)}
    assert build["patches"] == ours, "the installed library is older than native/patches: run the install again"


def test_installed_native_folder_holds_what_runs_and_nothing_else() -> None:
    native = paths.native_dir()
    assert {path.name for path in native.iterdir()} == {"build.json", "lib", "licenses", "llama_cpp", "models"}
    libraries = list((native / "lib").iterdir())
    assert len(libraries) == len(json.loads((native / "build.json").read_text())["libraries"])
    assert not any(path.is_symlink() for path in libraries)
    assert not [path for path in native.rglob("*") if path.suffix in {".h", ".cmake", ".pc", ".a"}]
