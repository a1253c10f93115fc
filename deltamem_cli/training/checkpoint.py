"""What a run's checkpoint must share with the run that goes on from it; knows nothing of steps."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from deltamem_cli.adapter.format import AdapterConfig
from deltamem_cli.errors import DeltamemError
from deltamem_cli.training.settings import Settings

SAME = ("seed", "beta", "batch", "lr", "finish")  # settings that a run which goes on must share


def read_checkpoint(path: Path, settings: Settings, config: AdapterConfig, made_of: dict[str, Any]) -> dict[str, Any]:
    """A checkpoint of this run. made_of: what else it must share, by option

    Raises DeltamemError for one of an earlier version or of other settings; --steps and --minutes may change.
    """
    # what is loaded is copied to where it belongs; several processes on a CPU call it cpu:0, which nothing loads to
    saved: dict[str, Any] = torch.load(path, weights_only=True, map_location="cpu")
    if "rounds" not in saved:
        raise DeltamemError(
            f"{path} has a run of an earlier version; start in another folder, from its adapter with --from"
        )
    before = {name: saved["settings"][name] for name in SAME} | saved["made of"] | _tuples(saved["config"])
    now = {name: getattr(settings, name) for name in SAME} | made_of | _tuples(asdict(config))
    differing = [f"{name}: {before.get(name)}, not {value}" for name, value in now.items() if before.get(name) != value]
    if differing:
        raise DeltamemError(
            f"{path} has a run with other settings ({'; '.join(differing)}); resume with the same ones or start in another "
            "folder"
        )
    return saved


def _tuples(values: dict[str, Any]) -> dict[str, Any]:
    return {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
