"""safetensors files are read exactly, and damaged ones are refused."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest
from published_files import safetensors_bytes

from deltamem_cli.formats.errors import AdapterError
from deltamem_cli.formats.safetensors_file import read_safetensors_file
from deltamem_cli.formats.weight import Weight

TWO = {
    "a": Weight.from_float32(np.arange(6).reshape(2, 3), "BF16"),
    "b": Weight.from_float32(np.arange(4), "F32"),
}


def read(tmp_path: Path, raw: bytes) -> dict[str, Weight]:
    path = tmp_path / "model.safetensors"
    path.write_bytes(raw)
    return read_safetensors_file(path)


def framed(header: object, data: bytes = b"") -> bytes:
    encoded = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(encoded)) + encoded + data


def entry(dtype="F32", shape=(2,), offsets=(0, 8), **more) -> dict:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets), **more}


@pytest.mark.parametrize("type", ["F32", "F16", "BF16"])
def test_each_type_is_read_bit_by_bit(tmp_path: Path, type: str) -> None:
    tensors = {
        "a": Weight.from_float32(np.random.default_rng(0).normal(size=(5, 3)), type),
        "b": Weight.from_float32(np.ones(()), type),
    }
    found = read(tmp_path, safetensors_bytes(tensors, {"format": "pt"}))
    assert found.keys() == tensors.keys()
    for name, weight in tensors.items():
        assert found[name].type == type
        assert found[name].shape == weight.shape
        np.testing.assert_array_equal(found[name].data, weight.data)


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"", "shorter"),
        (b"\xff" * 8, "shorter"),
        (struct.pack("<Q", 1 << 62) + b"{}", "shorter"),
        (framed(b"{"), "not JSON"),
        (framed(b"\xff\xfe"), "not JSON"),
        (framed(b"[" * 100_000), "not JSON"),
        (framed([]), "not a list of tensors"),
        (framed({"a": 1}), "not described"),
        (framed({"a": entry(extra=1)}, bytes(8)), "not described"),
        (framed({"a": entry("F64", (1,))}, bytes(8)), "F64"),
        (framed({"a": entry(["F32"])}, bytes(8)), "F32"),
        (framed({"a": entry(shape=(-2,))}, bytes(8)), "whole numbers"),
        (framed({"a": entry(shape=(2.0,))}, bytes(8)), "whole numbers"),
        (framed({"a": entry(shape=(True, 2))}, bytes(8)), "whole numbers"),
        (framed({"a": entry(shape=(1, 1, 1, 1, 2))}, bytes(8)), "5 dimensions"),
        (framed({"a": entry(offsets=(0, 8, 8))}, bytes(8)), "3 offsets"),
        (framed({"a": entry(shape=(3,))}, bytes(8)), "does not lie"),
        (framed({"a": entry()}, bytes(7)), "does not lie"),
        (framed({"a": entry(offsets=(8, 0))}, bytes(8)), "does not lie"),
        (framed({"a": entry(), "b": entry()}, bytes(8)), "overlap"),
        (framed({"a": entry(offsets=(1, 9))}, bytes(9)), "overlap or leave gaps"),
        (framed({"a": entry()}, bytes(9)), "belong to no tensor"),
        (framed(b'{"a": 1, "a": 2}'), "twice"),
    ],
    ids=lambda value: value if isinstance(value, str) else "file",
)
def test_an_unsound_file_is_refused_with_its_reason(tmp_path: Path, raw: bytes, reason: str) -> None:
    with pytest.raises(AdapterError) as caught:
        read(tmp_path, raw)
    assert reason in str(caught.value)
    assert "model.safetensors" in str(caught.value)


def test_a_file_cut_anywhere_is_refused(tmp_path: Path) -> None:
    raw = safetensors_bytes(TWO)
    for length in range(len(raw)):
        with pytest.raises(AdapterError):
            read(tmp_path, raw[:length])


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match="no such file"):
        read_safetensors_file(tmp_path / "missing.safetensors")


@pytest.mark.parametrize("shape", [[0, 2**63], [2**40, 0, 2**40]])
def test_a_shape_of_nothing_times_too_much_is_refused(tmp_path: Path, shape: list[int]) -> None:
    with pytest.raises(AdapterError, match="no room for"):
        read(tmp_path, framed({"a": entry(shape=shape, offsets=(0, 0))}))
