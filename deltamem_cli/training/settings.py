"""What a training run is made of; plain data."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Settings:
    """What a run is made of; stored in checkpoints and in the adapter's training summary."""

    steps: int | None = None
    minutes: float | None = None
    seed: int = 0
    beta: float | None = None  # mean gate of told values at the start
    gradual: bool = False  # begin with one fact and nothing shown again: for a memory that finds nothing yet
    batch: int = 48  # questions of a step
    lr: float = 1.5e-3
    delta_lr: float = 3.0  # times lr, for the D matrices
    warmup: int = 20
    start_episodes: int = 64  # conversations that the start from data is drawn from
    round_episodes: int = 24  # written together with one version of the memory
    round_steps: int = 128
    pool: int = 128  # conversations that steps draw turns from: those of the last rounds
    finish: float = 0.1  # share of the run at its end that trains end to end
    validate_every: int = 256
