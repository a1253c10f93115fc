"""Told facts again with other values: the words before a value are run once, and only what follows them for each value.

How a value is kept must hold for any value, so values are what a memory needs to see most of. A telling costs a sixth of
what it costs in a conversation of its own.
"""

from __future__ import annotations

import random
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import replace

import torch

from deltamem_cli.episodes import TRAIN, Message, Question
from deltamem_cli.episodes.kinds import BY_NAME
from deltamem_cli.episodes.values import values
from deltamem_cli.training.backbone import Backbone, Past
from deltamem_cli.training.batch import Retelling, Written, length_mask, pad
from deltamem_cli.training.encode import EncodedQuestion, EncodedSession, Encoder
from deltamem_cli.training.memory import Memory, Session

SETTLED = 2  # tokens after a value that are run again; those behind them hardly depend on it
VALUES = 12  # other values that each told fact is retold with


@torch.no_grad()
def retell(
    encoder: Encoder,
    backbone: Backbone,
    memory: Memory,
    rng: random.Random,
    written: Sequence[Written],
    count: int = VALUES,
) -> None:
    """Adds to conversations of one session (with their past, which is let go) each told fact with `count` other values.

    What follows a value is run for SETTLED tokens, and is the conversation's own from there on.
    A reply that names the value is left out.
    """
    for w in written:
        past, w.past = w.past, None
        session = w.episode.sessions[0]
        told = {(q.question.kind, q.question.value) for q in w.episode.questions if q.value_at}
        asked: dict[tuple[str, str], list[EncodedQuestion]] = {}
        for n, message in enumerate(session.messages):
            fact = (message.kind, message.value)
            if past is None or fact not in told:
                continue
            if fact not in asked:
                asked[fact] = _other_answers(encoder, rng, session, fact, count)
            w.retold += _retold(encoder, backbone, memory, w, past, n, asked[fact])


def _other_answers(
    encoder: Encoder, rng: random.Random, session: EncodedSession, fact: tuple[str, str], count: int
) -> list[EncodedQuestion]:
    kind = BY_NAME[fact[0]]
    taken = {m.value for m in session.messages}
    free = [v for v in values(kind.vocabulary, TRAIN) if v not in taken]
    chosen = rng.sample(free, min(count, len(free)))
    return [encoder.question("", Question(kind.noun, kind.answer_for(v), v, kind.name)) for v in chosen]


def _retold(
    encoder: Encoder,
    backbone: Backbone,
    memory: Memory,
    w: Written,
    past: Past,
    n: int,
    others: Sequence[EncodedQuestion],
) -> list[Retelling]:
    """Message n of the conversation with each of other values, and what belongs to its turn."""
    session, spans = w.episode.sessions[0], w.spans.tolist()
    opening, size = session.opening, len(others)
    # the next message too, since what leads to it belongs to the one before
    shown = session.messages[: n + 2]
    rows = [encoder.session(session.system, _with_value(shown, n, q.question.value)) for q in others]
    told, *again = [s.tokens[: bisect_right(s.spans, n)] for s in (session, *rows)]
    at = min(_alike(told, tokens) for tokens in again)
    same = [min(_alike(told[::-1], tokens[::-1]), len(told) - at, len(tokens) - at) for tokens in again]
    kept = [max(0, alike - SETTLED) for alike in same]
    tails = [tokens[at : len(tokens) - k] for tokens, k in zip(again, kept, strict=True)]
    mask = torch.ones(1, at - opening, dtype=torch.bool, device=backbone.device)
    state, _ = memory.write(w.inputs[None, :, : at - opening].to(backbone.device), memory.zero_states(1), mask)
    ids, lengths = pad(tails, backbone.device)
    run = Session(memory, state.expand(size, *state.shape[1:]), length_mask(lengths, ids.shape[1]), keep_inputs=True)
    backbone.run(backbone.embed(ids), lengths, past.begun(at, size), run)
    new = torch.stack(run.inputs, 1)  # [B, L, T, hidden]
    first = n - n % 2  # the message of the user that begins the turn
    named = n == first and session.messages[n].value in session.messages[n + 1].content
    begin, end = bisect_left(spans, first), bisect_right(spans, n if named else first + 1)
    found = []
    for i, (row, tail, k, question) in enumerate(zip(rows, tails, kept, others, strict=True)):
        after = slice(len(told) - opening - k, end)
        parts = [w.inputs[:, begin : at - opening], new[i, :, : len(tail)].clone(), w.inputs[:, after]]
        inside = row.spans[opening + begin : at + len(tail)] + spans[after]
        found.append(Retelling(n, parts, torch.tensor(inside) - first, question))
    return found


def _with_value(messages: Sequence[Message], n: int, new: str) -> list[Message]:
    """From message n on, the last mention of its value in a message is of the new one."""
    old = messages[n].value
    return [replace(m, content=new.join(m.content.rsplit(old, 1))) if i >= n else m for i, m in enumerate(messages)]


def _alike(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens they begin with that are the same."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
