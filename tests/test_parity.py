"""The proof: engine and converter give what the published implementation gave, and the check can fail."""

from __future__ import annotations

import importlib
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deltamem_cli import parity
from deltamem_cli.bindings import COMPUTE
from deltamem_cli.errors import DeltamemError

engine_module = importlib.import_module("deltamem_cli.engine.engine")

GOLDEN = Path(__file__).with_name("golden")
CASES = sorted(path.name for path in GOLDEN.iterdir() if path.is_dir())


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy machine threads that wait for each other take minutes; test_native_graph.py has tests with several."""
    monkeypatch.setattr(engine_module, "default_threads", lambda: 1)


@pytest.mark.parametrize("compute", COMPUTE[1:])
@pytest.mark.parametrize("micro_batch", [1, 8, 512])
@pytest.mark.parametrize("case", CASES)
def test_every_case_agrees_with_the_published_implementation(case: str, micro_batch: int, compute: str) -> None:
    result = parity.replay(GOLDEN / case, micro_batch=micro_batch, compute=compute)
    assert len(result.steps) >= 9
    for step in result.steps:
        assert step.logits <= 1e-4, step
        assert step.state <= 1e-5, step
    assert result.passed


def test_there_is_a_case_for_every_way_of_writing_and_every_head() -> None:
    names = "_".join(CASES)
    assert all(word in names for word in ("tsw", "ssw", "msw", "sentence", "qkvo", "qwen3", "smollm3"))


@pytest.mark.parametrize("case", ["qwen3_ssw_qo", "qwen3_sentence_qo"])
def test_batches_smaller_than_a_step_agree_too(case: str) -> None:
    assert parity.replay(GOLDEN / case, micro_batch=2, batch=5).passed


@pytest.fixture
def case(tmp_path: Path) -> Path:
    return Path(shutil.copytree(GOLDEN / "qwen3_tsw_qo", tmp_path / "case"))


def change(case: Path, **changes: Any) -> None:
    """Replaces arrays of the vectors ("__" stands for "."), or takes them out for None."""
    with np.load(case / "vectors.npz") as file:
        vectors = dict(file) | {name.replace("__", "."): value for name, value in changes.items()}
    np.savez(case / "vectors.npz", **{name: value for name, value in vectors.items() if value is not None})


def vector(case: Path, name: str) -> np.ndarray:
    with np.load(case / "vectors.npz") as file:
        found: np.ndarray = file[name]
        return found


@pytest.mark.parametrize(
    ("name", "by", "step"),
    [
        ("a_prefill.logits", 2e-4, "a_prefill"),
        ("b_decode3.logits", -2e-4, "b_decode3"),
        ("c_newsession.state", 3e-5, "c_newsession"),
        ("z_nomemory_readonly.state", np.nan, "z_nomemory_readonly"),
        ("d_readonly.logits", np.inf, "d_readonly"),
    ],
)
def test_one_number_that_is_off_fails_its_step_and_no_other(case: Path, name: str, by: float, step: str) -> None:
    array = vector(case, name).copy()
    array.ravel()[array.size // 2] += by
    change(case, **{name: array})
    result = parity.replay(case, micro_batch=512)
    assert [each.name for each in result.steps if not each.passed] == [step]
    if not np.isfinite(by):
        assert float("inf") in [value for each in result.steps for value in (each.logits, each.state)]
    assert not result.passed


def test_swapped_weights_fail(case: Path) -> None:
    """The adapter of another case on this model: same shapes, other numbers."""
    shutil.rmtree(case / "adapter")
    shutil.copytree(GOLDEN / "qwen3_ssw_qo" / "adapter", case / "adapter")
    assert not parity.replay(case, micro_batch=512).passed


def test_logits_of_another_shape_fail(case: Path) -> None:
    change(case, a_prefill__logits=vector(case, "a_prefill.logits")[:, :-1])
    assert parity.replay(case, micro_batch=512).steps[0].logits == float("inf")


def test_decode_steps_run_in_the_order_of_their_numbers(case: Path) -> None:
    """b_decode10 after b_decode9: the tenth repeated as an eleventh would differ if it ran second."""
    changes = {}
    for part in ("tokens", "write", "logits", "state"):
        changes[f"b_decode10__{part}"] = vector(case, f"b_decode4.{part}")
        changes[f"b_decode4__{part}"] = None
    change(case, **changes)
    names = [step.name for step in parity.replay(case, micro_batch=512).steps]
    assert names[1:6] == ["b_decode0", "b_decode1", "b_decode2", "b_decode3", "b_decode10"]


@pytest.mark.parametrize("part", ["model.gguf", "adapter", "vectors.npz"])
def test_a_folder_without_a_part_of_a_case_is_named(case: Path, part: str) -> None:
    target = case / part
    shutil.rmtree(target) if target.is_dir() else target.unlink()
    with pytest.raises(DeltamemError, match=f"is not a parity case, as it has no {part}"):
        parity.replay(case, micro_batch=512)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"layers": None}, "does not list its layers"),
        ({"layers": np.array([0, 1])}, "lists the layers"),
        ({"a_prefill__state": None}, "Step a_prefill .* lacks state"),
        ({"a_prefill__tokens": np.zeros(0, np.int64)}, "has 0 tokens"),
        ({"a_prefill__logits": np.zeros(7, np.float32)}, "and 7 logits"),
    ],
)
def test_vectors_that_lack_something_are_named(case: Path, changes: dict[str, Any], words: str) -> None:
    if changes.get("layers") is not None:
        changes = {"layers": np.append(vector(case, "layers"), 99)}
    change(case, **changes)
    with pytest.raises(DeltamemError, match=words):
        parity.replay(case, micro_batch=512)


def test_vectors_that_unpack_to_more_than_there_can_be_are_refused(case: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parity, "_MOST", 1 << 20)
    with zipfile.ZipFile(case / "vectors.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.npy", bytes(2 << 20))
    with pytest.raises(DeltamemError, match="unpacks to more than 1 MB"):
        parity.replay(case, micro_batch=512)


def test_damaged_vectors_are_refused(case: Path) -> None:
    data = (case / "vectors.npz").read_bytes()
    for damaged in (b"", b"no archive", data[: len(data) // 2], data[:3000] + bytes(3000) + data[6000:]):
        (case / "vectors.npz").write_bytes(damaged)
        with pytest.raises(DeltamemError, match=r"vectors.npz can't be read"):
            parity.replay(case, micro_batch=512)
