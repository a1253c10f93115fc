"""`dmem memory inspect`, `history` and `diff`: what the memory of a conversation is. Changes nothing, loads no model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deltamem_cli.commands.finding import pick_conversation, read_store
from deltamem_cli.commands.options.stored import CidOption, DatabaseOption, JsonOption, ProfileOption
from deltamem_cli.commands.output_file import write_picture
from deltamem_cli.errors import DeltamemError, UsageError
from deltamem_cli.terminal.output import count, moment, note, print_json, printable

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np

    from deltamem_cli.memory_view.metrics import LayerMetrics, Step
    from deltamem_cli.store.records import Conversation, Snapshot, Turn

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
    from deltamem_cli.memory_view import metrics
    from deltamem_cli.store import states, turns

    with read_store(database) as store, store.reading():
        conversation = pick_conversation(store, profile, cid)
        every = turns.all_of(store, conversation.id, messages=False)
        snapshot = states.latest(store, conversation.id)
        before = states.before(store, conversation.id, snapshot.turn) if snapshot and snapshot.turn else None
        steps = metrics.course(states.every(store, conversation.id)) if image else []
    layers = metrics.per_layer(snapshot.state, snapshot.layers, before.state if before else None) if snapshot else []
    if image:
        if snapshot is None:
            raise DeltamemError(f"The memory of conversation {conversation.id} is empty, so there is nothing to draw; "
                             "write something with: dmem chat")  # fmt: skip
        title = f"{conversation.profile}, {snapshot.model.name}: {_extent(every)}"
        write_image(image, title, snapshot.state, layers, steps)
    chosen = _only_layer(layers, layer)
    if as_json:
        print_json(_inspect_json(conversation, every, snapshot, [(i, layers[i]) for i in chosen]))
        return
    _print_heading(conversation, every, snapshot, layers)
    if snapshot is None:
        return
    from deltamem_cli.terminal import heat_map

    out = heat_map.console()
    if layer is not None:
        heat_map.layer_detail(out, snapshot.state[chosen[0]], layers[chosen[0]])
    else:
        heat_map.overview(out, snapshot.state, layers)


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
    from deltamem_cli.memory_view import metrics
    from deltamem_cli.store import states, turns

    with read_store(database) as store, store.reading():
        conversation = pick_conversation(store, profile, cid)
        every = turns.all_of(store, conversation.id)
        steps = {step.turn: step for step in metrics.course(states.every(store, conversation.id))}
    if as_json:
        print_json(
            {
                "profile": conversation.profile,
                "conversation": conversation.id,
                "turns": [_history_json(turn, steps.get(turn.number)) for turn in every],
            }
        )
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
    from deltamem_cli.memory_view import metrics
    from deltamem_cli.store import states, turns

    with read_store(database) as store, store.reading():
        conversation = pick_conversation(store, profile, cid)
        for number in {before, after} - {0}:
            turns.get(store, conversation.id, number)
        old, new = (states.after(store, conversation.id, number) for number in (before, after))
    present = new or old
    if present is None:
        raise DeltamemError(f"Conversation {conversation.id} has no memory at turns {before} and {after}; "
                         "see: dmem memory history")  # fmt: skip
    if old and new and old.state.shape != new.state.shape:
        raise DeltamemError(f"Turns {before} and {after} were written by different adapters, so their memories can't be "
                         "compared; see: dmem memory history")  # fmt: skip
    nothing = 0 * present.state
    change = (new.state if new else nothing) - (old.state if old else nothing)
    # The layers' norms, ranks and changes are those of the difference itself.
    layers = metrics.per_layer(change, present.layers, None)
    if image:
        write_image(image, f"{conversation.profile}: turn {after} minus turn {before}", change, layers, [])
    chosen = _only_layer(layers, layer)
    total = metrics.total_norm(change)
    if as_json:
        print_json(
            {
                "profile": conversation.profile,
                "conversation": conversation.id,
                "before": before,
                "after": after,
                "change": total,
                "layers": [
                    {
                        "layer": layers[i].layer,
                        "change": layers[i].norm,
                        "effective_rank": layers[i].effective_rank,
                        "difference": change[i].tolist(),
                    }
                    for i in chosen
                ],
            }
        )
        return
    from deltamem_cli.terminal import heat_map

    out = heat_map.console()
    out.print(f"turn {after} minus turn {before}: the memory moved by {total:.4g}\n")
    if layer is not None:
        heat_map.layer_detail(out, change[chosen[0]], layers[chosen[0]])
    else:
        heat_map.overview(out, change, layers)


def write_image(
    file: Path, title: str, state: np.ndarray, layers: Sequence[LayerMetrics], steps: Sequence[Step]
) -> None:
    """Draw all layers, and the norms over the turns, into an .svg or .png file."""
    from deltamem_cli.memory_view.picture import draw

    write_picture(file, draw(title, state, layers, steps))


def _only_layer(layers: Sequence[LayerMetrics], layer: int | None) -> list[int]:
    """Indices of the layers to show: all, or the one whose number was given."""
    if layer is None:
        return list(range(len(layers)))
    found = [i for i, one in enumerate(layers) if one.layer == layer]
    if not found:
        there = f"{layers[0].layer} to {layers[-1].layer}" if layers else "none, the memory is empty"
        raise UsageError(f"There is no layer {layer} in this memory; its layers are {there}")
    return found


def _inspect_json(
    conversation: Conversation,
    every: Sequence[Turn],
    snapshot: Snapshot | None,
    layers: Sequence[tuple[int, LayerMetrics]],
) -> dict[str, Any]:
    return {
        "profile": conversation.profile,
        "conversation": conversation.id,
        "model": snapshot.model.name if snapshot else None,
        "model_fingerprint": snapshot.model.fingerprint if snapshot else None,
        "adapter": snapshot.adapter.name if snapshot else None,
        "adapter_fingerprint": snapshot.adapter.fingerprint if snapshot else None,
        "rank": snapshot.state.shape[2] if snapshot else None,
        "state_heads": snapshot.state.shape[1] if snapshot else None,
        "turns": len(every),
        "tokens_written": _written(every),
        "layers": [
            {
                "layer": one.layer,
                "norm": one.norm,
                "effective_rank": one.effective_rank,
                "change": one.change,
                "state": snapshot.state[i].tolist(),
            }
            for i, one in layers
            if snapshot
        ],
    }


def _written(every: Sequence[Turn]) -> int:
    """Tokens that the present memory was written from; turns from before a reset have no state left."""
    return sum(turn.written_tokens for turn in every if turn.has_state)


def _extent(every: Sequence[Turn]) -> str:
    return f"{count(len(every), 'turn')}, {count(_written(every), 'token')} written"


def _print_heading(
    conversation: Conversation, every: Sequence[Turn], snapshot: Snapshot | None, layers: Sequence[LayerMetrics]
) -> None:
    heading = f", “{printable(conversation.heading)[:HEADING_LENGTH]}”" if conversation.heading else ""
    typer.echo(f"profile       {conversation.profile}")
    typer.echo(f"conversation  {conversation.id}{heading}")
    if snapshot:
        _, heads, rank, _ = snapshot.state.shape
        typer.echo(f"model         {printable(snapshot.model.name)} ({snapshot.model.fingerprint[:12]})")
        typer.echo(
            f"adapter       {printable(snapshot.adapter.name)} ({snapshot.adapter.fingerprint[:12]}), "
            f"{count(len(layers), 'layer')}, {count(heads, 'head')}, rank {rank}"
        )
    last = f", last on {moment(every[-1].created)}" if every else ""
    typer.echo(f"written       {_extent(every)}{last}")
    if snapshot is None:
        typer.echo("memory        empty")
        return
    norm = sum(one.norm**2 for one in layers) ** 0.5
    change = sum(one.change**2 for one in layers) ** 0.5
    typer.echo(f"memory        norm {norm:.4g}, the last turn that wrote changed it by {change:.4g}\n")


def _history_json(turn: Turn, step: Step | None) -> dict[str, Any]:
    return {
        "turn": turn.number,
        "kind": turn.kind,
        "created": turn.created,
        "model": turn.model.name,
        "adapter": turn.adapter.name if turn.adapter else None,
        "interrupted": turn.interrupted,
        "prompt_tokens": turn.prompt_tokens,
        "reply_tokens": turn.reply_tokens,
        "written_tokens": turn.written_tokens,
        "norm": step.norm if step else None,
        "change": step.change if step else None,
    }


def _print_history(conversation: Conversation, every: Sequence[Turn], steps: dict[int | None, Step]) -> None:
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
