"""What a session is told by its user and what it tells of a turn; plain data."""

from __future__ import annotations

from dataclasses import dataclass, field

from deltamem_cli.engine import Sampling


@dataclass(frozen=True)
class Settings:
    """What the user chose for a session."""

    sampling: Sampling = field(default_factory=Sampling)
    max_tokens: int | None = None
    replay_tokens: int | None = None  # of earlier turns shown to the model at the start; None: a quarter of the context
    write: bool = True  # False: the memory is read and stays as it was, and nothing is committed
    log: bool = True  # False: texts are not committed, states are
    remember_thinking: bool = False  # what a model thinks is written into the memory, too


@dataclass
class TurnStats:
    """Of the last turn. Times in seconds; `changed` is the norm of the state's change."""

    prompt_tokens: int = 0
    reply_tokens: int = 0  # those of the thinking part included
    thinking_tokens: int = 0
    written_tokens: int = 0
    prompt_seconds: float = 0.0
    reply_seconds: float = 0.0
    interrupted: bool = False
    changed: float = 0.0
