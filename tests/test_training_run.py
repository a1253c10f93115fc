"""A run from its options: it writes an adapter that reads back, resumes, and refuses what it cannot go on with."""

from training_support import need

need("torch", "faker", "accelerate")

import json
import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from training_tiny import memory_for

from deltamem_cli.adapter.format import read_adapter, training_summary
from deltamem_cli.errors import DeltamemError, UsageError
from deltamem_cli.training.backbone import Backbone
from deltamem_cli.training.export import export_adapter, memory_from_adapter
from deltamem_cli.training.loop import Trainer
from deltamem_cli.training.run import RunOptions, parse_layers, run_training


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


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
        events.clear()
        with pytest.raises(DeltamemError, match=named):
            run_training(replace(options, **other), events.append)
        assert [e["event"] for e in events] == ["loading"]  # before minutes go into talk
    with pytest.raises(DeltamemError, match="complete"):
        run_training(options, events.append)
    options.steps = 3
    run_training(options, events.append)
    again = RunOptions(base, tmp_path / "more.gguf", data=data, steps=1, start_from=tmp_path / "out.gguf", **small)  # type: ignore[arg-type]
    run_training(again, events.append)
    assert read_adapter(tmp_path / "more.gguf").config == read_adapter(tmp_path / "out.gguf").config


def test_a_run_killed_in_its_first_round_keeps_its_start(base: Path, tmp_path: Path) -> None:
    data = tmp_path / "data.jsonl"
    told, asked = [{"role": "user", "content": "My boat is red."}], [{"content": "My boat?", "answer": "Red."}]
    data.write_text(json.dumps({"messages": told, "questions": asked}))
    options = RunOptions(base, tmp_path / "a.gguf", data=data, steps=2, rank=2, batch=2, start_episodes=2)
    events: list[str] = []

    def stop(event: dict[str, Any]) -> None:
        events.append(event["event"])
        if event["event"] == "step":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_training(options, stop)
    assert "start" in events
    events.clear()
    run_training(replace(options, resume=True), lambda event: events.append(event["event"]))
    assert "start" not in events and "writing" not in events
    assert events.count("step") == 2 and events[-1] == "saved"


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


@pytest.mark.parametrize("content", [None, "", "no JSON"])
def test_conversations_that_can_not_be_read_are_refused_before_anything_is_loaded(
    base: Path, tmp_path: Path, content: str | None
) -> None:
    data = tmp_path / "data"
    if content is None:
        data.mkdir()
    else:
        data.write_text(content)
    events: list[dict[str, Any]] = []
    with pytest.raises(DeltamemError, match=str(data)):
        run_training(RunOptions(base, tmp_path / "a.gguf", data=data), events.append)
    assert not events


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


@pytest.mark.parametrize(("layers", "begun"), [("0-2", True), ("1,3", False)])
def test_going_on_from_an_adapter_may_change_its_layers(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layers: str, begun: bool
) -> None:
    old = memory_for(Backbone(base))
    assert old.config.layers == (1, 2, 3)
    export_adapter(old, tmp_path / "old.gguf", "tiny", {})
    told, asked = [{"role": "user", "content": "My boat is red."}], [{"content": "My boat?", "answer": "Red."}]
    data = tmp_path / "data.jsonl"
    data.write_text(json.dumps({"messages": told, "questions": asked}))
    starts: list[bool] = []
    start = Trainer.start

    def counted(self: Trainer, known: Any = None) -> None:
        starts.append(known is not None)
        start(self, known)

    monkeypatch.setattr(Trainer, "start", counted)
    options = RunOptions(
        base, tmp_path / "new.gguf", data=data, steps=1, batch=2, start_episodes=1, lr=0.0, layers=layers,
        start_from=tmp_path / "old.gguf",
    )  # fmt: skip
    run_training(options, lambda event: None)
    before, after = (read_adapter(tmp_path / name) for name in ("old.gguf", "new.gguf"))
    assert after.config == replace(before.config, layers=(0, 1, 2) if begun else (1, 3))
    assert starts == [True] * begun
    name = "blk.1.deltamem_k.weight"
    assert (after.tensors[name].float32 == before.tensors[name].float32).all()


@pytest.mark.parametrize(("own_data", "kept"), [(True, 1), (False, 2)])
def test_the_best_step_is_written_and_with_built_in_conversations_the_last(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own_data: bool, kept: int
) -> None:
    def run(self: Trainer) -> None:
        for step, score in ((1, 0.5), (2, 0.4)):
            self.report({"event": "validation", "step": step, "score": score})

    monkeypatch.setattr(Trainer, "run", run)
    monkeypatch.setattr(Trainer, "start", lambda self, known: None)
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
