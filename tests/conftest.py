"""Tiny random models and adapters that many tests share; each is written and loaded once."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from deltamem_cli.training.encode import Encoder

MakeModel = Callable[..., Path]
MakeAdapter = Callable[..., Path]
LoadModel = Callable[[Path], Any]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--many", type=int, default=300, help="mutated files of each kind that tests/fuzz tries")
    parser.addoption("--kills", type=int, default=12, help="times that each test of kill -9 kills")


@pytest.fixture(autouse=True)
def settings_are_not_the_testers(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("DMEM_"):
            monkeypatch.delenv(name)


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


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """DMEM_HOME, a folder that is not there yet."""
    monkeypatch.setenv("DMEM_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def dmem(home: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs a command line in this process; returns stdout, or stderr with `code`, the exit code that it must have."""
    from deltamem_cli import cli

    def run(*arguments: str, code: int = 0) -> str:
        found = cli.main(list(arguments))
        shown = capsys.readouterr()
        assert found == code, shown.err
        assert "Traceback" not in shown.err
        return shown.err if code else shown.out

    return run


@pytest.fixture
def make_chats(home: Path, tiny_model: MakeModel, tiny_adapter: MakeAdapter) -> Any:
    """make_chats(granularity, arch, **settings): sessions on a tiny model over one database."""
    from chat_support import Chats, as_if_tried

    home.mkdir()

    def make(granularity: str = "token", arch: str = "qwen3", **settings: Any) -> Chats:
        model = tiny_model(arch)
        as_if_tried(model)
        adapter = tiny_adapter(model, write_granularity=granularity)
        return Chats(home / "memory.db", {"model": model, "adapter": adapter, **settings})

    return make


@pytest.fixture
def chats(make_chats: Any) -> Any:
    """Sessions on a tiny model that writes per token."""
    return make_chats()


@pytest.fixture
def tiny(home: Path, tiny_model: MakeModel, tiny_adapter: MakeAdapter) -> Any:
    """The installed program with a tiny model."""
    from chat_support import Dmem, as_if_tried

    model = tiny_model("qwen3")
    as_if_tried(model)
    return Dmem(home, model, tiny_adapter(model))


@pytest.fixture
def starter(home: Path, tmp_path: Path) -> Any:
    """The installed program with the starter model and a random adapter, whose effect is the same every time."""
    from chat_support import Dmem

    from deltamem_cli import paths
    from deltamem_cli.synthetic import random_adapter

    adapter = tmp_path / "adapter.gguf"
    random_adapter(paths.starter_model(), adapter, scale=0.2)
    return Dmem(home, None, adapter)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model that the trainer's tests train an adapter for."""
    from deltamem_cli.synthetic import write_model

    return write_model(tmp_path_factory.mktemp("model") / "tiny.gguf", "llama", seed=1)


@pytest.fixture(scope="module")
def encoder(base: Path) -> Encoder:
    """Its tokens and chat marks; for tests that need the extra train."""
    from deltamem_cli.training.encode import Encoder
    from deltamem_cli.training.tokens import GGUFTokenizer

    return Encoder(GGUFTokenizer(base))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, tiny_model: MakeModel, tiny_adapter: MakeAdapter) -> Iterator[Any]:
    """A server with a tiny model that writes per token, whose template has tools."""
    pytest.importorskip("starlette")
    from chat_support import as_if_tried
    from server_support import TOOLS_TEMPLATE, Server

    home = tmp_path_factory.mktemp("server")
    model = tiny_model("qwen3")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DMEM_HOME", str(home))
        as_if_tried(model)
    (home / "tools.jinja").write_text(TOOLS_TEMPLATE)
    settings = {"MODEL": model, "ADAPTER": tiny_adapter(model), "TEMPLATE": home / "tools.jinja"}
    settings |= {"OPTIONS_MAX_TOKENS": "8", "OPTIONS_TEMPERATURE": "0"}
    running = Server(home, "--ctx-size", "512", **{f"DMEM_{name}": str(value) for name, value in settings.items()})
    running.start()
    yield running
    running.stop()
