"""What is published: the source distribution holds what a build needs, and wheels are described for every platform."""

from __future__ import annotations

import subprocess
import sys
import tarfile
from email.message import Message
from email.parser import HeaderParser
from pathlib import Path
from typing import Any

import pytest

from deltamem_cli import paths

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent


def pyproject() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def backend(hook: str, out: Path) -> Path:
    """What a hook of the build backend makes in `out`, as pip and `python -m build` ask for it. Compiles nothing."""
    code = "import sys; from scikit_build_core import build; print(getattr(build, sys.argv[1])(sys.argv[2]))"
    result = subprocess.run(
        [sys.executable, "-c", code, hook, str(out)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return out / result.stdout.split()[-1]


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """The names in the source distribution, without its top folder."""
    with tarfile.open(backend("build_sdist", tmp_path_factory.mktemp("sdist"))) as archive:
        return {member.name.partition("/")[2] for member in archive if member.isfile()}


@pytest.fixture(scope="module")
def dist_info(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return backend("prepare_metadata_for_build_wheel", tmp_path_factory.mktemp("metadata"))


def headers(path: Path) -> Message:
    return HeaderParser().parsestr(path.read_text(encoding="utf-8"))


def test_sdist_holds_every_file_of_the_package_and_of_the_native_part(sdist: set[str]) -> None:
    wanted = {
        str(path.relative_to(ROOT))
        for folder in ("deltamem_cli", "native")
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and "_native" not in path.parts
    }
    assert {"native/pins.json", "native/patches/0001-deltamem-hooks.patch"} <= wanted
    assert f"deltamem_cli/bundled_adapters/{paths.STARTER_ADAPTER}" in wanted
    assert wanted <= sdist
    assert {"pyproject.toml", "README.md", "LICENSE", "PKG-INFO"} <= sdist


def test_sdist_holds_the_tests_with_their_cases(sdist: set[str]) -> None:
    cases = {str(path.relative_to(ROOT)) for path in (ROOT / "tests").rglob("*") if path.suffix in {".gguf", ".npz"}}
    assert cases and cases <= sdist
    assert "tests/conftest.py" in sdist


def test_sdist_holds_no_build_no_download_and_no_lock_file(sdist: set[str]) -> None:
    assert {name.partition("/")[0] for name in sdist if "/" in name} == {"deltamem_cli", "native", "tests"}
    assert not [name for name in sdist if name.endswith((".so", ".pyc", ".lock", ".tar.gz", ".whl", ".db"))]


def test_one_wheel_of_a_platform_serves_every_python_3(dist_info: Path) -> None:
    tags = headers(dist_info / "WHEEL").get_all("Tag")
    assert tags and all(tag.startswith("py3-none-") and tag != "py3-none-any" for tag in tags)


def test_metadata_names_command_license_and_every_dependency(dist_info: Path) -> None:
    metadata, project = headers(dist_info / "METADATA"), pyproject()["project"]
    assert metadata["Name"] == paths.DISTRIBUTION
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Requires-Python"] == project["requires-python"]
    required = [line for line in metadata.get_all("Requires-Dist") or [] if "extra ==" not in line]
    assert len(required) == len(project["dependencies"])
    assert "dmem = deltamem_cli.cli:main" in (dist_info / "entry_points.txt").read_text(encoding="utf-8").splitlines()


def test_wheels_are_portable_and_a_source_build_is_for_its_own_machine() -> None:
    tool = pyproject()["tool"]
    assert tool["cibuildwheel"]["config-settings"] == {"cmake.define.DELTAMEM_PORTABLE": "ON"}
    assert "define" not in tool["scikit-build"].get("cmake", {})


@pytest.mark.parametrize(
    "platform, archs, wheels",
    [
        ("linux", ["--archs", "x86_64,aarch64"], ["cp310-manylinux_aarch64", "cp310-manylinux_x86_64"]),
        ("macos", [], ["cp310-macosx_arm64", "cp310-macosx_x86_64"]),
        ("windows", ["--archs", "AMD64"], ["cp310-win_amd64"]),
    ],
)
def test_cibuildwheel_builds_one_wheel_per_platform(platform: str, archs: list[str], wheels: list[str]) -> None:
    pytest.importorskip("cibuildwheel", reason="cibuildwheel is not installed: pip install cibuildwheel")
    result = subprocess.run(
        [sys.executable, "-m", "cibuildwheel", "--platform", platform, *archs, "--print-build-identifiers"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert sorted(result.stdout.split()) == wheels, result.stderr
