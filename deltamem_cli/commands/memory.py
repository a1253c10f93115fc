"""`dmem memory`: the table of its commands; each group of them has its module.

Those in memory_show, memory_change and memory_file need no model; those in memory_model load it when they must.
"""

from __future__ import annotations

import typer

from deltamem_cli.commands import memory_change, memory_file, memory_model, memory_show
from deltamem_cli.commands.shared import KeyValueCommand

app = typer.Typer(add_completion=False, no_args_is_help=True, rich_markup_mode=None)


@app.callback()
def memory() -> None:
    """Inspect and manage a conversation's memory.

    \b
    Examples:
      dmem memory inspect
      dmem memory probe "What is my name?"
      dmem memory forget 3
    """


app.command("inspect")(memory_show.inspect)
app.command("history")(memory_show.history)
app.command("diff")(memory_show.diff)
app.command("undo")(memory_change.undo)
app.command("reset")(memory_change.reset)
app.command("scrub")(memory_change.scrub)
app.command("copy")(memory_change.copy)
app.command("export")(memory_file.export)
app.command("import")(memory_file.import_)
app.command("probe", cls=KeyValueCommand)(memory_model.probe)
app.command("remember")(memory_model.remember)
app.command("forget")(memory_model.forget)
