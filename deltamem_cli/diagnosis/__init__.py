"""What is right and wrong here: installation, storage, model. Plain data; changes nothing and prints nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack

from deltamem_cli.config.errors import ConfigError
from deltamem_cli.diagnosis import installation, network
from deltamem_cli.diagnosis.checks import Check, Flags, worst

__all__ = ["Check", "Flags", "diagnose", "worst"]


def diagnose(subject: Flags) -> Iterator[Check]:
    """Every check, as each is done."""
    listener = network.Listener()
    yield from _looked("install", lambda: [installation.package()])
    yield from _looked("configuration", lambda: [installation.configuration()])
    native = list(_looked("native library", lambda: [installation.native_library()]))
    yield from native
    stored = list(_looked("database", lambda: _storage(subject)))
    yield from stored
    if worst(native) == "broken":
        yield Check("model", "warning", "not checked, because the native library is broken")
    else:
        readable = all(check.verdict == "ok" for check in stored if check.name == "database")
        yield from _looked("model", lambda: _running(subject, readable=readable))
    yield listener.check()


def _storage(subject: Flags) -> Iterator[Check]:
    from deltamem_cli.diagnosis import storage
    from deltamem_cli.store.location import default_path

    yield storage.folder()
    path = subject.database or default_path()
    yield storage.permissions(path)
    yield storage.disk(path)
    yield storage.database(path)


def _running(subject: Flags, *, readable: bool) -> Iterator[Check]:
    from deltamem_cli.diagnosis import running
    from deltamem_cli.store import migrations
    from deltamem_cli.store.database import Store
    from deltamem_cli.store.location import default_path

    path = subject.database or default_path()
    with ExitStack() as stack:
        store = stack.enter_context(Store.look(path)) if readable and path.exists() else None
        yield from running.checks(subject, store if store and store.layout == migrations.LATEST else None)


def _looked(name: str, look: Callable[[], Iterable[Check]]) -> Iterator[Check]:
    """The checks of one step; one that cannot be made is a finding too."""
    try:
        yield from look()
    except ConfigError:
        yield Check(name, "warning", "not checked, because the configuration is broken")
    except Exception as error:  # noqa: BLE001 (here of all places nothing may end the program)
        yield Check(name, "broken", f"could not be checked ({type(error).__name__}: {error})", "please report it")
