"""Gives many mutated files to a process of its own (victim.py), and judges: no signal, no hang, one sentence, little memory."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from deltamem_cli.text import STEERING

SEED = 16
MEMORY = 200 * 2**20  # beyond the largest of the files
_AT_ONCE = 100  # files on the disk
_HERE = Path(__file__).parent


def trial(
    make: Callable[[random.Random], bytes], folder: Path, many: int, name: str, kind: str, *arguments: Any
) -> Counter[str]:
    """How many files were taken and refused. make: a mutated file. name: of the files, with one {}."""
    victims = [sys.executable, str(_HERE / "victim.py"), kind, *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(_HERE.parent), *sys.path])}
    sound = folder / name.format("sound")
    came: Counter[str] = Counter()
    for start in range(0, many, _AT_ONCE):
        files = {}
        for number in range(start, min(start + _AT_ONCE, many)):
            files[number] = folder / name.format(number)
            files[number].write_bytes(make(random.Random(SEED * 10**6 + number)))
        largest = max(file.stat().st_size for file in files.values())
        given = [*([sound] if sound.exists() else []), *files.values()]
        done = subprocess.run(
            victims, input="".join(f"{file}\n" for file in given), env=environment, capture_output=True, text=True,
            timeout=60 + 10 * len(given), check=False,
        )  # fmt: skip
        lines = [json.loads(line) for line in done.stdout.splitlines()]
        if len(lines) < len(given):
            raise AssertionError(f"{given[len(lines)]} ended the process ({done.returncode}): {done.stderr[-2000:]}")
        least = lines[0].get("memory", 0)
        for file, line in zip(given, lines, strict=True):
            assert "failed" not in line, f"{file}: {line['failed']}"
            said = line["said"]
            assert said is None or is_sentence(said), f"{file}: {said!r}"
            assert file != sound or said is None, said
            assert line.get("memory", 0) - least < MEMORY + largest, f"{file} takes {line['memory'] - least:,} bytes"
            came["taken" if said is None else "refused"] += file != sound
        for file in files.values():
            file.unlink()
    return came


def is_sentence(text: str) -> bool:
    """One line, with nothing that steers a terminal; joiners and the like may stand in it."""
    return bool(text) and not STEERING.search(text) and len(text) < 1000
