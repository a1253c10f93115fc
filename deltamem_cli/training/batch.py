"""Runs encoded episodes through backbone and memory: the write pass over sessions, the read pass over questions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from deltamem_cli.training.backbone import Backbone, Past
from deltamem_cli.training.encode import EncodedEpisode, EncodedQuestion, EncodedSession
from deltamem_cli.training.memory import Memory, Session


def pad(rows: Sequence[Sequence[int]], device: torch.device, fill: int = 0) -> tuple[Tensor, Tensor]:
    """ids [B, T] right-padded, lengths [B]"""
    lengths = torch.tensor([len(r) for r in rows], device=device)
    ids = torch.full((len(rows), int(lengths.max())), fill, device=device)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row, device=device)
    return ids, lengths


def length_mask(lengths: Tensor, size: int) -> Tensor:
    """[B, T], true where a token is"""
    return torch.arange(size, device=lengths.device) < lengths[:, None]


def written_mask(lengths: Tensor, size: int, openings: Sequence[int]) -> Tensor:
    """[B, T], true for the tokens that write: all but the opening."""
    begin = torch.tensor(openings, device=lengths.device)
    return length_mask(lengths, size) & ~length_mask(begin, size)


@dataclass
class Asked:
    """A question's prompt after it was run: what any answer to it needs.

    inputs: [L, S - opening, hidden] bfloat16, what the memory writes; keys, values: per layer [kv heads, S, head dim]
    """

    inputs: Tensor
    keys: dict[int, Tensor]
    values: dict[int, Tensor]


@dataclass
class Written:
    """One episode after its write pass: what the memory wrote, to be replayed without the backbone.

    inputs: [L, T, hidden] bfloat16 over all sessions, their openings left out; spans: [T]; content: [T]
    """

    inputs: Tensor
    spans: Tensor
    content: Tensor
    episode: EncodedEpisode
    state: Tensor
    asked: list[Asked | None]


def write_sessions(
    backbone: Backbone, memory: Memory, sessions: Sequence[EncodedSession], states: Tensor, keep_inputs: bool
) -> tuple[Tensor, Session]:
    """A batch of sessions, one per row, each in an empty context; corrections on, every token writes."""
    ids, lengths = pad([s.tokens for s in sessions], backbone.device)
    spans, _ = pad([s.spans for s in sessions], backbone.device, fill=-1)
    mask = written_mask(lengths, ids.shape[1], [s.opening for s in sessions])
    session = Session(memory, states, mask, spans, keep_inputs)
    backbone.run(backbone.embed(ids), lengths, correct=session)
    return session.stacked, session


@torch.no_grad()
def written_episodes(
    backbone: Backbone, memory: Memory, episodes: Sequence[EncodedEpisode], rows: int = 32
) -> list[Written]:
    """The write pass of episodes with today's memory, without gradients; sorted by length so that little is padding."""
    order = sorted(range(len(episodes)), key=lambda i: len(episodes[i].sessions[0].tokens))
    found: list[Written | None] = [None] * len(episodes)
    for at in range(0, len(order), rows):
        part = order[at : at + rows]
        states = memory.zero_states(len(part))
        inputs: list[list[Tensor]] = [[] for _ in part]
        for n in range(max(len(episodes[i].sessions) for i in part)):
            has = [j for j, i in enumerate(part) if n < len(episodes[i].sessions)]
            sessions = [episodes[part[j]].sessions[n] for j in has]
            chosen = torch.tensor(has, device=backbone.device)
            new, session = write_sessions(backbone, memory, sessions, states[chosen], keep_inputs=True)
            states = states.index_copy(0, chosen, new)
            seen = torch.stack(session.inputs, 1)  # [B, L, T, hidden]
            for row, j in enumerate(has):
                inputs[j].append(seen[row, :, sessions[row].opening : len(sessions[row].tokens)])
        for j, i in enumerate(part):
            e = episodes[i]
            spans, base = [], 0
            for s in e.sessions:
                spans += [base + m for m in s.spans[s.opening :]]
                base = spans[-1] + 1
            content = [c for s in e.sessions for c in s.content[s.opening :]]
            found[i] = Written(
                torch.cat(inputs[j], 1).clone(), torch.tensor(spans), torch.tensor(content), e, states[j], []
            )
    return [w for w in found if w is not None]


def replay_writes(memory: Memory, written: Sequence[Written]) -> tuple[Tensor, Tensor]:
    """States [B, L, H, r, r] of written episodes, with gradients into the memory alone, and the mean beta per layer."""
    device = memory.proj.device
    size = max(w.inputs.shape[1] for w in written)
    x = written[0].inputs.new_zeros(len(written), written[0].inputs.shape[0], size, written[0].inputs.shape[2])
    spans = torch.full((len(written), size), -1)
    mask = torch.zeros(len(written), size, dtype=torch.bool)
    for i, w in enumerate(written):
        t = w.inputs.shape[1]
        x[i, :, :t], spans[i, :t], mask[i, :t] = w.inputs, w.spans, True
    return memory.write(x.to(device), memory.zero_states(len(written)), mask.to(device), spans.to(device))


def run_writes(backbone: Backbone, memory: Memory, episodes: Sequence[EncodedEpisode]) -> tuple[Tensor, Tensor]:
    """The same states with gradients through the backbone too; sessions follow each other."""
    states, betas = memory.zero_states(len(episodes)), []
    for n in range(max(len(e.sessions) for e in episodes)):
        has = [i for i, e in enumerate(episodes) if n < len(e.sessions)]
        chosen = torch.tensor(has, device=backbone.device)
        new, session = write_sessions(backbone, memory, [episodes[i].sessions[n] for i in has], states[chosen], False)
        states = states.index_copy(0, chosen, new)
        if session.betas[0].shape[-2] == session.mask.shape[-1]:
            on = session.mask[:, None, :, None]
            scale = on.sum() * session.betas[0].shape[1] * session.betas[0].shape[-1]
            betas.append(torch.stack([(b * on).sum() / scale for b in session.betas]))
        else:
            betas.append(torch.stack([b.mean() for b in session.betas]))
    return states, torch.stack(betas).mean(0)


@torch.no_grad()
def ask(
    backbone: Backbone,
    memory: Memory,
    written: Sequence[Written],
    wanted: Callable[[EncodedQuestion], bool] = lambda question: True,
    rows: int = 48,
) -> None:
    """Runs the prompts of the wanted questions with today's memory and keeps in each episode what answers need."""
    todo = [(w, q) for w in written for q in w.episode.questions if wanted(q)]
    todo.sort(key=lambda wq: len(wq[1].prompt))
    found: dict[int, Asked] = {}
    for at in range(0, len(todo), rows):
        part = todo[at : at + rows]
        states = torch.stack([w.state for w, _ in part]).to(backbone.device)
        _, past, session = run_prompts(backbone, memory, states, [q for _, q in part], keep_inputs=True)
        seen = torch.stack(session.inputs, 1)
        for row, (_, q) in enumerate(part):
            size = len(q.prompt)
            keys, values = ({n: t[row, :, :size].clone() for n, t in side.items()} for side in (past.keys, past.values))
            found[id(q)] = Asked(seen[row, :, q.opening : size].clone(), keys, values)
    for w in written:
        w.asked = [found.get(id(q)) for q in w.episode.questions]


def run_prompts(
    backbone: Backbone, memory: Memory, states: Tensor, questions: Sequence[EncodedQuestion], keep_inputs: bool = False
) -> tuple[Tensor, Past, Session]:
    ids, lengths = pad([q.prompt for q in questions], backbone.device)
    mask = written_mask(lengths, ids.shape[1], [q.opening for q in questions])
    session = Session(memory, states, mask, keep_inputs=keep_inputs)
    h, past = backbone.run(backbone.embed(ids), lengths, correct=session)
    return h, past, session


@dataclass
class Read:
    """Answer logits of all questions, flat over answer tokens. lengths: answer tokens of each question."""

    logits: Tensor
    labels: Tensor
    lengths: list[int]


def _answers(
    backbone: Backbone,
    h: Tensor,
    lengths: Tensor,
    past: Past,
    session: Session | None,
    questions: Sequence[EncodedQuestion],
    first: int,
) -> Read:
    h, _ = backbone.run(h, lengths, past, session, range(first, backbone.shape.n_layer))
    where = torch.zeros(h.shape[:2], dtype=torch.bool, device=h.device)
    for i, q in enumerate(questions):
        where[i, len(q.head) - 1 : len(q.head) + len(q.answer) - 1] = True
    labels = torch.tensor([t for q in questions for t in q.answer], device=h.device)
    return Read(backbone.logits(h[where]), labels, [len(q.answer) for q in questions])


def read_answers(backbone: Backbone, memory: Memory, states: Tensor, questions: Sequence[EncodedQuestion]) -> Read:
    """Asks each question in a fresh context against its row of states, as inference does: every token writes."""
    _, past, session = run_prompts(backbone, memory, states, questions)
    ids, lengths = pad([q.head + q.answer[:-1] for q in questions], backbone.device)
    answering = Session(memory, session.stacked, length_mask(lengths, ids.shape[1]))
    return _answers(backbone, backbone.embed(ids), lengths, past, answering, questions, 0)


def replay_answers(
    backbone: Backbone, memory: Memory, states: Tensor, asked: Sequence[Asked], questions: Sequence[EncodedQuestion]
) -> Read:
    """The same with the prompts' inputs, keys and values as they were when ask() ran; gradients through the states."""
    wrote = [a.inputs.shape[1] for a in asked]
    x = asked[0].inputs.new_zeros(len(asked), asked[0].inputs.shape[0], max(wrote), asked[0].inputs.shape[2])
    for i, a in enumerate(asked):
        x[i, :, : wrote[i]] = a.inputs
    states, _ = memory.write(x, states, length_mask(torch.tensor(wrote, device=states.device), max(wrote)))
    ids, lengths = pad([q.head + q.answer[:-1] for q in questions], backbone.device)
    past, first = _joined(asked), memory.config.layers[0]
    h = backbone.embed(ids)
    if first:
        with torch.no_grad():
            h, _ = backbone.run(h, lengths, past, layers=range(first))
    session = Session(memory, states, length_mask(lengths, h.shape[1]))
    return _answers(backbone, h, lengths, past, session, questions, first)


def _joined(asked: Sequence[Asked]) -> Past:
    """The prompts' keys and values as one padded batch."""
    sides = []
    for side in ([a.keys for a in asked], [a.values for a in asked]):
        # [S, kv heads, head dim] so that the padding is in front
        sides.append({
            n: torch.nn.utils.rnn.pad_sequence([row[n].transpose(0, 1) for row in side], batch_first=True).transpose(1, 2)
            for n in side[0]
        })  # fmt: skip
    sizes = [next(iter(a.keys.values())).shape[1] for a in asked]
    return Past(sides[0], sides[1], torch.tensor(sizes, device=asked[0].inputs.device))


@torch.no_grad()
def frozen_answers(backbone: Backbone, questions: Sequence[EncodedQuestion]) -> Tensor:
    """Logits of the model without memory at the answers' tokens, flat: [n, vocab]"""
    rows = [q.prompt + q.head + q.answer[:-1] for q in questions]
    ids, lengths = pad(rows, backbone.device)
    h, _ = backbone.run(backbone.embed(ids), lengths)
    return backbone.logits(
        torch.cat(
            [h[i, n - len(q.answer) : n] for i, (q, n) in enumerate(zip(questions, lengths.tolist(), strict=True))]
        )
    )
