"""The training loop: rounds of fresh episodes, steps, validation, checkpoints. Prints nothing; reports through callbacks."""

from __future__ import annotations

import json
import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deltamem_cli import files
from deltamem_cli.training.backbone import Backbone
from deltamem_cli.training.batch import Written, ask, read_answers, run_writes, written_episodes
from deltamem_cli.training.checkpoint import read_checkpoint
from deltamem_cli.training.encode import EncodedEpisode, EncodedQuestion, Encoder
from deltamem_cli.training.init import open_gates, start_from_data, take_over
from deltamem_cli.training.kept import forget_others, keep, read_back
from deltamem_cli.training.losses import Loss, end_to_end_loss, mixed_loss
from deltamem_cli.training.memory import Memory
from deltamem_cli.training.objective import exact
from deltamem_cli.training.optimizer import Optimizer, running_mean
from deltamem_cli.training.pool import Pool, size_of_batch
from deltamem_cli.training.settings import Settings
from deltamem_cli.training.sources import Source

OTHER_TOKENS = 2048
GRADUAL = ((0.2, 1, False), (0.5, 3, False))  # shares of a run, most facts of a conversation, far or shown again


@dataclass
class Trainer:
    """Draws and trains. source(rng, n, progress 0..1) draws whole training episodes, dense those to take apart and mix (None: the
    same, left whole), retell adds more values to what these tell; checks maps a name to episodes that no step trains on.
    """

    backbone: Backbone
    memory: Memory
    encoder: Encoder
    source: Source
    checks: dict[str, list[EncodedEpisode]]
    settings: Settings
    folder: Path
    report: Callable[[dict[str, Any]], None] = lambda event: None
    dense: Source | None = None
    retell: Callable[..., None] | None = None
    accelerator: Any = None
    made_of: dict[str, Any] = field(default_factory=dict)  # what else a run that goes on must share, by option
    step: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        s = self.settings
        # every process draws its own episodes; the start is common to all
        self.rng = random.Random(f"{s.seed} {self._rank}")
        self.optimizer = Optimizer(self.memory, s.delta_lr)
        self.mean = running_mean(self.memory)
        self.spent = self._last = self._writing = 0.0
        self.turns = self.dense or self.source
        self.pool = Pool(s.pool, mixed=self.dense is not None, encoder=self.encoder)
        self.rounds: list[tuple[int, int]] = []  # the step before which the pool's conversations were written, how many

    @property
    def _rank(self) -> int:
        return 0 if self.accelerator is None else int(self.accelerator.process_index)

    @property
    def _processes(self) -> int:
        return 1 if self.accelerator is None else int(self.accelerator.num_processes)

    def _mean(self, tensor: Tensor) -> Tensor:
        """The mean over all processes."""
        return tensor if self.accelerator is None else self.accelerator.reduce(tensor, "mean")

    @property
    def trained(self) -> Memory:
        """The running mean of the memory: what a run is for."""
        memory: Memory = self.mean.module
        return memory

    def start(self, known: Memory | None = None) -> None:
        """Draws the first parameters from data: from the first process's conversations, for all of them.

        known: a trained memory of some of the layers, which stay as they are in it.
        """
        self.report({"event": "start"})
        s = self.settings
        rng = random.Random(f"{s.seed} start {self._rank}")
        kept = {h: d.detach().clone() for h, d in self.memory.delta.items()}
        # the frozen model is wanted: without D there are no corrections
        with torch.no_grad():
            for delta in self.memory.delta.values():
                delta.zero_()
            # what is told and asked for in all of them, but only a round of them is retold and asked: that is dear;
            # what the other processes write is for their pools alone
            pooled = min(s.round_episodes, s.start_episodes)
            written = self._write(rng, pooled if self._rank else s.start_episodes, pooled)
            for head, delta in self.memory.delta.items():
                delta.copy_(kept[head])
            if not self._rank:
                self.report({"event": "writing", "part": "start", "done": 0, "of": 1})
                start_from_data(self.memory, self.backbone, written, s.seed, s.beta)
                if known is not None:
                    take_over(self.memory, known)
        self._share()

    def open_gates(self, beta: float) -> None:
        """Opens the gates of a trained memory for told values, by what it writes of the first process's conversations."""
        self._write(random.Random(f"{self.settings.seed} start {self._rank}"), self.settings.start_episodes)
        if not self._rank:
            open_gates(self.memory, list(self.pool.written), beta)
        self._share()

    @torch.no_grad()
    def _share(self) -> None:
        """Gives all processes the first one's parameters."""
        for parameter in self.memory.parameters():
            own = parameter.zero_() if self._rank else parameter * self._processes
            parameter.copy_(self._mean(own))

    def _write(self, rng: random.Random, episodes: int, pooled: int | None = None) -> list[Written]:
        """Fresh conversations, written with the memory as it is; the first `pooled` (None: all) asked, too, for the pool."""
        begin = time.monotonic()
        drawn = self.turns(rng, episodes, self.progress())
        written = written_episodes(
            self.backbone, self.memory, drawn, keep_past=self.retell is not None, done=self._telling("conversations")
        )
        middle = time.monotonic()
        kept = written[:pooled]
        if self.retell is not None:
            self.retell(rng, kept, done=self._telling("other values"))
        for w in written:
            w.past = None
        ask(self.backbone, self.memory, kept, done=self._telling("questions"))
        self.pool.add(kept)
        self._keep(kept)
        # what a round will take; alike in all processes, or they would not agree on the last one
        each = (middle - begin) / episodes + (time.monotonic() - middle) / len(kept)
        self._writing = (
            float(self._mean(torch.tensor(each, device=self.backbone.device))) * self.settings.round_episodes
        )
        return written

    def _keep(self, written: Sequence[Written]) -> None:
        """Writes down what the pool took in, for a run that is killed; what it let go is deleted with the next checkpoint."""
        keep(self.folder, self._rank, self.step, written)
        self.rounds.append((self.step, len(written)))
        while sum(n for _, n in self.rounds[1:]) >= self.settings.pool:
            del self.rounds[0]

    def _telling(self, part: str) -> Callable[[int, int], None]:
        """Reports how much of a part of the writing is done."""
        return lambda done, of: self.report({"event": "writing", "part": part, "done": done, "of": of})

    def progress(self) -> float:
        """How much of the run is over, 0 to 1: by time or by steps, whichever is further."""
        s = self.settings
        by_time = self.spent / (60 * s.minutes) if s.minutes else 0.0
        by_steps = self.step / s.steps if s.steps else 0.0
        return min(1.0, max(by_time, by_steps))

    def run(self) -> None:
        """Trains until the steps or minutes are used up.

        A checkpoint is written after every round, with what the pool holds beside it: a run that is killed and resumed goes
        on from its last whole round and takes the steps that it would have taken.
        """
        while not self.over():
            self._clock(time.monotonic())
            for draw_loss in self._round():
                loss, parts = draw_loss()
                norm = self._update(loss)
                self.step += 1
                taken = self._clock()
                self.report({
                    "event": "step", "step": self.step, "seconds": round(self.spent, 1), "progress": self.progress(),
                    "loss": round(loss.item(), 4), "norm": round(norm, 3), **parts,
                    "tokens_per_second": parts["tokens"] / max(taken, 1e-9),
                })  # fmt: skip
                if self.progress() >= 1.0:
                    break
            since = self.step - (self.history[-1]["step"] if self.history else 0)
            if since >= self.settings.validate_every or self.over():
                self.validate()
            self.save()

    def over(self) -> bool:
        """Whether all steps or minutes are used up."""
        return self.progress() >= 1.0

    def _hardly_left(self) -> bool:
        """Whether most of the time that is left for mixed turns would go into writing another round of them."""
        s = self.settings
        left = 60 * s.minutes * (1.0 - s.finish) - self.spent if s.minutes else math.inf
        return left < 2 * self._writing

    def _finishing(self) -> bool:
        """Whether the part of the run has come that trains end to end."""
        return self.progress() >= 1.0 - self.settings.finish

    def _clock(self, now: float | None = None) -> float:
        """Adds the time since the last call to what was spent; with now it only starts the watch.

        All processes share one clock, or they would not agree on the last step.
        """
        if now is None:
            now = time.monotonic()
            taken = float(self._mean(torch.tensor(now - self._last, device=self.backbone.device)))
            self.spent += taken
        else:
            taken = 0.0
        self._last = now
        return taken

    def _update(self, loss: Tensor) -> float:
        """One step of the optimizer; returns the gradient's norm. A step that is not finite is skipped."""
        self.memory.zero_grad()
        loss.backward()
        for parameter in self.memory.parameters():
            if parameter.grad is not None:
                parameter.grad = self._mean(parameter.grad)
        norm = float(torch.nn.utils.clip_grad_norm_(self.memory.parameters(), 1.0))
        if math.isfinite(norm):
            self.optimizer.step(self.settings.lr * self._schedule())
            self.mean.update_parameters(self.memory)
        return norm

    def _schedule(self) -> float:
        warm = min(1.0, (self.step + 1) / self.settings.warmup)
        return warm * (0.05 + 0.475 * (1 + math.cos(math.pi * self.progress())))

    def _round(self) -> Iterator[Callable[[], Loss]]:
        """The losses of one round: of turns written before, mixed anew in every step, or, at the end, of whole episodes."""
        s = self.settings
        if self._finishing():
            for _ in range(s.round_steps):
                yield self._loss_end_to_end
            return
        if not self.pool.written or (self.step and not self._hardly_left()):
            self._write(self.rng, s.round_episodes if self.step else s.start_episodes)
        self._clock()
        for _ in range(s.round_steps):
            if self._finishing():
                return
            yield self._loss_mixed

    def _loss_mixed(self) -> Loss:
        # alike in all processes, or one would wait for the other
        rng = random.Random(f"{self.settings.seed} {self.step}")
        facts, far, shown = size_of_batch(rng, *self._stage())
        batch = self.pool.draw(self.rng, self.settings.batch, facts, far, shown)
        loss, parts = mixed_loss(self.backbone, self.memory, batch, self._vocabulary(batch))
        return loss, {**parts, "facts": facts, "shown": shown}

    def _stage(self) -> tuple[int, bool]:
        """How many facts a conversation tells at most, and whether turns may be shown again or be much talk."""
        stages = GRADUAL if self.settings.gradual else ((0.1, 3, True),)
        return next(((most, every) for until, most, every in stages if self.progress() < until), (6, True))

    def _vocabulary(self, batch: Sequence[Written]) -> Tensor:
        """The tokens that a mixed step chooses answers from, sorted: its own, those of the pool, and some others that change."""
        own = {t for w in batch for q in w.episode.questions for t in q.answer}
        others = self.rng.sample(range(len(self.backbone.head)), min(OTHER_TOKENS, len(self.backbone.head)))
        return torch.tensor(sorted({*own, *self.pool.tokens, *others}), device=self.backbone.device)

    def _loss_end_to_end(self) -> Loss:
        episodes = self.source(self.rng, max(2, self.settings.batch // 6), self.progress())
        return end_to_end_loss(self.backbone, self.memory, episodes)

    @torch.no_grad()
    def validate(self) -> dict[str, Any]:
        """Exact recall of the checks as inference would have it, with own, another's (donor) and no state (zero)."""
        result: dict[str, Any] = {"event": "validation", "step": self.step, "seconds": round(self.spent, 1)}
        memory = self.trained
        for name, episodes in self.checks.items():
            own = episodes[self._rank :: self._processes] or episodes[:1]  # each has something to do
            states, _ = run_writes(self.backbone, memory, own)
            result[name] = self._recall(memory, states, own)
            if name == next(iter(self.checks)) and len(episodes) >= 2 * self._processes:
                result[f"{name} donor"] = self._recall(memory, states.roll(1, 0), own)
            if name == next(iter(self.checks)):
                result[f"{name} zero"] = self._recall(memory, torch.zeros_like(states), own)
        unseen = [v for name, v in result.items() if name in self.checks and not name.startswith("seen")]
        result["score"] = round(sum(unseen) / max(1, len(unseen)), 4)
        self.history.append(result)
        self.report(result)
        return result

    def _recall(self, memory: Memory, states: Tensor, episodes: list[EncodedEpisode]) -> float:
        """The share of right answers over the episodes of all processes."""
        own = torch.tensor([i for i, e in enumerate(episodes) for _ in e.questions], device=states.device)
        questions: list[EncodedQuestion] = [q for e in episodes for q in e.questions]
        hits = exact(read_answers(self.backbone, memory, states[own], questions), questions)
        right, asked = self._mean(torch.tensor([float(sum(hits)), float(len(hits))], device=states.device)).tolist()
        return round(right / asked, 3)

    def save(self) -> Path:
        """Writes a checkpoint that run() continues from; whole or not at all."""
        path = self.folder / "checkpoint.pt"
        random_numbers = self._of_all([json.dumps(self.rng.getstate())])
        if not self._rank:
            with files.replacing(path) as draft:
                torch.save(
                    {
                        "memory": self.memory.state_dict(),
                        "mean": self.mean.state_dict(),
                        "optimizer": self.optimizer.state_dict(),
                        "step": self.step,
                        "spent": self.spent,
                        "writing": self._writing,
                        "random": random_numbers,
                        "rounds": self.rounds,
                        "settings": asdict(self.settings),
                        "made of": self.made_of,
                        "config": asdict(self.memory.config),
                        "history": self.history,
                    },
                    draft,
                )
        self._of_all([""])  # what the checkpoint before this one needs is deleted when this one is there
        forget_others(self.folder, self._rank, [step for step, _ in self.rounds])
        return path

    def _of_all(self, own: list[str]) -> list[str]:
        """The first process's, the second one's and so on; waits for all."""
        if self._processes == 1:
            return own
        from accelerate.utils import gather_object

        found: list[str] = gather_object(own)
        return found

    def load(self, path: Path) -> None:
        """Continues from a checkpoint of the same run. Raises DeltamemError for that of another."""
        saved = read_checkpoint(path, self.settings, self.memory.config, self.made_of)
        self.memory.load_state_dict(saved["memory"])
        self.mean.load_state_dict(saved["mean"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.step, self.spent, self.history = saved["step"], saved["spent"], saved["history"]
        self._writing = saved["writing"]
        version, internal, gauss = json.loads(saved["random"][self._rank])
        self.rng.setstate((version, tuple(internal), gauss))
        self.rounds = [(step, n) for step, n in saved["rounds"]]
        if self.rounds:
            held = (read_back(self.folder, self._rank, step, self.backbone.device) for step, _ in self.rounds)
            self.pool.add([w for written in held for w in written])
