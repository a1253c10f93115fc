"""Conversion takes over every setting, folds scales, and refuses what does not fit."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from base_files import ALL_HEADS, HIDDEN, LAYERS, WIDTHS, base_model, converted, interleaved, refusal
from published_files import GOLDEN, published_tensors, write_published

from deltamem_cli.adapter.convert import convert
from deltamem_cli.adapter.format import read_adapter
from deltamem_cli.formats.errors import AdapterError
from deltamem_cli.formats.torch_file import read_torch_file

CASES = sorted(path.name for path in GOLDEN.iterdir())


@pytest.mark.parametrize("case", CASES)
def test_every_golden_case_is_converted_completely(case: str, tmp_path: Path) -> None:
    folder = GOLDEN / case / "adapter"
    adapter = convert(folder, GOLDEN / case / "model.gguf", tmp_path / "a.gguf")
    published = read_torch_file(folder / "delta_mem_adapter.pt")
    settings = json.loads((folder / "delta_mem_config.json").read_text())
    config = adapter.config
    assert config.architecture == case.split("_")[0]
    assert (config.rank, config.state_heads, config.layers) == (8, settings["num_state_heads"], (0, 1, 2, 3))
    assert config.write_granularity == settings["memory_write_granularity"]
    assert list(config.delta_heads) == settings["delta_heads"]
    for layer in config.layers:
        ours, theirs = f"blk.{layer}.deltamem_", f"model.layers.{layer}.self_attn."
        for name in ("q", "k", "v"):
            np.testing.assert_array_equal(
                adapter.tensors[f"{ours}{name}.weight"].data, published[f"{theirs}memory_{name}_proj"].data
            )
        np.testing.assert_array_equal(adapter.tensors[f"{ours}beta.bias"].data, published[f"{theirs}beta_bias"].data)
        for head in config.delta_heads:
            expected = published[f"{theirs}delta_{head}_proj"].data * np.float32(2)
            if case.startswith("smollm3") and head in "qk":
                expected = interleaved(expected, {"q": 4, "k": 2}[head])
            np.testing.assert_array_equal(adapter.tensors[f"{ours}delta_{head}.weight"].data, expected)


def test_alpha_over_rank_and_the_learned_scale_are_folded_in(tmp_path: Path) -> None:
    config = {"rank": 4, "alpha": 3.0, "trainable_delta_scale": True, "delta_scale_max": 1.7}
    for granularity in ("layer", "head"):
        adapter, published = converted(
            tmp_path, base_model(tmp_path), config | {"delta_scale_granularity": granularity}
        )
        for layer in range(LAYERS):
            raw = published[f"model.layers.{layer}.self_attn.delta_scale_raw"].data.astype(np.float64)
            scales = 3 / 4 * 1.7 / (1 + np.exp(-np.broadcast_to(raw, 4)))
            for head, scale in zip("qkvo", scales, strict=True):
                matrix = published[f"model.layers.{layer}.self_attn.delta_{head}_proj"].data
                found = adapter.tensors[f"blk.{layer}.deltamem_delta_{head}.weight"].data
                np.testing.assert_allclose(found, matrix * scale, rtol=1e-6)


def test_bfloat16_stays_where_the_scale_loses_nothing(tmp_path: Path) -> None:
    adapter, published = converted(tmp_path, base_model(tmp_path), {"alpha": 16.0}, type="BF16")
    delta = adapter.tensors["blk.0.deltamem_delta_q.weight"]
    assert delta.type == "BF16"
    np.testing.assert_array_equal(delta.float32, published["model.layers.0.self_attn.delta_q_proj"].float32 * 2)
    # biases are always float32, the rest stays as it was
    assert adapter.types == {"BF16": 8 * LAYERS, "F32": LAYERS}
    adapter, published = converted(tmp_path, base_model(tmp_path), {"alpha": 12.0}, type="BF16")
    delta = adapter.tensors["blk.0.deltamem_delta_q.weight"]
    assert delta.type == "F32"
    np.testing.assert_array_equal(delta.data, published["model.layers.0.self_attn.delta_q_proj"].float32 * 1.5)
    adapter, _ = converted(tmp_path, base_model(tmp_path), {"alpha": 16.0}, type="F16")
    assert adapter.types == {"F16": 8 * LAYERS, "F32": LAYERS}


@pytest.mark.parametrize(
    "config",
    [
        {"couple_lambda": False},
        {"couple_lambda": False, "rankwise_gates": False, "num_state_heads": 2},
        {"state_update_mode": "lambda_outside", "normalize_qk": False},
        {"delta_o_rmsnorm": True, "delta_o_rmsnorm_eps": 0.5},
        {"memory_write_granularity": "message_mean", "rank": 3},
    ],
)
def test_variants_keep_their_settings_and_tensors(tmp_path: Path, config: dict) -> None:
    adapter, published = converted(tmp_path, base_model(tmp_path), config, type="BF16")
    ours = adapter.config
    assert ours.couple_lambda is config.get("couple_lambda", True)
    assert ours.rankwise_gates is config.get("rankwise_gates", True)
    assert ours.state_heads == config.get("num_state_heads", 1)
    assert ours.state_update == config.get("state_update_mode", "standard")
    assert ours.normalize_qk is config.get("normalize_qk", True)
    assert ours.delta_o_norm_eps == config.get("delta_o_rmsnorm_eps")
    assert ours.write_granularity == config.get("memory_write_granularity", "token")
    for ours_name, theirs in (
        ("lambda.weight", "lambda_proj"),
        ("lambda.bias", "lambda_bias"),
        ("delta_o_norm.weight", "delta_o_rmsnorm_weight"),
        ("beta.weight", "beta_proj"),
    ):
        name = f"model.layers.2.self_attn.{theirs}"
        weight = adapter.tensors.get(f"blk.2.deltamem_{ours_name}")
        assert (weight is not None) == (name in published)
        if weight is not None:
            np.testing.assert_array_equal(weight.float32, published[name].float32)


def test_what_has_no_effect_is_left_out(tmp_path: Path) -> None:
    config = {"couple_lambda": False, "state_update_mode": "no_lambda"}
    adapter, _ = converted(tmp_path, base_model(tmp_path), config)
    assert not [name for name in adapter.tensors if "lambda" in name]
    adapter, _ = converted(tmp_path, base_model(tmp_path), {"delta_heads": ["q"], "delta_o_rmsnorm": True})
    assert adapter.config.delta_o_norm_eps is None
    assert not [name for name in adapter.tensors if "delta_o" in name or "delta_k" in name]


def test_target_layers_are_the_layers_of_the_file(tmp_path: Path) -> None:
    adapter, _ = converted(tmp_path, base_model(tmp_path), {"target_layers": [2, 0]}, layers=(0, 2))
    assert adapter.config.layers == (0, 2)
    assert adapter.config.block_count == LAYERS
    assert "0, 7" in refusal_in(tmp_path, {"target_layers": [0, 7]}, (0, 7))


def refusal_in(tmp_path: Path, config: dict, layers) -> str:
    folder = tmp_path / "another"
    folder.mkdir()
    return refusal(folder, base_model(folder), config, layers)


def test_fewer_or_more_layers_than_the_base_has_are_refused(tmp_path: Path) -> None:
    for layers in (range(2), range(4)):
        message = refusal(tmp_path, base_model(tmp_path), layers=layers)
        assert f"adapts the layers 0-{len(layers) - 1}" in message
        assert "attention in the layers 0-2" in message


@pytest.mark.parametrize(
    ("tensors", "named"),
    [
        ({"blk.1.attn_q.weight": (40, HIDDEN)}, "delta_q_proj of layer 1 is 32 x 8 where 40 x 8 is needed"),
        ({"blk.1.attn_k.weight": (8, HIDDEN)}, "delta_k_proj of layer 1 is 16 x 8 where 8 x 8 is needed"),
        ({"blk.2.attn_v.weight": (8, HIDDEN)}, "delta_v_proj of layer 2 is 16 x 8 where 8 x 8 is needed"),
        ({"blk.2.attn_v.weight": (0,)}, "corrects v in layer 2"),
    ],
)
@pytest.mark.parametrize("architecture", ["qwen3", "llama"])
def test_another_width_is_refused_with_both_shapes(tmp_path: Path, tensors, named, architecture) -> None:
    assert named in refusal(tmp_path, base_model(tmp_path, architecture, tensors=tensors))


def test_another_hidden_size_is_refused(tmp_path: Path) -> None:
    base = base_model(tmp_path, keys={"qwen3.embedding_length": 32})
    assert "memory_q_proj of layer 0 is 8 x 24 where 8 x 32 is needed" in refusal(tmp_path, base)


def test_nan_in_a_published_weight_is_refused(tmp_path: Path) -> None:
    tensors = published_tensors(ALL_HEADS, range(LAYERS), HIDDEN, WIDTHS)
    tensors["model.layers.1.self_attn.beta_proj"].data[0, 0] = np.nan
    folder = write_published(tmp_path / "published", ALL_HEADS, tensors)
    with pytest.raises(AdapterError, match="blk.1.deltamem_beta.weight holds NaN"):
        convert(folder, base_model(tmp_path), tmp_path / "out.gguf")


def test_provenance_names_the_source_and_never_a_path(tmp_path: Path) -> None:
    adapter, _ = converted(tmp_path, base_model(tmp_path))
    assert adapter.provenance.source == "published"
    assert adapter.provenance.base_model == "a base"
    assert adapter.provenance.license is None
    assert str(adapter.provenance.description).startswith("converted by deltamem-cli")
    assert str(tmp_path).encode() not in (tmp_path / "out.gguf").read_bytes()


@pytest.mark.parametrize(
    ("card", "license", "base"),
    [
        ("---\nlicense: apache-2.0\nbase_model: Qwen/Qwen3-4B\n---\n# x\n", "apache-2.0", "Qwen/Qwen3-4B"),
        ("---\nlicense: 'mit'\nbase_model:\n- Qwen/A\n- Qwen/B\ntags:\n- x\n---\n", "mit", "Qwen/A"),
        ("---\nbase_model: [Qwen/A, Qwen/B]\n---\nlicense: mit\n", None, "Qwen/A"),
        ("---\nlicense:\ntags:\n- x\n---\n", None, "a base"),
        ("license: mit\n", None, "a base"),
        ("", None, "a base"),
    ],
)
def test_license_and_base_come_from_the_model_card(tmp_path: Path, card: str, license, base) -> None:
    (tmp_path / "published").mkdir()
    (tmp_path / "published" / "README.md").write_text(card)
    adapter, _ = converted(tmp_path, base_model(tmp_path))
    assert (adapter.provenance.license, adapter.provenance.base_model) == (license, base)


def test_a_folder_of_the_hugging_face_cache_is_named_by_its_repository(tmp_path: Path) -> None:
    folder = tmp_path / "models--declare-lab--delta-mem" / "snapshots" / "0123abcd"
    write_published(folder, ALL_HEADS, published_tensors(ALL_HEADS, range(LAYERS), HIDDEN, WIDTHS))
    convert(folder, base_model(tmp_path), tmp_path / "out.gguf")
    assert read_adapter(tmp_path / "out.gguf").provenance.source == "declare-lab/delta-mem"
