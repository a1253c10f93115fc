"""The PyTorch backbone computes what llama.cpp computes, or refuses a model by the name of what it does not compute."""

from training_support import need

need("torch", "faker")

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import MakeModel

from deltamem_cli.errors import DeltamemError
from deltamem_cli.synthetic import ARCHITECTURES, write_model
from deltamem_cli.training import check
from deltamem_cli.training.backbone import Backbone
from deltamem_cli.training.check import TOLERANCE, check_backbone, difference, logits_here, logits_there
from deltamem_cli.training.encode import Encoder
from deltamem_cli.training.run import RunOptions, run_training
from deltamem_cli.training.shape import ARCHITECTURES as SUPPORTED
from deltamem_cli.training.tokens import GGUFTokenizer

TOKENS = [(17 * i * i + 5 * i) % 256 for i in range(60)]  # many times the window of a tiny model

WriteChanged = Callable[..., Path]


@pytest.fixture
def changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> WriteChanged:
    """changed(arch, keys, layer): a random model with more or other keys, and more tensors in every layer."""

    def write(arch: str, keys: dict[str, Any] | None = None, layer: dict[str, tuple[str, ...]] | None = None) -> Path:
        plain = ARCHITECTURES[arch]
        other = replace(
            plain, layer=plain.layer | (layer or {}), keys=lambda shape: {**plain.keys(shape), **(keys or {})}
        )
        monkeypatch.setitem(ARCHITECTURES, arch, other)  # type: ignore[arg-type]
        path = write_model(tmp_path / f"{arch}.gguf", arch)
        monkeypatch.setitem(ARCHITECTURES, arch, plain)  # type: ignore[arg-type]
        return path

    return write


@pytest.mark.parametrize("arch", SUPPORTED)
def test_every_architecture_gives_llama_cpps_logits(arch: str, tiny_model: MakeModel) -> None:
    path = tiny_model(arch, n_layer=4)
    there = logits_there(path, TOKENS)
    here = logits_here(Backbone(path), TOKENS)
    # ggml looks GELU up in a table of float16
    rough = 30 if arch in ("gemma2", "gemma3") else 1
    assert (there - here).abs().max() < rough * 1e-4


def test_padding_goes_through_no_weights_and_changes_nothing(
    tiny_model: MakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = Backbone(tiny_model("qwen2"))
    h = backbone.embed(torch.tensor([TOKENS[:9], [*TOKENS[20:24], 0, 0, 0, 0, 0]]))
    linear, tokens = F.linear, set()

    def counted(x: torch.Tensor, *args: torch.Tensor) -> torch.Tensor:
        tokens.add(x.shape[:-1].numel())
        return linear(x, *args)

    monkeypatch.setattr(F, "linear", counted)
    both, past = backbone.run(h, torch.tensor([9, 4]))
    assert tokens == {9 + 4}
    for row, size in enumerate((9, 4)):
        alone, own = backbone.run(h[row : row + 1, :size], torch.tensor([size]))
        torch.testing.assert_close(both[row, :size], alone[0], atol=1e-5, rtol=1e-4)
        assert not both[row, size:].any()
        for n in range(backbone.shape.n_layer):
            torch.testing.assert_close(past.keys[n][row, :, :size], own.keys[n][0], atol=1e-5, rtol=1e-4)


def test_a_pass_for_keys_and_values_alone_leaves_out_what_follows_the_last_ones(tiny_model: MakeModel) -> None:
    backbone = Backbone(tiny_model("qwen2"))
    seen: dict[bool, list[torch.Tensor]] = {True: [], False: []}
    found = {}
    for whole, inputs in seen.items():

        def keep(layer: int, x: torch.Tensor, inputs: list[torch.Tensor] = inputs) -> dict[str, torch.Tensor]:
            inputs.append(x)
            return {}

        h = backbone.embed(torch.tensor([TOKENS[:9]]))
        found[whole] = backbone.run(h, torch.tensor([9]), correct=keep, to_the_end=whole)
    assert all(torch.equal(a, b) for a, b in zip(seen[True], seen[False], strict=True))
    for n in range(backbone.shape.n_layer):
        assert torch.equal(found[True][1].values[n], found[False][1].values[n])
    last = backbone.shape.n_layer - 1
    before, _ = backbone.run(backbone.embed(torch.tensor([TOKENS[:9]])), torch.tensor([9]), layers=range(last))
    assert torch.equal(found[False][0], before)


@pytest.mark.parametrize("arch", SUPPORTED)
def test_what_was_run_before_is_seen_as_if_it_were_run_at_once(arch: str, tiny_model: MakeModel) -> None:
    backbone = Backbone(tiny_model(arch, n_layer=4))
    rows = torch.tensor([TOKENS, TOKENS[::-1]])
    lengths = torch.tensor([len(TOKENS)] * 2)
    with torch.no_grad():
        whole, _ = backbone.run(backbone.embed(rows), lengths)
        # of the second row less was run before: the rest of it is padding
        first = torch.tensor([40, 30])
        _, past = backbone.run(backbone.embed(rows[:, :40]), first)
        rest = torch.stack([rows[0, 40:60], rows[1, 30:50]])
        later, _ = backbone.run(backbone.embed(rest), lengths - first, past)
    torch.testing.assert_close(later, torch.stack([whole[0, 40:60], whole[1, 30:50]]), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("type", ["F16", "Q8_0", "Q4_0"])
@pytest.mark.parametrize("arch", ["qwen2", "gemma2", "phi3"])
def test_rounding_of_a_quantised_model_passes_the_check(arch: str, type: str, tmp_path: Path) -> None:
    path = write_model(tmp_path / "q.gguf", arch, type=type)
    assert 1e-4 < check_backbone(path, Backbone(path), Encoder(GGUFTokenizer(path))) < TOLERANCE / 2


def test_a_model_that_torch_computes_otherwise_is_refused_before_it_is_trained_on(
    tiny_model: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tiny_model("qwen2")
    backbone = Backbone(path)
    for w in backbone.layers:
        w["qkv_bias"] = None
    with pytest.raises(DeltamemError, match="other numbers in PyTorch than in llama.cpp"):
        check_backbone(path, backbone, Encoder(GGUFTokenizer(path)))
    monkeypatch.setattr(check, "logits_here", lambda backbone, tokens: torch.randn(len(tokens), 288))
    with pytest.raises(DeltamemError, match="other numbers"):
        run_training(RunOptions(path, tmp_path / "a.gguf", steps=1), lambda event: None)
    assert not list(tmp_path.iterdir())


def test_what_differs_is_a_share_of_the_logits_spread_whatever_is_added_to_all() -> None:
    there = torch.randn(8, 100)
    assert difference(there, there + 7) < 1e-5
    assert difference(there, there * 1.2) == pytest.approx(0.2, abs=1e-5)
    assert not difference(there, there * torch.nan) <= TOLERANCE


@pytest.mark.parametrize(
    ("arch", "layer", "named"),
    [
        ("llama", {"attn_output.bias": ("d",)}, r"blk\.0\.attn_output\.bias and 3 more"),
        ("llama", {"ffn_down.bias": ("d",), "ffn_up.bias": ("f",), "ffn_gate.bias": ("f",)}, r"ffn_\w+\.bias"),
        ("qwen2", {"attn_q_norm.weight": ("h",)}, r"attn_q_norm\.weight"),
        ("llama", {"post_ffw_norm.weight": ("d",)}, r"post_ffw_norm\.weight"),
        ("llama", {"something.weight": ("d",)}, r"something\.weight"),
        ("qwen3", {"attn_output.scale": ("d",)}, r"attn_output\.scale"),
    ],
)
def test_a_tensor_that_is_not_computed_is_refused_by_name(
    changed: WriteChanged, arch: str, layer: dict[str, tuple[str, ...]], named: str
) -> None:
    with pytest.raises(DeltamemError, match=named):
        Backbone(changed(arch, layer=layer))


@pytest.mark.parametrize(
    ("arch", "keys"),
    [
        ("llama", {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0}),
        ("llama", {"rope.scaling.factor": 4.0}),
        ("llama", {"rope.scale_linear": 2.0}),
        ("gemma3", {"rope.scaling.type": "longrope"}),
        ("phi3", {"rope.scaling.attn_factor": 1.19}),
        ("llama", {"logit_scale": 0.5}),
        ("llama", {"embedding_scale": 12.0}),
        ("qwen3", {"final_logit_softcapping": 30.0}),
        ("gemma3", {"attn_logit_softcapping": 50.0}),
        ("llama", {"attention.sliding_window": 64}),
        ("llama", {"attention.value_length": 8}),
        ("llama", {"expert_count": 4, "expert_used_count": 2}),
        ("qwen2", {"attention.causal": False}),
        ("qwen3", {"something_new": 1}),
    ],
)
def test_a_setting_that_is_not_computed_is_refused_by_name(
    changed: WriteChanged, arch: str, keys: dict[str, Any]
) -> None:
    with pytest.raises(DeltamemError, match=f"says that {arch}.({'|'.join(keys)}) is .*does not compute"):
        Backbone(changed(arch, keys))


@pytest.mark.parametrize(
    ("arch", "keys"),
    [
        ("llama", {"rope.scaling.type": "none", "rope.scaling.factor": 4.0, "expert_count": 0}),
        ("llama", {"rope.scaling.type": "linear", "rope.scaling.factor": 1.0, "rope.scaling.finetuned": False}),
        ("phi3", {"attention.sliding_window": 8, "rope.scaling.original_context_length": 4096}),
        ("qwen2", {"rope.dimension_count": 16, "attention.causal": True}),
        ("gemma3", {"rope.scaling.type": "linear", "rope.scaling.factor": 8.0, "rope.freq_base_swa": 5000.0}),
        ("gemma3", {"attention.sliding_window": 0, "rope.scaling.factor": 8.0}),
        ("gemma3", {"final_logit_softcapping": 2.0}),
        ("gemma2", {"final_logit_softcapping": 2.0, "attn_logit_softcapping": 1.0}),
        ("gemma2", {"attention.sliding_window_pattern": 3}),
    ],
)
def test_a_setting_that_is_computed_or_changes_nothing_gives_llama_cpps_logits(
    changed: WriteChanged, arch: str, keys: dict[str, Any]
) -> None:
    path = changed(arch, keys)
    # a last bit before GELU's table of float16 may become 1e-3
    assert difference(logits_there(path, TOKENS), logits_here(Backbone(path), TOKENS)) < 2e-3


@pytest.mark.parametrize(("arch", "layer"), [
    ("llama", {f"attn_{h}.bias": ("q" if h == "q" else "kv",) for h in "qkv"}),
    ("qwen3", {"attn_k.bias": ("kv",)}),
    ("phi3", {"attn_qkv.bias": ("qkv",)}),
])  # fmt: skip
def test_biases_of_queries_keys_and_values_are_computed_wherever_they_are(
    changed: WriteChanged, arch: str, layer: dict[str, tuple[str, ...]]
) -> None:
    path = changed(arch, layer=layer)
    assert (logits_there(path, TOKENS) - logits_here(Backbone(path), TOKENS)).abs().max() < 1e-4


def test_a_directory_with_tensors_or_settings_that_are_not_computed_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    config = {
        "model_type": "llama", "num_attention_heads": 2, "num_hidden_layers": 1, "hidden_size": 8,
        "rms_norm_eps": 1e-6,
    }  # fmt: skip
    tensors = {"model.embed_tokens.weight": torch.ones(4, 8), "model.layers.0.self_attn.o_proj.bias": torch.ones(8)}
    save_file(tensors, tmp_path / "model.safetensors")
    for more, named in (
        ({}, r"model\.layers\.0\.self_attn\.o_proj\.bias"),
        ({"hidden_act": "gelu"}, "hidden_act to gelu"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"rope_scaling": {"type": "linear", "factor": 2}}, "rotary"),
        ({"model_type": "gemma2"}, "gemma2"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(config | more))
        with pytest.raises(DeltamemError, match=named):
            Backbone(tmp_path)


@pytest.mark.parametrize(
    "config", ["", "[1]", "{", '{"model_type": "llama"}', '{"model_type": "llama", "num_hidden_layers": "x"}']
)
def test_a_directory_with_damaged_settings_is_one_sentence(tmp_path: Path, config: str) -> None:
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(DeltamemError, match=r"config\.json .*download the model again"):
        Backbone(tmp_path)


def test_a_directory_s_enormous_or_damaged_files_are_one_sentence(tmp_path: Path) -> None:
    with (tmp_path / "config.json").open("wb") as file:
        file.truncate(1 << 31)
    with pytest.raises(DeltamemError, match="larger than 64 MB"):
        Backbone(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"no tensors")
    with pytest.raises(DeltamemError, match="cannot be read as a Hugging Face model"):
        Backbone(tmp_path)


def test_a_damaged_base_model_is_one_sentence(base: Path, tmp_path: Path) -> None:
    data = bytearray(base.read_bytes())
    data[16:24] = (2**40).to_bytes(8, "little")  # so many keys
    (tmp_path / "m.gguf").write_bytes(data)
    with pytest.raises(DeltamemError, match="damaged"):
        Backbone(tmp_path / "m.gguf")
