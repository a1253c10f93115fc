"""Where things lie on this machine; creates nothing and opens nothing."""

from __future__ import annotations

import contextlib
import os
import warnings
from pathlib import Path
from typing import Literal

from deltamem_cli.errors import DeltamemError

APP_NAME = "dmem"
DISTRIBUTION = "deltamem-cli"
STARTER_MODEL = "SmolLM2-135M-Instruct.Q4_1.gguf"
STARTER_ADAPTER = "SmolLM2-135M-Instruct.deltamem.gguf"


def expanded(path: str | Path) -> Path:
    """`path` with a leading ~ as a home folder. ~notes.txt is a file's name where no user is called notes.txt.

    Raises DeltamemError for the folder of a user that does not exist.
    """
    path = Path(path)
    if "\0" in str(path):
        raise DeltamemError(f"{str(path)!r} can't be a file name: remove the null byte.")
    try:
        return path.expanduser()
    except RuntimeError:
        if len(path.parts) == 1 and path.parts[0] != "~":
            return path
        raise DeltamemError(
            f"{path} is in the home folder of {path.parts[0]}, which is unknown here: give the full path, or write "
            f"./{path} for a folder of that name."
        ) from None


def _home() -> Path | None:
    """DMEM_HOME: one folder for everything, as tests and portable installs want it."""
    value = os.environ.get("DMEM_HOME")
    return expanded(value).absolute() if value else None


def _platform_path(what: Literal["data", "config", "cache", "runtime"]) -> Path:
    import platformdirs  # takes longer than everything else here

    path: Path | None = None
    with contextlib.suppress(RuntimeError):  # so says a newer platformdirs; an older one gives ~/… back
        path = getattr(platformdirs, f"user_{what}_path")(APP_NAME, appauthor=False)
    if path is None or not path.is_absolute():
        raise DeltamemError("You have no home folder here: set HOME, or set DMEM_HOME to a folder for dmem's files.")
    return path


def data_dir() -> Path:
    """What must not be lost: the database of memories, adapters, models."""
    return _home() or _platform_path("data")


def config_dir() -> Path:
    """What the user writes: the configuration file."""
    return _home() or _platform_path("config")


def cache_dir() -> Path:
    """What can be made again: fingerprints, synthetic models."""
    home = _home()
    return home / "cache" if home else _platform_path("cache")


def runtime_dir() -> Path:
    """What lasts as long as a process: sockets."""
    home = _home()
    if home:
        return home / "run"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # platformdirs', where a system has no such folder and it takes a temporary one
        return _platform_path("runtime")


def native_dir() -> Path:
    """The folder that the build filled: lib/, llama_cpp/, licenses/, models/ and build.json.

    DELTAMEM_NATIVE_DIR names another build (the sanitizer's, a developer's). Else it lies beside this file, or, in
    an editable install, where the distribution was installed while this file lies in the checkout.
    """
    override = os.environ.get("DELTAMEM_NATIVE_DIR")
    if override:
        path = expanded(override).absolute()
        if not (path / "lib").is_dir():
            raise DeltamemError(
                f"DELTAMEM_NATIVE_DIR names {path}, which has no lib folder: point it at an installed native build or unset it."
            )
        return path
    for path in _native_candidates():
        if (path / "lib").is_dir():
            return path
    raise DeltamemError(
        f"The native library of {DISTRIBUTION} is missing, as it is when the package was copied and not installed: "
        "run `pip install .` in its source folder."
    )


def _native_candidates() -> list[Path]:
    from importlib.metadata import PackageNotFoundError, distribution

    found = [Path(__file__).resolve().parent / "_native"]
    with contextlib.suppress(PackageNotFoundError):
        found.append(Path(str(distribution(DISTRIBUTION).locate_file("deltamem_cli/_native"))))
    return found


def starter_model() -> Path:
    """The small chat model that comes with the package."""
    path = native_dir() / "models" / STARTER_MODEL
    if not path.is_file():
        raise DeltamemError(
            f"This build of {DISTRIBUTION} has no starter model ({path} is missing): name a GGUF file with --model."
        )
    return path


def starter_adapter() -> Path | None:
    """The adapter that was trained for the starter model, if this package has one."""
    return packaged_adapter(STARTER_ADAPTER)


def packaged_adapter(file: str) -> Path | None:
    """An adapter that comes with the package, if it is there."""
    path = Path(__file__).resolve().parent / "bundled_adapters" / file
    return path if path.is_file() else None
