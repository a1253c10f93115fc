"""Prints how a training run went: `python tests/benchmarks/curve.py LOG... [--steps 64]`.

LOG: what `dmem adapter train --json` printed; several of one run that was resumed. A row is the mean of some steps: the
share of the answers that were right word for word / the loss, by how many facts a conversation told and whether its last turns
were shown again; then KL and mean gate.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

GROUPS = {"1 fact": (1, 1), "2-3": (2, 3), "4-6": (4, 6)}


def steps_of(logs: Sequence[Path]) -> list[dict[str, Any]]:
    """Of all logs; of a step that was taken twice, the last one."""
    found = {}
    for log in logs:
        for line in log.read_text(encoding="utf-8").splitlines():
            event = json.loads(line) if line.startswith("{") else {}
            if event.get("event") == "step" and "facts" in event:
                found[event["step"]] = event
    return [event for _, event in sorted(found.items())]


def cells(steps: Sequence[dict[str, Any]]) -> Iterator[str]:
    """One row."""
    yield f"{steps[0]['step']}-{steps[-1]['step']}"
    for shown in (False, True):
        for least, most in GROUPS.values():
            own = [s for s in steps if s["shown"] is shown and least <= s["facts"] <= most]
            yield f"{_mean(own, 'exact'):.0%} / {_mean(own, 'loss'):.2f}" if own else "–"
    yield f"{_mean(steps, 'kl'):.3f}"
    yield f"{_mean(steps, 'beta'):.3f}"


def _mean(steps: Sequence[dict[str, Any]], name: str) -> float:
    return sum(float(step[name]) for step in steps) / len(steps)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("logs", type=Path, nargs="+", metavar="LOG")
    parser.add_argument("--steps", type=int, default=64, help="of a row")
    args = parser.parse_args()
    steps = steps_of(args.logs)
    print("| " + " | ".join(["steps", *GROUPS, *(f"{name}, shown" for name in GROUPS), "KL", "gate"]) + " |")
    print("|---" * (3 + 2 * len(GROUPS)) + "|")
    for at in range(0, len(steps), args.steps):
        print("| " + " | ".join(cells(steps[at : at + args.steps])) + " |")


if __name__ == "__main__":
    main()
