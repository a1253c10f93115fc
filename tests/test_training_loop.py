"""A run on a tiny model: it learns, resumes where it stopped, repeats by seed, and exports what inference reads."""

from training_support import need

need("torch", "faker", "accelerate")

import json
import random
from pathlib import Path

import pytest
import torch

from deltamem_cli.adapter.format import AdapterConfig, read_adapter
from deltamem_cli.episodes import generate_episode
from deltamem_cli.episodes.kinds import KINDS
from deltamem_cli.errors import DeltamemError
from deltamem_cli.synthetic import write_model
from deltamem_cli.training.backbone import Backbone
from deltamem_cli.training.batch import ask, read_answers, replay_answers, replay_writes, run_writes, written_episodes
from deltamem_cli.training.encode import EncodedEpisode, Encoder
from deltamem_cli.training.export import export_adapter, memory_from_adapter
from deltamem_cli.training.init import start_from_data
from deltamem_cli.training.loop import Settings, Trainer
from deltamem_cli.training.memory import Memory
from deltamem_cli.training.mixing import Pool
from deltamem_cli.training.mixture import dense_source, persona_source
from deltamem_cli.training.run import RunOptions, parse_layers, run_training
from deltamem_cli.training.tokens import GGUFTokenizer

SETTINGS = {"batch": 4, "round_episodes": 2, "round_steps": 2, "start_episodes": 4, "validate_every": 4, "finish": 0.0}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model") / "tiny.gguf", "llama", seed=1)


@pytest.fixture(scope="module")
def encoder(base: Path) -> Encoder:
    return Encoder(GGUFTokenizer(base))


def episodes(encoder: Encoder, n: int, seed: int = 0) -> list[EncodedEpisode]:
    rng = random.Random(seed)
    return [encoder.episode(generate_episode(rng, 2, talk_turns=1, sessions=2, system="")) for _ in range(n)]


def memory_for(backbone: Backbone, **settings: object) -> Memory:
    torch.manual_seed(0)
    shape = backbone.shape
    layers = tuple(range(1, shape.n_layer))
    config = AdapterConfig(shape.architecture, shape.hidden, shape.n_layer, layers, rank=4, **settings)  # type: ignore[arg-type]
    return Memory(config, backbone.widths, beta_bias=-2.0)


def trainer(base: Path, encoder: Encoder, folder: Path, steps: int, **settings: object) -> Trainer:
    backbone = Backbone(base)
    made = Settings(steps=steps, **{**SETTINGS, **settings})  # type: ignore[arg-type]
    checks = {"unseen 2": episodes(encoder, 4, seed=9)}
    return Trainer(
        backbone, memory_for(backbone), persona_source(encoder), checks, made, folder, dense=dense_source(encoder)
    )


def test_a_run_killed_within_a_round_goes_on_from_the_last_whole_one(
    base: Path, encoder: Encoder, tmp_path: Path
) -> None:
    first = trainer(base, encoder, tmp_path, 6)
    first.start()
    saved: dict[str, torch.Tensor] = {}

    def stop(event: dict[str, object]) -> None:
        if event["event"] == "step" and event["step"] == 5:  # in the middle of a round, after two checkpoints
            raise KeyboardInterrupt
        if event["event"] == "validation":
            saved.update({n: p.detach().clone() for n, p in first.memory.named_parameters()})

    first.report = stop
    with pytest.raises(KeyboardInterrupt):
        first.run()
    second = trainer(base, encoder, tmp_path, 6)
    second.load(tmp_path / "checkpoint.pt")
    assert second.step == 4
    for name, parameter in second.memory.named_parameters():
        torch.testing.assert_close(parameter, saved[name], rtol=0, atol=0)
    steps: list[object] = []
    second.report = lambda event: steps.append(event["step"]) if event["event"] == "step" else None
    second.run()
    assert steps == [5, 6]
    assert len(second.pool.written) == 4  # filled anew


def test_a_seed_repeats_a_run_and_another_does_not(base: Path, encoder: Encoder, tmp_path: Path) -> None:
    found = []
    for seed in (0, 0, 1):
        run = trainer(base, encoder, tmp_path, 2, seed=seed)
        run.start()
        run.run()
        found.append(run.memory.proj.detach().clone())
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_the_loss_falls_in_both_ways_of_training(base: Path, encoder: Encoder, tmp_path: Path) -> None:
    for finish in (0.0, 1.0):
        losses: list[float] = []
        run = trainer(base, encoder, tmp_path, 32, finish=finish, lr=1e-2, warmup=1, round_steps=16)
        run.report = lambda event, losses=losses: losses.append(event["loss"]) if event["event"] == "step" else None
        run.start()
        run.run()
        assert sum(losses[-8:]) < sum(losses[:8]), finish


def test_a_checkpoint_of_other_settings_is_refused(base: Path, encoder: Encoder, tmp_path: Path) -> None:
    run = trainer(base, encoder, tmp_path, 1)
    path = run.save()
    run.memory = memory_for(run.backbone, delta_heads=("o",))
    with pytest.raises(DeltamemError, match="other adapter settings"):
        run.load(path)


@pytest.mark.parametrize("granularity", ["token", "message_mean"])
def test_replay_equals_the_real_passes_in_states_and_answers(base: Path, encoder: Encoder, granularity: str) -> None:
    backbone = Backbone(base)
    memory = memory_for(backbone, write_granularity=granularity)
    told = episodes(encoder, 3)
    pool = written_episodes(backbone, memory, told)
    ask(backbone, memory, pool)
    states, _ = run_writes(backbone, memory, told)
    replayed, _ = replay_writes(memory, pool)
    torch.testing.assert_close(replayed, states, atol=5e-3, rtol=5e-2)  # inputs are kept in bfloat16
    own = torch.tensor([i for i, e in enumerate(told) for _ in e.questions])
    questions = [q for e in told for q in e.questions]
    real = read_answers(backbone, memory, states[own], questions)
    asked = [a for w in pool for a in w.asked if a is not None]
    again = replay_answers(backbone, memory, states[own], asked, questions)
    torch.testing.assert_close(again.logits, real.logits, atol=2e-2, rtol=5e-2)
    assert real.lengths == [len(q.answer) for q in questions]


def test_the_gradient_of_an_answer_reaches_what_wrote_the_state(base: Path, encoder: Encoder) -> None:
    backbone = Backbone(base)
    memory = memory_for(backbone)
    told = episodes(encoder, 2)
    states, _ = run_writes(backbone, memory, told)
    questions = [e.questions[0] for e in told]
    read = read_answers(backbone, memory, states, questions)
    torch.nn.functional.cross_entropy(read.logits, read.labels).backward()
    rank = memory.config.rank
    assert memory.proj.grad is not None
    assert memory.gate.grad is not None
    # keys and values only matter through writes
    assert (memory.proj.grad[:, rank : 2 * rank].abs().sum((1, 2)) > 0).all()
    assert (memory.proj.grad[:, 2 * rank :].abs().sum((1, 2)) > 0).all()
    assert memory.gate.grad.abs().sum() > 0


def test_the_start_from_data_opens_the_gates_for_told_values_alone(base: Path, encoder: Encoder) -> None:
    backbone = Backbone(base)
    memory = memory_for(backbone)
    written = written_episodes(backbone, memory, episodes(encoder, 24))
    start_from_data(memory, backbone, written, seed=0)
    x = torch.cat([w.inputs for w in written], 1)[0].float()
    content = torch.cat([w.content for w in written])
    gates = memory.project(x, 0)[:, -memory.config.gate_width :].mean(-1)
    assert gates[content].mean() > gates[~content].mean() + 0.5


def test_an_exported_memory_is_read_back_as_it_was(base: Path, tmp_path: Path) -> None:
    backbone = Backbone(base)
    memory = memory_for(backbone, delta_heads=("q", "k", "v", "o"), rankwise_gates=False, couple_lambda=False)
    with torch.no_grad():
        memory.scale["o"].fill_(3.0)
    export_adapter(memory, tmp_path / "a.gguf", "tiny", {"step": 7})
    adapter = read_adapter(tmp_path / "a.gguf")
    assert adapter.config == memory.config
    assert json.loads(adapter.provenance.training or "")["step"] == 7
    again = memory_from_adapter(adapter.config, adapter.tensors)
    x = torch.randn(1, 5, backbone.shape.hidden)
    projected = memory.project(x, 0)
    torch.testing.assert_close(again.project(x, 0), projected, atol=2e-3, rtol=2e-3)
    reads, _, _ = memory.scan(projected, 0, torch.randn(1, 1, 4, 4), torch.ones(1, 5))
    for head, delta in memory.correct(0, reads).items():
        torch.testing.assert_close(again.correct(0, reads)[head], delta, atol=2e-3, rtol=2e-3)


def test_a_run_from_the_options_writes_an_adapter_and_resumes(base: Path, tmp_path: Path) -> None:
    data = tmp_path / "data.jsonl"
    line = {
        "messages": [{"role": "user", "content": "My boat is red."}, {"role": "assistant", "content": "ok"}],
        "questions": [{"content": "My boat?", "answer": "It is red.", "value": "red"}],
    }
    data.write_text("\n".join([json.dumps(line)] * 3 + [json.dumps({**line, "validation": True})]))
    small = {"start_episodes": 3, "batch": 2}
    options = RunOptions(base, tmp_path / "out.gguf", data=data, steps=2, rank=2, layers="1", finish=0.5, **small)  # type: ignore[arg-type]
    events: list[dict[str, object]] = []
    run_training(options, events.append)
    assert read_adapter(tmp_path / "out.gguf").config.layers == (1,)
    assert {e["event"] for e in events} == {"start", "step", "validation", "saved"}
    with pytest.raises(DeltamemError, match="--resume"):
        run_training(options, events.append)
    options.resume, options.steps = True, 3
    run_training(options, events.append)
    again = RunOptions(base, tmp_path / "more.gguf", data=data, steps=1, start_from=tmp_path / "out.gguf", **small)  # type: ignore[arg-type]
    run_training(again, events.append)
    assert read_adapter(tmp_path / "more.gguf").config == read_adapter(tmp_path / "out.gguf").config


def test_layers_are_read_as_ranges_and_refused_beyond_the_model() -> None:
    assert parse_layers("", 3) == (0, 1, 2)
    assert parse_layers("0,2-4", 6) == (0, 2, 3, 4)
    for text in ("2-9", "x", "1-y"):
        with pytest.raises(DeltamemError):
            parse_layers(text, 6)


def test_a_mixed_conversation_asks_for_what_was_told_last_and_for_nothing_else(base: Path, encoder: Encoder) -> None:
    backbone = Backbone(base)
    memory = memory_for(backbone)
    rng = random.Random(0)
    written = written_episodes(backbone, memory, dense_source(encoder)(rng, 3, 0.0))
    ask(backbone, memory, written)
    pool = Pool(2, mixed=True)
    pool.add(written)
    assert list(pool.written) == written[1:]  # the oldest left
    assert {t.about.question.kind for t in pool.told if t.about} <= {k.name for k in KINDS}
    for mixed in pool.draw(rng, 40, 6):
        told = {}
        for n in range(int(mixed.spans.max()) // 2 + 1):
            turn = mixed.inputs[:, mixed.spans // 2 == n]
            for known in pool.told:
                if known.about is not None and torch.equal(known.inputs, turn):
                    told[known.about.question.kind] = known.about.question
        asked = [q for q in mixed.episode.questions if q.value_at]
        assert {q.question.kind: q.question for q in asked} == told
        assert all(q.plain or q.question.kind not in told for q in mixed.episode.questions if not q.value_at)
        assert len(mixed.asked) == len(mixed.episode.questions)
        for q in asked:
            # the prompt may be that of another turn, but asks for this kind
            assert any(p.question.prompt == q.prompt for p in pool.prompts[q.question.kind])


def test_the_system_prompt_is_seen_and_never_written(base: Path, encoder: Encoder) -> None:
    backbone = Backbone(base)
    memory = memory_for(backbone)
    rng = random.Random(0)
    told = generate_episode(rng, 1, system="")
    states = []
    for system in ("Be kind.", "You are a helpful assistant who likes long answers."):
        session = encoder.session(system, told.sessions[0])
        question = encoder.question(system, told.questions[0])
        text = b"".join(encoder.tokenizer.piece(t) for t in session.tokens[: session.opening])
        assert system.encode() in text and told.sessions[0][0].content.encode() not in text
        assert 0 < question.opening < len(question.prompt)
        alone = EncodedEpisode([session], [question])
        (written,) = written_episodes(backbone, memory, [alone])
        assert written.inputs.shape[1] == len(session.tokens) - session.opening
        # what remains is the same text: the states differ only by what it saw of the system prompt
        states.append(written.episode.written)
    assert states[0] == states[1]
