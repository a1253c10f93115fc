"""Mutated headers of models: llama.cpp ends the process that tries them for some, and dmem for none of the others."""

from __future__ import annotations

import json
import os
import random
from collections import Counter
from pathlib import Path

import mutation
import pytest
from conftest import MakeModel
from trial import SEED, is_sentence, trial

from deltamem_cli.engine import trying, trying_worker

ARCHITECTURES = ["qwen3", "llama", "gemma3", "phi3"]
MINUTES = 10


def verdicts(paths: list[Path]) -> list[str | None]:
    """What try_out() would say of each, by as few processes as it takes."""
    found: list[str | None] = []
    while len(found) < len(paths):
        process = trying.start()
        assert process.stdin and process.stdout
        process.stdin.write("".join(json.dumps(str(path)) + "\n" for path in paths[len(found) :]))
        process.stdin.close()
        answers = process.stdout.read().splitlines()
        _, status, usage = os.wait4(process.pid, 0)
        process.stdout.close()
        process.returncode = os.waitstatus_to_exitcode(status)
        for answer in answers:
            found.append(trying.sentence(paths[len(found)], answer, 0))
        if process.returncode and (not answers or "gave up" not in json.loads(answers[-1])):
            found.append(trying.sentence(paths[len(found)], "", process.returncode))
        # a header that asks for all there is gets what the process allows itself; Python and numpy come on top
        assert usage.ru_maxrss * 1024 < trying_worker.MEMORY + 2**28, paths[len(found) - 1]
    return found


@pytest.mark.skipif(not hasattr(os, "wait4"), reason="what a process took can't be asked here")
def test_headers_of_models_that_run(tiny_model: MakeModel, tmp_path: Path, pytestconfig: pytest.Config) -> None:
    many = int(pytestconfig.getoption("--many"))
    sound = [tiny_model(arch).read_bytes() for arch in ARCHITECTURES]
    spots = [mutation.gguf_spots(data) for data in sound]
    came: Counter[str] = Counter()
    for start in range(0, many, 100):
        paths = []
        for number in range(start, min(start + 100, many)):
            which, rng = number % len(sound), random.Random(SEED * 10**6 + number)
            paths.append(tmp_path / f"{number}.gguf")
            paths[-1].write_bytes(mutation.of_gguf(rng, sound[which], spots[which]))
        fine = []
        for path, said in zip(paths, verdicts(paths), strict=True):
            assert said is None or (is_sentence(said) and path.name in said), (path, said)
            came["fine" if said is None else "gave up" if "gives up" in said else "refused"] += 1
            if said is None:
                fine.append(path.read_bytes())
            path.unlink()
        took = iter(fine)
        trial(lambda rng, took=took: next(took), tmp_path, len(fine), "fine-{}.gguf", "model")  # type: ignore[misc]
    print(dict(came))
    assert came["fine"] > many / 20 and came["refused"] > many / 2
