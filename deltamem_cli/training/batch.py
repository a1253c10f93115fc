"""Runs encoded episodes through backbone and memory: the write pass over sessions, the read pass over questions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from deltamem_cli.episodes import Fact
from deltamem_cli.training.backbone import Backbone, Past
from deltamem_cli.training.encode import EncodedEpisode, EncodedQuestion, EncodedSession
from deltamem_cli.training.memory import Memory, Session

# measured on a CPU: what more conversations at once take does not stay in its caches
ROWS = 4

Done = Callable[[int, int], None]  # is told how many of how many are done


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


def places_mask(places: Sequence[tuple[int, int]], size: int, device: torch.device) -> Tensor:
    """[B, T], true within [begin, end) of each row."""
    begin, end = torch.tensor(places, device=device).T
    return length_mask(end, size) & ~length_mask(begin, size)


@dataclass
class Asked:
    """A question's prompt after it was run: what any answer to it needs.

    inputs: [L, written, hidden] bfloat16, what the memory writes; keys, values: per layer [kv heads, S, head dim]
    frozen: [answer, hidden], where the model without memory ends up at the tokens of a plain question's answer
    below: [head + answer - 1, hidden], what reaches the lowest adapted layer at the answer to one question; no memory
    has a part in it, so replay_answers() computes it once
    """

    inputs: Tensor
    keys: dict[int, Tensor]
    values: dict[int, Tensor]
    frozen: Tensor | None = None
    below: Tensor | None = None

    def shortened(self, tokens: int) -> Asked:
        """For another answer, without the last tokens of the prompt, which are the answer's."""
        sides = ({n: t[:, : t.shape[1] - tokens] for n, t in side.items()} for side in (self.keys, self.values))
        return Asked(self.inputs, *sides)


@dataclass
class Retelling:
    """A message with another value in it. parts: [L, t, hidden] bfloat16 each, some of them the conversation's own

    facts: what it tells then
    """

    message: int
    parts: list[Tensor]
    facts: tuple[Fact, ...]


@dataclass
class Written:
    """One episode after its write pass: what the memory wrote, to be replayed without the backbone.

    inputs: [L, T, hidden] bfloat16 of the tokens of all sessions that write; spans: [T]; content: [T]
    past: of its last session, when that was asked for
    """

    inputs: Tensor
    spans: Tensor
    content: Tensor
    episode: EncodedEpisode
    state: Tensor
    asked: list[Asked | None]
    past: Past | None = None
    retold: list[Retelling] = field(default_factory=list)


def write_sessions(
    backbone: Backbone, memory: Memory, sessions: Sequence[EncodedSession], states: Tensor, keep_inputs: bool
) -> tuple[Tensor, Session, Past]:
    """A batch of sessions, one per row, each in an empty context; corrections on, the user's messages write."""
    ids, lengths = pad([s.tokens for s in sessions], backbone.device)
    spans, _ = pad([s.spans for s in sessions], backbone.device, fill=-1)
    mask, _ = pad([s.writes for s in sessions], backbone.device)
    session = Session(memory, states, mask.bool(), spans, keep_inputs)
    _, past = backbone.run(backbone.embed(ids), lengths, correct=session, to_the_end=False)
    return session.stacked, session, past


def places(writes: Sequence[bool]) -> list[int]:
    """Where tokens write."""
    return [i for i, on in enumerate(writes) if on]


@torch.no_grad()
def written_episodes(
    backbone: Backbone,
    memory: Memory,
    episodes: Sequence[EncodedEpisode],
    rows: int = ROWS,
    keep_past: bool = False,
    done: Done = lambda done, of: None,
) -> list[Written]:
    """The write pass of episodes with today's memory, without gradients; sorted by length so that little is padding."""
    order = sorted(range(len(episodes)), key=lambda i: len(episodes[i].sessions[0].tokens))
    found: list[Written | None] = [None] * len(episodes)
    for at in range(0, len(order), rows):
        part = order[at : at + rows]
        states = memory.zero_states(len(part))
        inputs: list[list[Tensor]] = [[] for _ in part]
        pasts: list[Past | None] = [None] * len(part)
        for n in range(max(len(episodes[i].sessions) for i in part)):
            has = [j for j, i in enumerate(part) if n < len(episodes[i].sessions)]
            sessions = [episodes[part[j]].sessions[n] for j in has]
            chosen = torch.tensor(has, device=backbone.device)
            new, session, past = write_sessions(backbone, memory, sessions, states[chosen], keep_inputs=True)
            states = states.index_copy(0, chosen, new)
            seen = torch.stack(session.inputs, 1)  # [B, L, T, hidden]
            for row, j in enumerate(has):
                inputs[j].append(seen[row, :, places(sessions[row].writes)])
                pasts[j] = past.of_row(row) if keep_past else None
        for j, i in enumerate(part):
            e = episodes[i]
            spans, base = [], 0
            for s in e.sessions:
                spans += [base + s.spans[i] for i in places(s.writes)]
                base += len(s.messages)
            content = [s.content[i] for s in e.sessions for i in places(s.writes)]
            found[i] = Written(
                torch.cat(inputs[j], 1).clone(), torch.tensor(spans), torch.tensor(content), e, states[j], [], pasts[j]
            )
        done(min(at + rows, len(order)), len(order))
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
        sessions = [episodes[i].sessions[n] for i in has]
        new, session, _ = write_sessions(backbone, memory, sessions, states[chosen], keep_inputs=False)
        states = states.index_copy(0, chosen, new)
        if session.mask is not None and session.betas[0].shape[-2] == session.mask.shape[-1]:
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
    rows: int = 4 * ROWS,
    done: Done = lambda done, of: None,
) -> None:
    """Runs the prompts of all questions, up to the value of the answer, with today's memory and keeps in each episode
    what answers need."""
    todo = [(i, q, q.at_value()) for i, w in enumerate(written) for q in w.episode.questions]
    todo.sort(key=lambda item: len(item[2].prompt))
    found: dict[int, Asked] = {}
    openings = _openings(backbone, memory, written)
    for at in range(0, len(todo), rows):
        part = todo[at : at + rows]
        own = torch.tensor([i for i, _, _ in part])
        states = torch.stack([written[i].state for i, _, _ in part]).to(backbone.device)
        opened = [_opened(written[i], q) for i, q, _ in part]
        lengths = torch.tensor(opened, device=backbone.device)
        before = None if openings is None else openings.of_rows(own.to(backbone.device), lengths)
        prompts = [at_value.prompt[begin:] for begin, (_, _, at_value) in zip(opened, part, strict=True)]
        places = [(q.written[0] - begin, q.written[1] - begin) for begin, (_, q, _) in zip(opened, part, strict=True)]
        past, session = run_prompts(backbone, memory, states, prompts, places, before, keep_inputs=True)
        seen = torch.stack(session.inputs, 1)
        # behind an opening comes the padding of shorter ones
        behind = 0 if before is None else next(iter(before.keys.values())).shape[2]
        for row, (_, q, _) in enumerate(part):
            own_part, rest = slice(opened[row]), slice(behind, behind + len(prompts[row]))
            keys, values = (
                {n: torch.cat([t[row, :, own_part], t[row, :, rest]], 1) for n, t in side.items()}
                for side in (past.keys, past.values)
            )
            found[id(q)] = Asked(seen[row, :, slice(*places[row])].clone(), keys, values)
        done(min(at + rows, len(todo)), len(todo))
    plain = [q for _, q, _ in todo if q.plain]
    for q, frozen in zip(plain, frozen_answers(backbone, plain), strict=True):
        found[id(q)].frozen = frozen
    for w in written:
        w.asked = [found.get(id(q)) for q in w.episode.questions]


def _openings(backbone: Backbone, memory: Memory, written: Sequence[Written]) -> Past | None:
    """What all questions of an episode begin with, its system prompt, read once with its state. None: with nothing."""
    ids, lengths = pad([s.tokens[: s.opening] for s in (w.episode.sessions[0] for w in written)], backbone.device)
    if not ids.shape[1]:
        return None
    session = Session(memory, torch.stack([w.state for w in written]).to(backbone.device))
    _, past = backbone.run(backbone.embed(ids), lengths, correct=session, to_the_end=False)
    return past


def _opened(written: Written, question: EncodedQuestion) -> int:
    """How many tokens of a question's prompt are its episode's opening: none of a text with no chat around it."""
    first = written.episode.sessions[0]
    begins = question.prompt[: first.opening] == first.tokens[: first.opening]
    return first.opening if begins and question.written[0] >= first.opening else 0


def run_prompts(
    backbone: Backbone,
    memory: Memory,
    states: Tensor,
    prompts: Sequence[list[int]],
    written: Sequence[tuple[int, int]],
    past: Past | None = None,
    keep_inputs: bool = False,
) -> tuple[Past, Session]:
    """The prompts, or what follows their past, read with these states: keys and values, and the session that corrected
    them. written: [begin, end) of the tokens of each that the memory writes"""
    ids, lengths = pad(prompts, backbone.device)
    session = Session(memory, states, places_mask(written, ids.shape[1], backbone.device), keep_inputs=keep_inputs)
    _, past = backbone.run(backbone.embed(ids), lengths, past, session, to_the_end=False)
    return past, session


@dataclass
class Read:
    """Answer logits of all questions, flat over answer tokens. lengths: answer tokens of each question.

    labels: places of the right tokens in the vocabulary that logits are of
    """

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
    vocabulary: Tensor | None = None,
) -> Read:
    h, _ = backbone.run(h, lengths, past, session, range(first, backbone.shape.n_layer))
    where = torch.zeros(h.shape[:2], dtype=torch.bool, device=h.device)
    for i, q in enumerate(questions):
        where[i, len(q.head) - 1 : len(q.head) + len(q.answer) - 1] = True
    labels = torch.tensor([t for q in questions for t in q.answer], device=h.device)
    if vocabulary is not None:
        labels = torch.searchsorted(vocabulary, labels)
    return Read(backbone.logits(h[where], vocabulary), labels, [len(q.answer) for q in questions])


def read_answers(backbone: Backbone, memory: Memory, states: Tensor, questions: Sequence[EncodedQuestion]) -> Read:
    """Asks each question in a fresh context against its row of states, as inference does: the question writes."""
    past, session = run_prompts(backbone, memory, states, [q.prompt for q in questions], [q.written for q in questions])
    ids, lengths = pad([q.head + q.answer[:-1] for q in questions], backbone.device)
    answering = Session(memory, session.stacked)
    return _answers(backbone, backbone.embed(ids), lengths, past, answering, questions, 0)


def replay_answers(
    backbone: Backbone,
    memory: Memory,
    states: Tensor,
    asked: Sequence[Asked],
    questions: Sequence[EncodedQuestion],
    vocabulary: Tensor | None = None,
) -> Read:
    """The same with the prompts' inputs, keys and values as they were when ask() ran; gradients through the states.

    vocabulary: sorted tokens that the answers are chosen from, all unless given; the answers' own must be among them
    """
    wrote = [a.inputs.shape[1] for a in asked]
    x = asked[0].inputs.new_zeros(len(asked), asked[0].inputs.shape[0], max(wrote), asked[0].inputs.shape[2])
    for i, a in enumerate(asked):
        x[i, :, : wrote[i]] = a.inputs
    states, _ = memory.write(x, states, length_mask(torch.tensor(wrote, device=states.device), max(wrote)))
    first, last = memory.config.layers[0], backbone.shape.n_layer
    new = [i for i, a in enumerate(asked) if a.below is None]
    if new:
        _run_below(backbone, [asked[i] for i in new], [questions[i] for i in new], range(first))
    below = [a.below for a in asked if a.below is not None]
    lengths = torch.tensor([len(h) for h in below], device=states.device)
    h = torch.nn.utils.rnn.pad_sequence(below, batch_first=True)
    session = Session(memory, states)
    return _answers(backbone, h, lengths, _joined(asked, range(first, last)), session, questions, first, vocabulary)


@torch.no_grad()
def _run_below(backbone: Backbone, asked: Sequence[Asked], questions: Sequence[EncodedQuestion], layers: range) -> None:
    ids, lengths = pad([q.head + q.answer[:-1] for q in questions], backbone.device)
    h = backbone.embed(ids)
    if layers:
        h, _ = backbone.run(h, lengths, _joined(asked, layers), layers=layers)
    for a, row, length in zip(asked, h, lengths.tolist(), strict=True):
        a.below = row[:length].clone()


def _joined(asked: Sequence[Asked], layers: range) -> Past:
    """The prompts' keys and values as one padded batch."""
    sides = []
    for side in ([a.keys for a in asked], [a.values for a in asked]):
        # [S, kv heads, head dim] so that the padding is in front
        sides.append({
            n: torch.nn.utils.rnn.pad_sequence([row[n].transpose(0, 1) for row in side], batch_first=True).transpose(1, 2)
            for n in layers
        })  # fmt: skip
    sizes = [next(iter(a.keys.values())).shape[1] for a in asked]
    return Past(sides[0], sides[1], torch.tensor(sizes, device=asked[0].inputs.device))


@torch.no_grad()
def frozen_answers(backbone: Backbone, questions: Sequence[EncodedQuestion], rows: int = 4 * ROWS) -> list[Tensor]:
    """Of each question, where the model without memory ends up at the answer's tokens, before the head: [answer, hidden]"""
    found: list[Tensor] = []
    for at in range(0, len(questions), rows):
        part = questions[at : at + rows]
        ids, lengths = pad([q.prompt + q.head + q.answer[:-1] for q in part], backbone.device)
        h, _ = backbone.run(backbone.embed(ids), lengths)
        found += [
            h[i, n - len(q.answer) : n].clone() for i, (q, n) in enumerate(zip(part, lengths.tolist(), strict=True))
        ]
    return found
