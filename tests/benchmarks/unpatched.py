"""Holds our library with nothing attached against a truly unpatched build: logits bit for bit, speed within noise.

    cmake -S native -B build/stock -G Ninja -DDELTAMEM_STOCK=ON && cmake --build build/stock
    cmake --install build/stock --prefix build/stock/native --component deltamem
    python tests/benchmarks/unpatched.py build/stock/native

Each library runs in a process of its own; the two take turns. Exit 1 when a logit differs.
"""

from __future__ import annotations

import hashlib
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

PREFILL, DECODE, ROUNDS, THREADS = 512, 64, 7, 2


def work(native: Path, model: Path) -> None:
    """Answers each line of standard input with one round: times and a digest of all logits. Plain llama.cpp calls."""
    import ctypes
    import os

    os.environ["LLAMA_CPP_LIB_PATH"] = str(native / "lib")
    sys.path.insert(0, str(native))
    import llama_cpp.llama_cpp as llama

    silent = llama.llama_log_callback(lambda *_: None)
    llama.llama_log_set(silent, ctypes.c_void_p(0))
    llama.llama_backend_init()
    loaded = llama.llama_model_load_from_file(str(model).encode(), llama.llama_model_default_params())
    params = llama.llama_context_default_params()
    params.n_ctx, params.n_batch, params.n_ubatch = PREFILL + DECODE, PREFILL, PREFILL
    params.n_threads = params.n_threads_batch = THREADS
    context = llama.llama_init_from_model(loaded, params)
    n_vocab = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(loaded))
    batch = llama.llama_batch_init(PREFILL, 0, 1)

    def decode(tokens: list[int], start: int) -> bytes:
        batch.n_tokens = len(tokens)
        for i, token in enumerate(tokens):
            batch.token[i], batch.pos[i], batch.n_seq_id[i] = token, start + i, 1
            batch.seq_id[i][0], batch.logits[i] = 0, i == len(tokens) - 1
        if llama.llama_decode(context, batch):
            raise RuntimeError("llama_decode failed")
        return ctypes.string_at(llama.llama_get_logits(context), 4 * n_vocab)

    prompt = [1 + i * 7919 % (n_vocab - 1) for i in range(PREFILL)]
    for _ in sys.stdin:
        llama.llama_memory_clear(llama.llama_get_memory(context), True)
        begin = time.perf_counter()
        digest = hashlib.sha256(decode(prompt, 0))
        middle = time.perf_counter()
        for i in range(DECODE):
            digest.update(decode([prompt[i]], PREFILL + i))
        end = time.perf_counter()
        times = {"prefill": PREFILL / (middle - begin), "decode": DECODE / (end - middle)}
        print(json.dumps(times | {"logits": digest.hexdigest()}), flush=True)


def main() -> int:
    if sys.argv[1:2] == ["--work"]:
        work(Path(sys.argv[2]), Path(sys.argv[3]))
        return 0
    if len(sys.argv) != 2:
        print(__doc__)
        return 2
    from deltamem_cli import paths

    libraries = {"unpatched": Path(sys.argv[1]).absolute(), "ours": paths.native_dir()}
    model = str(paths.starter_model())
    workers = {
        name: subprocess.Popen(
            [sys.executable, __file__, "--work", str(native), model],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for name, native in libraries.items()
    }
    rounds: dict[str, list[dict[str, Any]]] = {name: [] for name in workers}
    for index in range(ROUNDS + 1):
        for name, worker in workers.items() if index % 2 else reversed(workers.items()):
            assert worker.stdin and worker.stdout
            print(file=worker.stdin, flush=True)
            answer = worker.stdout.readline()
            if not answer:
                print(f"The {name} library in {libraries[name]} failed.", file=sys.stderr)
                return 1
            if index:  # the first round warms up
                rounds[name].append(json.loads(answer))
    for worker in workers.values():
        worker.communicate()
    for phase in ("prefill", "decode"):
        ratio = statistics.median(
            ours[phase] / stock[phase] for ours, stock in zip(rounds["ours"], rounds["unpatched"], strict=True)
        )
        medians = {name: statistics.median(answer[phase] for answer in rounds[name]) for name in rounds}
        print(
            f"{phase:<8} unpatched {medians['unpatched']:8.1f} tokens/s   ours {medians['ours']:8.1f}   ratio {ratio:.3f}"
        )
    same = len({answer["logits"] for answers in rounds.values() for answer in answers}) == 1
    print("logits   " + ("identical, bit for bit" if same else "DIFFERENT"))
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
