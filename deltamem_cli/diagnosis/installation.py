"""The program itself: its packages, its native library, its configuration."""

from __future__ import annotations

import os
import re

from deltamem_cli import build, config, paths
from deltamem_cli.config import file
from deltamem_cli.diagnosis.checks import Check
from deltamem_cli.errors import DeltamemError


def package() -> Check:
    """Whether the distribution and what it needs are installed."""
    import platform
    from importlib.metadata import PackageNotFoundError, distribution, version

    try:
        here = distribution(paths.DISTRIBUTION)
    except PackageNotFoundError:
        found = f"{paths.DISTRIBUTION} is running from a folder where it is not installed"
        return Check("install", "broken", found, "install it: pip install .")
    missing = []
    for requirement in here.requires or []:
        if ";" not in requirement:  # what is behind it is an extra, or for another Python
            name = re.split(r"[^\w.-]", requirement)[0]
            try:
                version(name)
            except PackageNotFoundError:
                missing.append(name)
    if missing:
        return Check("install", "broken", f"missing: {', '.join(missing)}", f"pip install {' '.join(missing)}")
    return Check(
        "install",
        "ok",
        f"dmem {here.version}, Python {platform.python_version()}, {platform.system()} {platform.machine()}",
    )


def native_library() -> Check:
    """Whether the native library loads, and which build it is."""
    from deltamem_cli.bindings import API_VERSION, native

    try:
        directory = native().directory
    except DeltamemError as error:
        return Check("native library", "broken", str(error), f"install {paths.DISTRIBUTION} again")
    said = build.info()
    if not said:
        found = f"{directory} has no readable build.json, so its origin is unknown"
        return Check("native library", "warning", found, f"install {paths.DISTRIBUTION} again")
    named = f", in {directory}, which DELTAMEM_NATIVE_DIR names" if os.environ.get("DELTAMEM_NATIVE_DIR") else ""
    patches = ", ".join(f"{name.removesuffix('.patch')} ({digest[:8]})" for name, digest in said["patches"].items())
    return Check("native library", "ok", f"{build.upstream()}, patch {patches}, interface {API_VERSION}{named}")


def configuration() -> Check:
    """Whether every value in file and environment is one that its setting takes."""
    path = file.location()
    try:
        count = len(config.checked())
        for name in config.KEYS:
            config.value(name)
    except DeltamemError as error:
        return Check("configuration", "broken", str(error), "see what applies: dmem config list")
    sources = {name: config.source(name) for name in config.KEYS}
    variables = [source.split()[-1] for source in sources.values() if source.startswith("environment")]
    from_environment = f", and {', '.join(variables)} from the environment" if variables else ""
    if not path.exists():
        return Check("configuration", "ok", f"no file at {path}{from_environment}")
    return Check("configuration", "ok", f"{path} sets {count} of {len(config.KEYS)}{from_environment}")
