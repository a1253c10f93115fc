"""Published adapters: every setting is either understood exactly or refused by name."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
from published_files import GOLDEN, published_tensors, safetensors_bytes, torch_bytes, write_published

from deltamem_cli.adapter.published import Settings, ranges, read_published, read_settings
from deltamem_cli.formats.errors import AdapterError
from deltamem_cli.formats.weight import Weight

# As the published code saves it, with all its settings.
PUBLISHED = json.loads((GOLDEN / "qwen3_tsw_qo" / "adapter" / "delta_mem_config.json").read_text())
WIDTHS = {"q": 8, "k": 4, "v": 4}


def settings_of(tmp_path: Path, **changes: object) -> Settings:
    path = tmp_path / "delta_mem_config.json"
    path.write_text(json.dumps(PUBLISHED | changes))
    return read_settings(path)


def refusal(tmp_path: Path, **changes: object) -> str:
    with pytest.raises(AdapterError) as caught:
        settings_of(tmp_path, **changes)
    message = str(caught.value)
    assert "delta_mem_config.json" in message
    assert "\n" not in message
    return message


def folder_of(tmp_path: Path, config: dict, layers=(0, 1), change=lambda tensors: None) -> Path:
    tensors = published_tensors(config, layers, 6, WIDTHS)
    change(tensors)
    return write_published(tmp_path / "adapter", config, tensors)


def test_the_published_settings_are_all_understood(tmp_path: Path) -> None:
    assert settings_of(tmp_path) == Settings(delta_heads=("q", "o"))


def test_missing_settings_have_the_published_defaults(tmp_path: Path) -> None:
    path = tmp_path / "delta_mem_config.json"
    path.write_text("{}")
    settings = read_settings(path)
    assert settings.delta_heads == ("q", "k", "v", "o")
    for name, value in dataclasses.asdict(settings).items():
        if name != "delta_heads":
            assert PUBLISHED[name] == (list(value) if isinstance(value, tuple) else value)


@pytest.mark.parametrize(
    ("name", "value", "ours"),
    [
        ("rank", 64, 64),
        ("alpha", 12, 12.0),
        ("alpha", -0.5, -0.5),
        ("state_update_mode", " Lambda_Outside ", "lambda_outside"),
        ("memory_write_granularity", "sentence_mean", "sentence_mean"),
        ("num_state_heads", 4, 4),
        ("delta_heads", ["o", "Q", "o"], ("q", "o")),
        ("delta_heads", "v, k", ("k", "v")),
        ("target_layers", [5, 1, 5], (1, 5)),
        ("delta_scale_granularity", "head", "head"),
        ("delta_o_rmsnorm_eps", 1, 1.0),
    ],
)
def test_legal_values_are_taken_over(tmp_path: Path, name: str, value: object, ours: object) -> None:
    assert getattr(settings_of(tmp_path, **{name: value}), name) == ours


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("rank", 0),
        ("rank", 65),
        ("rank", 10**6),
        ("rank", 8.0),
        ("rank", True),
        ("rank", "8"),
        ("rank", None),
        ("alpha", math.nan),
        ("alpha", math.inf),
        ("alpha", "16"),
        ("alpha", True),
        ("normalize_qk", 1),
        ("couple_lambda", "true"),
        ("rankwise_gates", None),
        ("state_update_mode", "outside"),
        ("num_state_heads", 0),
        ("num_state_heads", 65),
        ("memory_write_granularity", "message_proposals"),
        ("target_layers", [-1]),
        ("target_layers", [1.0]),
        ("target_layers", "0"),
        ("delta_heads", ["q", "x"]),
        ("delta_heads", []),
        ("delta_heads", "none"),
        ("delta_heads", [["q"]]),
        ("delta_heads", 3),
        ("delta_o_rmsnorm", 0),
        ("delta_o_rmsnorm_eps", 0.0),
        ("trainable_delta_scale", "no"),
        ("delta_scale_max", -1.0),
        ("delta_scale_granularity", "token"),
        # archived mechanisms
        ("num_memory_partitions", 2),
        ("num_memory_partitions", True),
        ("num_global_memory_partitions", 1),
        ("memory_partition_routing", "hard"),
        ("memory_partition_basis", "own"),
        ("tie_memory_partition_read_write", True),
        ("memory_partition_read_mode", "sigmoid"),
        ("slot_read_top_k", 1),
        ("global_memory_mode", "read_only"),
        ("global_memory_read_top_k", 2),
        ("global_memory_merge_mode", "joint_softmax"),
        ("memory_reader_layers", [1]),
        ("memory_readout_mode", "synthetic_kv"),
        ("memory_write_source", "other"),
        ("memory_write_proposals_per_message", 3),
        ("synthetic_memory_slots", 2),
        ("latent_memory_layers", [0]),
        ("target_modules", ["mlp"]),
        ("delta_scale_parameterization", "free"),
    ],
)
def test_values_that_cannot_be_converted_are_refused_by_name_and_value(tmp_path: Path, name, value) -> None:
    message = refusal(tmp_path, **{name: value})
    assert f" {name} = {json.dumps(value)}" in message
    assert "must be" in message


def test_an_unknown_setting_is_refused_by_name_and_value(tmp_path: Path) -> None:
    assert "memory_decay = 0.5" in refusal(tmp_path, memory_decay=0.5)
    # control characters of a hostile file do not reach the terminal
    assert "\x1b" not in refusal(tmp_path, **{"\x1b[2J\n": "\x1b[2J" * 100})


@pytest.mark.parametrize("name", ["beta_bias_init", "output_init", "latent_memory_slots", "delta_scale_init"])
def test_settings_that_only_matter_before_training_may_have_any_value(tmp_path: Path, name: str) -> None:
    assert settings_of(tmp_path, **{name: 123}) == settings_of(tmp_path)


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b"\xff\xfe", b"[" * 100_000, b"3"])
def test_a_config_that_is_no_json_object_is_refused(tmp_path: Path, raw: bytes) -> None:
    path = tmp_path / "delta_mem_config.json"
    path.write_bytes(raw)
    with pytest.raises(AdapterError, match="download the adapter again"):
        read_settings(path)


def test_a_folder_that_is_no_adapter_is_named(tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match="missing does not exist"):
        read_published(tmp_path / "missing")
    (tmp_path / "file").write_text("")
    with pytest.raises(AdapterError, match="file is not a folder"):
        read_published(tmp_path / "file")
    with pytest.raises(AdapterError, match="has no delta_mem_config.json"):
        read_published(tmp_path)
    (tmp_path / "delta_mem_config.json").write_text("{}")
    with pytest.raises(AdapterError, match="has none of delta_mem_adapter.pt"):
        read_published(tmp_path)


def test_only_the_parameters_that_count_are_returned(tmp_path: Path) -> None:
    config = PUBLISHED | {"couple_lambda": False, "delta_o_rmsnorm": True, "trainable_delta_scale": True}
    published = read_published(folder_of(tmp_path, config))
    expected = {
        "memory_q_proj", "memory_k_proj", "memory_v_proj", "beta_proj", "beta_bias", "lambda_proj", "lambda_bias",
        "delta_q_proj", "delta_o_proj", "delta_o_rmsnorm_weight", "delta_scale_raw",
    }  # fmt: skip
    assert {layer: set(parameters) for layer, parameters in published.layers.items()} == {0: expected, 1: expected}


def test_no_lambda_ignores_the_parameters_of_lambda(tmp_path: Path) -> None:
    config = PUBLISHED | {"couple_lambda": False, "state_update_mode": "no_lambda"}
    assert "lambda_proj" not in read_published(folder_of(tmp_path, config)).layers[0]


def test_heads_that_are_not_corrected_may_be_missing(tmp_path: Path) -> None:
    def drop(tensors):
        del tensors["model.layers.0.self_attn.delta_k_proj"]

    assert set(read_published(folder_of(tmp_path, PUBLISHED, change=drop)).layers) == {0, 1}


@pytest.mark.parametrize(
    "name",
    ["memory_q_proj", "memory_k_proj", "memory_v_proj", "delta_q_proj", "delta_o_proj", "beta_proj", "beta_bias"],
)
def test_a_missing_parameter_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(AdapterError, match=f"lacks model.layers.1.self_attn.{name}"):
        read_published(folder_of(tmp_path, PUBLISHED, change=lambda t: t.pop(f"model.layers.1.self_attn.{name}")))


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.0.self_attn.lambda_proj",  # belongs to couple_lambda = false
        "model.layers.0.self_attn.delta_scale_raw",
        "model.layers.0.self_attn.delta_o_rmsnorm_weight",
        "model.layers.0.self_attn.other",
        "model.layers.00.self_attn.beta_bias",
        "model.layers.-1.self_attn.beta_bias",
        "model.layers.0.mlp.beta_bias",
        "base.model.layers.0.self_attn.beta_bias",
        "beta_bias",
    ],
)
def test_an_unknown_parameter_is_named(tmp_path: Path, name: str) -> None:
    def add(tensors):
        tensors[name] = Weight(np.zeros(8, np.float32))

    with pytest.raises(AdapterError) as caught:
        read_published(folder_of(tmp_path, PUBLISHED, change=add))
    assert name in str(caught.value)


def test_layers_must_be_those_of_target_layers(tmp_path: Path) -> None:
    config = PUBLISHED | {"target_layers": [3, 1]}
    assert list(read_published(folder_of(tmp_path, config, (1, 3))).layers) == [1, 3]
    for layers in ((1,), (1, 2, 3)):
        with pytest.raises(AdapterError, match="target_layers .* says 1, 3"):
            read_published(folder_of(tmp_path, config, layers))
    with pytest.raises(AdapterError, match="no tensors"):
        read_published(folder_of(tmp_path, PUBLISHED, ()))


@pytest.mark.parametrize("name", ["delta_mem_adapter.safetensors", "adapter_model.safetensors", "model.safetensors"])
def test_safetensors_are_read_where_there_is_no_pt(tmp_path: Path, name: str) -> None:
    folder = folder_of(tmp_path, PUBLISHED)
    from_torch = read_published(folder)
    (folder / "delta_mem_adapter.pt").unlink()
    (folder / name).write_bytes(safetensors_bytes(published_tensors(PUBLISHED, (0, 1), 6, WIDTHS)))
    from_safetensors = read_published(folder)
    assert from_safetensors.settings == from_torch.settings
    for layer, parameters in from_torch.layers.items():
        for parameter, weight in parameters.items():
            np.testing.assert_array_equal(from_safetensors.layers[layer][parameter].data, weight.data)


def test_the_published_file_comes_before_others(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, PUBLISHED)
    (folder / "model.safetensors").write_bytes(b"damaged")
    read_published(folder)
    (folder / "delta_mem_adapter.pt").write_bytes(torch_bytes({}))
    with pytest.raises(AdapterError, match="delta_mem_adapter.pt holds no tensors"):
        read_published(folder)


def logistic(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_the_learned_scale_is_a_bounded_sigmoid_per_layer_or_head() -> None:
    settings = Settings(rank=4, alpha=6.0, delta_heads=("k", "o"), delta_scale_max=3.0)
    assert settings.delta_factors(None) == {"k": 1.5, "o": 1.5}
    one = settings.delta_factors(Weight(np.array([0.25], np.float32)))
    assert one == pytest.approx(dict.fromkeys("ko", 1.5 * 3 * logistic(0.25)))
    per_head = dataclasses.replace(settings, delta_scale_granularity="head")
    # in the order q, k, v, o
    four = per_head.delta_factors(Weight(np.array([9, 0.5, 9, -2], np.float32)))
    assert four == pytest.approx({"k": 1.5 * 3 * logistic(0.5), "o": 1.5 * 3 * logistic(-2)})
    extreme = per_head.delta_factors(Weight(np.array([0, 1e4, 0, -1e4], np.float32)))
    assert extreme == {"k": 4.5, "o": 0.0}


@pytest.mark.parametrize(
    ("granularity", "raw"), [("layer", [0.0] * 4), ("head", [0.0]), ("layer", [math.nan]), ("layer", [[0.0]])]
)
def test_a_learned_scale_of_another_form_is_refused(tmp_path: Path, granularity: str, raw: list) -> None:
    config = PUBLISHED | {"trainable_delta_scale": True, "delta_scale_granularity": granularity}

    def change(tensors):
        tensors["model.layers.1.self_attn.delta_scale_raw"] = Weight(np.array(raw, np.float32))

    with pytest.raises(AdapterError, match="delta_scale_raw in layer 1"):
        read_published(folder_of(tmp_path, config, change=change))


@pytest.mark.parametrize(("numbers", "text"), [([], ""), ([4], "4"), ([0, 1, 2], "0-2"), ([0, 2, 3, 7], "0, 2-3, 7")])
def test_ranges_are_short(numbers: list[int], text: str) -> None:
    assert ranges(numbers) == text
