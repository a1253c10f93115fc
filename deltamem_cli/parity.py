"""Replays parity cases, made with the published implementation, through converter and engine, and measures the difference.

A case is a folder with model.gguf, adapter/ (as published) and vectors.npz; the steps' names say what comes before them.
"""

from __future__ import annotations

import re
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from deltamem_cli import reading
from deltamem_cli.engine import Engine, EngineOptions, Model, Seat
from deltamem_cli.errors import DeltamemError

LOGITS_TOLERANCE = 1e-4
STATE_TOLERANCE = 1e-5

# These steps begin with an empty KV cache; the second kind also with the zero state.
_NEW_SESSION = "c_newsession"
_NO_MEMORY = "z_nomemory"
_MOST = 1 << 30  # bytes of all vectors


class ParityError(DeltamemError):
    """A case that is not laid out as a case."""


@dataclass(frozen=True)
class Step:
    """One forward pass of the published implementation and what came out of it."""

    name: str
    tokens: list[int]
    write: bool
    spans: list[int] | None
    logits: NDArray[np.float32]  # [n_tokens, n_vocab]
    state: NDArray[np.float32]  # [layers, H, r, r], after the step


@dataclass(frozen=True)
class StepResult:
    """Largest absolute differences of one step; NaN counts as infinite."""

    name: str
    tokens: int
    logits: float
    state: float

    @property
    def passed(self) -> bool:
        """Whether both differences are within tolerance."""
        return self.logits <= LOGITS_TOLERANCE and self.state <= STATE_TOLERANCE


@dataclass(frozen=True)
class CaseResult:
    """One replay of a case, at one micro-batch."""

    case: str
    micro_batch: int
    steps: list[StepResult]

    @property
    def passed(self) -> bool:
        """Whether there were steps and all of them passed."""
        return bool(self.steps) and all(step.passed for step in self.steps)


def replay(case: Path, *, micro_batch: int, batch: int = 512, compute: str = "auto") -> CaseResult:
    """Runs all steps of `case` with float32 caches and without flash attention. Raises DeltamemError."""
    from deltamem_cli.adapter.convert import convert

    for part in ("model.gguf", "adapter", "vectors.npz"):
        if not (case / part).exists():
            raise ParityError(
                f"{case} is not a parity case, as it has no {part}: give a folder with model.gguf, adapter and vectors.npz."
            )
    options = EngineOptions(
        ctx_size=512,
        batch=batch,
        micro_batch=micro_batch,
        cache_type_k="f32",
        cache_type_v="f32",
        flash_attention="off",
        compute=compute,  # type: ignore[arg-type]  # EngineOptions checks it
    )
    with tempfile.TemporaryDirectory() as folder:
        adapter = Path(folder) / "adapter.gguf"
        convert(case / "adapter", case / "model.gguf", adapter)
        with Model(case / "model.gguf") as model, Engine(model, adapter, options) as engine:
            vectors = _open(case / "vectors.npz")
            if "layers" not in vectors:
                raise ParityError(f"{case / 'vectors.npz'} does not list its layers: copy the case again.")
            if vectors["layers"].tolist() != engine.layers:
                raise ParityError(
                    f"{case} lists the layers {vectors['layers'].tolist()}, its adapter has {engine.layers}."
                )
            seat = Seat(engine)
            return CaseResult(
                case.name, micro_batch, [_run(seat, step) for step in _steps(vectors, engine.granularity)]
            )


def _run(seat: Seat, step: Step) -> StepResult:
    if step.name.startswith((_NEW_SESSION, _NO_MEMORY)):
        seat.clear_context()
    if step.name.startswith(_NO_MEMORY):
        seat.clear_state()
    logits = seat.feed(step.tokens, write=step.write, spans=step.spans, all_logits=True)
    return StepResult(
        step.name, len(step.tokens), _difference(logits, step.logits), _difference(seat.state(), step.state)
    )


def _difference(ours: NDArray[np.float32], theirs: NDArray[np.float32]) -> float:
    if ours.shape != theirs.shape:
        return float("inf")
    difference = np.abs(ours.astype(np.float64) - theirs)
    return float(difference.max()) if np.isfinite(difference).all() else float("inf")


def _open(path: Path) -> dict[str, NDArray[np.float32]]:
    try:
        reading.check_regular(path)
        with zipfile.ZipFile(path) as archive:
            if sum(member.file_size for member in archive.infolist()) > _MOST:
                raise ValueError(f"it unpacks to more than {_MOST >> 20} MB")
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, MemoryError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        raise ParityError(f"{path} can't be read ({error}): copy the case again.") from error


def _steps(vectors: dict[str, NDArray[np.float32]], granularity: str) -> Iterator[Step]:
    names = [name.removesuffix(".tokens") for name in vectors if name.endswith(".tokens")]
    # b_decode10 comes after b_decode9
    for name in sorted(
        names, key=lambda name: [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]
    ):
        missing = [part for part in ("write", "logits", "state") if f"{name}.{part}" not in vectors]
        if missing:
            raise ParityError(f"Step {name} of a parity case lacks {', '.join(missing)}: copy the case again.")
        tokens = vectors[f"{name}.tokens"].ravel().tolist()
        logits, state = vectors[f"{name}.logits"], vectors[f"{name}.state"]
        if not tokens or logits.size % len(tokens):
            raise ParityError(
                f"Step {name} of a parity case has {len(tokens)} tokens and {logits.size} logits: copy the case again."
            )
        yield Step(
            name,
            tokens,
            bool(vectors[f"{name}.write"]),
            _spans(vectors, name, granularity),
            logits.reshape(len(tokens), -1),
            # a single state head may come without its dimension
            state if state.ndim == 4 else state[:, None],
        )


def _spans(vectors: dict[str, NDArray[np.float32]], step: str, granularity: str) -> list[int] | None:
    """What the published code makes of its ids: it writes per token where no token has an id of the adapter's kind."""
    messages, sentences = vectors.get(f"{step}.message_ids"), vectors.get(f"{step}.sentence_ids")
    if granularity == "token" or messages is None or (granularity == "sentence_mean" and sentences is None):
        return None
    ids = messages.ravel()
    if granularity == "sentence_mean":
        assert sentences is not None
        ids = np.where(ids >= 0, sentences.ravel(), -1)
    return ids.astype(int).tolist() if (ids >= 0).any() else None
