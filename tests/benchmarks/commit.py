"""How long the commit of a turn takes: `python tests/benchmarks/commit.py [FOLDER]`; p99 is to be at most 5 ms.

Turns of Qwen3-4B's size (36 layers, 9.2 kB of state, 360 tokens, 1.7 kB of text). The same commits into a database in
memory show how much of it is this machine being busy with something else.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from deltamem_cli.store import conversations, locks, profiles, turns
from deltamem_cli.store.database import Store
from deltamem_cli.store.records import Identity, Message, NewTurn, Snapshot

TURNS = 2000
PAUSE = 0.005  # seconds; a chat leaves far more between two turns
LIMIT = 5.0


def turn(random: np.random.Generator, words: list[str]) -> NewTurn:
    def text(n: int) -> str:
        return " ".join(words[i] for i in random.integers(0, len(words), n))

    who = Identity("benchmark", "0" * 64)
    state = random.standard_normal((36, 1, 8, 8)).astype(np.float32)
    messages = [Message("user", text(40), range(60)), Message("assistant", text(200), range(300))]
    context = {"run": "benchmark", "window_first": 1, "replayed": [1, 2, 3]}
    return NewTurn(
        model=who,
        adapter=who,
        snapshot=Snapshot(state, range(36), who, who),
        messages=messages,
        context=context,  # type: ignore[arg-type]
    )


def measure(store: Store) -> np.ndarray:
    """Milliseconds of each commit."""
    random = np.random.default_rng(0)
    words = ["".join(chr(97 + letter) for letter in random.integers(0, 26, 6)) for _ in range(5000)]
    talk = conversations.new(profiles.ensure(store, "benchmark"))
    locks.hold(store, talk.id)
    taken = []
    for _ in range(TURNS):
        made = turn(random, words)
        time.sleep(PAUSE)
        started = time.perf_counter()
        turns.commit(store, talk, made)
        taken.append((time.perf_counter() - started) * 1000)
    return np.array(taken)


def main() -> int:
    with tempfile.TemporaryDirectory(dir=sys.argv[1] if len(sys.argv) > 1 else None) as folder:
        p99 = {}
        for name, store in (("in memory", Store.memory()), ("on disk", Store.open(Path(folder) / "memory.db"))):
            with store:
                taken = measure(store)
            median, p99[name] = np.percentile(taken, [50, 99])
            print(
                f"{name:<10} {TURNS} commits: median {median:.2f} ms, p99 {p99[name]:.2f} ms, max {taken.max():.2f} ms"
            )
    return 0 if p99["on disk"] <= LIMIT else 1


if __name__ == "__main__":
    sys.exit(main())
