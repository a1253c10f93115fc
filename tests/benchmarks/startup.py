"""Measures start-up and commit: `python tests/benchmarks/startup.py [RUNS]`. Prints ratios; exit 1 when one is too large.

Both sides of a ratio run by turns, so that a machine that is busy for a while is busy for both; the best run counts.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from chat_support import PROMPT, Terminal, dmem, environment

from deltamem_cli import paths

TWO_COMMANDS = """
import typer
app = typer.Typer()
@app.command()
def one(name: str) -> None:
    "Say one."
@app.command()
def two(name: str) -> None:
    "Say two."
app()
"""
LOAD = """
import os, sys
native = sys.argv[1]
sys.path.insert(0, native)
os.environ["LLAMA_CPP_LIB_PATH"] = os.path.join(native, "lib")
import llama_cpp
llama_cpp.Llama(sys.argv[2], n_ctx=4096, n_threads=1, verbose=False)
os._exit(0)
"""


def main(runs: int) -> int:
    with tempfile.TemporaryDirectory() as folder:
        env = environment(Path(folder))
        python = sys.executable
        model = paths.starter_model()
        adapter = Path(folder) / "adapter.gguf"
        _adapter(model, adapter)
        _remember(Path(folder), model, adapter)
        subprocess.run(dmem("memory", "inspect", "--json"), env=env, check=True, stdout=subprocess.DEVNULL)

        two = Path(folder) / "two.py"
        two.write_text(TWO_COMMANDS)
        fine = [
            _ratio("dmem --help", 1.3, runs, dmem("--help"), [python, str(two), "--help"], env),
            _ratio(
                "dmem memory inspect --json",
                1.3,
                runs,
                dmem("memory", "inspect", "--json"),
                [python, "-c", "import typer, sqlite_utils, numpy"],
                env,
            ),
            _prompt(runs, model, adapter, env),
            _commits(Path(folder)),
        ]
    return 0 if all(fine) else 1


def _ratio(name: str, limit: float, runs: int, ours: list[str], theirs: list[str], env: dict[str, str]) -> bool:
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(runs):
        for argv, list_ in zip((ours, theirs), times, strict=True):
            start = time.perf_counter()
            subprocess.run(argv, env=env, check=True, stdout=subprocess.DEVNULL)
            list_.append(time.perf_counter() - start)
    ratio = min(times[0]) / min(times[1])
    print(f"{name:<28} {min(times[0]):.3f} s, {ratio:.2f} times {min(times[1]):.3f} s (at most {limit})")
    return ratio <= limit


def _prompt(runs: int, model: Path, adapter: Path, env: dict[str, str]) -> bool:
    """Until `dmem chat` shows its prompt, over loading the same model with llama_cpp alone."""
    chat, load = [], []
    for _ in range(runs):
        start = time.perf_counter()
        with Terminal(dmem("chat", "--adapter", adapter, "--threads", 1), env) as terminal:
            terminal.expect(PROMPT)
            chat.append(time.perf_counter() - start)
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", LOAD, str(paths.native_dir()), str(model)], env=env, check=True)
        load.append(time.perf_counter() - start)
    over = min(chat) - min(load)
    print(f"{'dmem chat at its prompt':<28} {min(chat):.3f} s, {over:+.3f} s over {min(load):.3f} s (at most +0.5)")
    return over <= 0.5


def _commits(folder: Path, count: int = 500) -> bool:
    import stored

    from deltamem_cli.store import turns
    from deltamem_cli.store.database import Store

    times = []
    with Store.open(folder / "commits.db") as store:
        talk = stored.conversation(store, 1)
        for number in range(count):
            turn = stored.exchange(number, user="question " * 20, reply="answer " * 100)
            start = time.perf_counter()
            turns.commit(store, talk, turn)
            times.append(time.perf_counter() - start)
            time.sleep(0.002)
    p99 = statistics.quantiles(times, n=100)[98] * 1000
    print(f"{'commit of a turn':<28} p50 {statistics.median(times) * 1000:.2f} ms, p99 {p99:.2f} ms (at most 5)")
    return p99 <= 5


def _adapter(model: Path, adapter: Path) -> None:
    from deltamem_cli.synthetic import random_adapter

    random_adapter(model, adapter, scale=0.2)


def _remember(home: Path, model: Path, adapter: Path) -> None:
    argv = dmem("memory", "remember", "I like tea.", "--adapter", adapter, "--threads", 1)
    subprocess.run(argv, env=environment(home), check=True, stderr=subprocess.DEVNULL)


if __name__ == "__main__":
    os.environ.pop("DMEM_HOME", None)
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 10))
