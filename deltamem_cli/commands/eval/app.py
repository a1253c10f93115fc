"""`dmem eval`: measures what a memory is worth. Shows and draws; the measuring is evaluation/."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deltamem_cli.commands.eval import benchmarks
from deltamem_cli.commands.eval.measured import AnswersOption, measured, title_of
from deltamem_cli.commands.eval.progress import run_all
from deltamem_cli.commands.options.model import (
    DEFAULT_HARDWARE,
    AdapterOption,
    Hardware,
    ModelOption,
    WriteOption,
    grouped,
)
from deltamem_cli.commands.options.stored import JsonOption
from deltamem_cli.commands.output_file import check_picture, write_picture
from deltamem_cli.errors import UsageError
from deltamem_cli.terminal.output import print_json
from deltamem_cli.text import short

if TYPE_CHECKING:
    from deltamem_cli.evaluation.runner import Task

SizeOption = Annotated[int, typer.Option("--ctx-size", metavar="N", min=512, help="Context size in tokens.")]

app = typer.Typer(add_completion=False, no_args_is_help=True, rich_markup_mode=None)


@app.callback()
def eval_() -> None:
    """Measure how much the memory recalls.

    \b
    Examples:
      dmem eval recall --limit 20
      dmem eval talk --limit 60
      dmem eval locomo --limit 100
    """


@app.command()
@grouped
def recall(
    model: ModelOption = None,
    adapter: AdapterOption = None,
    limit: Annotated[
        int, typer.Option("--limit", metavar="N", min=1, help="Questions per mode, over all numbers of facts.")
    ] = 150,
    facts: Annotated[str, typer.Option("--facts", metavar="N,…", help="How many facts conversations tell.")] = "1,3,6",
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="Random seed for the cases.")] = 0,
    data: Annotated[
        Path | None,
        typer.Option("--data", metavar="FILE", help="Your own cases (.jsonl), as for `dmem adapter train --data`."),
    ] = None,
    image: Annotated[
        Path | None, typer.Option("--image", metavar="FILE", help="Draw recall as curves (.svg or .png).")
    ] = None,
    ctx_size: SizeOption = 2048,
    hardware: Hardware = DEFAULT_HARDWARE,
    as_json: JsonOption = False,
) -> None:
    """Tell facts in one session and ask for them in another.

    An answer counts if its first sentence contains the value, word for word and in the same case. The wording of facts
    and questions never occurs in training; nor do the values, except in one row; in another row, even the kinds of facts
    are new. The memory answers alone: its session sees no earlier turn. The controls are no memory, an empty one, another
    conversation's, and the whole conversation in the context. The same is measured after unrelated talk and after
    updates, and plain text is read with filled memories. Your own memories are not touched. Ctrl-C shows the results so
    far.

    \b
    Examples:
      dmem eval recall
      dmem eval recall --limit 20 --json
      dmem eval recall -m MODEL.gguf --adapter ADAPTER.gguf --image recall.svg
    """
    from deltamem_cli.evaluation import cases as case_files
    from deltamem_cli.evaluation import runner as running
    from deltamem_cli.evaluation.report import RecallReport, document
    from deltamem_cli.session.request import Request

    if image:
        check_picture(image)
    if data is None:
        cases = running.invented(limit, seed, _numbers(facts))
    else:
        cases = running.by_number_of_facts(case_files.read_cases(data), limit)
    report = RecallReport()
    with measured(Request(model=model, adapter=adapter, ctx_size=ctx_size, **asdict(hardware))) as (subject, who):
        complete = _run(running.Runner(subject, report, seed).steps(cases))
    title = title_of(who)
    if as_json:
        print_json({**who, "seed": seed, "complete": complete, **document(report)})
    else:
        from deltamem_cli.commands.eval.recall_tables import show

        show(report, title)
    if image:
        from deltamem_cli.evaluation.recall_picture import draw

        write_picture(image, draw(report, title))
    if not complete:
        raise typer.Exit(130)


@app.command()
@grouped
def talk(
    model: ModelOption = None,
    adapter: AdapterOption = None,
    limit: Annotated[
        int | None, typer.Option("--limit", metavar="N", min=1, help="Number of conversations.  [default: all]")
    ] = None,
    write: WriteOption = None,
    answers: AnswersOption = None,
    image: Annotated[
        Path | None, typer.Option("--image", metavar="FILE", help="Draw the shares as bars (.svg or .png).")
    ] = None,
    ctx_size: SizeOption = 2048,
    hardware: Hardware = DEFAULT_HARDWARE,
    as_json: JsonOption = False,
) -> None:
    """Hold natural conversations and ask about them later.

    The conversations are written by hand and never trained on; the model replies in its own words, always choosing the
    likeliest. An answer counts if its first two sentences contain the value or, where nothing was told, say that it is
    not known. The memory is measured alone and with the last turns; the controls are no memory, an empty one, another
    conversation's, and the whole conversation in the context. Your own memories are not touched. Ctrl-C shows the
    results so far.

    \b
    Examples:
      dmem eval talk
      dmem eval talk --limit 60 --answers answers.jsonl
      dmem eval talk -m MODEL.gguf --adapter ADAPTER.gguf --json
    """
    from deltamem_cli.evaluation import talk as talking
    from deltamem_cli.evaluation.talk_cases import conversations
    from deltamem_cli.session.request import Request

    if image:
        check_picture(image)
    chosen = conversations(limit)
    request = Request(model=model, adapter=adapter, ctx_size=ctx_size, **asdict(hardware))
    with measured(request, write) as (subject, who):
        about = {**who, "write": subject.write, "ctx_size": ctx_size}
        found = talking.Answers(about, answers)
        complete = run_all(talking.measure(subject, chosen, found), len(chosen))
    title = title_of(who)
    if as_json:
        print_json({**found.document(), "complete": complete})
    else:
        from deltamem_cli.commands.eval.talk_tables import show

        show(found, title)
    if image:
        from deltamem_cli.evaluation.bars_picture import draw as draw_bars
        from deltamem_cli.evaluation.talk_cases import CATEGORIES

        columns = {talking.ALL_TOLD: "all but never told", **CATEGORIES}
        write_picture(image, draw_bars(columns, talking.MODES, found.share, title))
    if not complete:
        raise typer.Exit(130)


_MOST_FACTS = 20


def _numbers(text: str) -> tuple[int, ...]:
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and 1 <= int(part) <= _MOST_FACTS for part in parts):
        raise UsageError(f"--facts is {short(text)}: write numbers from 1 to {_MOST_FACTS}, for example 1,3,6")
    return tuple(sorted({int(part) for part in parts}))


def _run(steps: Iterable[tuple[str, Task]]) -> bool:
    """Takes the steps, with a bar on stderr. False when Ctrl-C ended that."""
    planned = list(steps)

    def taken() -> Iterator[str]:
        for name, step in planned:
            step()
            yield name

    return run_all(taken(), len(planned))


benchmarks.add_to(app)
