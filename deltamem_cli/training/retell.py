"""Told facts again with other values: the words before a value are run once, and only what follows them for each value.

How a value is kept must hold for any value, so values are what a memory needs to see most of. A telling costs a sixth of
what it costs in a conversation of its own.
"""

from __future__ import annotations

import random
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from deltamem_cli.episodes import Fact, Utterance
from deltamem_cli.episodes.conversation import other_values
from deltamem_cli.episodes.episode import last_place
from deltamem_cli.episodes.spoken import by_name
from deltamem_cli.training.backbone import Backbone, Past
from deltamem_cli.training.batch import Done, Retelling, Written, length_mask, pad
from deltamem_cli.training.encode import Encoder
from deltamem_cli.training.memory import Memory, Session

SETTLED = 2  # tokens after a value that are run again; those behind them hardly depend on it
VALUES = 8  # other values that each told fact is retold with


@torch.no_grad()
def retell(
    encoder: Encoder,
    backbone: Backbone,
    memory: Memory,
    rng: random.Random,
    written: Sequence[Written],
    count: int = VALUES,
    done: Done = lambda done, of: None,
) -> None:
    """Adds to conversations of one session (with their past, which is let go) each told fact with `count` other values.

    What follows a value is run for SETTLED tokens, and is the conversation's own from there on.
    """
    for i, w in enumerate(written):
        past, w.past = w.past, None
        if past is not None:
            messages = w.episode.sessions[0].messages
            taken = {f.value for m in messages for f in m.facts}
            again = []
            for n, message in enumerate(messages):
                for fact in message.facts:
                    if others := other_values(rng, by_name(fact.kind), taken, count):
                        again.append(_again(encoder, memory, w, n, fact, others))
            _run(backbone, memory, w, past, again)
        done(i + 1, len(written))


@dataclass
class _Again:
    """Message n with each of other values of one of its facts, before it was run: what goes on behind the words that all share.

    at: how many tokens of the session these are; state: that of the memory after them, [1, L, H, r, r]
    messages, tails, kept: each telling, the tokens that differ, and how many behind them are the session's own
    first, split, end: of the message, of what differs and of what follows, among the session's tokens that write
    """

    n: int
    at: int
    state: Tensor
    messages: list[Utterance]
    tails: list[list[int]]
    kept: list[int]
    first: int
    split: int
    end: int


def _again(encoder: Encoder, memory: Memory, w: Written, n: int, fact: Fact, others: Sequence[str]) -> _Again:
    session = w.episode.sessions[0]
    messages = [_with_value(session.messages[n], fact, value) for value in others]
    # the reply too, since what leads to it belongs to the message
    reply = session.messages[n + 1 : n + 2]
    rows = [encoder.session(session.system, [*session.messages[:n], m, *reply]) for m in messages]
    begin = session.place_of(n)[0]
    told, *again = [s.tokens[: s.place_of(n)[1]] for s in (session, *rows)]
    at = min(_alike(told, tokens) for tokens in again)
    same = [min(_alike(told[::-1], tokens[::-1]), len(told) - at, len(tokens) - at) for tokens in again]
    kept = [max(0, alike - SETTLED) for alike in same]
    tails = [tokens[at : len(tokens) - k] for tokens, k in zip(again, kept, strict=True)]
    first = bisect_left(w.spans.tolist(), n)  # of the message's tokens, among those that write
    split = first + at - begin
    device = memory.proj.device
    mask = torch.ones(1, split, dtype=torch.bool, device=device)
    state = memory.zero_states(1)
    if split:
        state, _ = memory.write(w.inputs[None, :, :split].to(device), state, mask)
    return _Again(n, at, state, messages, tails, kept, first, split, first + len(told) - begin)


def _run(backbone: Backbone, memory: Memory, w: Written, past: Past, again: Sequence[_Again]) -> None:
    """Tells them in one batch: each telling is a few tokens, and few tokens at once do not keep a processor busy."""
    if not again:
        return
    ids, lengths = pad([tail for a in again for tail in a.tails], backbone.device)
    states = torch.cat([a.state.expand(len(a.tails), *a.state.shape[1:]) for a in again])
    run = Session(memory, states, length_mask(lengths, ids.shape[1]), keep_inputs=True)
    begun = past.begun([a.at for a in again for _ in a.tails])
    backbone.run(backbone.embed(ids), lengths, begun, run, to_the_end=False)
    new = iter(torch.stack(run.inputs, 1))  # [L, T, hidden] each
    for a in again:
        for message, tail, k in zip(a.messages, a.tails, a.kept, strict=True):
            told = next(new)[:, : len(tail)].clone()
            parts = [w.inputs[:, a.first : a.split], told, w.inputs[:, a.end - k : a.end]]
            w.retold.append(Retelling(a.n, parts, message.facts))


def _with_value(message: Utterance, fact: Fact, value: str) -> Utterance:
    """The last mention of the fact's value is of the new one."""
    facts = tuple(Fact(f.kind, value) if f == fact else f for f in message.facts)
    at = last_place(message.content, fact.value)
    said = message.content[:at] + value + message.content[at + len(fact.value) :]
    return replace(message, content=said, facts=facts)


def _alike(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens they begin with that are the same."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
