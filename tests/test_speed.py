"""The comparison of `dmem bench`: how δ-mem was computed, and what the graphs of both sides consist of."""

from __future__ import annotations

import json

import pytest
from conftest import MakeAdapter, MakeModel
from typer.testing import CliRunner

from deltamem_cli.commands import bench
from deltamem_cli.engine import EngineOptions
from deltamem_cli.speed import measure


@pytest.mark.parametrize("compute", ["auto", "graph"])
def test_on_a_cpu_nothing_splits_the_graph(compute: str, tiny_model: MakeModel, tiny_adapter: MakeAdapter) -> None:
    model = tiny_model("qwen3", n_ctx=1024)
    options = EngineOptions(threads=1, compute=compute)  # type: ignore[arg-type]
    report = measure(model, tiny_adapter(model), options=options, rounds=1)
    assert report.compute == ("fused" if compute == "auto" else "graph")
    assert report.splits == {"stock": 1, "deltamem": 1}


def test_the_command_says_the_way_and_the_splits(tiny_model: MakeModel, tiny_adapter: MakeAdapter) -> None:
    model = tiny_model("qwen3", n_ctx=1024)
    arguments = ["--model", str(model), "--adapter", str(tiny_adapter(model)), "--rounds", "1", "--threads", "1"]
    table = CliRunner().invoke(bench.app, arguments).output
    assert "computed fused; graph splits: 1 without δ-mem, 1 with δ-mem" in table
    facts = json.loads(CliRunner().invoke(bench.app, [*arguments, "--json"]).output)
    assert (facts["compute"], facts["graph_splits"]) == ("fused", {"stock": 1, "deltamem": 1})
