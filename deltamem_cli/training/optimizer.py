"""How a memory's parameters take a step, and their running mean; knows nothing of losses and data."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from deltamem_cli.training.memory import Memory

MOMENTUM = 0.95
# Of the rate, for gates and norms. One step of Adam moves all weights of a gate alike, so at the whole rate a fresh memory,
# whose reads are wrong at first, shuts its gates within a hundred steps, and then learns nothing.
GATE_RATE = 0.05
MEAN_DECAY = 0.98  # of the running mean: that of about the last 50 steps

Place = tuple[Tensor, Any]  # a stacked parameter, and the index of one matrix in it


class Optimizer:
    """Muon (torch.optim) for the projections and D, one matrix of one layer at a time; AdamW for gates and norms.

    A step of Muon goes as far in the weak directions of a matrix as in the strong ones. delta_lr: times the rate, for D
    """

    def __init__(self, memory: Memory, delta_lr: float) -> None:
        # places in the stacked parameters, and leaves that share their numbers
        self._places = [*_projections(memory), *_deltas(memory)]
        self._views = [parameter.detach()[at].requires_grad_() for parameter, at in self._places]
        of_delta = len(list(_deltas(memory)))
        self.muon = torch.optim.Muon(
            [
                {"params": self._views[:-of_delta], "times": 1.0},
                {"params": self._views[-of_delta:], "times": delta_lr},
            ],
            weight_decay=0.0, momentum=MOMENTUM, adjust_lr_fn="match_rms_adamw",
        )  # fmt: skip
        others = [memory.gate, memory.gate_bias]
        others += [memory.delta_o_norm] if memory.delta_o_norm is not None else []
        self.adam = torch.optim.AdamW([{"params": others, "times": GATE_RATE}], betas=(0.9, 0.98), weight_decay=0.0)

    def step(self, lr: float) -> None:
        """Changes the parameters by their gradients."""
        for view, (parameter, at) in zip(self._views, self._places, strict=True):
            view.grad = None if parameter.grad is None else parameter.grad[at]
        for optimizer in (self.muon, self.adam):
            for group in optimizer.param_groups:
                group["lr"] = group["times"] * lr
            optimizer.step()

    def state_dict(self) -> dict[str, Any]:
        """Both optimizers' states, for a checkpoint."""
        return {"muon": self.muon.state_dict(), "adam": self.adam.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes the states of a checkpoint."""
        self.muon.load_state_dict(state["muon"])
        self.adam.load_state_dict(state["adam"])


def running_mean(memory: Memory) -> AveragedModel:
    """What is validated and exported: a step's noise is not in it. update_parameters(memory) after every step."""
    return AveragedModel(memory, multi_avg_fn=get_ema_multi_avg_fn(MEAN_DECAY))


def _projections(memory: Memory) -> Iterator[Place]:
    read = memory.config.read_width
    for slot in range(len(memory.config.layers)):
        for part in range(3):  # q, k and v
            yield memory.proj, (slot, slice(part * read, (part + 1) * read))


def _deltas(memory: Memory) -> Iterator[Place]:
    for delta in memory.delta.values():
        for slot in range(len(memory.config.layers)):
            yield delta, slot
