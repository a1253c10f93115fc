"""What a run will take, from how fast the frozen model runs: rough, but said before its first step."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import torch

from deltamem_cli.training.backbone import Backbone
from deltamem_cli.training.check import logits_here
from deltamem_cli.training.settings import Settings

# as many tokens of the frozen model take as long: measured with a model of 0.5B and twelve of 24 layers adapted, by
# tests/benchmarks/training.py
CONVERSATION = 1150
QUESTION = 20
SAMPLE = 128


@dataclass(frozen=True)
class Estimate:
    """In seconds. first_step: until the first one; whole: of the run"""

    first_step: float
    whole: float


def seconds_per_token(backbone: Backbone) -> float:
    """What one token's pass through the backbone takes here, measured once."""
    begin = time.monotonic()
    logits_here(backbone, [n % 256 for n in range(SAMPLE)])
    if backbone.device.type == "cuda":
        torch.cuda.synchronize(backbone.device)
    return (time.monotonic() - begin) / SAMPLE


def estimate(per_token: float, settings: Settings) -> Estimate:
    """Of a run that begins, after its talk; steps or minutes end it, whichever are over first."""
    s = settings
    first = per_token * s.start_episodes * CONVERSATION
    bounds = []
    if s.minutes is not None:
        bounds.append(60 * s.minutes)
    if s.steps is not None:
        rounds = max(0, math.ceil(s.steps / s.round_steps) - 1)
        bounds.append(per_token * (rounds * s.round_episodes * CONVERSATION + s.steps * s.batch * QUESTION))
    return Estimate(round(first, 1), round(first + min(bounds), 1))
