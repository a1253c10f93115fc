"""Told facts again with other values: the words before a value are run once, and only what follows them for each value.

How a value is kept must hold for any value, so values are what a memory needs to see most of. A telling costs a sixth of
what it costs in a conversation of its own.
"""

from __future__ import annotations

import random
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import replace

import torch

from deltamem_cli.episodes import Fact, Message
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
        done(i, len(written))
        past, w.past = w.past, None
        messages = w.episode.sessions[0].messages
        taken = {f.value for m in messages for f in m.facts}
        for n, message in enumerate(messages if past is not None else ()):
            for fact in message.facts:
                others = other_values(rng, by_name(fact.kind), taken, count)
                if others and past is not None:
                    w.retold += _retold(encoder, backbone, memory, w, past, n, fact, others)


def _retold(
    encoder: Encoder,
    backbone: Backbone,
    memory: Memory,
    w: Written,
    past: Past,
    n: int,
    fact: Fact,
    others: Sequence[str],
) -> list[Retelling]:
    """Message n of the conversation with each of other values of one of its facts."""
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
    mask = torch.ones(1, split, dtype=torch.bool, device=backbone.device)
    state = memory.zero_states(1)
    if split:
        state, _ = memory.write(w.inputs[None, :, :split].to(backbone.device), state, mask)
    ids, lengths = pad(tails, backbone.device)
    states = state.expand(len(tails), *state.shape[1:])
    run = Session(memory, states, length_mask(lengths, ids.shape[1]), keep_inputs=True)
    backbone.run(backbone.embed(ids), lengths, past.begun(at, len(tails)), run)
    new = torch.stack(run.inputs, 1)  # [B, L, T, hidden]
    end = first + len(told) - begin
    found = []
    for i, (message, tail, k) in enumerate(zip(messages, tails, kept, strict=True)):
        parts = [w.inputs[:, first:split], new[i, :, : len(tail)].clone(), w.inputs[:, end - k : end]]
        found.append(Retelling(n, parts, message.facts))
    return found


def _with_value(message: Message, fact: Fact, value: str) -> Message:
    """The last mention of the fact's value is of the new one."""
    facts = tuple(Fact(f.kind, value) if f == fact else f for f in message.facts)
    at = last_place(message.content, fact.value)
    said = message.content[:at] + value + message.content[at + len(fact.value) :]
    return replace(message, content=said, facts=facts)


def _alike(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens they begin with that are the same."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
