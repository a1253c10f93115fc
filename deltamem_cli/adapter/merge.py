"""The mean of adapters that went on from one another: what their last steps did by chance cancels out.

Source: "Model soups", Wortsman et al., 2022, which average the weights of runs from one start.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from deltamem_cli.adapter.format import Adapter, read_adapter, training_summary, write_adapter
from deltamem_cli.formats.errors import AdapterError
from deltamem_cli.formats.weight import Weight


def merge(files: Sequence[Path], output: Path) -> Adapter:
    """Writes the mean of every weight of `files`, with the provenance of the first and the training of all.

    What of a turn is written (`--write`) is as the last of them was trained.

    Raises AdapterError for files that can't be read, and for adapters whose settings or base models differ.
    """
    adapters = [read_adapter(file) for file in files]
    first = adapters[0]
    for file, other in zip(files[1:], adapters[1:], strict=True):
        if (other.config, other.provenance.base_model) != (first.config, first.provenance.base_model):
            raise AdapterError(
                f"{file} has other settings or another base model than {files[0]}; "
                "merge adapters where one was trained from the other"
            )
    tensors = {}
    for name, weight in first.tensors.items():
        mean = np.stack([adapter.tensors[name].float32 for adapter in adapters]).mean(0)
        tensors[name] = Weight.from_float32(mean, weight.type)
    summary: dict[str, Any] = {"mean of": [training_summary(adapter.provenance) for adapter in adapters]}
    if "write" in _mapping(summary["mean of"][-1]):  # what was trained last is what is used
        summary["write"] = summary["mean of"][-1]["write"]
    provenance = replace(
        first.provenance, source="dmem adapter merge", training=json.dumps(summary, ensure_ascii=False)
    )
    write_adapter(output, first.config, tensors, provenance)
    return read_adapter(output)


def _mapping(summary: Any) -> dict[str, Any]:
    return summary if isinstance(summary, dict) else {}
