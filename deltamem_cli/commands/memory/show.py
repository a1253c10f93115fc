"""`dmem memory inspect`, `history` and `diff`: what the memory of a conversation is. Changes nothing, loads no model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deltamem_cli.commands.finding import pick_conversation, read_store
from deltamem_cli.commands.options.stored import CidOption, DatabaseOption, JsonOption, ProfileOption
from deltamem_cli.commands.output_file import write_picture
from deltamem_cli.terminal.output import count, moment, note, print_json, printable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from deltamem_cli.memory_view.metrics import MemoryAfter
    from deltamem_cli.session.looking import Look
    from deltamem_cli.store.records import Conversation, Turn

ImageOption = Annotated[
    Path | None, typer.Option("--image", metavar="FILE", help="Draw all layers to a file (.svg or .png).")
]
HEADING_LENGTH = 56  # with the id before it, 100 columns

LayerOption = Annotated[int | None, typer.Option("--layer", metavar="N", help="Show one layer, with its numbers.")]


def inspect(
    profile: ProfileOption = None,
    cid: CidOption = None,
    layer: LayerOption = None,
    image: ImageOption = None,
    as_json: JsonOption = False,
    database: DatabaseOption = None,
) -> None:
    """Show the memory as a heat map of every layer.

    Each layer has its norm, effective rank and last change.

    \b
    Examples:
      dmem memory inspect --profile work --image memory.svg
    """
    from deltamem_cli.session import documents, looking

    with read_store(database) as store:
        look = looking.inspect(store, pick_conversation(store, profile, cid), course=image is not None)
    if image:
        write_picture(image, look.picture())
    chosen = looking.only_layer(look.layers, layer)
    if as_json:
        print_json(documents.inspected(look, chosen))
        return
    _print_heading(look)
    if look.snapshot is None:
        return
    from deltamem_cli.terminal import heat_map

    out = heat_map.console()
    if layer is not None:
        heat_map.layer_detail(out, look.snapshot.state[chosen[0]], look.layers[chosen[0]])
    else:
        heat_map.overview(out, look.snapshot.state, look.layers)


def history(
    profile: ProfileOption = None,
    cid: CidOption = None,
    as_json: JsonOption = False,
    database: DatabaseOption = None,
) -> None:
    """List the turns and how each one changed the memory.

    \b
    Examples:
      dmem memory history --profile work
    """
    from deltamem_cli.session import documents, looking

    with read_store(database) as store:
        conversation = pick_conversation(store, profile, cid)
        every, steps = looking.history(store, conversation)
    if as_json:
        print_json(documents.history(conversation, every, steps))
        return
    _print_history(conversation, every, steps)


def diff(
    before: Annotated[int, typer.Argument(metavar="A", help="First turn; 0 is the beginning.", min=0)],
    after: Annotated[int, typer.Argument(metavar="B", help="Second turn.", min=0)],
    profile: ProfileOption = None,
    cid: CidOption = None,
    layer: LayerOption = None,
    image: ImageOption = None,
    as_json: JsonOption = False,
    database: DatabaseOption = None,
) -> None:
    """Show how the memory changed from turn A to turn B.

    \b
    Examples:
      dmem memory diff 3 7 --image diff.png
    """
    from deltamem_cli.session import documents, looking

    with read_store(database) as store:
        found = looking.difference(store, pick_conversation(store, profile, cid), before, after)
    if image:
        write_picture(image, found.picture())
    chosen = looking.only_layer(found.layers, layer)
    if as_json:
        print_json(documents.difference(found, chosen))
        return
    from deltamem_cli.terminal import heat_map

    out = heat_map.console()
    out.print(f"turn {after} minus turn {before}: the memory moved by {found.total:.4g}\n")
    if layer is not None:
        heat_map.layer_detail(out, found.change[chosen[0]], found.layers[chosen[0]])
    else:
        heat_map.overview(out, found.change, found.layers)


def _print_heading(look: Look) -> None:
    conversation, snapshot = look.conversation, look.snapshot
    heading = f", “{printable(conversation.heading)[:HEADING_LENGTH]}”" if conversation.heading else ""
    typer.echo(f"profile       {conversation.profile}")
    typer.echo(f"conversation  {conversation.id}{heading}")
    if snapshot:
        _, heads, rank, _ = snapshot.state.shape
        typer.echo(f"model         {printable(snapshot.model.name)} ({snapshot.model.fingerprint[:12]})")
        typer.echo(
            f"adapter       {printable(snapshot.adapter.name)} ({snapshot.adapter.fingerprint[:12]}), "
            f"{count(len(look.layers), 'layer')}, {count(heads, 'head')}, rank {rank}"
        )
    last = f", last on {moment(look.turns[-1].created)}" if look.turns else ""
    typer.echo(f"written       {look.extent}{last}")
    if snapshot is None:
        typer.echo("memory        empty")
        return
    norm = sum(one.norm**2 for one in look.layers) ** 0.5
    change = sum(one.change**2 for one in look.layers) ** 0.5
    typer.echo(f"memory        norm {norm:.4g}, the last turn that wrote changed it by {change:.4g}\n")


def _print_history(conversation: Conversation, every: Sequence[Turn], steps: dict[int | None, MemoryAfter]) -> None:
    from deltamem_cli.terminal import heat_map

    if not every:
        note(f"Conversation {conversation.id} has no turns.")
        return
    highest = max((step.change for step in steps.values()), default=0.0)
    width = heat_map.console().width
    typer.echo("turn  time                in   out  written   norm  change")
    for turn in every:
        step = steps.get(turn.number)
        first = next((message.text for message in turn.messages if message.role == "user"), "")
        marks = ("" if turn.kind == "chat" else f"[{turn.kind}] ") + ("(interrupted) " if turn.interrupted else "")
        line = (
            f"{turn.number:>4}  {moment(turn.created)}  {turn.prompt_tokens:>4}  {turn.reply_tokens:>4}  "
            f"{turn.written_tokens:>7}  {heat_map.short(step.norm) if step else '·':>5}  "
            f"{heat_map.short(step.change) if step else '·':>6}  "
            f"{heat_map.bar(step.change, highest, 10) if step else '':<10}  {printable(marks + first[:200])}"
        )
        typer.echo(line if len(line) <= width else line[: width - 1] + "…")
