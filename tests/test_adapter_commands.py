"""`dmem adapter convert` and `dmem adapter show`: what they write, print and refuse."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from adapter_files import SMALL, tensors_of
from published_files import GOLDEN

from deltamem_cli import cli
from deltamem_cli.adapter.format import Provenance, read_adapter, trained_writes, write_adapter

CASE = GOLDEN / "qwen3_msw_qo"


def convert(out: Path, *more: str) -> int:
    folder, base = str(CASE / "adapter"), str(CASE / "model.gguf")
    return cli.main(["adapter", "convert", folder, "-o", str(out), "--base", base, *more])


def test_convert_writes_the_file_and_says_what_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "a.gguf"
    assert convert(out) == 0
    assert read_adapter(out).config.state_heads == 4
    printed = capsys.readouterr().out
    assert printed.startswith(f"wrote {out}\n")
    for text in ("qwen3, 4 layers, 64 wide", "MSW (writes per token, 4 state heads, rank 8)", "0-3 (4 of 4)", "49,280"):
        assert text in printed


def test_convert_as_json_prints_one_document(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert convert(tmp_path / "a.gguf", "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert document["file"] == str(tmp_path / "a.gguf")
    assert document["variant"] == "MSW"


def test_an_existing_file_is_replaced_only_with_force(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "a.gguf"
    out.write_text("precious")
    assert convert(out) == 1
    assert "already exists; replace it with --force" in capsys.readouterr().err
    assert out.read_text() == "precious"
    assert convert(out, "--force") == 0
    assert read_adapter(out).config.rank == 8


def test_the_base_model_is_never_replaced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = tmp_path / "model.gguf"
    base.write_bytes((CASE / "model.gguf").read_bytes())
    arguments = ["adapter", "convert", str(CASE / "adapter"), "-o", str(base), "--base", str(base), "--force"]
    assert cli.main(arguments) == 2
    assert "is the base model itself" in capsys.readouterr().err
    assert base.read_bytes() == (CASE / "model.gguf").read_bytes()


def test_a_folder_is_no_place_to_write_to(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert convert(tmp_path, "--force") == 2
    assert "is a folder" in capsys.readouterr().err


def test_a_refused_conversion_is_one_sentence_and_leaves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, base = str(CASE / "adapter"), str(tmp_path / "missing.gguf")
    assert cli.main(["adapter", "convert", folder, "-o", str(tmp_path / "a.gguf"), "--base", base]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert base in captured.err
    assert not list(tmp_path.iterdir())


def test_show_prints_provenance_and_nothing_that_controls_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a.gguf"
    training = json.dumps({"steps": 3})
    write_adapter(path, SMALL, tensors_of(SMALL), Provenance("n\x1b[2Jn", "mit", None, "Qwen/X", "org/repo", training))
    assert cli.main(["adapter", "show", str(path)]) == 0
    printed = capsys.readouterr().out
    assert "\x1b" not in printed
    for label, text in {
        "name": "n?[2Jn",
        "license": "mit",
        "base model": "Qwen/X",
        "source": "org/repo",
        "training": training,
        "layers": "0, 2 (2 of 3)",
        "corrects": "q, o",
        "types": "F32 (14 tensors)",
    }.items():
        assert f"\n{label + ':':<13}{text}\n" in printed
    assert "description" not in printed


def test_show_as_json_has_every_fact(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.gguf"
    write_adapter(path, SMALL, tensors_of(SMALL), Provenance(training=json.dumps({"steps": 3})))
    assert cli.main(["adapter", "show", str(path), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document == {
        "file": str(path),
        "size": path.stat().st_size,
        "architecture": "qwen3",
        "embedding_length": 12,
        "block_count": 3,
        "layers": [0, 2],
        "rank": 2,
        "state_heads": 1,
        "write_granularity": "token",
        "delta_heads": ["q", "o"],
        "state_update": "standard",
        "rankwise_gates": True,
        "couple_lambda": True,
        "normalize_qk": True,
        "delta_o_norm_eps": None,
        "variant": "TSW",
        "parameters": read_adapter(path).parameters,
        "types": {"F32": 14},
        "provenance": {
            "name": None,
            "license": None,
            "description": None,
            "base_model": None,
            "source": None,
            "training": {"steps": 3},
        },
    }


def test_show_refuses_a_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["adapter", "show", str(CASE / "model.gguf")]) == 1
    assert "not a deltamem adapter; make one with: dmem adapter convert" in capsys.readouterr().err


def test_the_help_of_adapter_imports_nothing_heavy() -> None:
    code = "import sys; from deltamem_cli import cli; cli.main(['adapter', 'show', '--help']); print(*sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"numpy", "gguf", "llama_cpp", "torch"} & set(result.stdout.split())


def test_converting_needs_no_pytorch(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['torch'] = None; sys.modules['safetensors'] = None;"
        "from deltamem_cli import cli; sys.exit(cli.main(sys.argv[1:]))"
    )
    folder, base = str(CASE / "adapter"), str(CASE / "model.gguf")
    arguments = ["adapter", "convert", folder, "-o", str(tmp_path / "a.gguf"), "--base", base]
    subprocess.run([sys.executable, "-c", code, *arguments], check=True, capture_output=True)
    assert read_adapter(tmp_path / "a.gguf").config.architecture == "qwen3"


def written(path: Path, factor: float, **provenance: str) -> Path:
    tensors = {name: weight.scaled(factor) for name, weight in tensors_of(SMALL).items()}
    write_adapter(path, SMALL, tensors, Provenance(**provenance))
    return path


def test_a_merged_adapter_is_the_mean_and_tells_what_it_is_made_of(tmp_path: Path) -> None:
    one = written(tmp_path / "one.gguf", 1.0, training='{"seed": 1}', license="MIT")
    two = written(tmp_path / "two.gguf", 4.0, training='{"seed": 2}')
    assert cli.main(["adapter", "merge", str(one), str(two), "-o", str(tmp_path / "out.gguf")]) == 0
    merged = read_adapter(tmp_path / "out.gguf")
    for name, weight in read_adapter(one).tensors.items():
        np.testing.assert_allclose(merged.tensors[name].float32, 2.5 * weight.float32, rtol=2e-3)
        assert merged.tensors[name].type == weight.type
    assert json.loads(merged.provenance.training or "") == {"mean of": [{"seed": 1}, {"seed": 2}]}
    assert merged.provenance.license == "MIT"


def test_a_merged_adapter_writes_as_the_last_of_them_was_trained(tmp_path: Path) -> None:
    plain = written(tmp_path / "plain.gguf", 1.0, training="not JSON")
    user = written(tmp_path / "user.gguf", 1.0, training='{"write": "user"}')
    for order, meant in (((plain, user), "user"), ((user, plain), "all")):
        assert cli.main(["adapter", "merge", *map(str, order), "-o", str(tmp_path / f"as-{meant}.gguf")]) == 0
        assert trained_writes(tmp_path / f"as-{meant}.gguf") == meant


def test_what_does_not_belong_together_is_not_merged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = written(tmp_path / "one.gguf", 1.0, base_model="a")
    other = written(tmp_path / "other.gguf", 1.0, base_model="b")
    out = tmp_path / "out.gguf"
    for arguments, code, says in (
        ([one, other, "-o", out], 1, "another base model"),
        ([one, CASE / "model.gguf", "-o", out], 1, "model.gguf"),
        ([one, "-o", out], 2, "at least two adapters"),
        ([one, other, "-o", one, "--force"], 2, "is one of the adapters itself"),
    ):
        assert cli.main(["adapter", "merge", *map(str, arguments)]) == code
        assert says in capsys.readouterr().err
    assert not out.exists()
