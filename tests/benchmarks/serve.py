"""Measures a server under load: `python tests/benchmarks/serve.py [--against COMMAND]`. Prints tokens/s and times to the first token.

The servers take turns, so that a machine that is busy for a while is busy for all; medians of the rounds count. COMMAND
starts a server of OpenAI's interface to compare with; {model} and {port} in it are replaced, such as in
`python -m llama_cpp.server --model {model} --port {port} --n_threads 2 --interrupt_requests False`.
"""

from __future__ import annotations

import argparse
import http.client
import json
import shlex
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from chat_support import dmem, environment

from deltamem_cli import paths

TOPICS = ("the sea", "a mountain", "bread", "a lighthouse", "winter", "trains", "a garden", "the moon")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 4, 8, 16])
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--against", metavar="COMMAND")
    chosen = parser.parse_args()
    with ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        own = dmem("serve", "--threads", str(chosen.threads), "--ctx-size", "1024", "--parallel")
        servers = {"dmem, memory on": serve(stack, home, [*own, str(max(chosen.streams))])}
        servers["dmem, memory off"] = servers["dmem, memory on"]
        if chosen.against:
            servers["the other"] = serve(stack, home, shlex.split(chosen.against))
        print(f"{'streams':>7}  {'server':<18}{'tokens/s':>9}{'ratio':>7}  first token")
        for streams in chosen.streams:
            found: dict[str, list[tuple[float, float]]] = {name: [] for name in servers}
            for number in range(chosen.rounds):
                for name, port in servers.items():
                    users = [f"{streams}-{number}-{i}" if name.endswith("on") else None for i in range(streams)]
                    found[name].append(load(port, users, chosen.tokens))
            base = statistics.median(speed for speed, _ in found[list(servers)[-1]])
            for name, runs in found.items():
                speed, first = (statistics.median(each) for each in zip(*runs, strict=True))
                print(f"{streams:>7}  {name:<18}{speed:>9.1f}{speed / base:>7.2f}  {first:.2f} s", flush=True)


def serve(stack: ExitStack, home: Path, command: list[str]) -> int:
    """Starts a server and waits until it answers; returns its port."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = int(free.getsockname()[1])
    model = str(paths.starter_model())
    if command[0].endswith("dmem"):
        command = [*command, "--port", str(port)]
    else:
        command = [word.format(model=model, port=port) for word in command]
    process = subprocess.Popen(command, env=environment(home), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    stack.callback(process.wait)
    stack.callback(process.terminate)
    until = time.monotonic() + 120
    while time.monotonic() < until and process.poll() is None:
        try:
            connection = http.client.HTTPConnection("127.0.0.1", port)
            connection.request("GET", "/v1/models")
            if connection.getresponse().status == 200:
                return port
        except OSError:
            time.sleep(0.2)
    raise SystemExit(f"{shlex.join(command)} did not start.")


def load(port: int, users: list[str | None], tokens: int) -> tuple[float, float]:
    """Tokens per second of all streams together, and the median of their seconds to the first token."""
    start = time.perf_counter()
    with ThreadPoolExecutor(len(users)) as threads:
        done = list(threads.map(lambda i: stream(port, TOPICS[i % len(TOPICS)], users[i], tokens), range(len(users))))
    seconds = time.perf_counter() - start
    return sum(count for count, _ in done) / seconds, statistics.median(first for _, first in done)


def stream(port: int, topic: str, user: str | None, tokens: int) -> tuple[int, float]:
    """Tokens of one reply, and seconds to the first."""
    said = {
        "messages": [{"role": "user", "content": f"Write a long story about {topic}."}],
        "stream": True,
        "max_tokens": tokens,
        "temperature": 0,
        **({"user": user} if user else {}),
    }
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
    start, first, count = time.perf_counter(), 0.0, 0
    connection.request("POST", "/v1/chat/completions", json.dumps(said), {"Content-Type": "application/json"})
    response = connection.getresponse()
    assert response.status == 200, response.read()
    for line in response:
        if (
            line.startswith(b"data: {")
            and (choices := json.loads(line[6:])["choices"])
            and choices[0]["delta"].get("content")
        ):
            first, count = first or time.perf_counter() - start, count + 1
    return count, first


if __name__ == "__main__":
    main()
