"""The house as its imports show it: every module imports downward only, and no two lean on each other."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import deltamem_cli

PACKAGE = Path(deltamem_cli.__file__).parent
LONGEST = 400  # lines of a file

# From the floor up. What stands in one row knows nothing of the others in it.
LAYERS = (
    ("text", "cache_types"),
    ("errors", "ending", "reading"),
    ("files", "paths", "formats", "pictures", "episodes", "standard_streams"),
    ("config", "bindings", "build", "adapter"),
    ("engine", "store", "synthetic"),
    ("models", "memory_view", "speed", "parity"),
    ("session", "training"),
    ("api", "diagnosis", "evaluation", "server"),
    ("terminal",),
    ("commands",),
    ("cli",),
    ("__main__",),
)


def modules() -> dict[str, Path]:
    """Every module of the package by its dotted name below it; a package stands for its __init__."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        found[".".join(part for part in parts if part != "__init__")] = path
    found.pop("")
    return found


def imported(path: Path, known: dict[str, Path]) -> Iterator[str]:
    """The package's modules that a file imports, anywhere in it and for types too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name} imports by dots: say the whole name"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            below = name.removeprefix("deltamem_cli.")
            while below and below != name:  # a name in a module counts for the module
                if below in known:
                    yield below
                    break
                below = below.rpartition(".")[0]


@pytest.fixture(scope="module")
def graph() -> dict[str, set[str]]:
    known = modules()
    return {name: set(imported(path, known)) - {name} for name, path in known.items()}


def test_every_module_has_a_layer() -> None:
    assert {name.split(".")[0] for name in modules()} == {unit for layer in LAYERS for unit in layer}


def test_imports_only_point_downward(graph: dict[str, set[str]]) -> None:
    height = {unit: i for i, layer in enumerate(LAYERS) for unit in layer}
    upward = [
        f"{name} imports {other}"
        for name, others in graph.items()
        for other in others
        if name.split(".")[0] != other.split(".")[0] and height[name.split(".")[0]] <= height[other.split(".")[0]]
    ]
    assert not upward


def test_no_modules_import_each_other_in_a_circle(graph: dict[str, set[str]]) -> None:
    TopologicalSorter(graph).prepare()  # raises CycleError, which names them


def test_no_file_grows_past_one_idea() -> None:
    grown = {name: n for name, path in modules().items() if (n := len(path.read_text("utf-8").splitlines())) > LONGEST}
    assert not grown
