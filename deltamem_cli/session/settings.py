"""What a session is told by its user and what it tells of a turn; plain data."""

from __future__ import annotations

from dataclasses import dataclass, field

from deltamem_cli.engine import LazyGrammar, Sampling


@dataclass(frozen=True)
class Settings:
    """What the user chose for a session."""

    sampling: Sampling = field(default_factory=Sampling)
    max_tokens: int | None = None
    loop_guard: int = 3  # a reply ends when its last words were repeated so many times; 0: never
    replay_tokens: int | None = None  # of earlier turns shown to the model at the start; None: a quarter of the context
    read_only: bool = False  # what a turn writes is thrown away with it, and nothing is committed
    write: str = "all"  # what of a turn is written: "all" of it, what the "user" says, or "none" of it
    log: bool = True  # False: texts are not committed, states are
    remember_thinking: bool = False  # what a model thinks is written into the memory, too
    stop: tuple[str, ...] = ()  # an answer ends before the first of these
    grammar: str | LazyGrammar | None = None  # in GBNF: what a reply must keep to


@dataclass
class TurnStats:
    """Of the last turn. Times in seconds; `changed` is the norm of the state's change."""

    context_tokens: int = 0  # that the model saw before
    prompt_tokens: int = 0
    reply_tokens: int = 0  # those of the thinking part included
    thinking_tokens: int = 0
    written_tokens: int = 0
    prompt_seconds: float = 0.0
    reply_seconds: float = 0.0
    interrupted: bool = False
    looped: bool = False  # the loop guard ended the reply
    cut: bool = False  # max_tokens ended it
    changed: float = 0.0
