"""Where a memory starts: gates open for what is told alone, and those of a trained one are moved without a change of reads."""

from training_support import need

need("torch", "faker")

import math
import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from deltamem_cli.adapter.format import AdapterConfig
from deltamem_cli.episodes import generate_episode
from deltamem_cli.errors import DeltamemError
from deltamem_cli.synthetic import write_model
from deltamem_cli.training.backbone import Backbone
from deltamem_cli.training.batch import Written, written_episodes
from deltamem_cli.training.encode import EncodedEpisode, Encoder
from deltamem_cli.training.init import CLOSED, NEW_SHARE, open_gates, start_from_data, take_over
from deltamem_cli.training.memory import Memory
from deltamem_cli.training.tokens import GGUFTokenizer

HIDDEN, HEADS, RANK, TOKENS = 16, 2, 4, 40


def trained_memory() -> Memory:
    """Two layers whose gates are all but closed, and a little less so where the first input is large."""
    torch.manual_seed(0)
    config = AdapterConfig(
        "llama", HIDDEN, 3, (0, 2), rank=RANK, state_heads=HEADS, write_granularity="token", delta_heads=("q", "o"),
        rankwise_gates=False, state_update="no_lambda",
    )  # fmt: skip
    memory = Memory(config, {"q": 8, "o": HIDDEN}, beta_bias=-7.0)
    with torch.no_grad():
        memory.gate += 0.02 * torch.randn_like(memory.gate)
        memory.gate[:, :, 0] = 1.0
    return memory


def conversation(told: int) -> Written:
    """A written one whose first tokens are those of told values."""
    inputs, content = torch.randn(2, TOKENS, HIDDEN), torch.arange(TOKENS) < told
    inputs[:, content, 0] += 3.0
    return Written(inputs, torch.zeros(TOKENS), content, EncodedEpisode([], []), torch.empty(0), [])


def writes(memory: Memory, written: Written, slot: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gate logits [tokens, heads], gates, and values [tokens, heads, rank] of a layer."""
    projected = memory.project(written.inputs[slot], slot)
    logits = projected[:, -HEADS:] + memory.gate_bias[slot]
    values = projected[:, 2 * HEADS * RANK : 3 * HEADS * RANK].unflatten(-1, (HEADS, RANK))
    return logits.detach(), logits.sigmoid().detach(), values.detach()


def conversations(tmp_path: Path, count: int) -> tuple[Backbone, Memory, list[Written]]:
    """Of a tiny model, and a memory for it."""
    base = write_model(tmp_path / "tiny.gguf", "llama", seed=1)
    backbone, encoder, rng = Backbone(base), Encoder(GGUFTokenizer(base)), random.Random(0)
    shape = backbone.shape
    memory = Memory(AdapterConfig(shape.architecture, shape.hidden, shape.n_layer, (1,), rank=4), backbone.widths)
    told = [encoder.episode(generate_episode(rng, 2, talk_turns=1, sessions=2, system="")) for _ in range(count)]
    return backbone, memory, written_episodes(backbone, memory, told)


def test_the_start_from_data_opens_the_gates_for_told_values_alone(tmp_path: Path) -> None:
    backbone, memory, written = conversations(tmp_path, 24)
    x, content = torch.cat([w.inputs for w in written], 1)[0].float(), torch.cat([w.content for w in written])
    opened = []
    for beta in (0.1, 0.5):
        start_from_data(memory, backbone, written, seed=0, beta=beta)
        gates = memory.project(x, 0)[:, -memory.config.gate_width :] + memory.gate_bias[0]
        assert gates[content].mean() > gates[~content].mean() + 0.5
        opened.append(gates[content].mean())
    assert opened[0] < opened[1]


def test_the_gates_of_a_trained_memory_open_at_told_values_and_close_elsewhere() -> None:
    memory, written = trained_memory(), conversation(told=10)
    open_gates(memory, [written], 0.2)
    for slot in range(2):
        logits, _, _ = writes(memory, written, slot)
        torch.testing.assert_close(logits[:10].mean(0), torch.full((HEADS,), math.log(0.2 / 0.8)), atol=1e-3, rtol=0)
        torch.testing.assert_close(logits[10:].mean(0), torch.full((HEADS,), CLOSED), atol=1e-3, rtol=0)


def test_what_a_write_adds_keeps_its_size_when_gates_open() -> None:
    memory, written = trained_memory(), conversation(told=10)
    before = [writes(memory, written, slot) for slot in range(2)]
    open_gates(memory, [written], 0.2)
    for slot, (_, gates, values) in enumerate(before):
        _, new_gates, new_values = writes(memory, written, slot)
        assert (new_gates[:10].mean(0) > 3 * gates[:10].mean(0)).all()
        torch.testing.assert_close(
            new_gates[:10].mean(0)[:, None] * new_values, gates[:10].mean(0)[:, None] * values, atol=1e-4, rtol=1e-4
        )


def test_a_fact_told_again_replaces_more_of_what_its_key_held_when_gates_are_open() -> None:
    memory, written = trained_memory(), conversation(told=1)
    told = written.inputs[None, :, :1]
    on, state = torch.ones(1, 1), torch.randn(1, 2, HEADS, RANK, RANK)
    kept = []
    for _ in range(2):
        with torch.no_grad():
            new, _ = memory.write(told, state, on)
            gone, _ = memory.write(told, torch.zeros_like(state), on)
        kept.append(float((new - gone).norm()))  # of the old state
        open_gates(memory, [written], 0.5)
    assert kept[1] < 0.95 * kept[0]


def test_gates_cannot_open_for_what_is_not_told() -> None:
    with pytest.raises(DeltamemError, match="leave it out"):
        open_gates(trained_memory(), [conversation(told=0)], 0.2)


def test_layers_that_a_trained_memory_has_are_taken_over_and_the_others_begin_softly() -> None:
    known = trained_memory()
    memory = Memory(replace(known.config, layers=(1, 2)), {"q": 8, "o": HIDDEN})
    before = {name: parameter.detach().clone() for name, parameter in memory.named_parameters()}
    take_over(memory, known)
    for name, parameter in memory.named_parameters():
        torch.testing.assert_close(parameter[1], known.get_parameter(name)[1], msg=name)
        softer = NEW_SHARE if name.startswith("delta.") else 1.0
        torch.testing.assert_close(parameter[0], softer * before[name][0], msg=name)


def test_an_opening_at_the_start_is_refused_where_nothing_is_told(tmp_path: Path) -> None:
    backbone, memory, written = conversations(tmp_path, 3)
    untold = [replace(w, content=torch.zeros_like(w.content)) for w in written]
    start_from_data(memory, backbone, untold, seed=0)
    with pytest.raises(DeltamemError, match="leave it out"):
        start_from_data(memory, backbone, untold, seed=0, beta=0.1)
