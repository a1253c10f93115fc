"""Trains small adapters that differ in one thing on the same conversations, and prints a table of what they recall.

    python tests/benchmarks/variants.py MODEL.gguf [--steps 160] [--episodes 32] [VARIANT ...]

Needs the extra "train". Conversations are written once, by the frozen model, and kept for all variants; held-out values
and phrasings are not touched. Recall in training is the mean over the last quarter of the steps.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch

from deltamem_cli.adapter.format import AdapterConfig
from deltamem_cli.training.backbone import Backbone
from deltamem_cli.training.batch import Written, ask, written_episodes
from deltamem_cli.training.encode import Encoder
from deltamem_cli.training.init import start_from_data
from deltamem_cli.training.loop import Trainer
from deltamem_cli.training.memory import Memory
from deltamem_cli.training.own_words import own_talk
from deltamem_cli.training.pool import wanted_prompts
from deltamem_cli.training.settings import Settings
from deltamem_cli.training.sources import dense_source, persona_source, recall_checks
from deltamem_cli.training.tokens import tokenizer_of

UPPER = tuple(range(17, 30))
VARIANTS: dict[str, dict[str, object]] = {
    "reference": {},
    "standard": {"state_update": "standard"},
    "rank 32": {"rank": 32},
    "rank 32, 17-24": {"rank": 32, "layers": tuple(range(17, 25))},
    "rank 8": {"rank": 8},
    "msw 4x8": {"rank": 8, "state_heads": 4},
    "msw 2x16": {"rank": 16, "state_heads": 2},
    "ssw": {"write_granularity": "message_mean"},
    "qkvo": {"delta_heads": ("q", "k", "v", "o")},
    "o": {"delta_heads": ("o",)},
    "all layers": {"layers": tuple(range(30))},
    "layers 10-19": {"layers": tuple(range(10, 20))},
    "layers 20-29": {"layers": tuple(range(20, 30))},
}


def config(backbone: Backbone, **settings: object) -> AdapterConfig:
    shape = backbone.shape
    chosen = {
        "layers": UPPER,
        "rank": 16,
        "delta_heads": ("q", "o"),
        "rankwise_gates": False,
        "state_update": "no_lambda",
        **settings,
    }
    return AdapterConfig(shape.architecture, shape.hidden, shape.n_layer, **chosen)  # type: ignore[arg-type]


def of_layers(written: Written, layers: tuple[int, ...], memory: Memory) -> Written:
    """As if only these layers had been watched."""
    chosen = list(layers)
    asked = [a and replace(a, inputs=a.inputs[chosen], below=None) for a in written.asked]
    return replace(written, inputs=written.inputs[chosen], state=memory.zero_states(1)[0], asked=asked)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--steps", type=int, default=160)
    parser.add_argument("--episodes", type=int, default=32)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("variants", nargs="*", help=f"of {', '.join(VARIANTS)}")
    args = parser.parse_intermixed_args()
    backbone = Backbone(args.model)
    encoder = Encoder(tokenizer_of(args.model))
    talk = own_talk(backbone, encoder, 0, 48)
    everywhere = Memory(config(backbone, layers=tuple(range(backbone.shape.n_layer))), backbone.widths)
    with torch.no_grad():  # the frozen model alone
        for delta in everywhere.delta.values():
            delta.zero_()
    rng = random.Random("variants")
    conversations = dense_source(encoder, talk)(rng, args.episodes, 0.0)
    written = written_episodes(backbone, everywhere, conversations)
    ask(backbone, everywhere, written, wanted_prompts(rng))
    checks = {name: c for name, c in recall_checks(encoder, cases=32).items() if name in ("unseen 1", "unseen 3")}
    print("variant | loss | recall in training | unseen 1 | unseen 3 | donor | seconds per step", flush=True)
    for name in args.variants or VARIANTS:
        torch.manual_seed(0)
        memory = Memory(config(backbone, **VARIANTS[name]), backbone.widths)
        settings = Settings(
            steps=args.steps, batch=args.batch, round_steps=args.steps, finish=0.0, validate_every=10**6
        )
        events: list[dict[str, float]] = []
        with tempfile.TemporaryDirectory() as folder:
            trainer = Trainer(
                backbone, memory, encoder, persona_source(encoder, talk), checks, settings, Path(folder), events.append,
                dense_source(encoder, talk),
            )  # fmt: skip
            trainer.pool.add([of_layers(w, memory.config.layers, memory) for w in written])
            start_from_data(memory, backbone, list(trainer.pool.written), 0)
            began = time.monotonic()
            trainer.run()
            spent = time.monotonic() - began
        steps = [e for e in events if "loss" in e]
        last = steps[-max(1, len(steps) // 4) :]
        loss, recall = (sum(e[k] for e in last) / len(last) for k in ("loss", "exact"))
        v = trainer.history[-1]
        print(
            f"{name} | {loss:.2f} | {recall:.0%} | {v['unseen 1']:.0%} | {v['unseen 3']:.0%} | "
            f"{v['unseen 1 donor']:.0%} | {spent / len(steps):.1f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
