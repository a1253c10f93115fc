"""A first stage without the backbone in the loop: the memory alone learns which told token an answer wants next.

Turns and questions are run once through the frozen model. A step then mixes turns of different conversations into new
ones, writes them, reads at the answers' places, and adds what the reads say straight to the frozen model's last hidden
numbers, as if the layers above let it pass unchanged. That is only nearly so, but a step costs a twentieth of a real one.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from deltamem_cli.training.backbone import Backbone
from deltamem_cli.training.batch import Written, pad, written_episodes
from deltamem_cli.training.encode import EncodedEpisode, Encoder
from deltamem_cli.training.episodes import Question, generate_episode
from deltamem_cli.training.episodes.episode import question_about
from deltamem_cli.training.episodes.kinds import BY_NAME
from deltamem_cli.training.init import Pairs, last_place
from deltamem_cli.training.memory import Memory
from deltamem_cli.training.objective import VALUE_WEIGHT, gate_loss

NEGATIVES = 3000
FACTS = (1, 2, 3, 4, 5, 6)


@dataclass
class Turn:
    """A turn as the frozen model saw it: inputs [L, T, hidden] bfloat16. Small talk has no answer.

    wanted: [L, A, hidden] inputs where the answer's tokens are predicted; last: [A, hidden] the final hidden numbers there
    """

    kind: str
    inputs: Tensor
    wanted: Tensor
    last: Tensor
    answer: Tensor
    weight: Tensor


class Bank:
    """Turns to make conversations of. opening: [L, P, hidden], what stands before the first turn."""

    def __init__(self, backbone: Backbone, memory: Memory, encoder: Encoder, episodes: int, rng: random.Random) -> None:
        self.turns: list[Turn] = []
        self.talk: list[Turn] = []
        told: list[EncodedEpisode] = []
        for _ in range(episodes):
            episode = generate_episode(rng, 7, talk_turns=1, updates=1, system="", max_questions=0)
            for m in episode.sessions[0][::2]:
                asked = question_about(rng, BY_NAME[m.kind], m.value) if m.kind else Question("", "", "", "")
                episode.questions.append(asked)
            questions = [encoder.question("", q) for q in episode.questions]
            told.append(EncodedEpisode([encoder.session("", episode.sessions[0])], questions))
        self.written = written_episodes(backbone, memory, told, rows=16)
        first, second = told[0].sessions[0].tokens, told[1].sessions[0].tokens
        self.n_opening = next(i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b)
        self.opening = self.written[0].inputs[:, : self.n_opening]
        for at in range(0, len(self.written), 4):
            self._ask(backbone, memory, self.written[at : at + 4])
        known = torch.cat([t.answer for t in self.turns]).unique()
        other = torch.randint(0, backbone.head.shape[0], (NEGATIVES,), generator=torch.Generator().manual_seed(0))
        self.candidates = torch.cat([known, other[~torch.isin(other, known)].unique()])
        self.places = torch.full((backbone.head.shape[0],), -1).index_copy(
            0, self.candidates, torch.arange(len(self.candidates))
        )
        rows = backbone.head[self.candidates.to(backbone.device)].float()
        self.head = rows if backbone.final_norm is None else rows * backbone.final_norm
        self.norm_eps = backbone.shape.norm_eps

    @torch.no_grad()
    def _ask(self, backbone: Backbone, memory: Memory, written: Sequence[Written]) -> None:
        asked = [q for w in written for q in w.episode.questions if q.value_at]
        ids, lengths = pad([q.prompt + q.head + q.answer[:-1] for q in asked], backbone.device)
        found: dict[int, Tensor] = {}

        def keep(layer: int, x: Tensor) -> dict[str, Tensor]:
            if layer in memory.slot:
                found[layer] = x.to(torch.bfloat16)
            return {}

        last, _ = backbone.run(backbone.embed(ids), lengths, correct=keep)
        seen = torch.stack([found[n] for n in memory.config.layers], 1)
        row = 0
        for w in written:
            for n, q in enumerate(w.episode.questions):
                inputs = self._turn(w, n)
                if not q.value_at:
                    self.talk.append(Turn("", inputs, inputs[:, :0], last[0, :0], torch.tensor([]), torch.tensor([])))
                    continue
                end = int(lengths[row])
                where = slice(end - len(q.answer), end)
                weight = torch.ones(len(q.answer))
                weight[q.value_at] = VALUE_WEIGHT
                wanted = seen[row, :, where].clone()
                answer = torch.tensor(q.answer)
                self.turns.append(Turn(q.question.kind, inputs, wanted, last[row, where].clone(), answer, weight))
                row += 1

    def _turn(self, w: Written, n: int) -> Tensor:
        """Turn n of a conversation: a user's message and the reply."""
        inside = (w.spans // 2 == n) & (torch.arange(len(w.spans)) >= self.n_opening)
        return w.inputs[:, inside].clone()

    def pairs(self) -> Pairs:
        """Every value token's place where it was told, with the place that wants it."""
        turns, told, wants = iter(self.turns), [], []
        for w in self.written:
            tokens = [t for s in w.episode.sessions for t in s.tokens]
            for n, q in enumerate(w.episode.questions):
                if not q.value_at:
                    continue
                turn = next(turns)
                inside = ((w.spans // 2 == n) & (torch.arange(len(w.spans)) >= self.n_opening)).nonzero()[:, 0].tolist()
                wanted = [q.answer[j] for j in q.value_at]
                begin = last_place([tokens[i] for i in inside], [bool(w.content[i]) for i in inside], wanted)
                if begin is not None:
                    told.append(turn.inputs[:, begin : begin + len(wanted)].float().cpu())
                    wants.append(turn.wanted[:, q.value_at].float().cpu())
        return Pairs(torch.cat(told, 1), torch.cat(wants, 1))

    def conversation(self, rng: random.Random) -> tuple[list[Turn], list[Turn]]:
        """Turns in order, and those whose value is still true: of two turns of one kind the later counts."""
        turns = rng.sample(self.turns, rng.choice(FACTS)) + rng.sample(self.talk, rng.choice((0, 0, 1, 2)))
        rng.shuffle(turns)
        return turns, list({t.kind: t for t in turns if t.kind}.values())


def warmup_loss(memory: Memory, bank: Bank, rng: random.Random, batch: int) -> tuple[Tensor, dict[str, float]]:
    """Loss of one step over batch conversations, and the share of value tokens that come out first."""
    made = [bank.conversation(rng) for _ in range(batch)]
    rows = [torch.cat([bank.opening, *(t.inputs for t in turns)], 1).transpose(0, 1) for turns, _ in made]
    device = rows[0].device
    lengths = torch.tensor([len(r) for r in rows], device=device)
    x = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True).transpose(1, 2)
    mask = torch.arange(x.shape[2], device=device) < lengths[:, None]
    states, beta = memory.write(x, memory.zero_states(batch), mask)
    asked = [(row, t) for row, (_, wanted) in enumerate(made) for t in wanted]
    own = torch.tensor([row for row, t in asked for _ in t.answer], device=device)
    x = torch.cat([t.wanted for _, t in asked], 1)  # [L, n, hidden]
    h = torch.cat([t.last for _, t in asked])
    said = h + surrogate(memory, states, own, x)
    scale = torch.rsqrt(said.square().mean(-1, keepdim=True) + bank.norm_eps)
    logits = (said * scale) @ bank.head.T
    labels = bank.places[torch.cat([t.answer for _, t in asked])].to(device)
    weight = torch.cat([t.weight for _, t in asked]).to(device)
    loss = (F.cross_entropy(logits, labels, reduction="none") * weight).sum() / weight.sum()
    value = weight > 1
    right = (logits.argmax(-1) == labels)[value].float().mean()
    return loss + gate_loss(beta), {"exact": round(float(right), 3), "beta": round(float(beta.detach().mean()), 4)}


def surrogate(memory: Memory, states: Tensor, own: Tensor, x: Tensor) -> Tensor:
    """What all layers' Δo add up to at some places. states [B, L, H, r, r], own [n], x [L, n, hidden] -> [n, hidden]"""
    c = memory.config
    q = (x.float() @ memory.proj[:, : c.read_width].transpose(-1, -2)).unflatten(-1, (c.state_heads, c.rank))
    if c.normalize_qk:
        q = F.normalize(q.tanh(), dim=-1, eps=1e-6)
    reads = torch.einsum("nlhij,lnhj->lnhi", states[own], q).flatten(-2)
    scaled = memory.scale["o"][:, None, None] * reads
    return torch.einsum("lnr,ldr->nd", scaled, memory.delta["o"])


def warm_up(
    memory: Memory,
    bank: Bank,
    steps: int,
    batch: int,
    lr: float,
    delta_lr: float,
    seed: int,
    report: Callable[[dict[str, object]], None],
) -> None:
    """Trains everything but Δq, Δk and Δv, which this stage cannot see."""
    import math
    import time

    rng = random.Random(f"{seed} warm-up")
    groups = [
        {"params": [memory.proj, memory.gate, memory.gate_bias], "times": 1.0},
        {"params": [memory.delta["o"]], "times": delta_lr},
    ]
    optimizer = torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.98), weight_decay=0.0)
    began = time.monotonic()
    for step in range(steps):
        share = step / steps
        for group in optimizer.param_groups:
            group["lr"] = (
                group["times"] * lr * min(1.0, (step + 1) / 20) * (0.1 + 0.45 * (1 + math.cos(math.pi * share)))
            )
        loss, parts = warmup_loss(memory, bank, rng, batch)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(memory.parameters(), 1.0)
        optimizer.step()
        report({"event": "warm-up", "step": step + 1, "progress": share, "loss": round(loss.item(), 4),
                "seconds": round(time.monotonic() - began, 1), **parts})  # fmt: skip
