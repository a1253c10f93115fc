"""Steps reach all directions of a matrix, matrices are taken apart as they are used, and the mean is what is kept."""

from training_support import need

need("torch")

import copy
from pathlib import Path

import pytest
import torch

from deltamem_cli.adapter.format import AdapterConfig
from deltamem_cli.training.memory import Memory
from deltamem_cli.training.optimizer import GATE_RATE, MEAN_DECAY, Optimizer, running_mean

RANK, HIDDEN = 4, 16


@pytest.fixture
def memory() -> Memory:
    torch.manual_seed(0)
    config = AdapterConfig(
        "llama", HIDDEN, 3, (0, 2), rank=RANK, state_heads=1, write_granularity="token", delta_heads=("q", "o"),
        rankwise_gates=False, state_update="no_lambda",
    )  # fmt: skip
    return Memory(config, {"q": 8, "o": HIDDEN})


def changes(memory: Memory, lr: float = 1e-2) -> dict[str, torch.Tensor]:
    """What one step changes."""
    before = copy.deepcopy(dict(memory.named_parameters()))
    Optimizer(memory, delta_lr=3.0).step(lr)
    return {name: (p - before[name]).detach() for name, p in memory.named_parameters()}


def zero_gradients(memory: Memory) -> None:
    for parameter in memory.parameters():
        parameter.grad = torch.zeros_like(parameter)


def test_a_step_goes_as_far_in_weak_directions_of_a_matrix_as_in_strong_ones(memory: Memory) -> None:
    zero_gradients(memory)
    left, right = torch.linalg.qr(torch.randn(RANK, RANK)).Q, torch.linalg.qr(torch.randn(HIDDEN, RANK)).Q
    assert memory.proj.grad is not None
    memory.proj.grad[1, RANK : 2 * RANK] = left @ torch.diag(torch.tensor([1.0, 0.5, 0.1, 0.05])) @ right.T
    sizes = torch.linalg.svdvals(changes(memory)["proj"][1, RANK : 2 * RANK])
    assert sizes.max() / sizes.min() < 2  # of gradients 20 times apart


def test_q_k_and_v_of_each_layer_are_matrices_of_their_own(memory: Memory) -> None:
    zero_gradients(memory)
    assert memory.proj.grad is not None
    memory.proj.grad[0, RANK : 2 * RANK] = torch.randn(RANK, HIDDEN)
    changed = changes(memory)
    k = changed["proj"][0, RANK : 2 * RANK].clone()
    changed["proj"][0, RANK : 2 * RANK] = 0
    assert k.abs().max() > 0
    assert all(not change.any() for change in changed.values())


def test_d_is_learned_at_a_rate_of_its_own(memory: Memory) -> None:
    zero_gradients(memory)
    gradient = torch.randn(RANK, HIDDEN)
    assert memory.proj.grad is not None and memory.delta["o"].grad is not None
    memory.proj.grad[0, :RANK], memory.delta["o"].grad[0] = gradient, gradient.T
    changed = changes(memory)  # with three times the rate for D
    torch.testing.assert_close(changed["delta.o"][0].T, 3 * changed["proj"][0, :RANK], atol=1e-5, rtol=2e-2)


def test_every_trained_parameter_takes_the_step(memory: Memory) -> None:
    for parameter in memory.parameters():
        parameter.grad = torch.randn_like(parameter)
    frozen = {f"scale.{head}" for head in memory.delta}
    assert {name for name, change in changes(memory).items() if not change.any()} == frozen


def test_the_running_mean_follows_slowly(memory: Memory) -> None:
    mean = running_mean(memory)
    mean.update_parameters(memory)
    before = memory.proj.detach().clone()
    with torch.no_grad():
        memory.proj += 1.0
    mean.update_parameters(memory)
    torch.testing.assert_close(mean.module.proj - before, torch.full_like(before, 1 - MEAN_DECAY))


def test_a_step_after_saving_and_loading_is_the_same_step(memory: Memory, tmp_path: Path) -> None:
    def step(optimizer: Optimizer, memory: Memory, seed: int) -> None:
        torch.manual_seed(seed)
        for parameter in memory.parameters():
            parameter.grad = torch.randn_like(parameter)
        optimizer.step(1e-2)

    first = Optimizer(memory, delta_lr=3.0)
    step(first, memory, 1)
    torch.save(first.state_dict(), tmp_path / "optimizer.pt")
    other = copy.deepcopy(memory)
    second = Optimizer(other, delta_lr=3.0)
    second.load_state_dict(torch.load(tmp_path / "optimizer.pt", weights_only=True))
    step(first, memory, 2)
    step(second, other, 2)
    for name, parameter in memory.named_parameters():
        torch.testing.assert_close(dict(other.named_parameters())[name], parameter)


def test_gates_move_slowly_or_a_fresh_memory_would_shut_them_before_it_finds_anything(memory: Memory) -> None:
    zero_gradients(memory)
    for parameter in memory.parameters():
        parameter.grad = torch.ones_like(parameter)
    changed = changes(memory, lr=1e-3)
    assert changed["gate"].abs().max() == pytest.approx(1e-3 * GATE_RATE, rel=1e-3)
    # of 896 inputs of about 1, in a hundred steps that all pull one way: from half open to no less than a hundredth
    assert 100 * 896 * 1e-3 * GATE_RATE < 4.6
