"""Damaged GGUF files are refused with their reason, and never crash or stall the reader."""

from __future__ import annotations

import struct
from pathlib import Path

import gguf
import numpy as np
import pytest
from adapter_files import KIND, PREFIX, SMALL, forged, refusal, tensors_of, written

from deltamem_cli.adapter.format import read_adapter
from deltamem_cli.formats.errors import AdapterError
from deltamem_cli.formats.gguf_header import read_header


def test_a_file_cut_anywhere_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path)
    raw = path.read_bytes()
    cut = tmp_path / "cut.gguf"
    for length in [*range(0, len(raw) - 64, 13), len(raw) - 64]:
        cut.write_bytes(raw[:length])
        refusal(cut)


def test_wrong_magic_and_versions_are_refused(tmp_path: Path) -> None:
    raw = written(tmp_path).read_bytes()
    path = tmp_path / "b.gguf"
    path.write_bytes(b"GGML" + raw[4:])
    assert "not a GGUF file" in refusal(path)
    for version in (0, 1, 4, 3 << 24):
        path.write_bytes(b"GGUF" + struct.pack("<I", version) + raw[8:])
        assert "version" in refusal(path)
    path.write_bytes(b"")
    assert "empty" in refusal(path)
    assert "no such file" in refusal(tmp_path / "missing.gguf")
    assert "directory" in refusal(tmp_path)


def test_counts_that_the_file_cannot_hold_are_refused_at_once(tmp_path: Path) -> None:
    raw = written(tmp_path).read_bytes()
    path = tmp_path / "b.gguf"
    huge = struct.pack("<Q", 1 << 62)
    for forged_raw in (
        raw[:8] + huge + raw[16:],
        raw[:16] + huge + raw[24:],
        raw.replace(b"rank" + struct.pack("<I", 4), b"rank" + struct.pack("<I", 12)),
        raw.replace(struct.pack("<IIQ", 9, 4, 2), struct.pack("<IIQ", 9, 4, 1 << 62)),
        raw.replace(struct.pack("<IIQ", 9, 8, 2), struct.pack("<IIQ", 9, 8, 1 << 62)),
        raw.replace(struct.pack("<IIQ", 9, 8, 2), struct.pack("<IIQ", 9, 9, 2)),
        raw.replace(struct.pack("<I", 2) + struct.pack("<QQ", 12, 2), struct.pack("<I", 2) + huge * 2),
        raw.replace(struct.pack("<I", 2) + struct.pack("<QQ", 12, 2), struct.pack("<I", 9) + struct.pack("<QQ", 12, 2)),
    ):
        assert forged_raw != raw
        path.write_bytes(forged_raw)
        refusal(path)


def test_values_that_make_no_sense_are_named(tmp_path: Path) -> None:
    raw = written(tmp_path).read_bytes()
    path = tmp_path / "b.gguf"
    bias = b"blk.0.deltamem_beta.bias"
    for n_dims in (0, 5):
        path.write_bytes(raw.replace(bias + struct.pack("<I", 1), bias + struct.pack("<I", n_dims)))
        assert f"beta.bias has {n_dims} dimensions" in refusal(path)
    truth = b"normalize_qk" + struct.pack("<I", 7)
    path.write_bytes(raw.replace(truth + b"\1", truth + b"\2"))
    assert "normalize_qk is a truth value but holds 2" in refusal(path)
    for alignment in (0, 24, 1 << 30):
        message = refusal(forged(tmp_path, {"general.alignment": (alignment, KIND.UINT32)}))
        assert f"alignment reads {alignment}" in message


def test_arrays_of_the_vocabulary_are_stepped_over(tmp_path: Path) -> None:
    extra = {"tokenizer.words": (["a", "b"], KIND.ARRAY), "tokenizer.numbers": ([1, 2], KIND.ARRAY)}
    header = read_header(forged(tmp_path, extra))
    assert header.metadata["tokenizer.words"].value is header.metadata["tokenizer.numbers"].value is None
    assert header.metadata["tokenizer.words"].type == "array of str"
    assert header.get(PREFIX + "layers") == [0, 2]


def test_another_alignment_is_respected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_type = gguf.GGUFWriter.add_type
    monkeypatch.setattr(
        gguf.GGUFWriter, "add_type", lambda self, type: (write_type(self, type), self.add_custom_alignment(256))
    )
    path = written(tmp_path)
    assert read_header(path).get("general.alignment") == 256
    for name, weight in tensors_of(SMALL).items():
        np.testing.assert_array_equal(read_adapter(path).tensors[name].data, weight.data)


def test_what_occurs_twice_is_refused(tmp_path: Path) -> None:
    raw = written(tmp_path).read_bytes()
    path = tmp_path / "b.gguf"
    path.write_bytes(raw.replace(b"blk.2.deltamem_q", b"blk.0.deltamem_q"))
    assert "blk.0.deltamem_q.weight occurs twice" in refusal(path)
    path.write_bytes(raw.replace(b"deltamem.couple_lambda", b"deltamem.rankwise_gates"[:22]))
    refusal(path)
    path.write_bytes(raw.replace(b"general.type", b"adapter.type"))
    assert "adapter.type occurs twice" in refusal(path)


def test_random_damage_is_refused_or_harmless_and_never_a_crash(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    raw = np.frombuffer(written(tmp_path).read_bytes(), np.uint8)
    path = tmp_path / "b.gguf"
    for _ in range(500):
        damaged = raw.copy()
        damaged[rng.integers(1800, size=rng.integers(1, 4))] = rng.integers(256)
        path.write_bytes(damaged.tobytes())
        try:
            read_adapter(path)
        except AdapterError as error:
            assert "\n" not in str(error)


def test_a_shape_of_nothing_times_too_much_is_refused(tmp_path: Path) -> None:
    raw = written(tmp_path).read_bytes()
    at = raw.index(b"blk.0.deltamem_q.weight") + len("blk.0.deltamem_q.weight") + 4
    (tmp_path / "b.gguf").write_bytes(raw[:at] + struct.pack("<QQ", 0, 2**63) + raw[at + 16 :])
    assert "no file has room for" in refusal(tmp_path / "b.gguf")
