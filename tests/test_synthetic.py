from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deltamem_cli.bindings import native
from deltamem_cli.errors import DeltamemError
from deltamem_cli.synthetic import ARCHITECTURES, SHAPES, Shape, cached_model, random_adapter, write_model

FREE_WIDTH = [arch for arch, description in ARCHITECTURES.items() if not description.square]
TEXT = "Hello, the World 123!\n  and you: {re-doing} naïve ☂ 日本"
PROMPT = [65, 66, 67, 72, 101, 108, 108, 111, 32, 116, 104, 101, 109, 33]


@pytest.fixture(scope="session")
def llama() -> Any:
    """llama.cpp's own functions."""
    return native().llama


@contextmanager
def loaded(llama: Any, path: Path) -> Iterator[Any]:
    parameters = llama.llama_model_default_params()
    parameters.n_gpu_layers = 0
    model = llama.llama_model_load_from_file(str(path).encode(), parameters)
    assert model, f"llama.cpp does not load {path}"
    yield model
    llama.llama_model_free(model)


def logits(llama: Any, path: Path, tokens: list[int], adapter: Path | None = None) -> np.ndarray:
    """[n_tokens, n_vocab] float32, with a float32 cache and flash attention off."""
    with loaded(llama, path) as model:
        parameters = llama.llama_context_default_params()
        parameters.n_ctx = parameters.n_batch = parameters.n_ubatch = 64
        parameters.n_threads = parameters.n_threads_batch = 1
        parameters.type_k = parameters.type_v = 0
        parameters.flash_attn_type = 0
        context = llama.llama_init_from_model(model, parameters)
        assert context
        if adapter:
            weights = native().call("adapter_init", model, str(adapter).encode(), 0)
            native().call("attach", context, weights)
            native().call("adapter_free", weights)
        batch = llama.llama_batch_init(len(tokens), 0, 1)
        batch.n_tokens = len(tokens)
        for position, token in enumerate(tokens):
            batch.token[position] = token
            batch.pos[position] = position
            batch.n_seq_id[position] = 1
            batch.seq_id[position][0] = 0
            batch.logits[position] = 1
        assert llama.llama_decode(context, batch) == 0
        n_vocab = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(model))
        rows = [np.ctypeslib.as_array(llama.llama_get_logits_ith(context, n), (n_vocab,)) for n in range(len(tokens))]
        result = np.array(rows)
        llama.llama_batch_free(batch)
        llama.llama_free(context)
    return result


def tokens_of(llama: Any, model: Any, text: str, *, special: bool) -> list[int]:
    encoded = text.encode()
    found = (ctypes.c_int32 * 256)()
    vocab = llama.llama_model_get_vocab(model)
    return found[: llama.llama_tokenize(vocab, encoded, len(encoded), found, len(found), False, special)]


def assert_sound(llama: Any, path: Path) -> None:
    """Finite, spread over a few units, and every position reads the first one."""
    found = logits(llama, path, PROMPT)
    assert np.isfinite(found).all()
    assert 0.5 < found.std() < 5
    other = logits(llama, path, [90, *PROMPT[1:]])
    assert (np.abs(found - other).max(axis=1) > 1e-3).all()


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_llama_cpp_decodes_every_architecture(llama: Any, tmp_path: Path, arch: str) -> None:
    assert_sound(llama, write_model(tmp_path / "model.gguf", arch))


@pytest.mark.parametrize("type", ["F16", "Q8_0", "Q4_0"])
@pytest.mark.parametrize("arch", ["qwen3", "phi3", "qwen3moe"])
def test_llama_cpp_decodes_every_storage_type(llama: Any, tmp_path: Path, arch: str, type: str) -> None:
    path = write_model(tmp_path / "model.gguf", arch, type=type)
    assert_sound(llama, path)
    assert path.stat().st_size < 0.6 * write_model(tmp_path / "wide.gguf", arch).stat().st_size


def test_rows_that_blocks_do_not_fill_stay_float32(llama: Any, tmp_path: Path) -> None:
    assert_sound(llama, write_model(tmp_path / "model.gguf", "qwen3", type="Q4_0", n_embd=80))


@pytest.mark.parametrize("arch", FREE_WIDTH)
def test_heads_may_be_wider_than_the_model(llama: Any, tmp_path: Path, arch: str) -> None:
    assert_sound(llama, write_model(tmp_path / "model.gguf", arch, head_dim=24, n_layer=2))


@pytest.mark.parametrize("arch", [arch for arch in ARCHITECTURES if arch not in FREE_WIDTH])
def test_widths_that_a_loader_refuses_are_refused_before(tmp_path: Path, arch: str) -> None:
    with pytest.raises(ValueError, match="n_head"):
        write_model(tmp_path / "model.gguf", arch, head_dim=24)


def test_activations_stay_finite_through_many_quantized_layers(llama: Any, tmp_path: Path) -> None:
    assert_sound(llama, write_model(tmp_path / "model.gguf", "qwen3", type="Q4_0", n_layer=36, n_embd=256, tied=True))


def test_blocks_have_the_deviation_asked_for_and_no_bias() -> None:
    import gguf

    from deltamem_cli.synthetic.weights import draw

    for type in ("Q8_0", "Q4_0"):
        blocks = draw(np.random.default_rng(1), (512, 512), type, std=0.02)
        numbers = gguf.dequantize(blocks, gguf.GGMLQuantizationType[type])
        assert numbers.std() == pytest.approx(0.02, rel=0.02)
        assert abs(numbers.mean()) < 0.02 * 0.01


@pytest.mark.parametrize("type", ["F32", "Q4_0"])
def test_the_seed_decides_every_byte(tmp_path: Path, type: str) -> None:
    def written(name: str, seed: int) -> bytes:
        return write_model(tmp_path / name, "qwen3", seed=seed, type=type).read_bytes()

    assert written("a.gguf", 1) == written("b.gguf", 1)
    assert written("a.gguf", 1) != written("c.gguf", 2)


@pytest.mark.parametrize(("arch", "n_tokens"), [("qwen3", 1), ("phi3", 2), ("gemma3", 1)])
def test_text_survives_the_tokenizer(llama: Any, tmp_path: Path, arch: str, n_tokens: int) -> None:
    with loaded(llama, write_model(tmp_path / "model.gguf", arch)) as model:
        found = tokens_of(llama, model, TEXT, special=False)
        buffer = ctypes.create_string_buffer(512)
        numbers = (ctypes.c_int32 * len(found))(*found)
        vocab = llama.llama_model_get_vocab(model)
        length = llama.llama_detokenize(vocab, numbers, len(found), buffer, len(buffer), False, False)
        assert buffer.raw[:length].decode() == TEXT
        # One merged token, after the leading space that phi3's kind of tokenizer adds.
        assert len(tokens_of(llama, model, "the", special=False)) == n_tokens


@pytest.mark.parametrize("arch", ["qwen3", "phi3", "gemma3"])
def test_the_chat_template_is_chatml_and_its_marks_are_single_tokens(llama: Any, tmp_path: Path, arch: str) -> None:
    with loaded(llama, write_model(tmp_path / "model.gguf", arch)) as model:
        vocab = llama.llama_model_get_vocab(model)
        assert b"<|im_start|>" in llama.llama_model_chat_template(model, None)
        (start,) = tokens_of(llama, model, "<|im_start|>", special=True)
        (end,) = tokens_of(llama, model, "<|im_end|>", special=True)
        assert not llama.llama_vocab_is_eog(vocab, start)
        assert llama.llama_vocab_is_eog(vocab, end)
        assert llama.llama_vocab_eot(vocab) == end
        assert llama.llama_vocab_is_eog(vocab, llama.llama_vocab_eos(vocab))
        assert llama.llama_vocab_bos(vocab) >= 0
        assert not llama.llama_vocab_is_control(vocab, llama.llama_vocab_n_tokens(vocab) - 1)


def test_an_interrupted_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from deltamem_cli.synthetic import weights

    def interrupted(*_: Any, **__: Any) -> None:
        assert list(tmp_path.iterdir()), "writing has begun"
        raise KeyboardInterrupt

    monkeypatch.setattr(weights, "draw", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_model(tmp_path / "model.gguf", "qwen3")
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(DeltamemError, match=r"nowhere.*no such file"):
        write_model(tmp_path / "nowhere" / "model.gguf", "qwen3")


def test_the_benchmark_model_has_the_size_of_qwen3_4b() -> None:
    from deltamem_cli.synthetic.model import data_nbytes

    arch, shape = SHAPES["qwen3-4b"]
    sizes = ARCHITECTURES[arch].tensors(shape).values()
    # The parameter count that the model's card gives: 4.0 billion, 3.6 billion without embeddings.
    assert sum(int(np.prod(size)) for size in sizes) == 4_022_468_096
    assert 2.2e9 < data_nbytes(arch, shape, "Q4_0") < 2.3e9


@pytest.fixture
def small_shape(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setitem(SHAPES, "small", ("qwen3", Shape(n_layer=1)))
    return "small"


def test_a_cached_model_is_written_once_and_mended_when_cut_short(tmp_path: Path, small_shape: str) -> None:
    folder = tmp_path / "made" / "here"
    path = cached_model(small_shape, folder)
    contents, born = path.read_bytes(), path.stat().st_mtime_ns
    assert path.parent == folder
    assert cached_model(small_shape, folder) == path
    assert path.stat().st_mtime_ns == born
    path.write_bytes(contents[: len(contents) // 2])
    assert cached_model(small_shape, folder).read_bytes() == contents


def test_another_seed_or_type_is_another_cached_file(tmp_path: Path, small_shape: str) -> None:
    paths = {cached_model(small_shape, tmp_path, seed=seed, type=type) for seed in (0, 1) for type in ("Q4_0", "Q8_0")}
    assert len(paths) == len(list(tmp_path.iterdir())) == 4


def test_a_cached_file_of_an_older_table_is_not_used(
    tmp_path: Path, small_shape: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = cached_model(small_shape, tmp_path)
    monkeypatch.setitem(ARCHITECTURES, "qwen3", ARCHITECTURES["qwen3moe"])
    assert cached_model(small_shape, tmp_path) != path


def test_leftovers_of_killed_writers_are_removed_and_those_of_live_ones_are_not(
    tmp_path: Path, small_shape: str
) -> None:
    dead, live = tmp_path / "synthetic-old.gguf.1.part", tmp_path / "synthetic-new.gguf.2.part"
    for part in (dead, live):
        part.write_bytes(b"x")
    os.utime(dead, (time.time() - 7200,) * 2)
    cached_model(small_shape, tmp_path)
    assert live.exists()
    assert not dead.exists()


def test_too_little_space_is_said_before_anything_is_written(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        # A full disk cannot be had in a test.
        patch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 10**9})())
        with pytest.raises(DeltamemError, match=r"qwen3-4b needs 2\.3 GB in .*disk, which has 1\.0 GB free"):
            cached_model("qwen3-4b", disk)
    assert not list(disk.iterdir())


def test_an_unknown_shape_names_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(DeltamemError, match=r"gpt-5.*qwen3-4b"):
        cached_model("gpt-5", tmp_path)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_a_random_adapter_fits_every_architecture(tmp_path: Path, arch: str) -> None:
    from deltamem_cli.adapter.format import read_adapter

    head_dim = 24 if arch in FREE_WIDTH else 16
    model = write_model(tmp_path / "model.gguf", arch, n_layer=2, head_dim=head_dim)
    settings = random_adapter(model, tmp_path / "adapter.gguf", delta_heads=("q", "k", "v", "o"), rank=4, state_heads=2)
    adapter = read_adapter(tmp_path / "adapter.gguf")
    assert adapter.config == settings
    assert (settings.architecture, settings.layers, settings.embedding_length) == (arch, (0, 1), 64)
    rows = {head: adapter.tensors[f"blk.1.deltamem_delta_{head}.weight"].shape for head in "qkvo"}
    assert rows == {"q": (4 * head_dim, 8), "k": (2 * head_dim, 8), "v": (2 * head_dim, 8), "o": (64, 8)}


@pytest.mark.parametrize("arch", ["qwen3", "gemma3", "phi3"])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"delta_heads": ("q", "k", "v", "o"), "delta_o_norm_eps": 1e-6},
        {"normalize_qk": False, "couple_lambda": False, "state_heads": 4},
        {"normalize_qk": False, "state_update": "no_lambda", "rank": 64},
    ],
)
def test_a_random_adapter_changes_logits_and_leaves_them_finite(
    llama: Any, tmp_path: Path, arch: str, settings: dict[str, Any]
) -> None:
    model = write_model(tmp_path / "model.gguf", arch)
    random_adapter(model, tmp_path / "adapter.gguf", **settings)
    prompt = PROMPT * 4
    with_memory = logits(llama, model, prompt, tmp_path / "adapter.gguf")
    change = with_memory - logits(llama, model, prompt)
    assert np.isfinite(with_memory).all()
    assert 0.05 < change.std() < 2


def test_a_random_adapter_looks_like_the_published_one_by_default(tmp_path: Path) -> None:
    from deltamem_cli.adapter.format import read_adapter

    model = write_model(tmp_path / "model.gguf", "qwen3")
    random_adapter(model, tmp_path / "adapter.gguf")
    adapter = read_adapter(tmp_path / "adapter.gguf")
    config = adapter.config
    assert (config.rank, config.state_heads, config.delta_heads, config.variant) == (8, 1, ("q", "o"), "TSW")
    assert {weight.type for weight in adapter.tensors.values() if weight.data.ndim == 2} == {"BF16"}


def test_zero_delta_zeroes_the_corrections_and_nothing_else(tmp_path: Path) -> None:
    from deltamem_cli.adapter.format import read_adapter

    model = write_model(tmp_path / "model.gguf", "qwen3", n_layer=1)
    kept, zeroed = tmp_path / "kept.gguf", tmp_path / "zeroed.gguf"
    random_adapter(model, kept, seed=3, delta_o_norm_eps=1e-6)
    random_adapter(model, zeroed, seed=3, delta_o_norm_eps=1e-6, zero_delta=True)
    before, after = read_adapter(kept).tensors, read_adapter(zeroed).tensors
    for name, weight in before.items():
        if "deltamem_delta_" in name:
            assert weight.data.any()
            assert not after[name].data.any()
        else:
            assert np.array_equal(weight.data, after[name].data)


def test_the_seed_decides_a_random_adapter(tmp_path: Path) -> None:
    from deltamem_cli.adapter.format import read_adapter

    model = write_model(tmp_path / "model.gguf", "qwen3", n_layer=1)

    def written(name: str, seed: int) -> bytes:
        random_adapter(model, tmp_path / name, seed=seed)
        return (tmp_path / name).read_bytes()

    def numbers(name: str) -> np.ndarray:
        return read_adapter(tmp_path / name).tensors["blk.0.deltamem_v.weight"].float32

    assert written("a.gguf", 1) == written("b.gguf", 1)
    assert written("a.gguf", 1) != written("c.gguf", 2)
    assert not np.array_equal(numbers("a.gguf"), numbers("c.gguf"))


def test_an_adapter_is_no_base_for_an_adapter(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model.gguf", "qwen3", n_layer=1)
    random_adapter(model, tmp_path / "adapter.gguf")
    with pytest.raises(DeltamemError, match=r"adapter\.gguf does not say its block_count"):
        random_adapter(tmp_path / "adapter.gguf", tmp_path / "other.gguf")


def test_names_are_had_without_numpy_and_gguf() -> None:
    code = "import sys, deltamem_cli.synthetic as s; s.SHAPES; sys.exit(bool({'numpy', 'gguf'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
