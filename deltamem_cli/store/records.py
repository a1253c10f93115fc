"""The store's nouns as plain data; knows nothing of SQL and imports numpy only for type checkers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypedDict

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Identity:
    """A model or an adapter: the name that people see and the fingerprint that decides."""

    name: str
    fingerprint: str


@dataclass(frozen=True)
class Profile:
    """A name with its own memory and defaults."""

    id: int
    name: str
    model: str | None = None
    adapter: str | None = None
    system: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    created: str = ""
    template: str | None = None  # path of a chat template
    write: str | None = None  # what of a turn goes into the memory: all, or user


@dataclass(frozen=True)
class Conversation:
    """A line of turns. `title` is what the user gave it; `heading` is that, else how the first user message begins."""

    id: str
    profile: str
    title: str | None = None
    created: str = ""
    updated: str = ""
    n_turns: int = 0
    origin: str | None = None  # id of the conversation that this one was branched or imported from
    origin_turn: int | None = None
    heading: str = ""
    profile_id: int = 0  # 0: the profile was not stored when this was read


class TurnContext(TypedDict, total=False):
    """What was visible to the model while the turn ran: enough to feed the same tokens in the same context.

    Numbers are turn numbers of the same conversation. They stay valid when an earlier turn is forgotten. None and nothing
    are the same.
    """

    run: str  # one run = one KV cache from empty to closed; turns of a run share it
    window_first: int  # first turn whose tokens were still in the cache when this turn began
    replayed: list[int]  # turns fed at the run's start with writing off
    system: str | None  # the system prompt in effect
    head: list[int]  # token ids at position 0 that belong to no turn (system prompt as templated)
    opening: list[int]  # token ids that a turn begins with and the head stands for in the first visible one
    n_past: int  # cache length when the turn began


THINKING = "thinking"  # role of what a model thought before it answered; it leaves the window when the turn is over


@dataclass(frozen=True)
class Message:
    """One message of a turn, of a "user", of the "assistant" or THINKING. `tokens` are exactly the ids fed or sampled
    for it, template marks included, so that the tokens of a turn's messages, one after the other, are what a replay
    feeds. `spans` has one write span id per token (-1 = read but not written; with token writes the other ids say
    nothing) or is None when every token wrote by itself.
    """

    role: str
    text: str
    tokens: Sequence[int] = ()
    spans: Sequence[int] | None = None


@dataclass(frozen=True, eq=False)
class Snapshot:
    """A state and whose it is. state: [layers, heads, rank, rank] float32; `layers` names the adapted layers.

    `turn` is the turn that left it, None for the state a conversation began with.
    """

    state: np.ndarray
    layers: Sequence[int]
    model: Identity
    adapter: Identity
    turn: int | None = None


@dataclass(frozen=True, eq=False)
class NewTurn:
    """A turn to commit. `snapshot` None means that the turn left the memory as it was (memory or writing off)."""

    model: Identity
    messages: Sequence[Message] = ()
    snapshot: Snapshot | None = None
    adapter: Identity | None = None
    kind: str = "chat"
    settings: Mapping[str, Any] = field(default_factory=dict)
    context: TurnContext = field(default_factory=TurnContext)
    interrupted: bool = False
    prompt_tokens: int = 0
    reply_tokens: int = 0
    written_tokens: int = 0
    timings: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Turn:
    """A committed turn: one exchange, or one write outside a chat (`kind` "remember")."""

    id: int
    conversation: str
    number: int
    kind: str
    created: str
    model: Identity
    adapter: Identity | None
    settings: Mapping[str, Any]
    context: TurnContext
    interrupted: bool
    prompt_tokens: int
    reply_tokens: int
    written_tokens: int
    timings: Mapping[str, float]
    has_state: bool
    messages: Sequence[Message] = ()
