"""What Tab offers in a chat: slash commands, their arguments, file names."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from prompt_toolkit.completion import CompleteEvent, Completer, Completion, PathCompleter
from prompt_toolkit.document import Document

from deltamem_cli.commands.chat import slash, slash_set

if TYPE_CHECKING:
    from deltamem_cli.commands.chat.open_chat import Talk

_TAKE_FILES = ("/read", "/save", "/model")


class ChatCompleter(Completer):
    """Completes the line up to the cursor; messages that are no commands get nothing."""

    def __init__(self, talk: Talk) -> None:
        self._talk = talk
        self._files = PathCompleter(expanduser=True)

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterable[Completion]:
        """Completions of the command, or of the word that its argument ends with."""
        text = document.text_before_cursor
        if not text.startswith("/") or "\n" in text:
            return
        command, space, argument = text.partition(" ")
        if not space:
            for name, entry in slash.COMMANDS.items():
                if name.startswith(command):
                    yield Completion(name, -len(command), display_meta=entry.text.splitlines()[0])
            return
        word = argument.rpartition(" ")[2]
        if command in _TAKE_FILES:
            yield from self._files.get_completions(Document(word.lstrip("\"'")), complete_event)
            return
        for choice in self._choices(command):
            if choice.startswith(word) and (" " not in argument or command == "/forget"):
                yield Completion(choice, -len(word))

    def _choices(self, command: str) -> list[str]:
        if command in ("/help", "/?"):
            return [name.lstrip("/") for name in slash.COMMANDS]
        if command == "/memory":
            return ["history", "reset"]
        if command == "/set":
            return slash_set.names()
        if command == "/forget":
            from deltamem_cli.store import turns

            conversation = self._talk.session.conversation.id
            return [str(turn.number) for turn in turns.all_of(self._talk.store, conversation, messages=False)]
        return []
