"""No adapter file, however damaged or forged, does more to the process than raise one clear sentence."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from conftest import LoadModel, MakeAdapter, MakeModel

from deltamem_cli.adapter.format import _SETTINGS, read_adapter
from deltamem_cli.bindings import COMPUTE, NativeError, native
from deltamem_cli.engine import Engine, EngineOptions, Model

KIND = gguf.GGUFValueType
PREFIX = "adapter.deltamem."
FLIPS, CUTS = 500, 150


@pytest.fixture
def model(tiny_model: MakeModel) -> Path:
    return tiny_model("qwen3")


@pytest.fixture
def adapter(model: Path, tiny_adapter: MakeAdapter) -> Path:
    return tiny_adapter(model, delta_o_norm_eps=1e-6, couple_lambda=False, rank=4)


def outcomes(model: Path, files: list[Path]) -> list[str]:
    """What loading each file came to, in a process that must live to the end."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("load_adapters.py"), model],
        input="".join(f"{file}\n" for file in files), capture_output=True, text=True, env=environment, timeout=120, check=False,
    )  # fmt: skip
    lines = done.stdout.splitlines()
    assert done.returncode == 0, f"{files[min(len(lines), len(files) - 1)]}: {done.stderr[-2000:]}"
    assert len(lines) == len(files)
    for line in lines:
        assert line == "loaded" or is_sentence(line), line
    return lines


def is_sentence(text: str) -> bool:
    return text.isprintable() and text.endswith(".") and len(text) < 400


def test_a_file_cut_off_anywhere_is_refused(model: Path, adapter: Path, tmp_path: Path) -> None:
    data = adapter.read_bytes()
    sizes = {int(size) for size in np.linspace(0, len(data) - 1, CUTS)} | set(range(0, 64, 7)) | {len(data) - 1}
    files = []
    for size in sorted(sizes):
        files.append(tmp_path / f"cut-{size}.gguf")
        files[-1].write_bytes(data[:size])
    for file, line in zip(files, outcomes(model, files), strict=True):
        assert line != "loaded", file
        assert file.name in line


def test_random_damage_is_refused_or_harmless(model: Path, adapter: Path, tmp_path: Path) -> None:
    data = np.frombuffer(adapter.read_bytes(), np.uint8)
    header = gguf.GGUFReader(adapter).data_offset
    rng = np.random.default_rng(12)
    files = []
    for number in range(FLIPS):
        damaged = data.copy()
        # most of the meaning is in the header; whole words of ones are what sizes and counts break on
        where = rng.integers(0, header if number % 4 else len(data), rng.integers(1, 4))
        damaged[where] = rng.choice([0, 1, 255, 127, 128, int(rng.integers(256))], len(where))
        if number % 5 == 0:
            at = int(rng.integers(0, header - 8))
            damaged[at : at + 8] = 255 if number % 2 else 0
        if number % 7 == 0:
            damaged = damaged[: int(rng.integers(len(data)))]
        files.append(tmp_path / f"damage-{number}.gguf")
        files[-1].write_bytes(damaged.tobytes())
    lines = outcomes(model, files)
    assert lines.count("loaded") < FLIPS / 2
    assert len({line.replace(file.name, "") for line, file in zip(lines, files, strict=True)}) > 20


Forge = Callable[..., Path]


@pytest.fixture
def forge(adapter: Path, tmp_path: Path) -> Forge:
    """forge(keys, tensors): the adapter with keys (value, kind) and tensors replaced, added or (None) left out."""
    sound = read_adapter(adapter)
    settings = {PREFIX + name: (getattr(sound.config, name), kind) for name, kind in _SETTINGS.items()}
    kinds = {"u32": KIND.UINT32, "str": KIND.STRING, "bool": KIND.BOOL, "f32": KIND.FLOAT32}
    all_keys: dict[str, Any] = {
        "general.type": ("adapter", KIND.STRING),
        "adapter.type": ("deltamem", KIND.STRING),
        PREFIX + "version": (1, KIND.UINT32),
    } | {
        key: (list(value), KIND.ARRAY) if "array" in kind else (value, kinds[kind])
        for key, (value, kind) in settings.items()
    }
    all_tensors: dict[str, Any] = {name: weight.float32 for name, weight in sound.tensors.items()}

    def make(
        keys: dict[str, Any] | None = None, tensors: dict[str, Any] | None = None, architecture: str = "qwen3"
    ) -> Path:
        path = tmp_path / "forged.gguf"
        writer = gguf.GGUFWriter(path, architecture)
        for key, entry in (all_keys | (keys or {})).items():
            if entry:
                value, kind = entry
                sub = KIND.UINT32 if kind == KIND.ARRAY and value and isinstance(value[0], int) else None
                writer.add_key_value(key, value, kind, sub)
        for name, entry in (all_tensors | (tensors or {})).items():
            if entry is not None:
                array, raw = entry if isinstance(entry, tuple) else (entry, None)
                writer.add_tensor(name, np.ascontiguousarray(array), raw_dtype=raw)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path

    return make


@pytest.fixture
def refusal(model: Path, loaded: LoadModel) -> Callable[[Path], str]:
    """refusal(path): the error of attaching it, checked to be one sentence; the model works on."""

    def refuse(path: Path) -> str:
        for compute in COMPUTE[1:]:
            with pytest.raises(NativeError) as error:
                Engine(loaded(model), path, EngineOptions(ctx_size=256, compute=compute))  # type: ignore[arg-type]
            assert is_sentence(str(error.value))
        return str(error.value)

    return refuse


def test_the_forge_makes_sound_files(forge: Forge, model: Path) -> None:
    assert outcomes(model, [forge()]) == ["loaded"]


def u32(value: int) -> tuple[int, KIND]:
    return value, KIND.UINT32


def text(value: str) -> tuple[str, KIND]:
    return value, KIND.STRING


@pytest.mark.parametrize(
    ("key", "entry", "words"),
    [
        ("general.type", text("model"), "not a deltamem adapter"),
        ("adapter.type", text("lora"), "not a deltamem adapter"),
        ("adapter.type", None, "has no adapter.type"),
        (PREFIX + "version", u32(2), "format version 2"),
        (PREFIX + "rank", u32(0), "rank 0"),
        (PREFIX + "rank", u32(10**6), "rank 1000000"),
        (PREFIX + "rank", u32(2**32 - 1), "rank 4294967295"),
        (PREFIX + "rank", u32(5), "should be"),
        (PREFIX + "rank", (4, KIND.INT32), "stores adapter.deltamem.rank as i32, not as u32"),
        (PREFIX + "rank", None, "has no adapter.deltamem.rank"),
        (PREFIX + "state_heads", u32(0), "0 state heads"),
        (PREFIX + "state_heads", u32(65), "65 state heads"),
        (PREFIX + "write_granularity", text("paragraph_mean"), "write_granularity = 'paragraph_mean'"),
        (PREFIX + "state_update", text("erase_all"), "state_update = 'erase_all'"),
        (PREFIX + "delta_heads", (["q", "x"], KIND.ARRAY), "'x'"),
        (PREFIX + "delta_heads", (["q", "q"], KIND.ARRAY), "'q'"),
        (PREFIX + "delta_heads", ([1, 2], KIND.ARRAY), "list of u32, not of str"),
        (PREFIX + "rankwise_gates", u32(1), "as u32, not as bool"),
        (PREFIX + "delta_o_norm_eps", (float("nan"), KIND.FLOAT32), "delta_o_norm_eps"),
        (PREFIX + "delta_o_norm_eps", (-1.0, KIND.FLOAT32), "delta_o_norm_eps"),
        (PREFIX + "embedding_length", u32(128), "width 128, this one has 64"),
        (PREFIX + "block_count", u32(36), "36 layers, this one has 2"),
        (PREFIX + "block_count", u32(2**31), "layers"),
        (PREFIX + "layers", ([0, 7], KIND.ARRAY), "layer 7"),
        (PREFIX + "layers", ([1, 0], KIND.ARRAY), "out of order"),
        (PREFIX + "layers", ([0, 0], KIND.ARRAY), "out of order"),
        (PREFIX + "colour", text("blue"), "unknown setting adapter.deltamem.colour"),
        ("tokenizer.ggml.model", text("gpt2"), "unknown setting tokenizer.ggml.model"),
        (PREFIX + "be\x1b[31mll\n", text("x"), "unknown setting adapter.deltamem.be?[31mll?"),
    ],
)
def test_a_wrong_setting_is_refused(
    key: str, entry: Any, words: str, forge: Forge, refusal: Callable[[Path], str]
) -> None:
    message = refusal(forge({key: entry}))
    assert words in message
    assert "forged.gguf" in message


Q, NAME = "blk.0.deltamem_q.weight", "blk.1.deltamem_delta_o.weight"


@pytest.mark.parametrize(
    ("name", "array", "words"),
    [
        (Q, None, f"lacks the tensor {Q}"),
        ("blk.0.deltamem_lambda.bias", None, "lacks the tensor blk.0.deltamem_lambda.bias"),
        (Q, np.ones((4, 63), np.float32), "[4, 63], it should be [4, 64]"),
        (Q, np.ones((5, 64), np.float32), "[5, 64], it should be [4, 64]"),
        (Q, np.ones((1, 4, 64), np.float32), None),  # the same numbers in the same order
        (Q, np.ones((2, 4, 64), np.float32), "it should be [4, 64]"),
        (Q, np.ones(256, np.float32), "it should be [4, 64]"),
        (NAME, np.ones((4, 64), np.float32), f"{NAME} is [4, 64], it should be [64, 4]"),
        (Q, np.ones((4, 64), np.float64), "of type f64"),
        (Q, np.ones((4, 64), np.int32), "of type i32"),
        (Q, (np.zeros((4, 34 * 2), np.uint8), gguf.GGMLQuantizationType.Q8_0), "of type q8_0"),
        (Q, np.full((4, 64), np.nan, np.float32), f"{Q} holds NaN or infinite numbers"),
        (Q, np.full((4, 64), -np.inf, np.float16), f"{Q} holds NaN or infinite numbers"),
        (NAME, np.where(np.eye(64, 4), np.inf, 0).astype(np.float32), f"{NAME} holds NaN or infinite numbers"),
        ("blk.0.deltamem_beta.bias", np.full(4, np.nan, np.float32), "holds NaN or infinite numbers"),
        ("blk.0.deltamem_delta_k.weight", np.ones((32, 4), np.float32), "unknown tensor blk.0.deltamem_delta_k.weight"),
        ("blk.7.deltamem_q.weight", np.ones((4, 64), np.float32), "unknown tensor blk.7.deltamem_q.weight"),
        ("output.weight", np.ones((4, 64), np.float32), "unknown tensor output.weight"),
    ],
)
def test_a_wrong_tensor_is_refused(
    name: str, array: Any, words: str | None, forge: Forge, refusal: Callable[[Path], str], model: Path
) -> None:
    path = forge(tensors={name: array})
    if words is None:
        assert outcomes(model, [path]) == ["loaded"]
    else:
        assert words in refusal(path)


def test_an_adapter_of_another_model_is_refused(
    adapter: Path, forge: Forge, refusal: Callable[[Path], str], tiny_model: MakeModel, tiny_adapter: MakeAdapter
) -> None:
    assert "is a deltamem adapter for llama, this model is qwen3" in refusal(forge(architecture="llama"))
    for words, other in (
        ("for llama, this model is qwen3", tiny_model("llama")),
        ("of width 128, this one has 64", tiny_model("qwen3", n_embd=128)),
        ("of 3 layers, this one has 2", tiny_model("qwen3", n_layer=3)),
        ("[128, 8], it should be [64, 8]", tiny_model("qwen3", n_head=8)),
    ):
        assert words in refusal(tiny_adapter(other))


def test_duplicate_keys_are_refused(adapter: Path, tmp_path: Path, refusal: Callable[[Path], str]) -> None:
    data = adapter.read_bytes()
    # names of one length, so that one can take the other's place
    assert data.count(b"adapter.deltamem.couple_lambda") == 1
    path = tmp_path / "twice.gguf"
    path.write_bytes(data.replace(b"adapter.deltamem.rankwise_gates", b"adapter.deltamem.rankwise_gate_"))
    assert "rankwise_gate" in refusal(path)
    path.write_bytes(data.replace(b"blk.0.deltamem_k.weight", b"blk.0.deltamem_q.weight"))
    assert "twice.gguf is damaged" in refusal(path)
    keys = data.replace(b"adapter.deltamem.normalize_qk", b"adapter.deltamem.state_update"[:29])
    path.write_bytes(keys)
    assert "twice.gguf is damaged" in refusal(path)


def test_what_is_no_file_or_no_gguf_is_refused(tmp_path: Path, model: Path, refusal: Callable[[Path], str]) -> None:
    (tmp_path / "empty.gguf").touch()
    (tmp_path / "text.gguf").write_text("GGML, or something like it")
    assert "none.gguf can't be opened (No such file or directory)" in refusal(tmp_path / "none.gguf")
    for path in (tmp_path, tmp_path / "empty.gguf", tmp_path / "text.gguf"):
        assert f"{path.name} is not a GGUF file" in refusal(path)
    assert "is not a deltamem adapter" in refusal(model) or "has no general.type" in refusal(model)


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="open files are counted by /proc")
def test_a_refused_file_is_closed(model: Path, adapter: Path, tmp_path: Path, loaded: LoadModel) -> None:
    (tmp_path / "other.gguf").write_bytes(b"no GGUF file")
    (tmp_path / "cut.gguf").write_bytes(adapter.read_bytes()[:100])
    handle = loaded(model).handle
    before = len(os.listdir("/proc/self/fd"))
    for name, words in (("other.gguf", "is not a GGUF file"), ("cut.gguf", "header can't be read")):
        with pytest.raises(NativeError, match=words):
            native().call("adapter_init", handle, str(tmp_path / name).encode(), 0)
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_model_without_its_weights_and_an_unknown_way_to_compute_are_refused(model: Path, adapter: Path) -> None:
    llama = native().llama
    params = llama.llama_model_default_params()
    params.vocab_only = True
    vocabulary = llama.llama_model_load_from_file(str(model).encode(), params)
    with pytest.raises(NativeError, match="of 2 layers, this one has 0"):
        native().call("adapter_init", vocabulary, str(adapter).encode(), 0)
    llama.llama_model_free(vocabulary)
    with Model(model) as whole:
        for compute in (-1, len(COMPUTE), 1000):
            with pytest.raises(NativeError, match=f"no way {compute} to compute"):
                native().call("adapter_init", whole.handle, str(adapter).encode(), compute)
        with pytest.raises(NativeError, match="a path"):
            native().call("adapter_init", whole.handle, None, 0)
        with pytest.raises(NativeError, match="A model"):
            native().call("adapter_init", None, str(adapter).encode(), 0)
