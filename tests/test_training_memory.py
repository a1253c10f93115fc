"""The torch memory computes what the numpy oracle computes, for every variant, and its gradients are right."""

from training_support import need

need("torch")

import itertools

import numpy as np
import pytest
import torch
from reference import ScanParams, delta_rule_scan

from deltamem_cli.adapter.format import AdapterConfig
from deltamem_cli.training.memory import Memory, Session
from deltamem_cli.training.scan import chunked_delta_scan

TOKENS, HIDDEN = 37, 12


def make(heads: int = 1, rank: int = 4, seed: int = 0, layers: tuple[int, ...] = (0,), **settings: object) -> Memory:
    torch.manual_seed(seed)
    config = AdapterConfig("llama", HIDDEN, 3, layers, rank=rank, state_heads=heads, **settings)  # type: ignore[arg-type]
    memory = Memory(config, {"q": 8, "k": 4, "v": 4, "o": HIDDEN}, beta_bias=-1.0)
    with torch.no_grad():
        memory.gate.normal_(0, 0.3)
        memory.gate_bias.normal_(-1, 0.5)
    return memory


def oracle(
    memory: Memory, projected: torch.Tensor, state: np.ndarray, spans: list[int] | None
) -> tuple[np.ndarray, np.ndarray]:
    c = memory.config
    bias = memory.gate_bias[0].detach().numpy().astype(np.float64)
    params = ScanParams(
        c.rank, c.state_heads, bias[: c.gate_width], bias[c.gate_width :] if c.has_lambda else None,
        c.write_granularity, c.rankwise_gates, c.couple_lambda, c.state_update, c.normalize_qk,
    )  # fmt: skip
    return delta_rule_scan(projected.detach().numpy().astype(np.float64), params, state, spans)


VARIANTS = list(
    itertools.product((1, 3), ("standard", "lambda_outside", "no_lambda"), (True, False), (True, False), (True, False))
)


@pytest.mark.parametrize(("heads", "update", "rankwise", "couple", "normalize"), VARIANTS)
def test_scan_equals_the_oracle_in_every_variant(
    heads: int, update: str, rankwise: bool, couple: bool, normalize: bool
) -> None:
    memory = make(heads, state_update=update, rankwise_gates=rankwise, couple_lambda=couple, normalize_qk=normalize)
    scale = 1.0 if normalize else 0.2
    projected = memory.project(scale * torch.randn(2, TOKENS, HIDDEN), 0)
    state = 0.3 * torch.randn(2, heads, 4, 4)
    reads, after, _ = memory.scan(projected, 0, state, torch.ones(2, TOKENS))
    for row in range(2):
        wanted_reads, wanted = oracle(memory, projected[row], state[row].numpy().astype(np.float64), None)
        assert np.abs(reads[row].detach().numpy() - wanted_reads).max() < 2e-5
        assert np.abs(after[row].detach().numpy() - wanted).max() < 2e-5


@pytest.mark.parametrize("chunk", [1, 5, 37, 64])
def test_chunks_of_any_size_give_the_same_numbers(chunk: int) -> None:
    torch.manual_seed(1)
    q, k, v = torch.randn(3, 2, TOKENS, 4, dtype=torch.float64)
    k = torch.nn.functional.normalize(k, dim=-1)
    beta = torch.rand(2, TOKENS, 4, dtype=torch.float64)
    state = torch.randn(2, 4, 4, dtype=torch.float64)
    arguments = (q, k, v, torch.log1p(-beta), beta, beta, state)
    wanted_reads, wanted = chunked_delta_scan(*arguments, chunk=TOKENS)
    reads, after = chunked_delta_scan(*arguments, chunk=chunk)
    torch.testing.assert_close(reads, wanted_reads)
    torch.testing.assert_close(after, wanted)


def test_fully_closed_and_fully_open_gates_stay_finite() -> None:
    k = torch.nn.functional.normalize(torch.randn(1, 40, 4), dim=-1)
    beta = torch.tensor([0.0, 1.0]).repeat(20)[None, :, None].expand(1, 40, 4)
    keep = torch.nn.functional.logsigmoid(-torch.tensor([-90.0, 90.0]).repeat(20))[None, :, None].expand(1, 40, 4)
    reads, state = chunked_delta_scan(k, k, k, keep, beta, beta, torch.zeros(1, 4, 4))
    assert torch.isfinite(reads).all()
    assert torch.isfinite(state).all()


def test_gradients_flow_through_the_writes_and_match_differences() -> None:
    torch.manual_seed(2)
    shape = (1, 9, 3)
    inputs = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for _ in range(4)]
    state = torch.randn(1, 3, 3, dtype=torch.float64, requires_grad=True)

    def scan(
        q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, gate: torch.Tensor, s: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        beta = gate.sigmoid()
        return chunked_delta_scan(q, k, v, torch.nn.functional.logsigmoid(-gate), beta, beta, s, chunk=4)

    assert torch.autograd.gradcheck(scan, (*inputs, state))


def test_tokens_outside_the_mask_read_and_do_not_write() -> None:
    memory = make()
    projected = memory.project(torch.randn(1, 6, HIDDEN), 0)
    state = torch.randn(1, 1, 4, 4)
    mask = torch.tensor([[1, 1, 1, 0, 0, 0]])
    reads, after, _ = memory.scan(projected, 0, state, mask)
    _, wanted, _ = memory.scan(projected[:, :3], 0, state, mask[:, :3])
    torch.testing.assert_close(after, wanted)
    _, state_then, _ = memory.scan(projected[:, 3:], 0, after, mask[:, 3:])
    torch.testing.assert_close(state_then, after)
    assert reads[:, 3:].abs().sum() > 0


@pytest.mark.parametrize("heads", [1, 3])
@pytest.mark.parametrize("normalize", [True, False])
def test_a_session_without_a_mask_reads_as_one_whose_tokens_do_not_write(heads: int, normalize: bool) -> None:
    memory = make(heads, normalize_qk=normalize, layers=(0, 2))
    x, states = torch.randn(2, 6, HIDDEN), torch.randn(2, 2, heads, 4, 4)
    reading, masked = Session(memory, states), Session(memory, states, torch.zeros(2, 6, dtype=torch.bool))
    for layer in (0, 1, 2):
        found, wanted = reading(layer, x), masked(layer, x)
        assert found.keys() == wanted.keys()
        for head, delta in wanted.items():
            torch.testing.assert_close(found[head], delta)
    assert torch.equal(reading.stacked, states)


@pytest.mark.parametrize("granularity", ["message_mean", "sentence_mean"])
def test_span_writes_equal_the_oracle_and_the_replay(granularity: str) -> None:
    memory = make(2, write_granularity=granularity)
    x = torch.randn(1, 10, HIDDEN)
    spans = [0, 0, 0, 1, 1, -1, 2, 2, 2, 2]
    span_ids = torch.tensor([spans])
    state = 0.2 * torch.randn(1, 1, 2, 4, 4)
    session = Session(memory, state, span_ids >= 0, span_ids)
    session(0, x)
    _, wanted = oracle(memory, memory.project(x, 0)[0], state[0, 0].numpy().astype(np.float64), spans)
    assert np.abs(session.states[0][0].detach().numpy() - wanted).max() < 1e-5
    replayed, _ = memory.write(x[:, None], state, span_ids >= 0, span_ids)
    torch.testing.assert_close(replayed, session.stacked)


def test_replayed_writes_of_all_layers_equal_the_session() -> None:
    memory = make(layers=(0, 2), seed=3)
    x = torch.randn(2, 2, 8, HIDDEN)
    mask = torch.tensor([[1] * 8, [1] * 5 + [0] * 3])
    session = Session(memory, memory.zero_states(2), mask)
    for slot, layer in enumerate((0, 2)):
        session(layer, x[:, slot])
    replayed, _ = memory.write(x, memory.zero_states(2), mask)
    torch.testing.assert_close(replayed, session.stacked)
