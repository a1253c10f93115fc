"""The slash commands that change something: what the model sees, what is remembered, with what it is run."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING

from deltamem_cli import paths
from deltamem_cli.commands.editor import edited
from deltamem_cli.commands.output_file import write_file
from deltamem_cli.commands.text_file import file_text
from deltamem_cli.errors import DeltamemError, UsageError
from deltamem_cli.session.wiping import wipe, wipe_typed
from deltamem_cli.terminal import one_reply, transcript
from deltamem_cli.terminal.interrupts import lines_gathered, stopping
from deltamem_cli.terminal.output import beginning, count, name_turns, note, printable
from deltamem_cli.terminal.questions import confirm
from deltamem_cli.terminal.reply_view import progress_bar, tell
from deltamem_cli.text import short

if TYPE_CHECKING:
    from deltamem_cli.commands.chat.open_chat import Talk


def clear(talk: Talk, _argument: str) -> None:
    """/clear: the model sees nothing of what was said; the memory stays."""
    with stopping(talk.session.stop):
        talk.session.clear()
    kept = " The memory stays." if talk.session.engine.has_memory else ""
    note(f"The model no longer sees anything said so far.{kept}")


def new(talk: Talk, _argument: str) -> None:
    """/new: starts a conversation with an empty memory."""
    old = talk.session
    talk.begin_new()
    kept = (
        f" To return to the old one: dmem chat --cid {old.conversation.id[-8:]}"
        if old.n_turns and not talk.request.temporary
        else ""
    )
    note(f"Started a new conversation.{kept}")


def ask(talk: Talk, text: str) -> None:
    """A message that is no command."""
    _show(talk, lambda progress: talk.session.ask(text, progress=progress))


def _show(talk: Talk, reply: Callable[[one_reply.Progress], Generator[str, None, None]]) -> None:
    one_reply.show_reply(talk.session, reply, stream=talk.stream, show_thinking=talk.request.show_thinking)
    if talk.session.stats.interrupted:
        note("(stopped)")
    _warn_once(talk)


def regenerate(talk: Talk, _argument: str) -> None:
    """/regen: answer the last message again."""
    _show(talk, lambda progress: talk.session.regenerate(progress=progress))


def undo(talk: Talk, argument: str) -> None:
    """/undo: take back the last turns, and the typed lines that led to them."""
    number = _number(argument) if argument else 1
    with stopping(talk.session.stop), progress_bar("reading") as progress:
        gone = talk.session.undo(number, progress=progress)
    wipe_typed(talk.store, tell, talk.erase_typed)  # the bytes go when the chat ends
    back = "; the memory is as it was before" if talk.session.engine.has_memory else ""
    note(f"Undid {count(len(gone), 'turn')}{back}.")


def edit(talk: Talk, argument: str) -> None:
    """/edit [TEXT]: sends what the editor was left with, unless it is blank."""
    text = from_editor(talk, argument)
    if not text.strip():
        note("Nothing was written, so nothing was sent.")
        return
    note(beginning(text, 200))
    ask(talk, text.strip())


def from_editor(talk: Talk, text: str) -> str:
    """`text` as edited in $EDITOR. Raises DeltamemError in a temporary chat, or when the editor fails."""
    if talk.request.temporary:
        raise DeltamemError(
            "This chat is temporary and writes nothing to disk, but an editor needs a file: write your message between "
            'two lines of """ instead.'
        )
    with lines_gathered():
        return edited(text)


def model(talk: Talk, argument: str) -> None:
    """/model [MODEL [ADAPTER]]: shows the model, or switches; a memory of other fingerprints is left for a new one."""
    if not argument:
        adapter = talk.loaded.adapter
        note(f"{talk.session.engine.model.path}" + (f" with {adapter.name}" if adapter else ", memory off"))
        return
    file, rest = _word(argument)
    with_adapter, more = _word(rest)
    if more:
        raise UsageError("/model takes a model and an adapter: put quotes around names with spaces.")
    with progress_bar("reading") as progress:
        same = talk.switch_model(file, with_adapter or None, progress)
    note(f"Now using {printable(talk.loaded.model.name)}.")
    if talk.loaded.why_no_memory:
        note(f"Memory is off: {talk.loaded.why_no_memory}")
    if not same:
        note("Another model or adapter wrote the memory, so this is a new conversation; the old one is kept.")


def system(talk: Talk, argument: str) -> None:
    """/system [TEXT]: shows the system prompt, or sets it from the next turn on."""
    if not argument:
        note(printable(talk.session.prompt.system or "There is no system prompt."))
        return
    with progress_bar("reading") as progress:
        talk.set_system("" if argument in ('""', "''") else argument, progress)
    note("Applies from the next turn on." if talk.session.prompt.system else "The system prompt is removed.")
    if talk.session.prompt.why_no_system:
        note(printable(talk.session.prompt.why_no_system))


def remember(talk: Talk, argument: str) -> None:
    """/remember TEXT: writes TEXT into the memory as a turn without a reply."""
    if not argument:
        raise UsageError("/remember takes the text to remember.")
    talk.check_writes()
    one_reply.remember(talk.session, argument)
    stats = talk.session.stats
    note(f"Remembered as turn {talk.session.n_turns}: {count(stats.written_tokens, 'token')} written.")
    _warn_once(talk)


def forget(talk: Talk, argument: str) -> None:
    """/forget TURN...: deletes turns after asking, and replays the later ones without them."""
    from deltamem_cli.session.forgetting import plan
    from deltamem_cli.terminal.turn_numbers import forget_report, parse_turns

    if not argument:
        raise UsageError("/forget takes turn numbers: see /memory history")
    if talk.request.read_only:
        raise DeltamemError("This chat is read-only, so it can't forget anything: open it without --read-only.")
    numbers = parse_turns(argument.split())
    planned = plan(talk.store, talk.session.conversation.id, numbers)
    name_turns(planned.turns)
    confirm(f"Forget {count(len(planned.turns), 'turn')} for good?", False)
    with stopping(talk.session.stop), progress_bar("replaying") as progress:
        result = talk.session.forget(numbers, progress=progress)
    forget_report(result)
    wipe_typed(talk.store, tell, talk.erase_typed)
    wipe(talk.store, tell)


def read(talk: Talk, argument: str) -> None:
    """/read FILE [QUESTION]: sends a file's text with the question, or remembers it when there is none."""
    if not argument:
        raise UsageError("/read takes a file name.")
    name, question = _word(argument)
    file = paths.expanded(name)
    message = f"{file.name}:\n\n{file_text(file)}"
    if question:
        ask(talk, f"{message}\n\n{question}")
        return
    one_reply.remember(talk.session, message)
    note(f"Read {file.name}, {count(talk.session.stats.prompt_tokens, 'token')}; now ask about it.")
    _warn_once(talk)


def save(talk: Talk, argument: str) -> None:
    """/save FILE: writes the transcript as Markdown; asks before it replaces a file."""
    from deltamem_cli.store import conversations, turns

    name, rest = _word(argument)
    if not name or rest:
        raise UsageError("/save takes a file name: put quotes around it if it has spaces.")
    file = paths.expanded(name)
    if os.path.isfile(file):
        confirm(f"{file} exists. Replace it?", False)
    if not turns.last_number(talk.store, talk.session.conversation.id):
        raise DeltamemError("This conversation has no stored turns, so there is nothing to save: say something first.")
    conversation = conversations.get(talk.store, talk.session.conversation.id)
    every = turns.all_of(talk.store, conversation.id)
    write_file(file, transcript.markdown(conversation, every).encode("utf-8"))
    note(f"Wrote {file}: {count(len(every), 'turn')}.")


def _number(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise UsageError(f"{short(text)} is not a number of turns: give a whole number above 0.")
    return int(text)


def _word(text: str) -> tuple[str, str]:
    """The first word, which may stand in quotes, and the rest as it is."""
    if text[:1] in ("'", '"') and (end := text.find(text[0], 1)) > 0:
        return text[1:end], text[end + 1 :].strip()
    word, _, rest = text.partition(" ")
    return word, rest.strip()


def _warn_once(talk: Talk) -> None:
    """Each warning is said once in a chat."""
    for warn in (one_reply.warn_of_loop, one_reply.warn_of_dropped):
        text = warn(talk.session)
        if text and warn.__name__ not in talk.warned:
            talk.warned.add(warn.__name__)
            tell(text)
