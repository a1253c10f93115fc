"""Tiny random models and adapters that many tests share; each is written and loaded once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

MakeModel = Callable[..., Path]
MakeAdapter = Callable[..., Path]
LoadModel = Callable[[Path], Any]


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> MakeModel:
    """tiny_model(arch, **shape): the path of a random model of two layers."""
    from deltamem_cli.synthetic import write_model

    folder = tmp_path_factory.mktemp("models")
    made: dict[str, Path] = {}

    def make(arch: str, **shape: Any) -> Path:
        settings = {"n_layer": 2} | shape
        name = "-".join([arch, *(f"{key}={settings[key]}" for key in sorted(settings))])
        if name not in made:
            made[name] = write_model(folder / f"{name}.gguf", arch, **settings)
        return made[name]

    return make


@pytest.fixture(scope="session")
def tiny_adapter(tmp_path_factory: pytest.TempPathFactory) -> MakeAdapter:
    """tiny_adapter(model, **settings): the path of a random adapter for it; settings as random_adapter takes them."""
    from deltamem_cli.synthetic import random_adapter

    folder = tmp_path_factory.mktemp("adapters")
    made: dict[tuple[Any, ...], Path] = {}

    def make(model: Path, **settings: Any) -> Path:
        key = (model, *sorted(settings.items()))
        if key not in made:
            path = folder / f"{len(made)}.gguf"
            random_adapter(model, path, **settings)
            made[key] = path
        return made[key]

    return make


@pytest.fixture(scope="session")
def loaded() -> Iterator[LoadModel]:
    """loaded(path): the model in memory, which all tests share."""
    from deltamem_cli.engine import Model

    models: dict[Path, Any] = {}

    def load(path: Path) -> Any:
        if path not in models:
            models[path] = Model(path)
        return models[path]

    yield load
    for model in models.values():
        model.close()
