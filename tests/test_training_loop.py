"""A run on a tiny model: it learns, resumes where it stopped, repeats by seed, and exports what inference reads."""

from training_support import need

need("torch", "faker", "accelerate")

import json
import os
import random
import socket
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from training_tiny import TALK, memory_for, words

from deltamem_cli.adapter.format import read_adapter, training_summary
from deltamem_cli.episodes import TRAIN, Fact, Message, Question, generate_episode
from deltamem_cli.episodes.conversation import draw_conversation, told_prompt
from deltamem_cli.episodes.spoken import by_name
from deltamem_cli.errors import DeltamemError, UsageError
from deltamem_cli.synthetic import write_model
from deltamem_cli.training import losses
from deltamem_cli.training.backbone import Backbone
from deltamem_cli.training.batch import (
    ask,
    frozen_answers,
    read_answers,
    replay_answers,
    replay_writes,
    run_writes,
    written_episodes,
)
from deltamem_cli.training.encode import EncodedEpisode, Encoder
from deltamem_cli.training.export import export_adapter, memory_from_adapter
from deltamem_cli.training.loop import Settings, Trainer
from deltamem_cli.training.own_words import CANDIDATES, TEMPERATURE, own_talk, sample
from deltamem_cli.training.pool import Query
from deltamem_cli.training.retell import SETTLED, retell
from deltamem_cli.training.run import RunOptions, parse_layers, run_training
from deltamem_cli.training.sources import dense_source, persona_source, shown_again
from deltamem_cli.training.tokens import GGUFTokenizer

# after a message: its end, and what leads to the reply
MARKS_BEHIND = len("\nassistant\n") + 2
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


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def trainer(base: Path, encoder: Encoder, folder: Path, steps: int, **settings: object) -> Trainer:
    backbone = Backbone(base)
    made = Settings(steps=steps, **{**SETTINGS, **settings})  # type: ignore[arg-type]
    checks = {"unseen 2": episodes(encoder, 4, seed=9)}
    return Trainer(
        backbone, memory_for(backbone), encoder, persona_source(encoder, TALK), checks, made, folder,
        dense=dense_source(encoder, TALK),
    )  # fmt: skip


@pytest.mark.parametrize(("minutes", "steps"), [(1.0, 2), (1.1, 4)])
def test_no_round_is_written_for_which_hardly_any_time_is_left(
    base: Path, encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, minutes: float, steps: int
) -> None:
    now = 0.0

    def takes(seconds: float, work: Any) -> Any:
        def run(*args: Any) -> Any:
            nonlocal now
            now += seconds
            return work(*args)

        return run

    run = trainer(base, encoder, tmp_path, 1000, minutes=minutes, start_episodes=2)
    monkeypatch.setattr("deltamem_cli.training.loop.time.monotonic", lambda: now)
    monkeypatch.setattr(run, "turns", takes(20, run.turns))
    monkeypatch.setattr(run, "_loss_mixed", takes(1, run._loss_mixed))
    run.run()
    assert run.step == steps
    assert [event["step"] for event in run.history] == [steps]
    again = trainer(base, encoder, tmp_path, 1000, minutes=minutes)
    again.load(tmp_path / "checkpoint.pt")
    again.run()
    assert again.step == steps


@pytest.mark.parametrize("limit", [{"steps": 6}, {"minutes": 1.0}])
def test_the_end_of_a_run_trains_end_to_end_however_long_a_round_is(
    base: Path, encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: dict[str, Any]
) -> None:
    now = 0.0
    run = trainer(base, encoder, tmp_path, **{"steps": 1000, **limit}, finish=0.5, round_steps=100)
    taken: list[str] = []

    def counted(name: str, work: Any) -> Any:
        def take() -> Any:
            nonlocal now
            now += 10.0
            taken.append(name)
            return work()

        return take

    monkeypatch.setattr("deltamem_cli.training.loop.time.monotonic", lambda: now)
    monkeypatch.setattr(run, "_loss_mixed", counted("mixed", run._loss_mixed))
    monkeypatch.setattr(run, "_loss_end_to_end", counted("end to end", run._loss_end_to_end))
    run.run()
    assert taken == ["mixed"] * 3 + ["end to end"] * 3


def test_what_a_round_writes_is_retold_before_it_is_mixed(base: Path, encoder: Encoder, tmp_path: Path) -> None:
    run = trainer(base, encoder, tmp_path, 1)
    run.retell = partial(retell, encoder, run.backbone, run.memory, count=2)
    run.run()
    told = {f for t in run.pool.told for f in t.facts}
    own = {f for w in run.pool.written for m in w.episode.sessions[0].messages for f in m.facts}
    assert told - own
    assert told - own <= {f for w in run.pool.written for r in w.retold for f in r.facts}


def test_a_step_chooses_among_the_tokens_of_its_answers_whatever_the_pool_knows(
    base: Path, encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deltamem_cli.training.loop.OTHER_TOKENS", 3)
    run = trainer(base, encoder, tmp_path, 1)
    run.run()
    run.pool.tokens = []  # a value and what follows it may be one token that no other answer has
    batch = run.pool.draw(run.rng, 8, 2, False, False)
    tokens = run._vocabulary(batch).tolist()
    assert tokens == sorted(set(tokens))
    assert {t for w in batch for q in w.episode.questions for t in q.answer} < set(tokens)


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
            saved["the mean's"] = first.trained.proj.detach().clone()

    first.report = stop
    with pytest.raises(KeyboardInterrupt):
        first.run()
    second = trainer(base, encoder, tmp_path, 6)
    second.load(tmp_path / "checkpoint.pt")
    assert second.step == 4
    for name, parameter in second.memory.named_parameters():
        torch.testing.assert_close(parameter, saved[name], rtol=0, atol=0)
    torch.testing.assert_close(second.trained.proj, saved["the mean's"], rtol=0, atol=0)
    assert not torch.equal(second.trained.proj, second.memory.proj)
    steps: list[object] = []
    second.report = lambda event: steps.append(event["step"]) if event["event"] == "step" else None
    second.run()
    assert steps == [5, 6]
    assert len(second.pool.written) == 2  # filled anew


def test_gates_start_as_far_open_as_beta_says(base: Path, encoder: Encoder, tmp_path: Path) -> None:
    biases = []
    for beta in (0.1, None, 0.9):
        run = trainer(base, encoder, tmp_path, 1, beta=beta)
        run.start()
        biases.append(run.memory.gate_bias.mean().item())
    assert biases == sorted(set(biases))


def test_a_seed_repeats_a_run_and_another_does_not(base: Path, encoder: Encoder, tmp_path: Path) -> None:
    found = []
    for seed in (0, 0, 1):
        run = trainer(base, encoder, tmp_path, 2, seed=seed)
        run.start()
        run.run()
        found.append(run.memory.proj.detach().clone())
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def losses_of(run: Trainer) -> tuple[list[float], list[float]]:
    """Of answers, and of ordinary talk, which few steps have, over a run from the start from data."""
    steps: list[dict[str, Any]] = []
    run.report = lambda event: steps.append(event) if event["event"] == "step" else None
    run.start()
    run.run()
    weight = losses.KL_WEIGHT
    return [e["loss"] - weight * e.get("kl", 0.0) for e in steps], [e["kl"] for e in steps if "kl" in e]


@pytest.mark.parametrize("finish", [0.0, 1.0])
def test_the_loss_falls_in_both_ways_of_training(
    base: Path, encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, finish: float
) -> None:
    """Ordinary talk begins as the model without memory has it, and is kept closer to that than without its loss."""
    settings: dict[str, Any] = {"finish": finish, "lr": 1e-2, "warmup": 1, "round_steps": 16}
    answers, talk = losses_of(trainer(base, encoder, tmp_path, 32, **settings))
    part = len(answers) // 4
    assert sum(answers[-part:]) < sum(answers[:part])
    monkeypatch.setattr(losses, "KL_WEIGHT", 0.0)
    _, free = losses_of(trainer(base, encoder, tmp_path, 32, **settings))
    assert len(free) == len(talk) >= 8
    assert sum(talk[len(talk) // 2 :]) < sum(free[len(free) // 2 :])


def test_a_checkpoint_of_other_settings_is_refused(base: Path, encoder: Encoder, tmp_path: Path) -> None:
    run = trainer(base, encoder, tmp_path, 1)
    path = run.save()
    run.memory = memory_for(run.backbone, delta_heads=("o",))
    with pytest.raises(DeltamemError, match="delta_heads"):
        run.load(path)


def test_a_checkpoint_of_an_earlier_version_is_refused(base: Path, encoder: Encoder, tmp_path: Path) -> None:
    run = trainer(base, encoder, tmp_path, 1)
    path = run.save()
    saved = torch.load(path, weights_only=True)
    del saved["made of"]
    torch.save(saved, path)
    with pytest.raises(DeltamemError, match="earlier version"):
        run.load(path)


@pytest.mark.parametrize(
    ("granularity", "system", "shown"),
    [("token", "", False), ("message_mean", "", False), ("token", "Be kind.", False), ("token", "Be kind.", True)],
)
def test_replay_equals_the_real_passes_in_states_and_answers(
    base: Path, encoder: Encoder, granularity: str, system: str, shown: bool
) -> None:
    """The real ones go by what is marked as not written, the replay by what was left out."""
    backbone = Backbone(base)
    memory = memory_for(backbone, write_granularity=granularity)
    rng = random.Random(0)
    made = [generate_episode(rng, 2, talk_turns=1, sessions=2, system=system) for _ in range(3)]
    told = [shown_again(encoder, e) if shown else encoder.episode(e) for e in made]
    assert all((q.written[0] > 0) == bool(system or shown) for e in told for q in e.questions)
    pool = written_episodes(backbone, memory, told)
    ask(backbone, memory, pool)
    states, _ = run_writes(backbone, memory, told)
    replayed, _ = replay_writes(memory, pool)
    torch.testing.assert_close(replayed, states, atol=5e-3, rtol=5e-2)  # inputs are kept in bfloat16
    own = torch.tensor([i for i, e in enumerate(told) for _ in e.questions])
    questions = [q for e in told for q in e.questions]
    real = read_answers(backbone, memory, states[own], questions)
    prompts = [a for w in pool for a in w.asked if a is not None]
    assert len(prompts) == len(questions)
    own_facts = [Fact(q.question.kind, q.question.value) for q in questions]
    pairs = [(Query(q, a), fact) for q, a, fact in zip(questions, prompts, own_facts, strict=True)]
    whole = [query.about(fact, encoder) for query, fact in pairs]
    assert [w.question.answer for w in whole] == [q.answer for q in questions]
    for _ in range(2):  # the second time with what was kept of the layers below the memory
        again = replay_answers(backbone, memory, states[own], [w.asked for w in whole], [w.question for w in whole])
        torch.testing.assert_close(again.logits, real.logits, atol=2e-2, rtol=5e-2)
    assert real.lengths == [len(q.answer) for q in questions]
    # from the value on: the last rows of the same answers, among some tokens only
    part = [query.about(fact, encoder, whole=False) for query, fact in pairs]
    some = torch.tensor(sorted({t for q in questions for t in q.answer} | {0, 1}))
    values = replay_answers(backbone, memory, states[own], [p.asked for p in part], [p.question for p in part], some)
    rows = real.logits.split(real.lengths)
    wanted = [row[q.value_at[0] : q.value_at[-1] + 2] for row, q in zip(rows, questions, strict=True)]
    torch.testing.assert_close(values.logits, torch.cat(wanted)[:, some], atol=2e-2, rtol=5e-2)
    assert [some[i] for i in values.labels] == [t for p in part for t in p.question.answer]
    # and another answer to the same words
    unknown = [query.unknown(encoder) for query, _ in pairs]
    real = read_answers(backbone, memory, states[own], [u.question for u in unknown])
    again = replay_answers(backbone, memory, states[own], [u.asked for u in unknown], [u.question for u in unknown])
    torch.testing.assert_close(again.logits, real.logits, atol=2e-2, rtol=5e-2)


def test_only_what_the_user_says_changes_the_state(base: Path, encoder: Encoder) -> None:
    backbone = Backbone(base)
    memory = memory_for(backbone)
    said = draw_conversation(random.Random(0), 2).sessions[0]

    def state(messages: list[Message]) -> torch.Tensor:
        states, _ = run_writes(backbone, memory, [EncodedEpisode([encoder.session("", messages)], [])])
        return states

    own = state(said)
    torch.testing.assert_close(state([*said[:-1], Message("assistant", "Another reply, a longer one.")]), own)
    assert not torch.allclose(state([*said[:-2], Message("user", "Something else."), said[-1]]), own)
    # of an earlier reply what is told later sees something, as a system prompt is seen
    other = [*said[:1], Message("assistant", "Another reply, a longer one."), *said[2:]]
    rows = [EncodedEpisode([encoder.session("", messages)], []) for messages in (said, other)]
    assert rows[0].written == rows[1].written
    sizes = [w.inputs.shape[1] for w in written_episodes(backbone, memory, rows)]
    assert sizes == [len(rows[0].written)] * 2


def test_an_answer_reads_what_the_question_left_and_writes_nothing(base: Path, encoder: Encoder) -> None:
    backbone = Backbone(base)
    memory = memory_for(backbone)
    told = episodes(encoder, 2)
    questions = [q for e in told for q in e.questions]
    states = memory.zero_states(len(questions))
    # an empty memory changes nothing, unless something is written into it
    silent = [replace(q, written=(0, 0)) for q in questions]
    wanted = [backbone.logits(h) for h in frozen_answers(backbone, questions)]
    torch.testing.assert_close(
        read_answers(backbone, memory, states, silent).logits, torch.cat(wanted), atol=1e-4, rtol=1e-4
    )
    assert not torch.allclose(
        read_answers(backbone, memory, states, questions).logits, torch.cat(wanted), atol=1e-2, rtol=1e-2
    )


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
    written = read_adapter(tmp_path / "out.gguf")
    assert written.config.layers == (1,)
    # what is written, in F16, is the mean over the steps and not where the last one went
    saved = torch.load(tmp_path / "out.run" / "checkpoint.pt", weights_only=True)
    proj = memory_from_adapter(written.config, written.tensors).proj
    assert torch.equal(proj, saved["mean"]["module.proj"].half().float())
    assert not torch.equal(proj, saved["memory"]["proj"].half().float())
    assert {e["event"] for e in events} == {
        "loading", "checking", "checked", "estimate", "start", "writing", "step", "validation", "saved",
    }  # fmt: skip
    with pytest.raises(DeltamemError, match="--resume"):
        run_training(options, events.append)
    options.resume = True
    for other, named in (({"lr": 1e-4, "seed": 3}, "seed: 0, not 3; lr: 0.0015, not 0.0001"), ({"data": None}, "data")):
        with pytest.raises(DeltamemError, match=named):
            run_training(replace(options, **other), events.append)
    with pytest.raises(DeltamemError, match="complete"):
        run_training(options, events.append)
    options.steps = 3
    run_training(options, events.append)
    again = RunOptions(base, tmp_path / "more.gguf", data=data, steps=1, start_from=tmp_path / "out.gguf", **small)  # type: ignore[arg-type]
    run_training(again, events.append)
    assert read_adapter(tmp_path / "more.gguf").config == read_adapter(tmp_path / "out.gguf").config


def test_a_run_writes_over_nothing_that_it_was_not_told_to_go_on_with(base: Path, tmp_path: Path) -> None:
    adapter = tmp_path / "a.gguf"
    adapter.write_bytes(b"hours of work")
    for options in (
        RunOptions(base, base),
        RunOptions(base, adapter, start_from=adapter),
        RunOptions(base, adapter),
        RunOptions(base, adapter, start_from=base),
    ):
        with pytest.raises(DeltamemError, match="give -o another name"):
            run_training(options, print)
    assert adapter.read_bytes() == b"hours of work"
    assert not list(tmp_path.glob("*.run"))


def test_minutes_alone_set_no_end_by_steps_and_beta_needs_told_values_before_any_work(
    base: Path, tmp_path: Path
) -> None:
    data = tmp_path / "data.jsonl"
    told, asked = [{"role": "user", "content": "My boat is red."}], [{"content": "My boat?", "answer": "Red."}]
    data.write_text(json.dumps({"messages": told, "questions": asked}))
    events: list[dict[str, Any]] = []
    options = RunOptions(base, tmp_path / "a.gguf", data=data, minutes=0.01, batch=2, start_episodes=1, beta=0.3)
    with pytest.raises(DeltamemError, match="leave it out"):
        run_training(options, events.append)
    assert [e["event"] for e in events] == ["loading", "checking", "checked"]
    options.beta = None
    run_training(options, events.append)
    made = training_summary(read_adapter(tmp_path / "a.gguf").provenance)
    assert made["settings"]["steps"] is None  # type: ignore[index]
    assert events[-1]["event"] == "saved"


def test_going_on_from_an_adapter_may_change_what_its_writes_keep(base: Path, tmp_path: Path) -> None:
    backbone = Backbone(base)
    export_adapter(memory_for(backbone), tmp_path / "old.gguf", "tiny", {"step": 7})
    data = tmp_path / "data.jsonl"
    told, asked = [{"role": "user", "content": "My boat is red."}], [{"content": "My boat?", "answer": "Red."}]
    data.write_text(json.dumps({"messages": told, "questions": asked}))
    options = RunOptions(
        base, tmp_path / "new.gguf", data=data, steps=1, batch=2, start_episodes=1,
        start_from=tmp_path / "old.gguf", update="no_lambda",
    )  # fmt: skip
    run_training(options, lambda event: None)
    old, new = (read_adapter(tmp_path / name) for name in ("old.gguf", "new.gguf"))
    assert new.config == replace(old.config, state_update="no_lambda")
    assert training_summary(new.provenance)["from"] == {"step": 7}
    options.output, options.update = tmp_path / "bad.gguf", "sometimes"
    with pytest.raises(UsageError, match="sometimes"):
        run_training(options, lambda event: None)


@pytest.mark.parametrize(("own_data", "kept"), [(True, 1), (False, 2)])
def test_the_best_step_is_written_and_with_built_in_conversations_the_last(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own_data: bool, kept: int
) -> None:
    def run(self: Trainer) -> None:
        for step, score in ((1, 0.5), (2, 0.4)):
            self.report({"event": "validation", "step": step, "score": score})

    monkeypatch.setattr(Trainer, "run", run)
    monkeypatch.setattr(Trainer, "start", lambda self: None)
    monkeypatch.setattr("deltamem_cli.training.run.TALK_PAIRS", 2)
    data = tmp_path / "data.jsonl"
    data.write_text(
        json.dumps({"messages": [{"role": "user", "content": "Hi."}], "questions": [{"content": "?", "answer": "Hi."}]})
    )
    options = RunOptions(base, tmp_path / "out.gguf", data=data if own_data else None, rank=2, layers="1")
    run_training(options, lambda event: None)
    assert json.loads(read_adapter(tmp_path / "out.gguf").provenance.training or "")["step"] == kept


def test_gates_are_opened_when_going_on_from_an_adapter(base: Path, tmp_path: Path) -> None:
    export_adapter(memory_for(Backbone(base)), tmp_path / "old.gguf", "tiny", {})
    data = tmp_path / "data.jsonl"
    told = [{"role": "user", "content": "My boat is red."}]
    asked = [{"content": "My boat?", "answer": "It is red.", "value": "red"}]
    data.write_text(json.dumps({"messages": told, "questions": asked}))
    gates = []
    for beta in (None, 0.3):
        options = RunOptions(
            base, tmp_path / f"{beta}.gguf", data=data, steps=1, batch=2, start_episodes=1, lr=0.0,
            start_from=tmp_path / "old.gguf", beta=beta,
        )  # fmt: skip
        run_training(options, lambda event: None)
        adapter = read_adapter(options.output)
        gates.append(memory_from_adapter(adapter.config, adapter.tensors).gate_bias)
    old = read_adapter(tmp_path / "old.gguf")
    assert torch.equal(gates[0], memory_from_adapter(old.config, old.tensors).gate_bias)
    assert not torch.equal(gates[1], gates[0])


def test_two_processes_train_one_adapter_and_resume(base: Path, tmp_path: Path) -> None:
    told, asked = [{"role": "user", "content": "My boat is red."}], [{"content": "My boat?", "answer": "Red."}]
    data = tmp_path / "data.jsonl"
    data.write_text(json.dumps({"messages": told, "questions": asked}))
    options = [
        "--base",
        base,
        "-o",
        tmp_path / "a.gguf",
        "--data",
        data,
        "--layers",
        "1",
        "--batch",
        "2",
        "--rank",
        "2",
    ]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    for steps, more in (([1, 2], ["--steps", "2"]), ([3], ["--steps", "3", "--resume"])):
        launch = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(free_port())]
        command = [sys.executable, *launch, "-m", "deltamem_cli", "adapter", "train", *options, *more, "--json"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr
        events = [json.loads(line) for line in done.stdout.splitlines()]
        # the first process speaks for both
        assert [e["step"] for e in events if e["event"] == "step"] == steps
        assert [e["step"] for e in events if e["event"] == "validation"] == steps[-1:]
    assert read_adapter(tmp_path / "a.gguf").config.rank == 2


def test_layers_are_read_as_ranges_and_refused_beyond_the_model() -> None:
    assert parse_layers("", 3) == (0, 1, 2)
    assert parse_layers("0,2-4", 6) == (0, 2, 3, 4)
    for text in ("2-9", "x", "1-y", "²", "0-99999999999"):
        with pytest.raises(DeltamemError):
            parse_layers(text, 6)


@pytest.mark.parametrize("system", ["", "Be kind."])
def test_a_retold_fact_is_as_if_it_had_been_told_with_the_other_value(
    base: Path, encoder: Encoder, system: str
) -> None:
    backbone = Backbone(base)
    memory = memory_for(backbone)
    rng = random.Random(3)
    told = draw_conversation(rng, 4, talk_turns=1, talk=TALK, updates=1, asks=1, system=system)
    said = told.sessions[0]
    assert any(len(m.facts) > 1 for m in said)
    (w,) = written_episodes(backbone, memory, [encoder.episode(told)], keep_past=True)
    retell(encoder, backbone, memory, rng, [w], 2)
    assert w.past is None
    values = {f.value for m in said for f in m.facts}
    assert sorted({r.message for r in w.retold}) == [n for n, m in enumerate(said) if m.facts]
    assert len(w.retold) == 2 * sum(len(m.facts) for m in said)
    for r in w.retold:
        ((old, new),) = [pair for pair in zip(said[r.message].facts, r.facts, strict=True) if pair[0] != pair[1]]
        assert new.kind == old.kind
        assert new.value in by_name(new.kind).values(TRAIN) and new.value not in values
        again = [*said]
        content = new.value.join(said[r.message].content.rsplit(old.value, 1))
        again[r.message] = replace(said[r.message], content=content, facts=r.facts)
        (real,) = written_episodes(backbone, memory, [EncodedEpisode([encoder.session(system, again)], [])])
        turn, own = (x.inputs[:, x.spans == r.message] for x in (real, w))
        inputs = torch.cat(r.parts, 1)
        assert inputs.shape == turn.shape
        # run again are the value and what settles after it; the rest is the conversation's
        behind = len(encoder.tokenizer.encode(said[r.message].content.rpartition(old.value)[2]))
        until = inputs.shape[1] - behind - MARKS_BEHIND
        torch.testing.assert_close(inputs[:, :until], turn[:, :until], atol=0.05, rtol=0.05)
        rest = inputs.shape[1] - until - SETTLED - 1
        assert torch.equal(inputs[:, -rest:], own[:, -rest:])


def test_messages_are_counted_from_the_first_one_whatever_the_system_prompt(encoder: Encoder) -> None:
    told = generate_episode(random.Random(0), 2, system="")
    counts = []
    for system in ("", "Be kind."):
        session = encoder.session(system, told.sessions[0])
        spans = session.spans[session.opening :]
        assert (spans[0], spans[-1]) == (0, len(told.sessions[0]) - 1)
        counts.append(spans)
    assert counts[0] == counts[1]


def test_an_answer_from_the_value_on_is_the_value_and_what_ends_it(encoder: Encoder) -> None:
    rng = random.Random(4)
    for episode in [encoder.episode(generate_episode(rng, 3, system="")) for _ in range(8)]:
        for q in episode.questions:
            part = q.at_value()
            assert q.prompt + q.head + q.answer[: q.value_at[-1] + 2] == part.prompt + part.head + part.answer
            assert len(part.head) == 1
            assert len(part.answer) == len(part.value_at) + 1
            text = b"".join(encoder.tokenizer.piece(t) for t in part.answer)
            assert q.question.value.encode() in text


def test_own_talk_is_what_the_frozen_model_says_and_repeats_by_seed(base: Path, encoder: Encoder) -> None:
    backbone = Backbone(base)
    first, again, other = (own_talk(backbone, encoder, seed, 6, tokens=8) for seed in (0, 0, 1))
    assert first == again != other
    prompt = encoder.question("", Question(first[0][0], "x", "", "talk")).prompt
    generator = torch.Generator().manual_seed(0)
    (row,) = sample(backbone, [prompt], 5, generator)
    # token by token what the model gives when it reads all at once
    ids = torch.tensor([prompt + row])
    h, _ = backbone.run(backbone.embed(ids), torch.tensor([ids.shape[1]]))
    weights = (backbone.logits(h[0, len(prompt) - 1 : -1]) / TEMPERATURE).softmax(-1)
    again_generator = torch.Generator().manual_seed(0)
    redrawn = [int(torch.multinomial(w[None], 1, generator=again_generator)) for w in weights]
    assert redrawn == row


def test_what_told_facts_are_answered_with_is_sampled_too(base: Path, encoder: Encoder) -> None:
    pairs = own_talk(Backbone(base), encoder, 0, 4, tokens=8, prompt=told_prompt)
    assert pairs
    rng = random.Random("0 talk")
    assert {said for said, _ in pairs} <= {told_prompt(rng) for _ in range(4 * CANDIDATES)}


def test_plain_answers_keep_what_the_frozen_model_would_say(base: Path, encoder: Encoder) -> None:
    backbone = Backbone(base)
    memory = memory_for(backbone)
    rng = random.Random(1)
    written = written_episodes(backbone, memory, dense_source(encoder, TALK)(rng, 4, 0.0))
    ask(backbone, memory, written)
    found = [(q, a) for w in written for q, a in zip(w.episode.questions, w.asked, strict=True) if q.plain]
    assert found
    for q, asked in found:
        ids = torch.tensor([q.prompt + q.head + q.answer[:-1]])
        h, _ = backbone.run(backbone.embed(ids), torch.tensor([ids.shape[1]]))
        assert asked is not None
        assert asked.frozen is not None
        torch.testing.assert_close(asked.frozen, h[0, -len(q.answer) :], atol=1e-4, rtol=1e-4)


def test_the_system_prompt_is_seen_and_never_written(base: Path, encoder: Encoder) -> None:
    backbone = Backbone(base)
    memory = memory_for(backbone)
    rng = random.Random(0)
    told = draw_conversation(rng, 1)
    states = []
    for system in ("Be kind.", "You are a helpful assistant who likes long answers."):
        session = encoder.session(system, told.sessions[0])
        question = encoder.question(system, told.questions[0])
        for text in (
            words(encoder, session.tokens[: session.opening]),
            words(encoder, question.prompt[: question.written[0]]),
        ):
            assert system in text and "<|im_start|>user" not in text
        alone = EncodedEpisode([session], [question])
        (written,) = written_episodes(backbone, memory, [alone])
        assert written.inputs.shape[1] == sum(session.writes)
        # what remains is the same text: the states differ only by what it saw of the system prompt
        states.append(written.episode.written)
    assert states[0] == states[1]
