"""Start-up times of dmem as ratios: `python tests/benchmarks/startup.py` in the environment that dmem is installed in.

    dmem --help                 against --help of a Typer program of two commands     at most 1.3
    dmem memory inspect --json  against python -c "import typer, sqlite_utils, numpy"  at most 1.3

Runs alternate, and the shorter half of each is averaged, so that another program's burst falls on neither side.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROUNDS = 20
LIMIT = 1.3

TWO_COMMANDS = """
import typer
app = typer.Typer()
@app.command()
def one(name: str = "x") -> None: ...
@app.command()
def two(name: str = "x") -> None: ...
app()
"""


def seconds(command: list[str], environment: dict[str, str]) -> float:
    started = time.perf_counter()
    subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - started


def compare(name: str, ours: list[str], theirs: list[str], environment: dict[str, str]) -> float:
    for command in (ours, theirs):  # writes byte code and warms the file cache
        seconds(command, environment)
    pairs = [(seconds(ours, environment), seconds(theirs, environment)) for _ in range(ROUNDS)]
    mine, other = (statistics.mean(sorted(column)[: ROUNDS // 2]) for column in zip(*pairs, strict=True))
    print(f"{name:<28} {mine * 1000:7.1f} ms {other * 1000:7.1f} ms  ratio {mine / other:.2f}  (at most {LIMIT})")
    return mine / other


def fill(home: Path) -> None:
    """A memory of the starter's size after eight turns."""
    import numpy as np

    from deltamem_cli.store import conversations, profiles, turns
    from deltamem_cli.store.database import Store
    from deltamem_cli.store.records import Identity, Message, NewTurn, Snapshot

    who, layers = Identity("benchmark", "0" * 64), list(range(30))
    with Store.open(home / "memory.db") as store:
        talk = conversations.new(profiles.ensure(store, profiles.DEFAULT))
        for seed in range(8):
            state = np.random.default_rng(seed).standard_normal((30, 1, 8, 8)).astype(np.float32)
            snapshot = Snapshot(state, layers, who, who)
            messages = [Message("user", "a question", range(20)), Message("assistant", "an answer", range(40))]
            turns.commit(store, talk, NewTurn(model=who, adapter=who, snapshot=snapshot, messages=messages))


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        environment = {
            **os.environ,
            "DMEM_HOME": folder,
            "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        }
        fill(home)
        program = home / "two_commands.py"
        program.write_text(TWO_COMMANDS)
        dmem = [sys.executable, "-m", "deltamem_cli"]
        ratios = [
            compare("dmem --help", [*dmem, "--help"], [sys.executable, str(program), "--help"], environment),
            compare(
                "dmem memory inspect --json",
                [*dmem, "memory", "inspect", "--json"],
                [sys.executable, "-c", "import typer, sqlite_utils, numpy"],
                environment,
            ),
        ]
    return 0 if max(ratios) <= LIMIT else 1


if __name__ == "__main__":
    sys.exit(main())
