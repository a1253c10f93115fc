"""`dmem memory`: the table of its commands; each group of them has its module.

Those in memory_show, memory_change and memory_file need no model. What does (probe, remember, forget) is added below
in the same way, from a module that imports the engine inside its functions.
"""

from __future__ import annotations

import typer

from deltamem_cli.commands import memory_change, memory_file, memory_show

app = typer.Typer(add_completion=False, no_args_is_help=True, rich_markup_mode=None, help="Show and govern memory.")


@app.callback()
def memory() -> None:
    """Show and govern what a conversation's memory keeps."""


app.command("inspect")(memory_show.inspect)
app.command("history")(memory_show.history)
app.command("diff")(memory_show.diff)
app.command("undo")(memory_change.undo)
app.command("reset")(memory_change.reset)
app.command("scrub")(memory_change.scrub)
app.command("copy")(memory_change.copy)
app.command("export")(memory_file.export)
app.command("import")(memory_file.import_)
