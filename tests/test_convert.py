"""Conversion folds scales, follows the base's row order, and refuses what does not fit."""

from __future__ import annotations

import json
import time
from pathlib import Path

import gguf
import numpy as np
import pytest
from published_files import GOLDEN, published_tensors, write_published

from deltamem_cli.adapter import AdapterError
from deltamem_cli.adapter.base_model import PERMUTED_ARCHITECTURES, read_base_model
from deltamem_cli.adapter.convert import convert
from deltamem_cli.adapter.format import Adapter, read_adapter
from deltamem_cli.adapter.torch_file import read_torch_file
from deltamem_cli.adapter.weight import Weight

CASES = sorted(path.name for path in GOLDEN.iterdir())
HIDDEN, HEADS, HEADS_KV, HEAD_DIM, LAYERS = 24, 4, 2, 8, 3
WIDTHS = {"q": HEADS * HEAD_DIM, "k": HEADS_KV * HEAD_DIM, "v": HEADS_KV * HEAD_DIM, "o": HIDDEN}
ALL_HEADS = {"delta_heads": ["q", "k", "v", "o"]}


def base_model(
    tmp_path: Path,
    architecture: str = "qwen3",
    keys: dict[str, object] | None = None,
    tensors: dict[str, tuple[int, ...]] | None = None,
    fused: bool = False,
) -> Path:
    """A base model with nothing but keys and attention weights; tensors replaces shapes, (0,) leaves one out."""
    shapes: dict[str, tuple[int, ...]] = {}
    for layer in range(LAYERS):
        if fused:
            shapes[f"blk.{layer}.attn_qkv.weight"] = (WIDTHS["q"] + WIDTHS["k"] + WIDTHS["v"], HIDDEN)
        else:
            shapes |= {f"blk.{layer}.attn_{part}.weight": (WIDTHS[part], HIDDEN) for part in "qkv"}
        shapes[f"blk.{layer}.attn_output.weight"] = (HIDDEN, WIDTHS["q"])
    all_keys: dict[str, object] = {
        "general.type": "model",
        "general.name": "a base",
        f"{architecture}.block_count": LAYERS,
        f"{architecture}.embedding_length": HIDDEN,
        f"{architecture}.attention.head_count": HEADS,
        f"{architecture}.attention.head_count_kv": HEADS_KV,
        f"{architecture}.attention.key_length": HEAD_DIM,
        f"{architecture}.attention.value_length": HEAD_DIM,
    }
    path = tmp_path / "base.gguf"
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in (all_keys | (keys or {})).items():
        if isinstance(value, str):
            writer.add_string(key, value)
        elif isinstance(value, list):
            writer.add_array(key, value)
        elif value is not None:
            writer.add_uint32(key, value)
    for name, shape in (shapes | (tensors or {})).items():
        if shape != (0,):
            writer.add_tensor(name, np.zeros(shape, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def converted(
    tmp_path: Path, base: Path, config: dict | None = None, layers=range(LAYERS), **options
) -> tuple[Adapter, dict[str, Weight]]:
    config = ALL_HEADS | (config or {})
    tensors = published_tensors(config, tuple(layers), HIDDEN, WIDTHS, **options)
    folder = write_published(tmp_path / "published", config, tensors)
    return convert(folder, base, tmp_path / "out.gguf"), tensors


def refusal(tmp_path: Path, base: Path, config: dict | None = None, layers=range(LAYERS), **options) -> str:
    with pytest.raises(AdapterError) as caught:
        converted(tmp_path, base, config, layers, **options)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out.gguf").exists()
    return str(caught.value)


def interleaved(rows: np.ndarray, heads: int) -> np.ndarray:
    """What upstream's permute does, written as the list of rows: the halves of each head become neighbours."""
    size = rows.shape[0] // heads
    order = [head * size + pair + half for head in range(heads) for pair in range(size // 2) for half in (0, size // 2)]
    return rows[order]


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


@pytest.mark.parametrize("architecture", ["llama", "smollm3", "granite", "mistral3", "olmo"])
def test_rows_of_q_and_k_follow_the_converter_of_permuted_architectures(tmp_path: Path, architecture: str) -> None:
    adapter, published = converted(tmp_path, base_model(tmp_path, architecture), {"rank": 8, "alpha": 8.0})
    for layer in range(LAYERS):
        for head, heads in (("q", HEADS), ("k", HEADS_KV), ("v", None), ("o", None)):
            matrix = published[f"model.layers.{layer}.self_attn.delta_{head}_proj"].data
            expected = matrix if heads is None else interleaved(matrix, heads)
            np.testing.assert_array_equal(adapter.tensors[f"blk.{layer}.deltamem_delta_{head}.weight"].data, expected)


@pytest.mark.parametrize("architecture", ["qwen2", "qwen3", "qwen3moe", "gemma3", "phi3", "llama4", "command-r"])
def test_rows_stay_where_the_converter_leaves_them(tmp_path: Path, architecture: str) -> None:
    adapter, published = converted(tmp_path, base_model(tmp_path, architecture), {"alpha": 8.0})
    for head in "qkvo":
        np.testing.assert_array_equal(
            adapter.tensors[f"blk.1.deltamem_delta_{head}.weight"].data,
            published[f"model.layers.1.self_attn.delta_{head}_proj"].data,
        )


def test_divided_key_value_heads_follow_their_converter(tmp_path: Path) -> None:
    # baichuan's and xverse's converters divide the number of heads by that of key-value heads
    adapter, published = converted(tmp_path, base_model(tmp_path, "xverse"), {"alpha": 8.0})
    expected = interleaved(published["model.layers.0.self_attn.delta_k_proj"].data, HEADS // HEADS_KV)
    np.testing.assert_array_equal(adapter.tensors["blk.0.deltamem_delta_k.weight"].data, expected)


def test_permuted_architectures_have_names_that_llama_cpp_knows() -> None:
    # granite_swa and others may be newer than the gguf package that is installed
    known = set(gguf.MODEL_ARCH_NAMES.values())
    newer = {"granite_swa", "graniteswitch", "nanbeige", "muse-glimmer", "mistral3", "llama-embed"}
    assert PERMUTED_ARCHITECTURES - newer <= known


def test_heads_are_counted_per_layer_where_the_model_does(tmp_path: Path) -> None:
    base = base_model(
        tmp_path,
        "deci",
        {"deci.attention.head_count": [4, 2, 4], "deci.attention.head_count_kv": [2, 1, 2]},
        {
            "blk.1.attn_q.weight": (16, HIDDEN),
            "blk.1.attn_k.weight": (8, HIDDEN),
            "blk.1.attn_v.weight": (8, HIDDEN),
        },
    )
    tensors = published_tensors(ALL_HEADS, range(LAYERS), HIDDEN, WIDTHS)
    for head, rows in (("q", 16), ("k", 8), ("v", 8)):
        name = f"model.layers.1.self_attn.delta_{head}_proj"
        tensors[name] = Weight(tensors[name].data[:rows])
    folder = write_published(tmp_path / "published", ALL_HEADS | {"alpha": 8.0}, tensors)
    adapter = convert(folder, base, tmp_path / "out.gguf")
    for head, heads in (("q", 2), ("k", 1)):
        expected = interleaved(tensors[f"model.layers.1.self_attn.delta_{head}_proj"].data, heads)
        np.testing.assert_array_equal(adapter.tensors[f"blk.1.deltamem_delta_{head}.weight"].data, expected)


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


def test_rows_that_cannot_be_reordered_are_refused(tmp_path: Path) -> None:
    # the adapter's own width is odd: the width is refused before anything is reordered
    published = published_tensors(ALL_HEADS, range(LAYERS), HIDDEN, WIDTHS | {"q": 30})
    folder = write_published(tmp_path / "odd", ALL_HEADS, published)
    with pytest.raises(AdapterError, match="delta_q_proj of layer 0 is 30 x 8 where 32 x 8"):
        convert(folder, base_model(tmp_path, "llama"), tmp_path / "out.gguf")
    # the base's is
    for keys in ({"llama.attention.head_count": 5}, {"llama.attention.head_count_kv": 0}):
        message = refusal(tmp_path, base_model(tmp_path, "llama", keys))
        assert "heads cannot share" in message


def test_another_hidden_size_is_refused(tmp_path: Path) -> None:
    base = base_model(tmp_path, keys={"qwen3.embedding_length": 32})
    assert "memory_q_proj of layer 0 is 8 x 24 where 8 x 32 is needed" in refusal(tmp_path, base)


def test_nan_in_a_published_weight_is_refused(tmp_path: Path) -> None:
    tensors = published_tensors(ALL_HEADS, range(LAYERS), HIDDEN, WIDTHS)
    tensors["model.layers.1.self_attn.beta_proj"].data[0, 0] = np.nan
    folder = write_published(tmp_path / "published", ALL_HEADS, tensors)
    with pytest.raises(AdapterError, match="blk.1.deltamem_beta.weight holds NaN"):
        convert(folder, base_model(tmp_path), tmp_path / "out.gguf")


def test_a_fused_qkv_has_the_widths_of_its_heads(tmp_path: Path) -> None:
    adapter, _ = converted(tmp_path, base_model(tmp_path, "phi3", fused=True))
    assert adapter.tensors["blk.0.deltamem_delta_k.weight"].shape == (WIDTHS["k"], 8)
    base = base_model(tmp_path, "phi3", {"phi3.attention.head_count_kv": 3}, fused=True)
    (tmp_path / "out.gguf").unlink()
    assert "no projection" in refusal(tmp_path, base)


def test_layers_without_attention_are_not_adapted(tmp_path: Path) -> None:
    recurrent = {f"blk.1.attn_{part}.weight": (0,) for part in ("q", "k", "v", "output")}
    # a linear recurrence may have an attn_qkv of its own
    recurrent |= {"blk.1.attn_qkv.weight": (96, HIDDEN), "blk.1.ssm_a": (4, 4)}
    base = base_model(tmp_path, "qwen3next", tensors=recurrent)
    assert sorted(read_base_model(base).layers) == [0, 2]
    adapter, _ = converted(tmp_path, base, layers=(0, 2))
    assert adapter.config.layers == (0, 2)


def test_blocks_that_predict_further_tokens_are_not_counted(tmp_path: Path) -> None:
    base = base_model(tmp_path, keys={"qwen3.nextn_predict_layers": 1})
    assert sorted(read_base_model(base).layers) == [0, 1]


def test_the_first_file_of_a_split_model_is_enough(tmp_path: Path) -> None:
    gone = {f"blk.{layer}.attn_{part}.weight": (0,) for layer in (1, 2) for part in ("q", "k", "v", "output")}
    base = base_model(tmp_path, "llama", {"split.count": 2}, gone)
    adapter, published = converted(tmp_path, base, {"alpha": 8.0})
    expected = interleaved(published["model.layers.2.self_attn.delta_q_proj"].data, HEADS)
    np.testing.assert_array_equal(adapter.tensors["blk.2.deltamem_delta_q.weight"].data, expected)
    # there, only the numbers of heads tell which layers have attention
    counts = {"qwen3.attention.head_count_kv": [2, 0, 2], "split.count": 2}
    assert sorted(read_base_model(base_model(tmp_path, "qwen3", counts)).layers) == [0, 2]


@pytest.mark.parametrize(
    ("keys", "named"),
    [
        ({"general.type": "adapter"}, "kind adapter"),
        ({"general.type": "mmproj"}, "kind mmproj"),
        ({"qwen3.block_count": None}, "qwen3.block_count"),
        ({"qwen3.block_count": "three"}, "qwen3.block_count"),
        ({"qwen3.embedding_length": None}, "qwen3.embedding_length"),
        ({"qwen3.attention.head_count": None}, "qwen3.attention.head_count"),
        ({"qwen3.attention.head_count": [4, 4]}, "qwen3.attention.head_count"),
    ],
)
def test_a_base_without_a_usable_shape_is_refused(tmp_path: Path, keys, named) -> None:
    message = refusal(tmp_path, base_model(tmp_path, keys=keys))
    assert named in message
    assert "base.gguf" in message


@pytest.mark.parametrize("architecture", ["falcon-h1", "plamo", "dflash", "eagle3"])
def test_architectures_that_corrections_cannot_follow_are_refused(tmp_path: Path, architecture: str) -> None:
    assert f"architecture {architecture}" in refusal(tmp_path, base_model(tmp_path, architecture))


def test_a_base_without_an_architecture_is_refused(tmp_path: Path) -> None:
    base = base_model(tmp_path)
    base.write_bytes(base.read_bytes().replace(b"general.architecture", b"general.architectura"))
    assert "does not name its architecture" in refusal(tmp_path, base)


def test_a_base_cut_in_its_vocabulary_is_refused(tmp_path: Path) -> None:
    base = base_model(tmp_path, keys={"tokenizer.ggml.tokens": ["word"] * 30, "tokenizer.ggml.token_type": [1] * 30})
    raw = base.read_bytes()
    for length in range(raw.index(b"tokenizer.ggml.tokens"), raw.index(b"blk.0.")):
        base.write_bytes(raw[:length])
        assert "damaged" in refusal(tmp_path, base)


def test_a_base_that_is_no_gguf_file_is_refused(tmp_path: Path) -> None:
    base = tmp_path / "base.gguf"
    base.write_bytes(b"PK\x03\x04" + bytes(100))
    assert "not a GGUF file" in refusal(tmp_path, base)


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


def test_a_large_vocabulary_does_not_slow_the_conversion_down(tmp_path: Path) -> None:
    words = [f"word-{i}" for i in range(150_000)]
    base = base_model(tmp_path, keys={"tokenizer.ggml.tokens": words, "tokenizer.ggml.merges": words})
    start = time.perf_counter()
    assert read_base_model(base).block_count == LAYERS
    assert time.perf_counter() - start < 1.0  # 0.1 s alone; gguf's own reader takes over 2 s
