"""What rounds wrote, in files beside a run's checkpoint, so that a run that is killed goes on with it; computes nothing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from deltamem_cli import files
from deltamem_cli.episodes import Fact, Question, Utterance
from deltamem_cli.errors import DeltamemError
from deltamem_cli.training.batch import Asked, Retelling, Written
from deltamem_cli.training.encode import EncodedEpisode, EncodedQuestion, EncodedSession

__all__ = ["forget_others", "keep", "read_back"]

# all that such a file may hold beside tensors and plain values
_HELD = (Written, Retelling, Asked, EncodedEpisode, EncodedSession, EncodedQuestion, Utterance, Question, Fact)


def keep(folder: Path, process: int, step: int, written: Sequence[Written]) -> None:
    """Writes down what one process wrote before this step."""
    with files.replacing(_path(folder, process, step)) as draft:
        torch.save(list(written), draft)


def read_back(folder: Path, process: int, step: int, device: torch.device) -> list[Written]:
    """The same again. Raises DeltamemError when the file is gone."""
    path = _path(folder, process, step)
    if not path.exists():
        raise DeltamemError(
            f"{path} is missing, and the run goes on with what it holds; start in another folder, from the run's adapter "
            "with --from"
        )
    with torch.serialization.safe_globals(list(_HELD)):
        # the kind of device alone: several processes on a CPU call it cpu:0, which nothing loads to
        found: list[Written] = torch.load(path, weights_only=True, map_location=device.type)
    return found


def forget_others(folder: Path, process: int, steps: Sequence[int]) -> None:
    """Deletes what was written before other steps than these."""
    own = {_path(folder, process, step) for step in steps}
    for path in set(folder.glob(f"written-{process}-*.pt")) - own:
        path.unlink()


def _path(folder: Path, process: int, step: int) -> Path:
    return folder / f"written-{process}-{step}.pt"
