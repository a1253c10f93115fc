"""The manifest of a portable memory file: every value checked before it becomes a record; knows no files, no SQL."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from deltamem_cli.adapter.limits import MAX_RANK, MAX_STATE_HEADS
from deltamem_cli.store import checked
from deltamem_cli.store.bundle import Bundle
from deltamem_cli.store.checked import MAX_TOKEN, Malformed
from deltamem_cli.store.records import Conversation, Identity, Message, Snapshot, Turn

FORMAT, VERSION = "deltamem-memory", 1
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,6})?Z")


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
        """The size of the state as float32."""
        return 4 * len(self.layers) * self.heads * self.rank * self.rank


@dataclass(frozen=True)
class Manifest:
    """What a memory file says of itself; sha256 is that of its states."""

    conversation: Conversation
    turns: Sequence[Turn]
    states: Sequence[StateShape]
    sha256: str

    @property
    def n_bytes(self) -> int:
        """The size of all states together."""
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
    version = checked.count(document, "version")
    if version > VERSION:
        raise Malformed(f"it was written by a newer dmem (version {version}, this one knows {VERSION})")
    source = checked.object_(document, "conversation")
    conversation = Conversation(
        id=checked.text(source, "id"),
        profile=checked.text(source, "profile"),
        title=checked.text_or_none(source, "title"),
        created=_time(source, "created"),
    )
    states = [_state(entry) for entry in checked.list_(document, "states")]
    turns = [_turn(entry, {state.turn for state in states}) for entry in checked.list_(document, "turns")]
    numbers = [turn.number for turn in turns]
    if numbers != sorted(set(numbers)):
        raise Malformed("its turns are not in order")
    owners = [state.turn for state in states]
    if len(set(owners)) != len(owners) or not {n for n in owners if n is not None} <= set(numbers):
        raise Malformed("its states do not belong to its turns")
    if not turns and not states:
        raise Malformed("it has no turns and no state")
    return Manifest(conversation, turns, states, checked.text(document, "states_sha256"))


def _state(entry: Any) -> StateShape:
    turn = None if checked.value(entry, "turn") is None else checked.count(entry, "turn", least=1)
    return StateShape(
        turn=turn,
        model=checked.identity(entry, "model"),
        adapter=checked.identity(entry, "adapter"),
        layers=checked.layers(entry),
        heads=checked.count(entry, "heads", least=1, most=MAX_STATE_HEADS),
        rank=checked.count(entry, "rank", least=1, most=MAX_RANK),
    )


def _turn(entry: Any, with_state: set[int | None]) -> Turn:
    number = checked.count(entry, "number", least=1)
    interrupted = checked.value(entry, "interrupted")
    if not isinstance(interrupted, bool):
        raise Malformed("interrupted is neither true nor false")
    return Turn(
        id=0,
        conversation="",
        number=number,
        kind=checked.text(entry, "kind"),
        created=_time(entry, "created"),
        model=checked.identity(entry, "model"),
        adapter=None if checked.value(entry, "adapter") is None else checked.identity(entry, "adapter"),
        settings=checked.settings(entry),
        context=checked.context(checked.object_(entry, "context")),
        interrupted=interrupted,
        prompt_tokens=checked.count(entry, "prompt_tokens"),
        reply_tokens=checked.count(entry, "reply_tokens"),
        written_tokens=checked.count(entry, "written_tokens"),
        timings=checked.timings(entry),
        has_state=number in with_state,
        messages=[_message(message) for message in checked.list_(entry, "messages")],
    )


def _message(entry: Any) -> Message:
    tokens = checked.integers(entry, "tokens", MAX_TOKEN)
    spans = None if checked.value(entry, "spans") is None else checked.integers(entry, "spans", MAX_TOKEN, least=-1)
    if spans is not None and len(spans) != len(tokens):
        raise Malformed("a message has more or fewer span ids than tokens")
    return Message(checked.text(entry, "role"), checked.text(entry, "text"), tokens, spans)


def _time(entry: Any, key: str) -> str:
    value = checked.text(entry, key)
    if not _TIME.fullmatch(value):
        raise Malformed(f"{key} is not a time")
    return value
