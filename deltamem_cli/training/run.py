"""One training run from options to adapter file; prints nothing, reports events."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from deltamem_cli.adapter.format import DELTA_HEADS, Adapter, AdapterConfig, read_adapter, training_summary
from deltamem_cli.engine import fingerprint
from deltamem_cli.episodes import Episode
from deltamem_cli.episodes.conversation import told_prompt
from deltamem_cli.episodes.jsonl import read_episodes
from deltamem_cli.errors import DeltamemError, UsageError
from deltamem_cli.text import short
from deltamem_cli.training.backbone import Backbone
from deltamem_cli.training.check import check_backbone
from deltamem_cli.training.checkpoint import read_checkpoint
from deltamem_cli.training.encode import EncodedEpisode, Encoder
from deltamem_cli.training.estimate import estimate, seconds_per_token
from deltamem_cli.training.export import export_adapter, memory_from_adapter
from deltamem_cli.training.init import take_over
from deltamem_cli.training.loop import Trainer
from deltamem_cli.training.memory import Memory
from deltamem_cli.training.own_words import own_talk
from deltamem_cli.training.retell import retell
from deltamem_cli.training.settings import Settings
from deltamem_cli.training.sources import Source, dense_source, persona_source, recall_checks
from deltamem_cli.training.tokens import tokenizer_of

TALK_PAIRS = 160
WRITE = "user"  # what of a turn a run learns to write, as `--write` names it
DEFAULT_STEPS = 1000


@dataclass
class RunOptions:
    """What `dmem adapter train` was asked for."""

    base: Path
    output: Path
    data: Path | None = None
    steps: int | None = None  # 1000, or as many as the minutes allow
    minutes: float | None = None
    seed: int = 0
    rank: int = 8
    state_heads: int = 1
    heads: str = "qo"
    layers: str = ""
    granularity: str = "token"
    rankwise_gates: bool = False
    update: str | None = None
    beta: float | None = None
    batch: int = 48
    lr: float = 1.5e-3
    finish: float = 0.1
    resume: bool = False
    start_from: Path | None = None
    start_episodes: int = 64  # half of them where the run goes on from an adapter, which needs no start from data
    license: str | None = None


def run_training(options: RunOptions, report: Callable[[dict[str, Any]], None]) -> Path:
    """Trains and writes options.output: after every validation; with options.data after those that are the best so far.

    Raises DeltamemError.
    """
    if not options.base.exists():
        raise DeltamemError(f"{options.base} does not exist; give --base a GGUF file or a Hugging Face directory")
    for origin in (options.base, options.start_from):
        if origin and origin.exists() and options.output.exists() and options.output.samefile(origin):
            raise UsageError(f"{options.output} is the adapter to start from; give -o another name")
    folder = options.output.with_suffix(".run")
    checkpoint = folder / "checkpoint.pt"
    if options.resume and not checkpoint.exists():
        raise DeltamemError(f"{checkpoint} does not exist, so there is nothing to resume; start without --resume")
    if checkpoint.exists() and not options.resume:
        raise DeltamemError(
            f"{checkpoint} holds an earlier run; continue it with --resume, delete {folder}, or give -o another name"
        )
    if options.output.exists() and not options.resume:
        raise DeltamemError(f"{options.output} already exists; delete it, or give -o another name")
    given = None if options.data is None else read_episodes(options.data)  # before minutes go into the model
    accelerator = _accelerator()
    device = accelerator.device
    if not accelerator.is_main_process:
        report = _silence
    start = None if options.start_from is None else read_adapter(options.start_from)
    report({"event": "loading"})
    encoder = Encoder(tokenizer_of(options.base))
    # bf16 where products are faster in it; the memory itself stays float32
    backbone = Backbone(options.base, _dtype(device), device)
    torch.manual_seed(options.seed)
    memory, known = _memory(options, backbone, start)
    memory = memory.to(device)
    from_data = start is None or known is not None
    settings, made_of = _settings(options, from_data), _made_of(options, accelerator.num_processes)
    if options.resume:  # before minutes go into the talk
        read_checkpoint(checkpoint, settings, memory.config, made_of)
    # a directory is not what inference reads, and llama.cpp cannot read it
    report({"event": "checking"})
    if options.base.is_file() and accelerator.is_main_process:
        report({"event": "checked", "difference": round(check_backbone(options.base, backbone, encoder), 4)})
    folder.mkdir(parents=True, exist_ok=True)
    per_token = seconds_per_token(backbone)
    # every process samples its own part of the talk
    talk_seed, pairs = options.seed + accelerator.process_index, TALK_PAIRS // accelerator.num_processes
    if options.data is None or given is None:

        def asked(n: int) -> None:
            report({"event": "talk", "pairs": n})

        # sampled once for a run, since that takes minutes: a run that goes on has the same
        kept = folder / f"talk-{accelerator.process_index}.json"
        if options.resume and kept.exists():
            talk, answered = ([(q, a) for q, a in one] for one in json.loads(kept.read_text(encoding="utf-8")))
        else:
            talk = own_talk(backbone, encoder, talk_seed, pairs, asked)
            answered = own_talk(backbone, encoder, talk_seed, pairs // 2, asked, prompt=told_prompt)
            kept.write_text(json.dumps([talk, answered]), encoding="utf-8")
        source: Source = persona_source(encoder, talk)
        dense: Source | None = dense_source(encoder, talk, answered)
        checks = recall_checks(encoder)
    else:
        dense = None
        source, checks = _from_file(options.data, given, encoder, told=options.beta is not None)
    expected = estimate(per_token, settings)
    more_values = None if dense is None else partial(retell, encoder, backbone, memory)
    trainer = Trainer(
        backbone, memory, encoder, source, checks, settings, folder, report, dense, more_values, accelerator,
        made_of=made_of,
    )  # fmt: skip
    best = -1.0
    # built-in conversations are always new ones: the last step is the best, while validation is noisy
    fresh = options.data is None

    def keep(event: dict[str, Any]) -> None:
        nonlocal best
        report(event)
        if event["event"] == "validation" and accelerator.is_main_process and (fresh or event["score"] > best):
            best = event["score"]
            summary = {
                "settings": asdict(settings),
                "data": "built-in conversations" if options.data is None else options.data.name,
                "write": WRITE,
                "step": event["step"],
                "curve": trainer.history,
            }
            if start is not None:
                summary["from"] = training_summary(start.provenance)
            export_adapter(
                trainer.trained, options.output, backbone.shape.name or options.base.stem, summary, options.license
            )
            report({"event": "saved", "path": str(options.output), "score": best})

    trainer.report = keep
    if not options.resume:
        report({"event": "estimate", **asdict(expected)})
    if options.resume:
        trainer.load(checkpoint)
        if trainer.over():
            raise DeltamemError(f"The run in {folder} is complete; to continue, give it more --steps or --minutes")
        best = max((h["score"] for h in trainer.history), default=-1.0)
    elif from_data:
        trainer.start(known)
    elif options.beta is not None:
        trainer.open_gates(options.beta)
    if not options.resume:  # a run that is killed in its first round keeps its start, which takes minutes
        trainer.save()
    trainer.run()
    return options.output


def _settings(options: RunOptions, from_data: bool) -> Settings:
    start = options.start_episodes
    return Settings(
        steps=options.steps or (DEFAULT_STEPS if options.minutes is None else None),
        minutes=options.minutes, seed=options.seed, beta=options.beta, gradual=options.start_from is None, batch=options.batch, lr=options.lr,
        finish=options.finish, start_episodes=start if from_data else max(1, start // 2),
    )  # fmt: skip


def _memory(options: RunOptions, backbone: Backbone, start: Adapter | None) -> tuple[Memory, Memory | None]:
    """A fresh memory, or that of an adapter to go on from, whose settings then count, but for the rule of its writes and
    its layers; and what is known of the memory where other layers of it are to start from data.
    """
    if start is None:
        return Memory(adapter_config(options, backbone), backbone.widths), None
    shape, c = backbone.shape, start.config
    if (c.architecture, c.embedding_length, c.block_count) != (shape.architecture, shape.hidden, shape.n_layer):
        raise DeltamemError(
            f"{options.start_from} is an adapter for another model than {options.base}; give --from an adapter of this one"
        )
    known = memory_from_adapter(_checked(replace(c, state_update=options.update or c.state_update)), start.tensors)
    layers = parse_layers(options.layers, shape.n_layer) if options.layers else c.layers
    if layers == c.layers:
        return known, None
    memory = Memory(replace(known.config, layers=layers), backbone.widths)
    if set(layers) - set(c.layers):
        return memory, known
    take_over(memory, known)
    return memory, None


def _made_of(options: RunOptions, processes: int) -> dict[str, Any]:
    """The files that a run comes from, by what they hold, and how many processes share it."""
    files = {"base": options.base, "data": options.data, "from": options.start_from}
    held = {name: fingerprint(path)[:12] if path and path.is_file() else str(path) for name, path in files.items()}
    return held | {"processes": processes}


def _silence(event: dict[str, Any]) -> None:
    """The first process speaks for all."""


def _accelerator() -> Any:
    from accelerate import Accelerator

    return Accelerator()


def _dtype(device: torch.device) -> torch.dtype:
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    return torch.bfloat16 if torch.backends.mkldnn.is_available() and _cpu_has_bf16() else torch.float32


def _cpu_has_bf16() -> bool:
    capability = torch.backends.cpu.get_cpu_capability()
    return "AVX512" in capability and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _from_file(
    path: Path, given: tuple[list[Episode], list[Episode]], encoder: Encoder, told: bool
) -> tuple[Source, dict[str, list[EncodedEpisode]]]:
    """Episodes to train on, and those to validate with. told: values must be told in them, for gates to open at."""
    train, validation = given
    known = [encoder.episode(e) for e in train]
    if told and not any(any(s.content) for e in known for s in e.sessions):
        raise DeltamemError(f"{path} tells no value that is asked for, so --beta does nothing; leave it out")

    def draw(rng: random.Random, n: int, progress: float) -> list[EncodedEpisode]:
        return [rng.choice(known) for _ in range(n)]

    held_out = {"validation": [encoder.episode(e) for e in validation]} if validation else {"training": known[:32]}
    return draw, held_out


def adapter_config(options: RunOptions, backbone: Backbone) -> AdapterConfig:
    """Raises UsageError for settings that no adapter can have."""
    shape = backbone.shape
    heads = tuple(h for h in DELTA_HEADS if h in options.heads)
    if not heads or set(options.heads) - set(DELTA_HEADS):
        raise UsageError(f"--heads {short(options.heads)} must be letters among q, k, v and o, such as qo")
    config = AdapterConfig(
        architecture=shape.architecture,
        embedding_length=shape.hidden,
        block_count=shape.n_layer,
        layers=parse_layers(options.layers, shape.n_layer),
        rank=options.rank,
        state_heads=options.state_heads,
        write_granularity=options.granularity,
        delta_heads=heads,
        rankwise_gates=options.rankwise_gates,
        state_update=options.update or "standard",
    )
    return _checked(config)


def _checked(config: AdapterConfig) -> AdapterConfig:
    problem = config.problem()
    if problem:
        raise UsageError(f"These settings can't make an adapter, because {problem}; change that option")
    return config


def parse_layers(text: str, count: int) -> tuple[int, ...]:
    """ "12-29", "3,5,8-10"; empty means all."""
    if not text:
        return tuple(range(count))
    chosen: set[int] = set()
    for part in text.split(","):
        first, _, last = part.partition("-")
        if not first.strip().isdecimal() or (last and not last.strip().isdecimal()):
            raise UsageError(f"--layers {short(text)} is not a list of layers, such as 12-29 or 3,5,8-10")
        # one beyond the last is as wrong as a billion, and is made at once
        chosen |= set(range(min(int(first), count), min(int(last or first), count) + 1))
    if not chosen or max(chosen) >= count:
        raise UsageError(
            f"--layers {short(text)} goes beyond the model's layers 0 to {count - 1}; choose layers within them"
        )
    return tuple(sorted(chosen))
