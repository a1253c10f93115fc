"""Measures in which layers of a model a place that needs a told word finds the one that told it, before any training.

    python tests/benchmarks/layers.py MODEL.gguf [--conversations 32] [--rank 16]

Needs the extra "train". In each layer, the keys and queries that a run starts with (canonical correlations of told and
wanted places) are drawn from three of four conversations; in the others, each wanted token's place looks for the best
match among all told tokens of its conversation. Printed is how often it finds a right one, for first and later tokens of
values. Layers where both are high are worth adapting. Eight conversations take about three minutes of a core at 0.5B.
"""

from __future__ import annotations

import argparse
import random
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from training import TALK

from deltamem_cli.training.backbone import Backbone
from deltamem_cli.training.batch import written_episodes
from deltamem_cli.training.encode import Encoder
from deltamem_cli.training.init import canonical, frozen_inputs, last_place
from deltamem_cli.training.memory import Memory
from deltamem_cli.training.run import RunOptions, adapter_config
from deltamem_cli.training.sources import dense_source
from deltamem_cli.training.tokens import tokenizer_of

AT_ONCE = 4


@dataclass
class Told:
    """A value that was told and is wanted. told, wanted: layer inputs of its tokens' places, [L, tokens, hidden]"""

    conversation: int
    tokens: list[int]
    told: Tensor
    wanted: Tensor


@torch.no_grad()
def collect(backbone: Backbone, memory: Memory, encoder: Encoder, conversations: int) -> list[Told]:
    """The values of conversations that the frozen model has read."""
    found = []
    drawn = dense_source(encoder, TALK)(random.Random("layers"), conversations, 0.0)
    for at in range(0, len(drawn), AT_ONCE):
        for i, w in enumerate(written_episodes(backbone, memory, drawn[at : at + AT_ONCE], keep_past=False), at):
            questions = [q for q in w.episode.questions if q.value_at and not q.shown]
            seen = frozen_inputs(backbone, memory, questions) if questions else None
            for row, q in enumerate(questions):
                wanted = [q.answer[j] for j in q.value_at]
                begin = last_place(list(w.episode.written), w.content.tolist(), wanted)
                if begin is not None and seen is not None:
                    first = len(q.prompt) + len(q.head) + q.value_at[0] - 1
                    told = w.inputs[:, begin : begin + len(wanted)].half()
                    found.append(Told(i, wanted, told, seen[row, :, first : first + len(wanted)].half()))
    return found


def agreement(values: list[Told], layer: int, rank: int) -> dict[str, tuple[int, int]]:
    """(right, all) of first and of later tokens, on the conversations that the projections were not drawn from."""
    fitted = [v for v in values if v.conversation % 4]
    wanted, told = (torch.cat([getattr(v, of)[layer].float() for v in fitted]) for of in ("wanted", "told"))
    q, k = canonical(wanted, told, rank, torch.Generator().manual_seed(0))
    by_conversation: dict[int, list[Told]] = defaultdict(list)
    for v in values:
        if v.conversation % 4 == 0:
            by_conversation[v.conversation].append(v)
    right = {"first": [0, 0], "later": [0, 0]}
    for own in by_conversation.values():
        keys = torch.nn.functional.normalize(torch.tanh(torch.cat([v.told[layer].float() for v in own]) @ k.T), dim=-1)
        tokens = [token for v in own for token in v.tokens]
        for v in own:
            best = (torch.tanh(v.wanted[layer].float() @ q.T) @ keys.T).argmax(-1).tolist()
            for j, (at, token) in enumerate(zip(best, v.tokens, strict=True)):
                name = "later" if j else "first"
                right[name][0] += tokens[at] == token
                right[name][1] += 1
    return {name: (hits, n) for name, (hits, n) in right.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--conversations", type=int, default=32)
    parser.add_argument("--rank", type=int, default=16)
    args = parser.parse_args()
    torch.manual_seed(0)
    encoder, backbone = Encoder(tokenizer_of(args.model)), Backbone(args.model)
    options = RunOptions(args.model, args.model, rank=args.rank, update="no_lambda")
    memory = Memory(adapter_config(options, backbone), backbone.widths)
    with torch.no_grad():  # the frozen model is wanted: without D there are no corrections
        for delta in memory.delta.values():
            delta.zero_()
    values = collect(backbone, memory, encoder, args.conversations)
    print(f"{len(values)} values of {args.conversations} conversations, rank {args.rank}")
    for layer in range(backbone.shape.n_layer):
        found = agreement(values, layer, args.rank)
        print(f"layer {layer:>2}: " + ", ".join(f"{name} {r / max(1, n):.0%} of {n}" for name, (r, n) in found.items()))


if __name__ == "__main__":
    main()
