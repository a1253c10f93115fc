"""Shows what `dmem eval talk` measured, as a table for people; measures nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from deltamem_cli.commands.eval.share_table import lines
from deltamem_cli.evaluation import report as r
from deltamem_cli.evaluation.talk_cases import CATEGORIES

if TYPE_CHECKING:
    from deltamem_cli.evaluation.talk import Answers


_ROWS = {
    r.NONE: "no memory",
    r.ZERO: "empty memory",
    r.DONOR: "another's",
    r.MEMORY: "memory alone",
    r.REPLAY: "+ last turns",
    r.CONTEXT: "all in view",
}
# what fits above a column of percents; in full in CATEGORIES
_HEADINGS = {
    "plain": "plain",
    "longer": "longer",
    "three_messages": "3 told",
    "three_in_one": "3 in 1",
    "six": "6 told",
    "correction": "fixed",
    "third": "others",
    "after_talk": "later",
    "indirect": "indir.",
    "never": "never",
}


def show(answers: Answers, title: str) -> None:
    """Controls as rows, categories as columns."""
    import typer

    from deltamem_cli.evaluation.talk import ALL_TOLD

    columns = {ALL_TOLD: "all told", **{c: _HEADINGS[c] for c in CATEGORIES}}
    typer.echo(f"{title}\nRight answers in percent")
    for line in lines(_ROWS, columns, answers.share, {"tokens": lambda mode: f"{answers.tokens(mode):.0f}"}):
        typer.echo(line)
    typer.echo(
        "\nall told: all but never, with the 95% interval. plain: one fact. longer: within a message that asks for\n"
        "something. 3 told: in three messages. 3 in 1: in one. fixed: corrected later. others: about other people\n"
        "and things. later: after other talk. indir.: asked without naming it. never: not told, and the answer says\n"
        "that it is not known. all in view: the plain model with the whole conversation. tokens: per answer."
    )
