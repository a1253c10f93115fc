"""What an evaluation measures: a model with its adapter, and a database that is gone afterwards; and where answers are kept."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deltamem_cli.errors import DeltamemError

if TYPE_CHECKING:
    from deltamem_cli.evaluation.respondent import Respondent
    from deltamem_cli.session.request import Request


AnswersOption = Annotated[
    Path | None,
    typer.Option(
        "--answers", metavar="FILE", help="Save each answer in FILE (.jsonl); run the same command to resume."
    ),
]


@contextmanager
def measured(request: Request, write: str | None = None) -> Iterator[tuple[Respondent, dict[str, Any]]]:
    """The respondent, and which model and adapter it is, for JSON.

    write: as Respondent takes it. Raises DeltamemError for a model without a memory.
    """
    from deltamem_cli.engine import Engine
    from deltamem_cli.evaluation.respondent import Respondent
    from deltamem_cli.session.loading import load
    from deltamem_cli.session.request import settle

    with ExitStack() as stack:
        request = settle(request, None)
        loaded = load(stack, request)
        if loaded.adapter is None:
            raise DeltamemError(f"There is no memory to measure: {loaded.why_no_memory}")
        plain = stack.enter_context(Engine(loaded.engine.model, None, loaded.engine.options))
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        subject = Respondent(loaded, plain, folder / "memory.db", write, request=request)
        yield subject, {"model": asdict(loaded.model), "adapter": asdict(loaded.adapter)}


def title_of(who: dict[str, Any]) -> str:
    """For tables and pictures."""
    return f"{who['model']['name']} with {who['adapter']['name']}"
