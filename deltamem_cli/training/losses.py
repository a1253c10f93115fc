"""The loss of one batch, by turns that were written before or end to end, and what is reported of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from deltamem_cli.training.backbone import Backbone
from deltamem_cli.training.batch import (
    Read,
    Written,
    frozen_answers,
    read_answers,
    replay_answers,
    replay_writes,
    run_writes,
)
from deltamem_cli.training.encode import EncodedEpisode, EncodedQuestion
from deltamem_cli.training.memory import Memory
from deltamem_cli.training.objective import KL_WEIGHT, answer_loss, exact, gate_loss, kl_loss

# with gradients; and beta, exact (share of answers), tokens, kl where ordinary talk was asked for
Loss = tuple[Tensor, dict[str, Any]]


def mixed_loss(backbone: Backbone, memory: Memory, batch: Sequence[Written], vocabulary: Tensor) -> Loss:
    """Of conversations that were written, and whose prompts were run, before. vocabulary: what answers are chosen from"""
    states, beta = replay_writes(memory, batch)
    asked = [a for w in batch for a in w.asked if a is not None]

    def answer(chosen: list[int], states: Tensor, questions: list[EncodedQuestion]) -> Read:
        # the frozen model's own choice is among all tokens
        among = None if questions[0].plain else vocabulary
        return replay_answers(backbone, memory, states, [asked[i] for i in chosen], questions, among)

    def frozen(chosen: list[int], questions: list[EncodedQuestion]) -> list[Tensor]:
        return [f for i in chosen if (f := asked[i].frozen) is not None]

    tokens = sum(len(w.spans) for w in batch)
    return _loss(backbone, states, beta, [w.episode for w in batch], tokens, answer, frozen)


def end_to_end_loss(backbone: Backbone, memory: Memory, episodes: Sequence[EncodedEpisode]) -> Loss:
    """Of whole episodes, with gradients through everything, as inference runs."""
    states, beta = run_writes(backbone, memory, episodes)

    def answer(chosen: list[int], states: Tensor, questions: list[EncodedQuestion]) -> Read:
        return read_answers(backbone, memory, states, questions)

    def frozen(chosen: list[int], questions: list[EncodedQuestion]) -> list[Tensor]:
        return frozen_answers(backbone, questions)

    return _loss(backbone, states, beta, episodes, sum(len(e.written) for e in episodes), answer, frozen)


def _loss(
    backbone: Backbone,
    states: Tensor,
    beta: Tensor,
    episodes: Sequence[EncodedEpisode],
    tokens: int,
    answer: Callable[[list[int], Tensor, list[EncodedQuestion]], Read],
    frozen: Callable[[list[int], list[EncodedQuestion]], list[Tensor]],
) -> Loss:
    own = torch.tensor([i for i, e in enumerate(episodes) for _ in e.questions], device=states.device)
    questions = [q for e in episodes for q in e.questions]
    plain = [i for i, q in enumerate(questions) if q.plain]
    facts = [i for i, q in enumerate(questions) if not q.plain]
    asked = [questions[i] for i in facts]
    read = answer(facts, states[own[facts]], asked)
    loss = answer_loss(read, asked) + gate_loss(beta)
    hits = exact(read, asked)
    parts = {
        "beta": round(float(beta.detach().mean()), 4),
        "exact": round(sum(hits) / max(1, len(hits)), 3),
        "tokens": tokens + sum(len(q.prompt) + len(q.head) + len(q.answer) for q in questions),
    }
    if plain:
        asked = [questions[i] for i in plain]
        with torch.no_grad():
            wanted = backbone.logits(torch.cat(frozen(plain, asked)))
        kl = kl_loss(answer(plain, states[own[plain]], asked), wanted)
        loss, parts["kl"] = loss + KL_WEIGHT * kl, round(kl.item(), 4)
    return loss, parts
