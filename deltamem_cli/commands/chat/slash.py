"""The slash commands of a chat: their table, their help, and finding the one that is meant."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING

from deltamem_cli.commands.chat import slash_actions, slash_reports, slash_set
from deltamem_cli.errors import UsageError
from deltamem_cli.terminal.output import note
from deltamem_cli.text import short

if TYPE_CHECKING:
    from deltamem_cli.commands.chat.open_chat import Talk


@dataclass(frozen=True)
class Command:
    """usage: arguments as help shows them. text: the first line stands in the list."""

    run: Callable[[Talk, str], None]
    usage: str
    text: str


class Leave(Exception):
    """The user wants to go."""


def _help(_talk: Talk, argument: str) -> None:
    if argument:
        name = find("/" + argument.lstrip("/"))
        command = COMMANDS[name]
        note(f"{name} {command.usage}".rstrip() + f"\n{command.text}")
        return
    width = max(len(f"{name} {command.usage}") for name, command in COMMANDS.items())
    for name, command in COMMANDS.items():
        note(f"{f'{name} {command.usage}':<{width}}  {command.text.splitlines()[0]}")
    note(
        '\n"""             starts and ends a message of several lines; Esc Enter or Ctrl-J adds a line\n'
        "Ctrl-X Ctrl-E   opens the message in $EDITOR\n"
        "Ctrl-C          stops the reply and keeps what was shown\n"
        "Ctrl-D          exits, like /exit, exit and quit"
    )


def _exit(_talk: Talk, _argument: str) -> None:
    raise Leave


COMMANDS: dict[str, Command] = {
    "/help": Command(_help, "[COMMAND]", "List the commands, or explain one."),
    "/exit": Command(_exit, "", "Exit. The conversation is already saved."),
    "/clear": Command(
        slash_actions.clear,
        "",
        "Clear what the model sees. The memory stays.\nTo remove something from it: /undo, /forget, /memory reset.",
    ),
    "/new": Command(slash_actions.new, "", "Start a new conversation with an empty memory.\nThe old one is kept."),
    "/regen": Command(
        slash_actions.regenerate, "", "Regenerate the last reply.\nThe memory first goes back to before the question."
    ),
    "/undo": Command(
        slash_actions.undo, "[N]", "Undo the last turn, or the last N.\nThe memory is then exactly what it was before."
    ),
    "/edit": Command(slash_actions.edit, "[TEXT]", "Write a message in $EDITOR.\nIt is sent when the editor closes."),
    "/model": Command(
        slash_actions.model,
        "[MODEL [ADAPTER]]",
        "Show the model, or switch to another.\nA memory belongs to its model and adapter: others start a "
        "new conversation.",
    ),
    "/system": Command(
        slash_actions.system, '[TEXT|""]', 'Show the system prompt, or change it from the next turn on.\n"" removes it.'
    ),
    "/set": Command(
        slash_set.set_option,
        "[KEY VALUE]",
        "Show the sampling and thinking options, or change one.\nFor this chat only; to keep it: dmem profile set NAME "
        "-o KEY VALUE or dmem config set KEY VALUE. think: on, off or auto, for models that support both. "
        "show_thinking, remember_thinking: on or off. write: all or user, what goes into the memory.",
    ),
    "/show": Command(slash_reports.show, "", "Show model, adapter, profile and conversation."),
    "/context": Command(slash_reports.context, "", "Show what the model sees and how full its context is."),
    "/stats": Command(slash_reports.stats, "", "Show speed, context and what was written to the memory."),
    "/memory": Command(
        slash_reports.memory,
        "[history|reset]",
        "Show the memory.\nhistory: what each turn changed. reset: clear it for good; the transcript stays.",
    ),
    "/remember": Command(slash_actions.remember, "TEXT", "Write TEXT into the memory, without a reply."),
    "/forget": Command(
        slash_actions.forget,
        "TURN...",
        "Remove turns from transcript and memory for good.\nGive numbers and ranges, such as /forget 2 5-7. Later "
        "turns are replayed without them. For the numbers: /memory history",
    ),
    "/read": Command(
        slash_actions.read,
        "FILE [QUESTION]",
        'Add a file to the conversation, and ask about it.\nQuote a name with spaces: /read "my notes.txt" Who wrote it?',
    ),
    "/save": Command(slash_actions.save, "FILE", "Save the transcript as Markdown."),
}
ALIASES = {"/?": "/help", "/bye": "/exit", "/quit": "/exit", "/regenerate": "/regen"}
BARE = {"exit": "/exit", "quit": "/exit"}


def command_of(text: str) -> tuple[str, str] | None:
    """(command, argument) of a line, None for a message. Raises UsageError for a command that is none."""
    text = text.strip()
    if text in BARE:
        return BARE[text], ""
    word, _, argument = text.partition(" ")
    if not word.startswith("/") or "\n" in word or "/" in word[1:]:  # /etc/hosts is no command
        return None
    if not word[1:2].isalpha() and word != "/?" and text != "/":  # nor is /*
        return None
    return find(word), argument.strip()


def find(word: str) -> str:
    """The command's name. Raises UsageError."""
    name = ALIASES.get(word, word)
    if name in COMMANDS:
        return name
    starting = [command for command in COMMANDS if command.startswith(word)]
    if len(starting) == 1 and len(word) > 2:
        return starting[0]
    near = starting or get_close_matches(word, [*COMMANDS, *ALIASES], n=1)
    hint = f"did you mean {' or '.join(near)}?" if near and word != "/" else "see /help"
    raise UsageError(f"There is no command {short(word)}: {hint}")


def run(talk: Talk, name: str, argument: str) -> None:
    """Raises Leave, DeltamemError and engine.Cancelled."""
    command = COMMANDS[name]
    if argument and not command.usage:
        raise UsageError(f"{name} takes no arguments, so nothing was done: type only {name}.")
    command.run(talk, argument)
