"""Makes stored conversations for tests: real database files with seeded states and telling texts."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np

from deltamem_cli.store import conversations, locks, profiles, turns
from deltamem_cli.store.database import Store
from deltamem_cli.store.errors import ConversationBusy, Holder
from deltamem_cli.store.lock_file import ConversationLock, read_holder
from deltamem_cli.store.records import Conversation, Identity, Message, NewTurn, Snapshot

MODEL = Identity("tiny-model", "aa" * 32)
ADAPTER = Identity("tiny-adapter", "bb" * 32)
LAYERS = [2, 3, 5]


def snapshot(seed: int, layers: list[int] | None = None, heads: int = 1, rank: int = 8) -> Snapshot:
    layers = LAYERS if layers is None else layers
    state = np.random.default_rng(seed).standard_normal((len(layers), heads, rank, rank)).astype(np.float32)
    return Snapshot(state, layers, MODEL, ADAPTER)


def exchange(seed: int, user: str = "", reply: str = "", **changes: object) -> NewTurn:
    values: dict[str, object] = {
        "model": MODEL,
        "adapter": ADAPTER,
        "snapshot": snapshot(seed),
        "messages": [
            Message("user", user or f"question {seed}", [1, 2, seed], [0, 0, -1]),
            Message("assistant", reply or f"answer {seed}", [7, 8]),
        ],
        "settings": {"temperature": 0.5},
        "context": {"run": "r1", "window_first": 1, "replayed": [1]},
        "prompt_tokens": 3,
        "reply_tokens": 2,
        "written_tokens": 4,
        "timings": {"reply": 0.25},
    }
    return NewTurn(**{**values, **changes})  # type: ignore[arg-type]


def conversation(store: Store, n_turns: int = 3, profile: str = "work", word: str = "question") -> Conversation:
    """A stored conversation whose turn n asks '<word> n' and has the state of seed n."""
    made = conversations.new(profiles.ensure(store, profile))
    for number in range(1, n_turns + 1):
        turns.commit(store, made, exchange(number, user=f"{word} {number}"))
    return conversations.get(store, made.id) if n_turns else made


def raw_bytes(path: Path) -> bytes:
    """Every byte of the database and the files that SQLite keeps beside it."""
    names = [path, *(path.with_name(path.name + end) for end in ("-wal", "-shm", "-journal"))]
    return b"".join(name.read_bytes() for name in names if name.exists())


def run(code: str, *arguments: object, **options: object) -> subprocess.Popen[str]:
    """A second process with the same Python and package, talking over pipes."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        **options,  # type: ignore[call-overload]
    )


def holder(store: Store, conversation: str) -> Holder | None:
    """Who holds the conversation now, this process included; None when nobody does."""
    path = locks.lock_path(store, conversation)
    if not path.exists():
        return None
    if conversation in store.locks:
        return read_holder(path)
    try:
        ConversationLock(path, conversation).release()
    except ConversationBusy as busy:
        return busy.holder
    return None
