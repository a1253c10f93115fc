"""Parity of the variants that the shared cases leave out, with cases made by the published implementation.

They share the models of tests/golden; what each covers stands in its name and its delta_mem_config.json.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from deltamem_cli.bindings import COMPUTE
from deltamem_cli.parity import replay

VARIANTS = Path(__file__).parent / "variants"
MODELS = {"qwen3": "qwen3_tsw_qo", "smollm3": "smollm3_tsw_qo"}
CASES = sorted(path.name for path in VARIANTS.iterdir())


def whole_case(name: str, folder: Path) -> Path:
    """The case with its model beside it, as `dmem adapter verify` wants it."""
    case = shutil.copytree(VARIANTS / name, folder / name)
    model = VARIANTS.parent / "golden" / MODELS[name.split("_")[0]] / "model.gguf"
    shutil.copyfile(model, case / "model.gguf")
    return case


@pytest.mark.parametrize("compute", COMPUTE[1:])
@pytest.mark.parametrize("name", CASES)
def test_every_variant_computes_what_the_published_code_computes(name: str, compute: str, tmp_path: Path) -> None:
    case = whole_case(name, tmp_path)
    for micro_batch in (1, 8, 512):
        result = replay(case, micro_batch=micro_batch, compute=compute)
        assert result.passed, [step for step in result.steps if not step.passed]


def test_a_variant_read_as_another_does_not_pass(tmp_path: Path) -> None:
    case = whole_case("qwen3_lambda_outside_kv_layers31", tmp_path)
    config = case / "adapter" / "delta_mem_config.json"
    config.write_text(config.read_text().replace('"lambda_outside"', '"standard"'))
    assert not replay(case, micro_batch=8).passed
