"""`dmem memory`: the table of its commands; each group of them has its module.

Those in show, change and transfer need no model; probe, remember and forget load it when they must.
"""

from __future__ import annotations

import typer

from deltamem_cli.commands.memory import change, forget, probe, remember, show, transfer
from deltamem_cli.commands.options.stored import KeyValueCommand

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


app.command("inspect")(show.inspect)
app.command("history")(show.history)
app.command("diff")(show.diff)
app.command("undo")(change.undo)
app.command("reset")(change.reset)
app.command("scrub")(change.scrub)
app.command("copy")(change.copy)
app.command("export")(transfer.export)
app.command("import")(transfer.import_)
app.command("probe", cls=KeyValueCommand)(probe.probe)
app.command("remember")(remember.remember)
app.command("forget")(forget.forget)
