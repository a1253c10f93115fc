"""What training minimises: the answers' cross entropy, a mild pull on the gates, and closeness to the frozen model."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from deltamem_cli.training.batch import Read
from deltamem_cli.training.encode import EncodedQuestion

BETA_GOAL = 0.05
BETA_WEIGHT = 0.01
VALUE_WEIGHT = 3.0
KL_WEIGHT = 8.0


def answer_loss(read: Read, questions: Sequence[EncodedQuestion]) -> Tensor:
    """Mean cross entropy over answer tokens; a value's tokens count VALUE_WEIGHT times, since the rest is format."""
    weights = [VALUE_WEIGHT if i in q.value_at else 1.0 for q in questions for i in range(len(q.answer))]
    weight = torch.tensor(weights, device=read.logits.device)
    return (F.cross_entropy(read.logits, read.labels, reduction="none") * weight).sum() / weight.sum()


def kl_loss(read: Read, frozen: Tensor) -> Tensor:
    """KL(frozen || with memory) per answer token. frozen: logits of the model without memory, [n, vocab]"""
    return F.kl_div(read.logits.log_softmax(-1), frozen.log_softmax(-1), reduction="batchmean", log_target=True)


def gate_loss(mean_beta: Tensor) -> Tensor:
    """Published: keeps the gates from closing or opening altogether. mean_beta: [L]"""
    return BETA_WEIGHT * (mean_beta - BETA_GOAL).square().mean()


@torch.no_grad()
def exact(read: Read, questions: Sequence[EncodedQuestion]) -> list[bool]:
    """Whether a greedy answer would be right up to the end of the value, word for word."""
    right = (read.logits.argmax(-1) == read.labels).split(read.lengths)
    return [
        bool(r[: q.value_at[-1] + 1 if q.value_at else len(r)].all()) for r, q in zip(right, questions, strict=True)
    ]
