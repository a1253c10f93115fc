"""Values that others wrote, each checked before it becomes a part of a record: of rows and of files; no SQL.

An entry is a row or a JSON object. What is wrong with it is raised as Malformed.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from deltamem_cli.adapter.limits import MAX_LAYERS
from deltamem_cli.store.errors import WAY_OUT, StoreError
from deltamem_cli.store.records import Identity, TurnContext

MAX_TOKEN = 2**31 - 1
MAX_NUMBER = 2**53
_LONE_SURROGATES = re.compile("[\ud800-\udfff]")  # they pass JSON and fail in SQLite


class Malformed(Exception):
    """A value that cannot stand there; the text completes 'cannot be imported because …'."""


@contextmanager
def rows_of(database: str, what: str) -> Iterator[None]:
    """Inside, rows of `what` become records. Turns Malformed into StoreError."""
    try:
        yield
    except Malformed as error:
        raise StoreError(f"{database} is damaged (in {what}, {error}); {WAY_OUT}") from error


def value(entry: Any, key: str) -> Any:
    """The value of a key that must be there. These functions raise Malformed."""
    if not isinstance(entry, dict) or key not in entry:
        raise Malformed(f"{key} is missing in it")
    return entry[key]


def object_(entry: Any, key: str) -> dict[str, Any]:
    """A JSON object."""
    found = value(entry, key)
    if not isinstance(found, dict):
        raise Malformed(f"{key} is not what it should be")
    return found


def list_(entry: Any, key: str) -> list[Any]:
    """A JSON list."""
    found = value(entry, key)
    if not isinstance(found, list):
        raise Malformed(f"{key} is not a list")
    return found


def json_(entry: Any, key: str) -> dict[str, Any]:
    """`key` holds JSON; an entry with what that says in its place."""
    try:
        return {key: json.loads(text(entry, key))}
    except (ValueError, RecursionError):
        raise Malformed(f"{key} is not JSON") from None


def text(entry: Any, key: str) -> str:
    """A text that SQLite can hold."""
    found = value(entry, key)
    if not isinstance(found, str) or _LONE_SURROGATES.search(found):
        raise Malformed(f"{key} is not a text")
    return found


def text_or_none(entry: Any, key: str) -> str | None:
    """A text, or nothing."""
    return None if value(entry, key) is None else text(entry, key)


def blob(entry: Any, key: str) -> bytes:
    """Binary data."""
    found = value(entry, key)
    if not isinstance(found, bytes):
        raise Malformed(f"{key} is not binary data")
    return found


def count(entry: Any, key: str, least: int = 0, most: int = MAX_NUMBER) -> int:
    """A whole number from `least` to `most`."""
    found = value(entry, key)
    if type(found) is not int or not least <= found <= most:  # true is an int, too
        raise Malformed(f"{key} is not a number that may stand there")
    return found


def count_or_none(entry: Any, key: str, least: int = 0) -> int | None:
    """A whole number from `least`, or nothing."""
    return None if value(entry, key) is None else count(entry, key, least)


def integers(entry: Any, key: str, most: int, least: int = 0) -> list[int]:
    """A list of whole numbers from `least` to `most`."""
    found = list_(entry, key)
    if not set(map(type, found)) <= {int} or (found and not least <= min(found) <= max(found) <= most):
        raise Malformed(f"{key} is not a list of numbers that may stand there")
    return found


def identity(entry: Any, key: str) -> Identity:
    """Which model or adapter: a name and a fingerprint."""
    found = value(entry, key)
    return Identity(text(found, "name"), text(found, "fingerprint"))


def layers(entry: Any) -> list[int]:
    """Of a state."""
    found = integers(entry, "layers", MAX_LAYERS)
    if not found or found != sorted(set(found)) or len(found) > MAX_LAYERS:
        raise Malformed("the layers of a state are not in order")
    return found


def settings(entry: Any, key: str = "settings") -> dict[str, Any]:
    """Plain values by name."""
    found = object_(entry, key)
    if not all(_is_plain(setting) for setting in found.values()):
        raise Malformed(f"the {key} are not plain values")
    return found


def timings(entry: Any) -> dict[str, float]:
    """Seconds by name."""
    found = object_(entry, "timings")
    if not all(isinstance(seconds, (int, float)) and _is_plain(seconds) for seconds in found.values()):
        raise Malformed("the timings of a turn are not numbers")
    return found


def _is_plain(found: Any) -> bool:
    if isinstance(found, float):
        return math.isfinite(found)
    return found is None or isinstance(found, (str, int)) and (not isinstance(found, int) or abs(found) <= MAX_NUMBER)


def context(entry: dict[str, Any]) -> TurnContext:
    """A replay feeds what stands in it. Keys that are not known here are kept as they are."""
    check: dict[str, Callable[[], Any]] = {
        "run": lambda: text(entry, "run"),
        "window_first": lambda: count(entry, "window_first"),
        "replayed": lambda: integers(entry, "replayed", MAX_NUMBER, least=1),
        "system": lambda: text_or_none(entry, "system"),
        "head": lambda: integers(entry, "head", MAX_TOKEN),
        "opening": lambda: integers(entry, "opening", MAX_TOKEN),
        "n_past": lambda: count(entry, "n_past"),
    }
    for key in entry.keys() & check.keys():
        check[key]()
    return entry  # type: ignore[return-value]
