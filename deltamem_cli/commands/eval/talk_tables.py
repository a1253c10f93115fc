"""Shows what `dmem eval talk` measured, as a table for people; measures nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from deltamem_cli.evaluation import report as r
from deltamem_cli.evaluation.talk_cases import CATEGORIES

if TYPE_CHECKING:
    from deltamem_cli.evaluation.shares import Share
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

    from deltamem_cli.evaluation.talk import ALL_TOLD, MODES

    columns = [c for c in (ALL_TOLD, *CATEGORIES) if any(answers.share(mode, c).n for mode in MODES)]

    def line(name: str, cells: list[str], last: str) -> None:
        widths = [12 if c == ALL_TOLD else 7 for c in columns]
        typer.echo(f"{name:<13}" + "".join(f"{t:>{w}}" for t, w in zip(cells, widths, strict=True)) + f"{last:>8}")

    typer.echo(f"{title}\nRight answers in percent")
    line("", [_HEADINGS.get(c, "all told") for c in columns], "tokens")
    for mode in MODES:
        shares = {c: answers.share(mode, c) for c in columns}
        if any(share.n for share in shares.values()):
            cells = [_interval(s) if c == ALL_TOLD else _percent(s) for c, s in shares.items()]
            line(_ROWS[mode], cells, f"{answers.tokens(mode):.0f}")
    line("questions", [str(max(answers.share(mode, c).n for mode in MODES)) for c in columns], "")
    typer.echo(
        "\nall told: all but never, with the 95% interval. plain: one fact. longer: within a message that asks for\n"
        "something. 3 told: in three messages. 3 in 1: in one. fixed: corrected later. others: about other people\n"
        "and things. later: after other talk. indir.: asked without naming it. never: not told, and the answer says\n"
        "that it is not known. all in view: the plain model with the whole conversation. tokens: per answer."
    )


def _percent(share: Share) -> str:
    return f"{100 * share.value:.0f}" if share.n else ""


def _interval(share: Share) -> str:
    """With its 95 % interval."""
    low, high = share.interval
    return f"{_percent(share)} ({100 * low:.0f}-{100 * high:.0f})" if share.n else ""
