"""What a chat can tell of itself: where it stands at its start, /show, /context, /stats, /memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from deltamem_cli import paths
from deltamem_cli.adapter.parts import parts
from deltamem_cli.commands.chat import slash_set
from deltamem_cli.errors import DeltamemError, UsageError
from deltamem_cli.models.entries import recommended
from deltamem_cli.session.wiping import wipe
from deltamem_cli.terminal.output import beginning, count, moment, note, opening_words, printable, size
from deltamem_cli.terminal.reply_view import tell
from deltamem_cli.text import short

if TYPE_CHECKING:
    from deltamem_cli.commands.chat.open_chat import Talk


def greeting(talk: Talk) -> list[str]:
    """The first lines: model and profile, what is small or off about them, what is continued."""
    session, request, loaded = talk.session, talk.request, talk.loaded
    file = session.engine.model.path
    starter = file.name == paths.STARTER_MODEL
    lines = [f"{printable(loaded.model.name)}, profile {session.profile.name}"]
    if starter:
        better = recommended()
        lines.append(
            "This starter is a tiny model: it talks, but knows little and is often wrong. "
            f"A better one ({size(better.size or 0)}): dmem model pull {better.name} --default"
        )
    if loaded.why_no_memory:
        lines.append(loaded.why_no_memory if not request.memory else f"Memory is off: {loaded.why_no_memory}")
    elif request.read_only:
        lines.append("Read-only: the memory is read but not changed, and nothing is saved.")
    if loaded.why_no_gpu:
        lines.append(loaded.why_no_gpu)
    if session.prompt.why_no_system:
        lines.append(printable(session.prompt.why_no_system))
    if request.temporary:
        lines.append("Temporary: nothing is written to disk, and this conversation ends with the chat.")
    elif not request.log and not request.read_only:
        lines.append("No log: the memory is saved, but not the text.")
    lines.append(_continued(talk))
    lines.append("/help lists the commands, Ctrl-D exits.")
    return lines


def _continued(talk: Talk) -> str:
    conversation, session, state = talk.session.conversation, talk.session, talk.session.view.state
    if not session.n_turns:
        remembers = " The memory is empty." if session.engine.has_memory and (state is None or not state.any()) else ""
        return f"A new conversation.{remembers}"
    heading = f" “{printable(conversation.heading)}”" if conversation.heading else ""
    shown = len(session.view.turns)
    again = f", the last {shown} visible to the model" if shown else ""
    return (
        f"Continuing{heading}, {moment(conversation.updated)}: {count(conversation.n_turns, 'turn')}{again}. New: --new"
    )


def show(talk: Talk, _argument: str) -> None:
    """/show: model, adapter, profile, conversation and how the engine runs."""
    session, loaded = talk.session, talk.loaded
    model = session.engine.model
    n_bytes = sum(part.stat().st_size for part in parts(model.path) if part.is_file())
    adapter = printable(loaded.adapter.name) if loaded.adapter else f"none ({loaded.why_no_memory})"
    facts = {
        "model": f"{printable(model.name)}, {model.architecture}, {model.n_params / 1e6:,.0f}M parameters",
        "file": f"{model.path} ({size(n_bytes)})",
        "adapter": adapter,
        "profile": session.profile.name,
        "conversation": f"{session.conversation.id}, {count(talk.n_turns, 'turn')}",
        "database": str(talk.store.path) if talk.store.path else "none (temporary chat)",
        "system": printable(session.prompt.system) if session.prompt.system else "none",
        "template": str(session.prompt.used.name),
        "thinking": ", ".join(f"{name} {value}" for name, value in slash_set.thinking(talk).items()),
        "hardware": hardware(session.engine.chosen()),
    }
    for label, text in facts.items():
        note(f"{label:<14}{text}")


def hardware(chosen: Mapping[str, int | str]) -> str:
    """How an engine runs, on one line."""
    keys, values = chosen["cache_type_k"], chosen["cache_type_v"]
    gpu = {0: "CPU only", -1: "all layers on the GPU"}.get(
        int(chosen["gpu_layers"]), f"{chosen['gpu_layers']} GPU layers"
    )
    return (
        f"{count(int(chosen['threads']), 'thread')}, {gpu}, KV cache {keys if keys == values else f'{keys}/{values}'}, "
        f"flash attention {chosen['flash_attention']}"
    )


def context(talk: Talk, _argument: str) -> None:
    """/context: tokens in the context, by turn."""
    window = talk.session.window
    filled, room = talk.session.context_filled
    note(f"{filled:,} of {room:,} tokens ({100 * filled / room:.0f} %)")
    if window.head:
        note(f"{len(window.head):>7,}  system prompt")
    for number in window.turns:
        note(f"{len(window.tokens(number)):>7,}  turn {number}")
    older = talk.n_turns - len(window.turns)
    if older > 0:
        note(
            "The model no longer sees older turns"
            + ("; the memory keeps what they wrote." if talk.session.engine.has_memory else ".")
        )


def stats(talk: Talk, _argument: str) -> None:
    """/stats: tokens and speed of the last turn, and what it wrote into the memory."""
    session = talk.session
    last = session.stats
    filled, room = session.context_filled
    if last.prompt_tokens:
        note(f"prompt   {_speed(last.prompt_tokens, last.prompt_seconds)}")
    if last.reply_tokens:
        thought = f", {count(last.thinking_tokens, 'token')} of it thinking" if last.thinking_tokens else ""
        stopped = ", stopped" if last.interrupted else ""
        note(f"reply    {_speed(last.reply_tokens, last.reply_seconds)}{thought}{stopped}")
    note(f"context  {filled:,} of {room:,} tokens ({100 * filled / room:.0f} %)")
    if not session.engine.has_memory:
        note(f"memory   off: {talk.loaded.why_no_memory}")
    else:
        import numpy as np

        norm = float(np.linalg.norm(session.seat.state()))
        note(
            f"memory   {count(last.written_tokens, 'token')} written in the last turn, "
            f"norm {norm:.4g}, changed by {last.changed:.4g}"
        )
    note(f"runs on  {hardware(session.engine.chosen())}")


def memory(talk: Talk, argument: str) -> None:
    """/memory [history|reset]: draws the memory, lists what turns did to it, or clears it."""
    if argument == "history":
        _history(talk)
        return
    if argument == "reset":
        _reset(talk)
        return
    if argument:
        raise UsageError(f"/memory takes history or reset, not {short(argument)}: see /help memory")
    from deltamem_cli.memory_view import metrics
    from deltamem_cli.store import states
    from deltamem_cli.terminal import heat_map

    session = talk.session
    if not session.engine.has_memory:
        raise DeltamemError(f"There is no memory to show: {talk.loaded.why_no_memory}")
    state = session.seat.state()
    if not state.any():
        note("The memory is empty.")
        return
    before = states.before(talk.store, session.conversation.id, session.n_turns)
    layers = metrics.per_layer(state, session.engine.layers, before.state if before else None)
    heat_map.overview(heat_map.console(), state, layers)


def _history(talk: Talk) -> None:
    from deltamem_cli.memory_view import metrics
    from deltamem_cli.store import states, turns

    conversation = talk.session.conversation.id
    steps = {step.turn: step for step in metrics.course(states.every(talk.store, conversation))}
    every = turns.all_of(talk.store, conversation)
    if not every:
        note("No turns are stored yet.")
    for turn in every:
        step = steps.get(turn.number)
        numbers = f"norm {step.norm:<8.4g} changed {step.change:<8.4g}" if step else f"{'memory unchanged':<29}"
        note(f"{turn.number:>5}  {moment(turn.created)}  {numbers}  {beginning(opening_words(turn), 40)}")


def _reset(talk: Talk) -> None:
    from deltamem_cli.terminal.questions import confirm

    talk.check_writes()
    confirm("Clear this conversation's memory for good? The transcript stays.", False)
    talk.reset_memory()
    note("The memory and the model's context are empty now.")
    wipe(talk.store, tell)


def _speed(tokens: int, seconds: float) -> str:
    rate = f", {tokens / seconds:,.1f} tokens/s" if seconds > 0 else ""
    return f"{count(tokens, 'token')} in {seconds:.2f} s{rate}"
