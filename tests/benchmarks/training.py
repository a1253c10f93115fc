"""Measures what a run of `dmem adapter train` takes per conversation and per question, and prints it in CPU seconds.

    python tests/benchmarks/training.py MODEL.gguf [--layers 12-23] [--conversations 4] [--steps 8]

Needs the extra "train". One thread, so that CPU seconds are comparable; other work on the machine makes them longer, so
two versions are compared by turns (PYTHONPATH chooses the package). The last line says how many questions a second of
one core trains in rounds of today's size, writing and steps together; the one before it, what `estimate.py` reckons with.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch

from deltamem_cli.training.backbone import Backbone
from deltamem_cli.training.check import logits_here
from deltamem_cli.training.encode import Encoder
from deltamem_cli.training.loop import Trainer
from deltamem_cli.training.memory import Memory
from deltamem_cli.training.retell import retell
from deltamem_cli.training.run import RunOptions, adapter_config
from deltamem_cli.training.settings import Settings
from deltamem_cli.training.sources import dense_source, persona_source
from deltamem_cli.training.tokens import tokenizer_of

SAMPLE = 128  # tokens that the frozen model's speed is measured with, as estimate.py does
WORDS = (
    "Sure, here is what I think about it. The best way is to begin with a small step and go on from there every day."
)
TALK = [
    (f"What about {w}?", f"{w.title()} is fine. {WORDS}") for w in ("tea", "rain", "books", "bread", "time", "work")
]
PARTS = {"conversations": "written", "other values": "retold", "questions": "asked"}


class Watch:
    """CPU seconds of each part of the writing, from what the trainer reports."""

    def __init__(self) -> None:
        self.parts: dict[str, float] = dict.fromkeys(PARTS, 0.0)
        self.last = time.process_time()

    def __call__(self, event: dict[str, Any]) -> None:
        if event["event"] == "writing":
            now = time.process_time()
            self.parts[event["part"]] += now - self.last
            self.last = now


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--layers", default="")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--conversations", type=int, default=4)
    parser.add_argument("--steps", type=int, default=8)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    encoder, backbone = Encoder(tokenizer_of(args.model)), Backbone(args.model)
    options = RunOptions(args.model, args.model, layers=args.layers, rank=args.rank, update="no_lambda")
    memory = Memory(adapter_config(options, backbone), backbone.widths)
    settings = Settings(steps=1000, batch=args.batch)
    with tempfile.TemporaryDirectory() as folder:
        run = Trainer(
            backbone, memory, encoder, persona_source(encoder, TALK), {}, settings, Path(folder),
            dense=dense_source(encoder, TALK), retell=partial(retell, encoder, backbone, memory),
        )  # fmt: skip
        begin = time.process_time()
        logits_here(backbone, [n % 256 for n in range(SAMPLE)])
        per_token = (time.process_time() - begin) / SAMPLE
        watch = run.report = Watch()
        begin = time.process_time()
        run._write(random.Random(1), args.conversations)
        per_conversation = (time.process_time() - begin) / args.conversations
        parts = ", ".join(f"{PARTS[p]} {spent / args.conversations:.1f}" for p, spent in watch.parts.items())
        begin = time.process_time()
        for _ in range(args.steps):
            loss, _ = run._loss_mixed()
            run._update(loss)
            run.step += 1
        per_step = (time.process_time() - begin) / args.steps
    print(f"a token of the frozen model: {1000 * per_token:.1f} ms")
    print(f"a conversation: {per_conversation:.1f} s ({parts}); a step of {args.batch} questions: {per_step:.1f} s")
    per_question = per_step / args.batch
    print(f"in tokens: a conversation {per_conversation / per_token:.0f}, a question {per_question / per_token:.0f}")
    s = settings
    whole = s.round_episodes * per_conversation + s.round_steps * per_step
    print(f"questions per second of one core: {s.round_steps * args.batch / whole:.2f}")


if __name__ == "__main__":
    main()
