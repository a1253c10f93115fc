"""Starts a memory from data instead of noise: what to write, under which key, what a read should say; or opens a trained one's
gates by data."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from deltamem_cli.errors import DeltamemError
from deltamem_cli.training.backbone import Backbone
from deltamem_cli.training.batch import Written, pad
from deltamem_cli.training.encode import EncodedQuestion
from deltamem_cli.training.memory import Memory

KEPT = 64  # principal directions of a layer's inputs that count as signal
PAIRED = 48  # conversations whose questions are read to see what agrees
MIXED = 24  # canonical directions that the keys of a layer are drawn from
SHARE_OF_STREAM = 0.15
CLOSED = -5.5  # gate logit for other tokens than those of a told value
BETA = 0.5  # mean gate of these
NEW_SHARE = 0.5  # of what a layer's reads add at the start, where others know something already


@dataclass
class Pairs:
    """Where a value's token was written and where it is wanted. inputs: [L, n, hidden]"""

    written: Tensor
    wanted: Tensor


def start_from_data(
    memory: Memory, backbone: Backbone, written: Sequence[Written], seed: int, beta: float | None = None
) -> None:
    """Sets the parameters of a fresh memory. written: episodes of the frozen model; beta: mean gate of told values.

    Raises DeltamemError when beta is given and no told value is marked.
    """
    set_scales(memory, backbone, written[: len(written) // 4 + 1])
    generator = torch.Generator().manual_seed(seed)
    c = memory.config
    tokens = [torch.tensor(w.episode.written) for w in written]
    # small linear algebra: on the CPU wherever the backbone runs
    x_all = torch.cat([w.inputs.cpu() for w in written], 1)
    content = told_values(written, needed=beta is not None)
    ids = torch.cat(tokens)
    pairs = find_pairs(backbone, memory, written, tokens)
    codes, basis = token_codes(backbone, ids[content] if content.any() else ids)
    # each layer carries other directions of the token's code, so that all layers together carry the whole of it
    order = torch.linalg.qr(torch.randn(codes.shape[1], codes.shape[1], generator=generator))[0]
    order = order.repeat(-(-len(c.layers) * c.read_width // len(order)), 1)
    sample = torch.randperm(len(ids), generator=generator)[:16000]
    with torch.no_grad():
        for slot in range(len(c.layers)):
            x = x_all[slot].float()
            own = order[slot * c.read_width : (slot + 1) * c.read_width]
            picked = torch.cat([sample, content.nonzero()[:, 0].repeat(3)])
            v = ridge(x[picked], codes[ids[picked]] @ own.T)
            q, k = (
                canonical(pairs.wanted[slot], pairs.written[slot], c.read_width, generator)
                if pairs.written.shape[1] > 256
                else (whitened(x[sample], c.read_width, generator) for _ in range(2))
            )
            memory.proj[slot] = torch.cat([q, k, v])
            if content.any():
                set_gate(memory, slot, x[picked], content[picked], BETA if beta is None else beta)
            if "o" in memory.delta:
                memory.delta["o"][slot] = basis @ own.T


@torch.no_grad()
def take_over(memory: Memory, known: Memory) -> None:
    """Gives the layers that `known` has its parameters; of the others, reads add less than they would alone."""
    for name, own in memory.named_parameters():
        theirs = known.get_parameter(name)
        for layer, slot in known.slot.items():
            if layer in memory.slot:
                own[memory.slot[layer]] = theirs[slot]
    for delta in memory.delta.values():
        for layer, slot in memory.slot.items():
            if layer not in known.slot:
                delta[slot] *= NEW_SHARE


def find_pairs(backbone: Backbone, memory: Memory, written: Sequence[Written], tokens: Sequence[Tensor]) -> Pairs:
    """Matches each value token that a question wants with the place where it was told last."""
    writes, wants = [], []
    for at in range(0, min(len(written), PAIRED), 16):
        asked: list[tuple[int, EncodedQuestion]] = [
            (i, q)
            for i in range(at, min(at + 16, len(written), PAIRED))
            for q in written[i].episode.questions
            if q.value_at and not q.shown  # where the value is in sight, nothing has to be looked up
        ]
        if not asked:
            continue
        seen = frozen_inputs(backbone, memory, [q for _, q in asked])
        for row, (i, q) in enumerate(asked):
            wanted = [q.answer[j] for j in q.value_at]
            begin = last_place(tokens[i].tolist(), written[i].content.tolist(), wanted)
            if begin is not None:
                writes.append(written[i].inputs[:, begin : begin + len(wanted)].float().cpu())
                first = len(q.prompt) + len(q.head) + q.value_at[0] - 1
                wants.append(seen[row, :, first : first + len(wanted)])
    empty = torch.zeros(len(memory.config.layers), 0, memory.config.embedding_length)
    return Pairs(torch.cat(writes, 1), torch.cat(wants, 1)) if writes else Pairs(empty, empty)


def last_place(tokens: list[int], content: list[bool], wanted: list[int]) -> int | None:
    """The last index at which `wanted` stands in `tokens` and begins with content; None: nowhere."""
    n = len(wanted)
    return next((i for i in range(len(tokens) - n, -1, -1) if content[i] and tokens[i : i + n] == wanted), None)


@torch.no_grad()
def frozen_inputs(backbone: Backbone, memory: Memory, questions: Sequence[EncodedQuestion]) -> Tensor:
    """Layer inputs while the frozen model reads question and answer: [Q, L, T, hidden]"""
    ids, lengths = pad([q.prompt + q.head + q.answer[:-1] for q in questions], backbone.device)
    found: dict[int, Tensor] = {}

    def keep(layer: int, x: Tensor) -> dict[str, Tensor]:
        if layer in memory.slot:
            found[layer] = x
        return {}

    backbone.run(backbone.embed(ids), lengths, correct=keep)
    return torch.stack([found[n] for n in memory.config.layers], 1).cpu()


def whitener(x: Tensor) -> tuple[Tensor, Tensor]:
    """mean [hidden] and W [KEPT, hidden] with unit covariance of W (x - mean)"""
    mean = x.mean(0)
    c = x - mean
    values, vectors = torch.linalg.eigh(c.T @ c / len(c))
    keep = min(KEPT, len(values), len(c) - 1)
    return mean, (vectors[:, -keep:] / values[-keep:].clamp_min(1e-8).sqrt()).T


def without_mean(w: Tensor, mean: Tensor) -> Tensor:
    """What all tokens share must not fill the state: rows of w made orthogonal to the mean."""
    return w - (w @ mean)[:, None] / (mean @ mean).clamp_min(1e-12) * mean


def whitened(x: Tensor, width: int, generator: torch.Generator) -> Tensor:
    """x: [n, hidden]. Returns [width, hidden]: random directions, whitened for x and scaled to it."""
    mean, white = whitener(x)
    w = torch.randn(width, len(white), generator=generator) @ white
    return scaled(without_mean(w, mean), x)


def scaled(w: Tensor, x: Tensor, spread: float = 0.7) -> Tensor:
    """Rows scaled to the same spread on x, within the bend of tanh."""
    return w * (spread / ((x - x.mean(0)) @ w.T).std(0).clamp_min(1e-8))[:, None]


def canonical(wanted: Tensor, written: Tensor, width: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """q and k projections under which the place that wants a token agrees with the place that told it."""
    (mean_q, white_q), (mean_k, white_k) = whitener(wanted), whitener(written)
    zq, zk = (wanted - mean_q) @ white_q.T, (written - mean_k) @ white_k.T
    u, strength, v = torch.linalg.svd(zq.T @ zk / len(zq))
    mixed = min(MIXED, len(strength))
    mix = torch.randn(width, mixed, generator=generator)
    if width <= mixed:
        mix = torch.linalg.qr(mix.T)[0].T
    mix = mix * strength[:mixed].clamp_min(0).sqrt()
    q, k = mix @ u[:, :mixed].T @ white_q, mix @ v[:mixed] @ white_k
    q, k = without_mean(q, mean_q), without_mean(k, mean_k)
    # one scale for both, row by row, or the agreement would be lost
    both = (((wanted - mean_q) @ q.T).std(0) * ((written - mean_k) @ k.T).std(0)).sqrt().clamp_min(1e-8)
    return 0.7 * q / both[:, None], 0.7 * k / both[:, None]


def ridge(x: Tensor, target: Tensor, weight: float = 0.02) -> Tensor:
    """W [n, hidden] that predicts target from x, blind to what all of x share."""
    mean = x.mean(0)
    c = x - mean
    cov = c.T @ c / len(c)
    cov = cov + weight * cov.diagonal().mean() * torch.eye(len(cov))
    w = torch.linalg.solve(cov, c.T @ (target - target.mean(0)) / len(c)).T
    return without_mean(w, mean)


def set_gate(memory: Memory, slot: int, x: Tensor, content: Tensor, beta: float) -> None:
    """Fits a layer's beta to x, [n, hidden]: `beta` where `content` ([n] bool), closed elsewhere."""
    goal = torch.where(content, logit(beta), CLOSED)[:, None].float()
    mean = x.mean(0)
    c = x - mean
    cov = c.T @ c / len(c)
    cov = cov + 0.02 * cov.diagonal().mean() * torch.eye(len(cov))
    w = torch.linalg.solve(cov, c.T @ (goal - goal.mean()) / len(c)).T
    gates = memory.config.gate_width
    memory.gate[slot, :gates] = w.expand(gates, -1)
    memory.gate_bias[slot, :gates] = float(goal.mean() - w @ mean)


def told_values(written: Sequence[Written], needed: bool) -> Tensor:
    """[tokens] over all episodes, true at told values"""
    content = torch.cat([w.content for w in written])
    if needed and not content.any():
        raise DeltamemError("These conversations tell no value that is asked for, so --beta does nothing; leave it out")
    return content


@torch.no_grad()
def open_gates(memory: Memory, written: Sequence[Written], beta: float) -> None:
    """Moves the gates of a trained memory to about `beta` at told values, and closes them elsewhere; what is written
    shrinks in proportion, so that a read keeps its size.

    With small gates and large values a write adds without replacing what its key held, and values hardly learn beside
    their size; steps do not find the way out, since the loss is flat along it. written: episodes of this memory

    Raises DeltamemError when no told value is marked in them.
    """
    c = memory.config
    content = told_values(written, needed=True).to(memory.gate.device)
    gates = c.gate_width
    for slot in range(len(c.layers)):
        x = torch.cat([w.inputs[slot] for w in written]).to(memory.gate.device).float()
        old = x @ memory.gate[slot, :gates].T + memory.gate_bias[slot, :gates]  # [tokens, gates]
        told, other = old[content].mean(0), old[~content].mean(0)
        # bounded, for a gate that hardly tells them apart
        times = (logit(beta) - CLOSED) / (told - other).clamp_min(1.0)
        offset = logit(beta) - times * told
        new = times * old[content] + offset
        shrink = old[content].sigmoid().mean(0) / new.sigmoid().mean(0)
        memory.gate[slot, :gates] *= times[:, None]
        memory.gate_bias[slot, :gates] = times * memory.gate_bias[slot, :gates] + offset
        values = memory.proj[slot, 2 * c.read_width : 3 * c.read_width]
        values *= shrink.repeat_interleave(c.read_width // gates)[:, None]


def logit(share: float) -> float:
    """The inverse of the sigmoid, for 0 < share < 1."""
    return math.log(share / (1 - share))


def token_codes(backbone: Backbone, common: Tensor, size: int = 192) -> tuple[Tensor, Tensor]:
    """A code for every token and what to add to the residual stream to say it.

    codes: [vocab, size] unit spread over common tokens; basis: [hidden, size], unit columns
    """
    rows = backbone.head.float().cpu()
    if backbone.final_norm is not None:
        rows = rows * backbone.final_norm.cpu()
    chosen = rows[common.unique()]
    mean = chosen.mean(0)
    values, vectors = torch.linalg.eigh((chosen - mean).T @ (chosen - mean) / len(chosen))
    size = min(size, len(values))
    values, vectors = values[-size:].clamp_min(1e-10), vectors[:, -size:]
    return (rows - mean) @ (vectors / values.sqrt()), vectors


@torch.no_grad()
def set_scales(memory: Memory, backbone: Backbone, written: Sequence[Written]) -> None:
    """What a layer adds must be seen beside what flows past it: Δo grows with the residual stream, Δq, Δk, Δv do not."""
    ids, lengths = pad([w.episode.sessions[0].tokens for w in written[:8]], backbone.device)
    h = backbone.embed(ids)
    for layer in range(memory.config.layers[-1] + 1):
        slot = memory.slot.get(layer)
        if slot is not None:
            for head, scale in memory.scale.items():
                scale[slot] = SHARE_OF_STREAM * h.norm(dim=-1).median() if head == "o" else 4.0
        h, _ = backbone.run(h, lengths, layers=range(layer, layer + 1))
