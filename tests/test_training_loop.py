"""The loop on a tiny model: rounds, steps, seeds and checkpoints."""

from training_support import need

need("torch", "faker", "accelerate")

import random
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from training_tiny import TALK, episodes, memory_for

from deltamem_cli.episodes.conversation import draw_conversation
from deltamem_cli.errors import DeltamemError
from deltamem_cli.training import losses
from deltamem_cli.training.backbone import Backbone
from deltamem_cli.training.encode import EncodedEpisode, Encoder
from deltamem_cli.training.loop import Trainer
from deltamem_cli.training.pool import Pool, size_of_batch
from deltamem_cli.training.retell import retell
from deltamem_cli.training.settings import Settings
from deltamem_cli.training.sources import dense_source, persona_source

SETTINGS = {"batch": 4, "round_episodes": 2, "round_steps": 2, "start_episodes": 4, "validate_every": 4, "finish": 0.0}


def trainer(base: Path, encoder: Encoder, folder: Path, steps: int, **settings: object) -> Trainer:
    backbone = Backbone(base)
    made = Settings(steps=steps, **{**SETTINGS, **settings})  # type: ignore[arg-type]
    checks = {"unseen 2": episodes(encoder, 4, seed=9)}
    return Trainer(
        backbone, memory_for(backbone), encoder, persona_source(encoder, TALK), checks, made, folder,
        dense=dense_source(encoder, TALK),
    )  # fmt: skip


@pytest.mark.parametrize(("minutes", "rounds", "steps"), [(1.0, 1, 40), (1.1, 2, 26)])
def test_where_writing_would_take_most_of_the_time_that_is_left_the_run_goes_on_with_what_it_has(
    base: Path,
    encoder: Encoder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    minutes: float,
    rounds: int,
    steps: int,
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
    assert (len(run.rounds), run.step) == (rounds, steps)
    assert run.history[-1]["step"] == steps
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


def test_a_fresh_memory_begins_with_one_fact_and_nothing_shown_again(
    base: Path, encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[tuple[float, int, bool]] = []
    for gradual in (True, False):
        run = trainer(base, encoder, tmp_path, 100, gradual=gradual)
        for run.step in range(100):
            facts, far, shown = size_of_batch(random.Random(run.step), *run._stage())
            sizes.append((run.progress() if gradual else -1.0, facts, far or shown))
    early = [size for size in sizes if 0 <= size[0] < 0.2]
    assert {facts for _, facts, _ in early} == {1} and not any(more for _, _, more in early)
    middle = [size for size in sizes if 0.2 <= size[0] < 0.5]
    assert {facts for _, facts, _ in middle} == {1, 2, 3} and not any(more for _, _, more in middle)
    assert max(facts for at, facts, _ in sizes if at >= 0.5) == 6 and any(more for at, _, more in sizes if at >= 0.5)
    assert any(more for at, _, more in sizes[100:110]), "one that goes on from an adapter has all from the start"


def test_a_step_says_what_its_conversations_told(base: Path, encoder: Encoder, tmp_path: Path) -> None:
    run, events = trainer(base, encoder, tmp_path, 4, gradual=True), []
    run.report = events.append
    run.run()
    first, second, *_ = [event for event in events if event["event"] == "step"]
    assert first["facts"] == 1 and second["facts"] in (1, 2, 3)
    assert first["shown"] is second["shown"] is False


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


@pytest.mark.parametrize("mixed", [True, False])
def test_a_run_that_is_killed_and_resumed_takes_the_steps_of_one_that_is_not(
    base: Path, encoder: Encoder, tmp_path: Path, mixed: bool
) -> None:
    def few(rng: random.Random, n: int, progress: float) -> list[EncodedEpisode]:
        return [encoder.episode(draw_conversation(rng, 2, talk=TALK, talk_turns=1, updates=1)) for _ in range(n)]

    def run_in(folder: str) -> Trainer:
        run = trainer(base, encoder, tmp_path / folder, 8, pool=5)
        run.turns, run.checks = few, {"unseen 2": run.checks["unseen 2"][:1]}
        run.retell = partial(retell, encoder, run.backbone, run.memory, count=2) if mixed else None
        run.pool = Pool(5, mixed, encoder)
        run.folder.mkdir(exist_ok=True)
        return run

    def stop(event: dict[str, object]) -> None:
        if event["event"] == "step" and event["step"] == 7:  # in the middle of a round, whose writing is in the folder
            raise KeyboardInterrupt

    whole, killed, resumed = run_in("whole"), run_in("killed"), run_in("killed")
    for run in (whole, killed):
        run.start()
    whole.run()
    killed.report = stop
    with pytest.raises(KeyboardInterrupt):
        killed.run()
    resumed.load(killed.folder / "checkpoint.pt")
    before, after = ([w.episode for w in run.pool.written] for run in (resumed, killed))
    assert before[2:] == after[:3] and len(before) == 5
    resumed.run()
    for (name, mine), there in zip(resumed.memory.named_parameters(), whole.memory.parameters(), strict=True):
        torch.testing.assert_close(mine, there, rtol=1e-5, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}")
    # nothing more is kept than the pool holds
    assert {p.name for p in resumed.folder.iterdir()} == {"checkpoint.pt", *(f"written-0-{n}.pt" for n in (2, 4, 6))}


def test_a_run_whose_writing_is_gone_is_not_resumed_as_another(base: Path, encoder: Encoder, tmp_path: Path) -> None:
    run = trainer(base, encoder, tmp_path, 2)
    run.run()
    (tmp_path / "written-0-0.pt").unlink()
    with pytest.raises(DeltamemError, match="written-0-0.pt is missing"):
        trainer(base, encoder, tmp_path, 4).load(tmp_path / "checkpoint.pt")


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
    del saved["rounds"]
    torch.save(saved, path)
    with pytest.raises(DeltamemError, match="earlier version"):
        run.load(path)
