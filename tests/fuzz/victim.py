"""python victim.py KIND ARGUMENT...: reads every file named on stdin as dmem would. A line of JSON each: what came of it.

It runs apart from the tests: should a file end it, the test knows which. {"said": the refusal or null, "memory": bytes
that the process took at most}; {"failed": what is wrong}.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from trial import is_sentence

from deltamem_cli.errors import DeltamemError

SECONDS = 10.0  # of the processor: a busy machine is no hang
Reader = Callable[[Path], None]


def adapter(model: str) -> Reader:
    """By the Python that shows adapters, and by the engine that runs them."""
    from deltamem_cli.adapter.format import read_adapter, trained_writes
    from deltamem_cli.engine import Engine, EngineOptions, Model, Seat

    loaded = Model(Path(model))

    def read(path: Path) -> None:
        refused = None
        try:
            read_adapter(path)
            trained_writes(path)
        except DeltamemError as error:
            refused = error
        with Engine(loaded, path, EngineOptions(ctx_size=256, threads=1)) as engine:
            seat = Seat(engine)
            seat.feed([1, 2, 3, 4], spans=[0, 0, 1, -1])
            seat.feed([5])
            seat.state()
        if refused:
            raise refused

    return read


def header() -> Reader:
    """What lists, shows and converts models: the header alone, without llama.cpp."""
    from deltamem_cli.adapter.base_model import read_base_model
    from deltamem_cli.models.facts import chat_template, read_facts

    def read(path: Path) -> None:
        read_facts([path])
        chat_template(path)
        read_base_model(path)

    return read


def model() -> Reader:
    """As a chat runs it."""
    from deltamem_cli.engine import Engine, EngineOptions, Model, Sampling, Seat

    def read(path: Path) -> None:
        with Model(path) as loaded:
            loaded.check_speaks()
            loaded.name, loaded.bos, loaded.adds_bos, loaded.chat_template, loaded._marks  # noqa: B018 (they are read)
            size = min(4096, loaded.n_ctx_train or 4096)
            with Engine(loaded, None, EngineOptions(ctx_size=size, threads=2)) as engine:
                seat = Seat(engine)
                seat.feed(loaded.tokenize("What do you see? \u2602\x00\U0001f600", special=True))
                seat.can_shift and seat.drop(1, 3)
                sampler = seat.sampler(Sampling(repeat_penalty=1.1))
                drawn = []
                while len(drawn) < 4 and not loaded.is_end(token := sampler.sample()):
                    drawn.append(token)
                    seat.feed([token])
                sampler.close()
                loaded.text(drawn)

    return read


def torch() -> Reader:
    from deltamem_cli.formats.torch_file import read_torch_file

    return lambda path: _use(read_torch_file(path))


def safetensors() -> Reader:
    from deltamem_cli.formats.safetensors_file import read_safetensors_file

    return lambda path: _use(read_safetensors_file(path))


def _use(tensors: dict) -> None:
    for weight in tensors.values():
        assert weight.float32.shape == weight.shape


def bundle(database: str) -> Reader:
    """Imported into a database that has a conversation already, which must stay, and read back from there."""
    from deltamem_cli.store import bundle, conversations, portable, profiles, states, turns
    from deltamem_cli.store.database import Store

    store = Store.open(Path(database))
    kept = conversations.all_of(store)[0]

    def content() -> tuple:
        return turns.all_of(store, kept.id), [s.state.tobytes() for s in states.every(store, kept.id)]

    before = content()

    def read(path: Path) -> None:
        try:
            taken = bundle.write(store, profiles.ensure(store, "other"), portable.load(path))
            bundle.read(store, taken)
            turns.all_of(store, taken.id)
            conversations.delete(store, taken.id)
        finally:
            assert content() == before
            assert conversations.all_of(store) == [kept]

    return read


def config(home: str) -> Reader:
    """Read, and changed: what could not be read is left as it is, and a change loses nothing else."""
    os.environ["DMEM_HOME"] = home
    from deltamem_cli import config

    place = Path(home) / "config.toml"

    def read(path: Path) -> None:
        data = path.read_bytes()
        place.write_bytes(data)
        try:
            before = config.checked()
            for name in config.KEYS:
                config.value(name)
            config.table("models")
            config.table("adapters")
            config.set_value("ctx_size", "777")
        except DeltamemError:
            assert place.read_bytes() == data
            raise
        assert config.checked() == before | {"ctx_size": 777}

    return read


def database() -> Reader:
    """Read alone, and opened to be written: what can't be is left byte by byte."""
    from deltamem_cli.store import conversations, profiles, reset, states, turns
    from deltamem_cli.store.database import Store
    from deltamem_cli.store.search import search

    def look(store: Store) -> None:
        for profile in profiles.all_of(store):
            conversations.latest(store, profile)
        for talk in conversations.all_of(store):
            turns.all_of(store, talk.id)
            for _ in states.every(store, talk.id):
                pass
        search(store, "question")
        reset.extent(store, conversations.all_of(store), transcript=True)

    def tried(*actions: Callable[[], None]) -> None:
        refused = None
        for action in actions:
            try:
                action()
            except DeltamemError as error:
                _check(str(error))
                refused = error
        if refused:
            raise refused

    def read(path: Path) -> None:
        data = path.read_bytes()

        def reading() -> None:
            with Store.read(path) as store:
                look(store)

        def writing() -> None:
            try:
                store = Store.open(path, create=False)
            except DeltamemError:
                assert path.read_bytes() == data, "what is refused is changed"
                raise
            with store:
                look(store)

        try:
            tried(reading)
        finally:
            assert path.read_bytes() == data, "reading writes"
        tried(writing)

    return read


def _check(said: str) -> None:
    assert is_sentence(said), said


def main(kind: str, *arguments: str) -> None:
    read: Reader = globals()[kind](*arguments)
    for line in sys.stdin:
        if hasattr(signal, "setitimer"):
            signal.setitimer(signal.ITIMER_PROF, SECONDS)
        answer: dict[str, object] = {"said": None}
        try:
            read(Path(line.rstrip("\n")))
        except DeltamemError as error:
            answer["said"] = str(error)
        except BaseException as error:  # noqa: BLE001 (this is what is looked for)
            import traceback

            answer["failed"] = (
                f"{type(error).__name__}: {error}\n{''.join(traceback.format_tb(error.__traceback__)[-4:])}"
            )
        if hasattr(signal, "setitimer"):
            signal.setitimer(signal.ITIMER_PROF, 0)
            import resource

            answer["memory"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
