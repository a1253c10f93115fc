"""The manifest of a portable memory file: every value checked before it becomes a record; knows no files, no SQL."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from deltamem_cli.store.bundle import Bundle
from deltamem_cli.store.records import Conversation, Identity, Message, Snapshot, Turn, TurnContext

FORMAT, VERSION = "deltamem-memory", 1
MAX_LAYERS, MAX_HEADS, MAX_RANK = 1024, 64, 64
MAX_TOKEN = 2**31 - 1
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,6})?Z")


class Malformed(Exception):
    """A value that cannot stand there; the text completes 'cannot be imported because …'."""


@dataclass(frozen=True)
class StateShape:
    """A state as the manifest describes it; its numbers lie in the other member."""

    turn: int | None
    model: Identity
    adapter: Identity
    layers: Sequence[int]
    heads: int
    rank: int

    @property
    def n_bytes(self) -> int:
        return 4 * len(self.layers) * self.heads * self.rank * self.rank


@dataclass(frozen=True)
class Manifest:
    conversation: Conversation
    turns: Sequence[Turn]
    states: Sequence[StateShape]
    sha256: str

    @property
    def n_bytes(self) -> int:
        return sum(state.n_bytes for state in self.states)

    def bundle(self, blob: bytes) -> Bundle:
        """The bundle with its states cut from `blob`; refuses numbers that are not finite."""
        import numpy as np

        found: dict[int | None, Snapshot] = {}
        start = 0
        for one in self.states:
            flat = np.frombuffer(blob, dtype="<f4", count=one.n_bytes // 4, offset=start).astype(np.float32)
            if not np.isfinite(flat).all():
                raise Malformed("a state in it contains numbers that are not finite")
            start += one.n_bytes
            state = flat.reshape(len(one.layers), one.heads, one.rank, one.rank)
            found[one.turn] = Snapshot(state, one.layers, one.model, one.adapter, one.turn)
        initial = found.pop(None, None)
        return Bundle(self.conversation, self.turns, {n: s for n, s in found.items() if n is not None}, initial)


def parse(document: Any) -> Manifest:
    """The manifest as records, or Malformed."""
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise Malformed("it is not a dmem memory file")
    version = _count(document, "version")
    if version > VERSION:
        raise Malformed(f"it was written by a newer dmem (version {version}, this one knows {VERSION})")
    source = _dict(document, "conversation")
    conversation = Conversation(
        id=_text(source, "id"),
        profile=_text(source, "profile"),
        title=_text_or_none(source, "title"),
        created=_time(source, "created"),
    )
    states = [_state(entry) for entry in _list(document, "states")]
    turns = [_turn(entry, {state.turn for state in states}) for entry in _list(document, "turns")]
    numbers = [turn.number for turn in turns]
    if numbers != sorted(set(numbers)):
        raise Malformed("its turns are not in order")
    owners = [state.turn for state in states]
    if len(set(owners)) != len(owners) or not {n for n in owners if n is not None} <= set(numbers):
        raise Malformed("its states do not belong to its turns")
    if not turns and not states:
        raise Malformed("it has no turns and no state")
    return Manifest(conversation, turns, states, _text(document, "states_sha256"))


def _state(entry: Any) -> StateShape:
    layers = _integers(entry, "layers", MAX_LAYERS)
    if not layers or list(layers) != sorted(set(layers)) or len(layers) > MAX_LAYERS:
        raise Malformed("the layers of a state are not in order")
    turn = None if _value(entry, "turn") is None else _count(entry, "turn", least=1)
    return StateShape(
        turn=turn,
        model=_identity(entry, "model"),
        adapter=_identity(entry, "adapter"),
        layers=layers,
        heads=_count(entry, "heads", least=1, most=MAX_HEADS),
        rank=_count(entry, "rank", least=1, most=MAX_RANK),
    )


def _turn(entry: Any, with_state: set[int | None]) -> Turn:
    number = _count(entry, "number", least=1)
    timings = _dict(entry, "timings")
    if not all(isinstance(seconds, (int, float)) and _is_plain(seconds) for seconds in timings.values()):
        raise Malformed("the timings of a turn are not numbers")
    settings = _dict(entry, "settings")
    if not all(_is_plain(value) for value in settings.values()):
        raise Malformed("the settings of a turn are not plain values")
    interrupted = _value(entry, "interrupted")
    if not isinstance(interrupted, bool):
        raise Malformed("interrupted is neither true nor false")
    return Turn(
        id=0,
        conversation="",
        number=number,
        kind=_text(entry, "kind"),
        created=_time(entry, "created"),
        model=_identity(entry, "model"),
        adapter=None if _value(entry, "adapter") is None else _identity(entry, "adapter"),
        settings=settings,
        context=_context(_dict(entry, "context")),
        interrupted=interrupted,
        prompt_tokens=_count(entry, "prompt_tokens"),
        reply_tokens=_count(entry, "reply_tokens"),
        written_tokens=_count(entry, "written_tokens"),
        timings=timings,
        has_state=number in with_state,
        messages=[_message(message) for message in _list(entry, "messages")],
    )


def _context(entry: dict[str, Any]) -> TurnContext:
    """A replay feeds what stands in it. Keys that are not known here are kept as they are."""
    check: dict[str, Callable[[], Any]] = {
        "run": lambda: _text(entry, "run"),
        "window_first": lambda: _count(entry, "window_first"),
        "replayed": lambda: _integers(entry, "replayed", 2**53, least=1),
        "system": lambda: _text_or_none(entry, "system"),
        "head": lambda: _integers(entry, "head", MAX_TOKEN),
        "n_past": lambda: _count(entry, "n_past"),
    }
    for key in entry.keys() & check.keys():
        check[key]()
    return entry  # type: ignore[return-value]


def _is_plain(value: Any) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    return value is None or isinstance(value, (str, int)) and (not isinstance(value, int) or abs(value) <= 2**53)


def _message(entry: Any) -> Message:
    tokens = _integers(entry, "tokens", MAX_TOKEN)
    spans = None if _value(entry, "spans") is None else _integers(entry, "spans", MAX_TOKEN, least=-1)
    if spans is not None and len(spans) != len(tokens):
        raise Malformed("a message has more or fewer span ids than tokens")
    return Message(_text(entry, "role"), _text(entry, "text"), tokens, spans)


def _value(entry: Any, key: str) -> Any:
    if not isinstance(entry, dict) or key not in entry:
        raise Malformed(f"{key} is missing")
    return entry[key]


def _dict(entry: Any, key: str) -> dict[str, Any]:
    value = _value(entry, key)
    if not isinstance(value, dict):
        raise Malformed(f"{key} has the wrong type")
    return value


def _list(entry: Any, key: str) -> list[Any]:
    value = _value(entry, key)
    if not isinstance(value, list):
        raise Malformed(f"{key} is not a list")
    return value


def _text(entry: Any, key: str) -> str:
    value = _value(entry, key)
    # lone surrogates pass JSON and fail in SQLite
    if not isinstance(value, str) or any("\ud800" <= character <= "\udfff" for character in value):
        raise Malformed(f"{key} is not text")
    return value


def _text_or_none(entry: Any, key: str) -> str | None:
    return None if _value(entry, key) is None else _text(entry, key)


def _time(entry: Any, key: str) -> str:
    value = _text(entry, key)
    if not _TIME.fullmatch(value):
        raise Malformed(f"{key} is not a time")
    return value


def _count(entry: Any, key: str, least: int = 0, most: int = 2**53) -> int:
    return _integer(_value(entry, key), key, least, most)


def _integers(entry: Any, key: str, most: int, least: int = 0) -> list[int]:
    return [_integer(value, key, least, most) for value in _list(entry, key)]


def _integer(value: Any, key: str, least: int, most: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise Malformed(f"{key} is not an allowed number")
    return value


def _identity(entry: Any, key: str) -> Identity:
    value = _value(entry, key)
    return Identity(_text(value, "name"), _text(value, "fingerprint"))
