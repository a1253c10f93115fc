"""A conversation outside the database: read out whole, written into any profile of any store.

Branching, `--temporary` copies, export and import are all this one step; knows nothing of files.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from deltamem_cli.store import conversations, states, turns
from deltamem_cli.store.database import Store
from deltamem_cli.store.errors import StoreError
from deltamem_cli.store.ids import now
from deltamem_cli.store.records import Conversation, Profile, Snapshot, Turn


@dataclass(frozen=True, eq=False)
class Bundle:
    """A conversation's turns in order, with or without texts, and their states by turn number."""

    conversation: Conversation
    turns: Sequence[Turn] = ()
    states: dict[int, Snapshot] = field(default_factory=dict)
    initial: Snapshot | None = None

    @property
    def last_turn(self) -> int:
        """The number of the last turn; 0: none."""
        return self.turns[-1].number if self.turns else 0


def read(store: Store, conversation: Conversation, *, at: int | None = None, transcript: bool = True) -> Bundle:
    """The conversation up to and with turn `at` (default: all of it)."""
    with store.reading():
        every = turns.all_of(store, conversation.id, messages=transcript)
        if at is not None and at not in {turn.number for turn in every}:
            turns.get(store, conversation.id, at)  # raises, and says which turns there are
        kept = [turn for turn in every if at is None or turn.number <= at]
        if not transcript:
            kept = [turns.without_messages(turn) for turn in kept]
            conversation = replace(conversation, title=None, heading="")
        numbers = {turn.number for turn in kept}
        snapshots = list(states.every(store, conversation.id))
    return Bundle(
        conversation=conversation,
        turns=kept,
        states={s.turn: s for s in snapshots if s.turn in numbers and s.turn is not None},
        initial=next((s for s in snapshots if s.turn is None), None),
    )


def state_only(bundle: Bundle) -> Bundle:
    """The same memory with no turns: the last state becomes the initial one."""
    last = bundle.states[max(bundle.states)] if bundle.states else bundle.initial
    initial = replace(last, turn=None) if last else None
    return Bundle(conversation=replace(bundle.conversation, title=None, heading=""), initial=initial)


def check_holds(bundle: Bundle) -> None:
    """Raises StoreError for a conversation that there is nothing of."""
    if not bundle.turns and bundle.initial is None:
        raise StoreError(
            f"Conversation {bundle.conversation.id} has no turns and no memory, so there is nothing to copy; "
            "see: dmem log list"
        )


def write(store: Store, profile: Profile, bundle: Bundle) -> Conversation:
    """Store the bundle as a new conversation of `profile`, its last one from now on; all of it or nothing."""
    source = bundle.conversation
    moment = now()
    fresh = replace(
        conversations.new(profile),
        title=source.title if bundle.turns else None,
        created=source.created or moment,
        updated=moment,
        origin=source.id,
        origin_turn=bundle.last_turn or None,
    )
    check_holds(bundle)
    with store.transaction():
        conversations.insert(store, fresh)
        if bundle.initial:
            states.insert(store, fresh.id, None, bundle.initial)
        for turn in bundle.turns:
            turns.insert(store, fresh.id, turn.number, turn.created, turns.as_new(turn, bundle.states.get(turn.number)))
    return conversations.get(store, fresh.id)


def branch(store: Store, conversation: Conversation, profile: Profile, *, at: int | None = None) -> Conversation:
    """Copy a conversation, up to turn `at`, into a profile; the two know nothing of each other afterwards."""
    return write(store, profile, read(store, conversation, at=at))
