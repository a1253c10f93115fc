"""The chat in a terminal: the prompt with its keys, and the loop around it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from threading import Thread
from typing import TYPE_CHECKING

import typer
from prompt_toolkit import PromptSession
from prompt_toolkit.application import Application, get_app, run_in_terminal
from prompt_toolkit.buffer import Buffer
from prompt_toolkit.document import Document
from prompt_toolkit.filters import Condition
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.keys import Keys
from prompt_toolkit.output import create_output

from deltamem_cli.commands.chat import slash, slash_actions
from deltamem_cli.commands.chat.completer import ChatCompleter
from deltamem_cli.commands.chat.history import open_history
from deltamem_cli.commands.editor import edited
from deltamem_cli.errors import DeltamemError, refused_by_system
from deltamem_cli.session.wiping import wipe
from deltamem_cli.terminal import pastes
from deltamem_cli.terminal.last_resort import watch_again
from deltamem_cli.terminal.output import count, note
from deltamem_cli.terminal.reply_view import progress_bar, tell
from deltamem_cli.text import whole

if TYPE_CHECKING:
    from deltamem_cli.commands.chat.open_chat import Talk

QUOTES = '"""'


def hold(talk: Talk) -> None:
    """Asks and answers until the user leaves, or the terminal goes."""
    try:
        _ask_and_answer(talk)
    finally:
        wipe(talk.store, tell)
    _farewell(talk)


def _ask_and_answer(talk: Talk) -> None:
    from deltamem_cli.engine import Cancelled

    typed = _Typed()
    prompt = _prompt(talk, typed)
    _when_first_shown(prompt, partial(_prepare, talk))
    while True:
        typed.begin()
        try:
            text = whole(prompt.prompt(">>> ")).removeprefix("\ufeff")  # an editor's mark
        except KeyboardInterrupt:
            note("To exit, press Ctrl-D or type /exit; Ctrl-C stops a reply.")
            continue
        except EOFError:
            break
        finally:
            watch_again()
            pastes.mark_again()
        try:
            _take(talk, text, literal=typed.literal)
        except slash.Leave:
            break
        except Cancelled:
            note("Stopped; nothing has changed.")
            talk.start()
        except (KeyboardInterrupt, typer.Abort):
            note("Nothing was changed.")
        except DeltamemError as error:
            tell(str(error))
        except OSError as error:
            sentence = refused_by_system(error)
            if not sentence:
                raise
            tell(sentence)


def _take(talk: Talk, text: str, *, literal: bool) -> None:
    """literal: a message, whatever stands in it."""
    message = text.strip("\n") if literal else unquoted(text)
    if message is None:
        command = slash.command_of(text)
        if command:
            if command[0] != "/exit":
                _wait(talk)
            slash.run(talk, *command)
            return
        message = text.strip()
    if message.strip():
        _wait(talk)
        slash_actions.ask(talk, message)


def _wait(talk: Talk) -> None:
    with progress_bar("reading") as progress:
        talk.ready(progress)


def unquoted(text: str) -> str | None:
    """What stands between two lots of three quotes; None for another text, as of code that begins with a docstring."""
    text = text.strip()
    inner = text.removeprefix(QUOTES).removesuffix(QUOTES)
    if len(inner) != len(text) - 2 * len(QUOTES):
        return None
    if QUOTES in inner and not (inner.startswith("\n") and inner.endswith("\n")):
        return None
    return inner.strip("\n")


def is_open(text: str) -> bool:
    """Whether three quotes have begun a message of many lines that is not ended yet."""
    return text.strip().startswith(QUOTES) and text.count(QUOTES) % 2 == 1


def _farewell(talk: Talk) -> None:
    session, request = talk.session, talk.request
    if request.temporary or request.read_only or not talk.n_turns:
        return
    profile = "" if session.profile.name == "default" else f" -p {session.profile.name}"
    note(f"{count(talk.n_turns, 'turn')} saved. To continue: dmem chat{profile}")


def _prompt(talk: Talk, typed: _Typed) -> PromptSession[str]:
    request = talk.request
    keep = request.log and not request.temporary and not request.read_only
    talk.history = open_history(talk.typed_for, keep=keep)
    prompt: PromptSession[str] = PromptSession(
        history=talk.history,
        completer=ChatCompleter(talk),
        complete_while_typing=False,
        key_bindings=_keys(typed, editor=not request.temporary),  # an editor needs a file
        multiline=True,
        prompt_continuation=lambda width, line, wrapped: "... ",
        # replies go to stdout; where that is no terminal the prompt goes to stderr
        output=create_output(always_prefer_tty=True),
    )
    prompt.default_buffer.on_text_insert += typed.note
    return prompt


class _Typed:
    """How the text at the prompt has come there.

    together: letters have come in the same read as the key that is handled now. literal: what was sent is a message,
    whatever stands in it, as it was pasted.
    """

    def __init__(self) -> None:
        self.together = False
        self.begin()

    def begin(self) -> None:
        self.literal = False
        self._block = ""  # the first line of what was pasted at the beginning, if that is more than a line

    def note(self, _buffer: Buffer) -> None:
        loop = get_app().loop
        if loop is not None:
            self.together = True
            loop.call_soon(self._forget)  # all keys of one read are handled before that

    def _forget(self) -> None:
        self.together = False

    def paste(self, buffer: Buffer, data: str) -> None:
        pasted = data.replace("\r\n", "\n").replace("\r", "\n")
        if not buffer.text.strip():
            one_line = "\n" not in pasted.strip() and not (pasted.strip().startswith(QUOTES) and unquoted(pasted))
            self._block = "" if one_line else pasted.strip().partition("\n")[0]
        buffer.insert_text(pasted)

    def is_block(self, text: str) -> bool:
        return bool(self._block) and text.lstrip().startswith(self._block)


def _keys(typed: _Typed, *, editor: bool) -> KeyBindings:
    keys = KeyBindings()

    @Condition
    def completing() -> bool:
        state = get_app().current_buffer.complete_state
        return state is not None and state.current_completion is not None

    @keys.add(Keys.BracketedPaste)
    def _(event: KeyPressEvent) -> None:
        typed.paste(event.current_buffer, event.data)

    @keys.add("enter")
    def _(event: KeyPressEvent) -> None:
        _enter(event, typed)

    @keys.add("enter", filter=completing)
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.complete_state = None

    @keys.add("escape", "enter")
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    @keys.add("c-j")
    def _(event: KeyPressEvent) -> None:
        # A line feed in one piece with text is not a person's Ctrl-J but the Enter of a program that types.
        if typed.together:
            _enter(event, typed)
        else:
            event.current_buffer.insert_text("\n")

    @keys.add("c-x", "c-e", filter=Condition(lambda: editor))
    def _(event: KeyPressEvent) -> None:
        event.app.create_background_task(_send_edited(event.current_buffer))

    return keys


def _enter(event: KeyPressEvent, typed: _Typed) -> None:
    buffer = event.current_buffer
    typed.literal = typed.is_block(buffer.text)
    if is_open(buffer.text) and not typed.literal:
        buffer.insert_text("\n")
    else:
        buffer.validate_and_handle()


async def _send_edited(buffer: Buffer) -> None:
    text = await run_in_terminal(partial(_edited, buffer.text), in_executor=True)
    if text is not None:
        buffer.document = Document(text.removesuffix("\n"))
        buffer.validate_and_handle()


def _edited(text: str) -> str | None:
    try:
        return edited(text)
    except (DeltamemError, OSError) as error:
        tell(refused_by_system(error) or str(error))
        return None


def _when_first_shown(prompt: PromptSession[str], do: Callable[[], object]) -> None:
    def shown(_app: Application[str]) -> None:
        prompt.app.after_render -= shown
        do()

    prompt.app.after_render += shown


def _prepare(talk: Talk) -> None:
    """Does while the user types what the first reply needs."""
    talk.start()
    Thread(target=_import_rendering, daemon=True).start()


def _import_rendering() -> None:
    import rich.live  # noqa: F401

    import deltamem_cli.terminal.markdown  # noqa: F401
