"""`dmem adapter verify`: holds the engine against numbers of the published implementation."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deltamem_cli.errors import UsageError
from deltamem_cli.terminal.output import print_json
from deltamem_cli.text import short

if TYPE_CHECKING:
    from deltamem_cli.parity import CaseResult


def verify(
    cases: Annotated[
        list[Path], typer.Argument(metavar="CASE_DIR...", help="Folders with model.gguf, adapter/ and vectors.npz.")
    ],
    micro_batch: Annotated[
        list[int] | None,
        typer.Option(
            "--micro-batch", "-u", metavar="N", min=1, help="Tokens to compute at once; repeatable.  [default: 1 8 512]"
        ),
    ] = None,
    compute: Annotated[
        str, typer.Option(help="How to compute corrections: auto, fused (CPU), graph (GPUs) or ops (both).")
    ] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print the differences as JSON.")] = False,
) -> None:
    """Compare the engine with the published implementation.

    Replays parity cases with float32 caches, and prints the largest absolute difference of each step: at most 1e-4 for
    logits and 1e-5 for states. Exits with 1 if a difference is too large.

    \b
    Examples:
      dmem adapter verify tests/golden/*
    """
    from deltamem_cli.bindings import COMPUTE
    from deltamem_cli.engine import try_out
    from deltamem_cli.parity import replay

    if compute not in COMPUTE:
        raise UsageError(f"--compute is {short(compute)}; it must be one of {', '.join(COMPUTE)}")
    results = []
    for case in cases:
        try_out(case / "model.gguf")
        for size in micro_batch or (1, 8, 512):
            results.append(replay(case, micro_batch=size, compute=compute))
            if not as_json:
                _print_case(results[-1])
    passed = all(result.passed for result in results)
    if as_json:
        print_json({"passed": passed, "cases": [_facts(result) for result in results]})
    else:
        failed = sum(not result.passed for result in results)
        typer.echo(f"{len(results) - failed} passed, {failed} failed")
    if not passed:
        raise typer.Exit(1)


def _facts(result: CaseResult) -> dict[str, Any]:
    facts = asdict(result) | {"passed": result.passed}
    for step, measured in zip(facts["steps"], result.steps, strict=True):
        step["passed"] = measured.passed
    return facts


def _print_case(result: CaseResult) -> None:
    typer.echo(f"{result.case}, micro-batch {result.micro_batch}")
    for step in result.steps:
        verdict = "" if step.passed else "  too large"
        typer.echo(
            f"  {step.name:<20} {step.tokens:>4} tokens   logits {step.logits:.1e}   state {step.state:.1e}{verdict}"
        )
