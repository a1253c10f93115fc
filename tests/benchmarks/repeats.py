"""How often a model repeats itself over a long chat: 40 turns on changing topics, with memory and without.

    python tests/benchmarks/repeats.py [--seeds 5] [--turns 40] [-o temperature 0.2] [-m MODEL] [--adapter FILE]

Prints, for each seed, which share of the four-word sequences in the last ten replies had been said before in these ten.
"""

from __future__ import annotations

import argparse
import re
from contextlib import ExitStack
from itertools import islice

from deltamem_cli.session.opening import open_chat
from deltamem_cli.session.request import Request
from deltamem_cli.store.database import Store

TOPICS = (
    "bread", "bicycles", "the moon", "tea", "chess", "volcanoes", "trains", "gardens", "whales", "clocks", "rain",
    "libraries", "bridges", "honey", "deserts", "puppets", "maps", "glass", "owls", "salt",
)  # fmt: skip
ASKED = (
    "Tell me something about {}.", "Why do people like {}?", "What should a beginner know about {}?",
    "Give me three ideas to do with {}.",
)  # fmt: skip
LAST = 10


def questions(turns: int) -> list[str]:
    asked = (ASKED[(i + i // len(TOPICS)) % len(ASKED)].format(TOPICS[i % len(TOPICS)]) for i in range(10_000))
    return list(islice(asked, turns))


def repeated(replies: list[str]) -> float:
    """Share of the four-word sequences that were said before."""
    seen: set[tuple[str, ...]] = set()
    again = total = 0
    for reply in replies:
        words = re.findall(r"\w+", reply.lower())
        for four in zip(words, words[1:], words[2:], words[3:], strict=False):
            again += four in seen
            seen.add(four)
            total += 1
    return again / max(1, total)


def chat(args: argparse.Namespace, seed: int, memory: bool) -> list[str]:
    options = {"seed": str(seed), "max_tokens": "120"} | dict(args.option or [])
    request = Request(
        model=args.model, adapter=args.adapter, new=True, temporary=True, memory=memory, options=options, ctx_size=2048,
        threads=args.threads,
    )  # fmt: skip
    with ExitStack() as stack:
        store = stack.enter_context(Store.memory())
        session, _ = open_chat(stack, store, request)
        return ["".join(session.ask(text)) for text in questions(args.turns)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--turns", type=int, default=40)
    parser.add_argument("--threads", type=int)
    parser.add_argument("-o", dest="option", nargs=2, action="append", metavar=("KEY", "VALUE"))
    parser.add_argument("-m", dest="model")
    parser.add_argument("--adapter")
    args = parser.parse_args()
    means = []
    for memory in (True, False):
        shares = [repeated(chat(args, seed, memory)[-LAST:]) for seed in range(1, args.seeds + 1)]
        means.append(sum(shares) / len(shares))
        name = "with memory" if memory else "without"
        print(f"{name:<12} {'  '.join(f'{s:5.1%}' for s in shares)}   mean {means[-1]:.1%}", flush=True)


if __name__ == "__main__":
    main()
