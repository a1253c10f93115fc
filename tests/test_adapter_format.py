"""Adapter files come back as they were written, and no unsound file is accepted."""

from __future__ import annotations

import dataclasses
import itertools
import json
from pathlib import Path

import gguf
import numpy as np
import pytest
from adapter_files import KIND, PREFIX, SMALL, forged, refusal, tensors_of, written

from deltamem_cli.adapter.format import AdapterConfig, Provenance, read_adapter, training_summary, write_adapter
from deltamem_cli.formats.errors import AdapterError
from deltamem_cli.formats.gguf_header import read_header
from deltamem_cli.formats.weight import Weight


@pytest.mark.parametrize(
    ("rankwise", "couple", "update"),
    list(itertools.product([True, False], [True, False], ["standard", "lambda_outside", "no_lambda"])),
)
@pytest.mark.parametrize("eps", [None, 1e-5])
def test_every_variant_comes_back_as_it_was_written(tmp_path: Path, rankwise, couple, update, eps) -> None:
    config = AdapterConfig(
        architecture="smollm3",
        embedding_length=12,
        block_count=9,
        layers=(1, 2, 8),
        rank=3,
        state_heads=4,
        write_granularity="sentence_mean",
        delta_heads=("k", "v", "o"),
        state_update=update,
        rankwise_gates=rankwise,
        couple_lambda=couple,
        normalize_qk=False,
        delta_o_norm_eps=eps,
    )
    tensors = tensors_of(config, "BF16")
    provenance = Provenance("δ-name", "apache-2.0", "a text", "base", "org/repo", json.dumps({"steps": 3}))
    path = tmp_path / "a.gguf"
    write_adapter(path, config, tensors, provenance)
    adapter = read_adapter(path)
    if eps is not None:
        assert adapter.config.delta_o_norm_eps == np.float32(eps)
        config = dataclasses.replace(config, delta_o_norm_eps=adapter.config.delta_o_norm_eps)
    assert adapter.config == config
    assert adapter.provenance == provenance
    assert training_summary(adapter.provenance) == {"steps": 3}
    assert adapter.size == path.stat().st_size
    assert adapter.parameters == sum(weight.data.size for weight in tensors.values())
    assert adapter.tensors.keys() == tensors.keys()
    for name, weight in tensors.items():
        assert adapter.tensors[name].type == weight.type
        np.testing.assert_array_equal(adapter.tensors[name].data, weight.data)


def test_names_and_shapes_are_those_of_the_native_loader(tmp_path: Path) -> None:
    config = dataclasses.replace(SMALL, state_heads=3, couple_lambda=False, rankwise_gates=False, delta_o_norm_eps=1.0)
    # gguf's own reader, whose shapes are the reverse of numpy's
    tensors = {t.name: (t.tensor_type.name, list(t.shape)) for t in gguf.GGUFReader(written(tmp_path, config)).tensors}
    assert {name: found for name, found in tensors.items() if name.startswith("blk.2.")} == {
        "blk.2.deltamem_q.weight": ("F32", [12, 6]),
        "blk.2.deltamem_k.weight": ("F32", [12, 6]),
        "blk.2.deltamem_v.weight": ("F32", [12, 6]),
        "blk.2.deltamem_beta.weight": ("F32", [12, 3]),
        "blk.2.deltamem_beta.bias": ("F32", [3]),
        "blk.2.deltamem_lambda.weight": ("F32", [12, 3]),
        "blk.2.deltamem_lambda.bias": ("F32", [3]),
        "blk.2.deltamem_delta_q.weight": ("F32", [6, 10]),
        "blk.2.deltamem_delta_o.weight": ("F32", [6, 12]),
        "blk.2.deltamem_delta_o_norm.weight": ("F32", [12]),
    }
    assert len(tensors) == 20


def test_keys_are_those_of_the_native_loader(tmp_path: Path) -> None:
    metadata = {key: (value.type, value.value) for key, value in read_header(written(tmp_path)).metadata.items()}
    assert metadata == {
        "general.architecture": ("str", "qwen3"),
        "general.type": ("str", "adapter"),
        "adapter.type": ("str", "deltamem"),
        PREFIX + "version": ("u32", 1),
        PREFIX + "rank": ("u32", 2),
        PREFIX + "state_heads": ("u32", 1),
        PREFIX + "write_granularity": ("str", "token"),
        PREFIX + "delta_heads": ("array of str", ["q", "o"]),
        PREFIX + "state_update": ("str", "standard"),
        PREFIX + "rankwise_gates": ("bool", True),
        PREFIX + "couple_lambda": ("bool", True),
        PREFIX + "normalize_qk": ("bool", True),
        PREFIX + "embedding_length": ("u32", 12),
        PREFIX + "block_count": ("u32", 3),
        PREFIX + "layers": ("array of u32", [0, 2]),
    }


@pytest.mark.parametrize(
    ("granularity", "heads", "variant"),
    [
        ("token", 1, "TSW"),
        ("token", 4, "MSW"),
        ("message_mean", 1, "SSW"),
        ("message_mean", 4, "SSW+MSW"),
        ("sentence_mean", 1, "sentence"),
    ],
)
def test_variants_have_their_published_names(granularity, heads, variant) -> None:
    assert dataclasses.replace(SMALL, write_granularity=granularity, state_heads=heads).variant == variant


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"rank": 0}, "rank is 0"),
        ({"rank": 65}, "rank is 65"),
        ({"rank": 10**6}, "rank is 1000000"),
        ({"state_heads": 0}, "state_heads is 0"),
        ({"state_heads": 65}, "state_heads is 65"),
        ({"write_granularity": "paragraph"}, "paragraph"),
        ({"state_update": "other"}, "other"),
        ({"embedding_length": 0}, "embedding_length"),
        ({"block_count": 0}, "block_count"),
        ({"block_count": 10**6}, "block_count"),
        ({"layers": (0, 3)}, "outside 0 to 2"),
        ({"layers": (2, 0)}, "ascending"),
        ({"layers": (0, 0)}, "ascending"),
        ({"layers": ()}, "layers is empty"),
        ({"delta_heads": ()}, "delta_heads"),
        ({"delta_heads": ("o", "q")}, "delta_heads"),
        ({"delta_heads": ("q", "q")}, "delta_heads"),
        ({"delta_heads": ("q", "x")}, "delta_heads"),
        ({"delta_o_norm_eps": 0.0}, "delta_o_norm_eps"),
        ({"delta_o_norm_eps": float("nan")}, "delta_o_norm_eps"),
        ({"delta_o_norm_eps": 1e-6, "delta_heads": ("q",)}, "delta_o_norm_eps"),
        ({"architecture": ""}, "architecture"),
    ],
)
def test_settings_outside_their_range_are_refused_before_writing(tmp_path: Path, change, named) -> None:
    path = tmp_path / "a.gguf"
    with pytest.raises(AdapterError, match=named):
        write_adapter(path, dataclasses.replace(SMALL, **change), tensors_of(SMALL))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("keys", "named"),
    [
        ({PREFIX + "rank": (0, KIND.UINT32)}, "rank is 0"),
        ({PREFIX + "rank": (10**6, KIND.UINT32)}, "rank is 1000000"),
        ({PREFIX + "rank": (2, KIND.UINT64)}, "type u64"),
        ({PREFIX + "rank": ("2", KIND.STRING)}, "type str"),
        ({PREFIX + "rank": None}, "rank is missing"),
        ({PREFIX + "state_heads": (3, KIND.UINT32)}, "shape"),
        ({PREFIX + "write_granularity": ("paragraph", KIND.STRING)}, "paragraph"),
        ({PREFIX + "delta_heads": (["o", "q"], KIND.ARRAY)}, "delta_heads"),
        ({PREFIX + "delta_heads": (["q", "k", "o"], KIND.ARRAY)}, "delta_k.weight is missing"),
        ({PREFIX + "delta_heads": (["q"], KIND.ARRAY)}, "delta_o.weight is unknown"),
        ({PREFIX + "couple_lambda": (False, KIND.BOOL)}, "lambda"),
        ({PREFIX + "rankwise_gates": (False, KIND.BOOL)}, "beta"),
        ({PREFIX + "normalize_qk": None}, "normalize_qk is missing"),
        ({PREFIX + "delta_o_norm_eps": (1e-6, KIND.FLOAT32)}, "delta_o_norm.weight is missing"),
        ({PREFIX + "layers": ([0, 1, 2], KIND.ARRAY)}, "blk.1.*missing"),
        ({PREFIX + "layers": ([0], KIND.ARRAY)}, "blk.2.*does not belong"),
        ({PREFIX + "layers": ([0, 9], KIND.ARRAY)}, "outside"),
        ({PREFIX + "embedding_length": (13, KIND.UINT32)}, "shape"),
        ({PREFIX + "version": (2, KIND.UINT32)}, "version"),
        ({PREFIX + "version": None}, "version is missing"),
        ({PREFIX + "future": (1, KIND.UINT32)}, "future is unknown"),
        ({"adapter.lora.alpha": (1.0, KIND.FLOAT32)}, "adapter.lora.alpha is unknown"),
        ({"qwen3.block_count": (3, KIND.UINT32)}, "qwen3.block_count is unknown"),
        ({PREFIX + "source": (1, KIND.UINT32)}, "source is of type u32"),
        ({"adapter.type": ("lora", KIND.STRING)}, "kind lora"),
        ({"adapter.type": None}, "kind adapter"),
        ({"general.type": ("model", KIND.STRING)}, "not a deltamem adapter"),
    ],
)
def test_a_file_with_wrong_keys_is_refused(tmp_path: Path, keys, named) -> None:
    path = forged(tmp_path, keys)
    with pytest.raises(AdapterError, match=named):
        read_adapter(path)
    refusal(path)


def test_the_file_that_these_tests_forge_is_sound_without_changes(tmp_path: Path) -> None:
    assert read_adapter(forged(tmp_path)).config == SMALL
    # keys that only describe the file may be there
    assert read_adapter(forged(tmp_path, {"general.file_type": (0, KIND.UINT32)})).config == SMALL


def spoiled(value: float) -> np.ndarray:
    data = np.zeros((2, 12), np.float32)
    data[1, 5] = value
    return data


@pytest.mark.parametrize(
    ("tensors", "named"),
    [
        ({"blk.0.deltamem_q.weight": None}, "blk.0.deltamem_q.weight is missing"),
        ({"blk.1.deltamem_q.weight": np.zeros((2, 12), np.float32)}, "blk.1.deltamem_q.weight is unknown"),
        ({"other": np.zeros(3, np.float32)}, "other is unknown"),
        ({"blk.0.deltamem_q.weight": np.zeros((12, 2), np.float32)}, "shape 12 x 2 where 2 x 12 is needed"),
        ({"blk.0.deltamem_q.weight": np.zeros((1, 2, 12), np.float32)}, "shape 1 x 2 x 12"),
        ({"blk.0.deltamem_delta_q.weight": np.zeros((10, 3), np.float32)}, r"where \? x 2 is needed"),
        ({"blk.0.deltamem_delta_o.weight": np.zeros((10, 2), np.float32)}, "where 12 x 2 is needed"),
        ({"blk.0.deltamem_delta_q.weight": np.zeros((0, 2), np.float32)}, "shape 0 x 2"),
        ({"blk.0.deltamem_q.weight": np.zeros((2, 12), np.float64)}, "type number 28"),
        ({"blk.0.deltamem_q.weight": np.zeros((2, 12), np.int8)}, "type number 24"),
        ({"blk.0.deltamem_beta.bias": np.zeros(2, np.float16)}, "must be F32"),
        ({"blk.0.deltamem_q.weight": spoiled(np.nan)}, "NaN"),
        ({"blk.0.deltamem_q.weight": spoiled(np.inf)}, "NaN or infinite"),
        ({"blk.0.deltamem_q.weight": spoiled(-np.inf).astype(np.float16)}, "NaN or infinite"),
        ({"blk.0.deltamem_q.weight": spoiled(np.nan).astype(np.float16)}, "NaN or infinite"),
    ],
)
def test_a_file_with_wrong_tensors_is_refused(tmp_path: Path, tensors, named) -> None:
    path = forged(tmp_path, tensors=tensors)
    with pytest.raises(AdapterError, match=named):
        read_adapter(path)
    refusal(path)


def test_nan_in_bfloat16_is_refused_when_writing(tmp_path: Path) -> None:
    for value in (np.nan, np.inf):
        tensors = tensors_of(SMALL) | {"blk.0.deltamem_q.weight": Weight.from_float32(spoiled(value), "BF16")}
        with pytest.raises(AdapterError, match="NaN or infinite"):
            write_adapter(tmp_path / "a.gguf", SMALL, tensors)


def test_missing_and_extra_tensors_are_refused_when_writing(tmp_path: Path) -> None:
    tensors = tensors_of(SMALL)
    with pytest.raises(AdapterError, match="unknown"):
        write_adapter(tmp_path / "a.gguf", SMALL, tensors | {"extra": tensors["blk.0.deltamem_beta.bias"]})
    del tensors["blk.0.deltamem_v.weight"]
    with pytest.raises(AdapterError, match="deltamem_v.weight is missing"):
        write_adapter(tmp_path / "a.gguf", SMALL, tensors)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path)
    before = path.read_bytes()

    def disk_full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(gguf.GGUFWriter, "write_tensors_to_file", disk_full)
    with pytest.raises(AdapterError, match="no space left on device"):
        write_adapter(path, SMALL, tensors_of(SMALL, seed=1))
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_writing_replaces_what_was_there(tmp_path: Path) -> None:
    path = written(tmp_path)
    write_adapter(path, dataclasses.replace(SMALL, normalize_qk=False), tensors_of(SMALL))
    assert read_adapter(path).config.normalize_qk is False
    assert list(tmp_path.iterdir()) == [path]


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match="folder does not exist"):
        write_adapter(tmp_path / "no" / "a.gguf", SMALL, tensors_of(SMALL))
