"""A model's chat template cut into pieces that can be fed one after the other; runs no model.

A conversation grows at its end, so its turns are fed as pieces: head, then per turn the user's message up to where the
reply begins, the reply, and what closes it. Where the pieces lie is found by rendering marked messages.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from deltamem_cli.engine import ChatTemplate, EngineError, Model
from deltamem_cli.session.thinking import OPEN

_USER_1, _REPLY_1, _USER_2 = "\u2402u1\u2403", "\u2402r1\u2403", "\u2402u2\u2403"


@dataclass(frozen=True)
class Piece:
    """Tokens of one message as fed: marks around `content` included. content: [start, end) in tokens."""

    tokens: list[int]
    content: tuple[int, int]


@dataclass(frozen=True)
class Marks:
    """The texts around messages."""

    head: str  # system prompt and what else comes before the first message; empty if it can't be told apart
    first_open: str  # before the first user message
    user_open: str  # before a later one
    user_close: str  # after a user message when no reply follows
    reply_open: str  # after a user message up to where the reply begins, `user_close` included
    begun: str  # what the reply begins with, when the template itself opens a thinking part, or leaves it empty
    reply_close: str  # after a reply


class Prompt:
    """Pieces for one model and one system prompt.

    template: to use in place of the model's own. think: what to tell a template that can switch thinking; None: nothing.
    Raises EngineError for one that can't, at once or when it is first used for one that fails.
    """

    def __init__(
        self,
        model: Model,
        system: str | None = None,
        template: ChatTemplate | None = None,
        think: bool | None = None,
    ) -> None:
        self.model = model
        self.system = system
        self.template = template
        self.think = think
        if think is not None and not self.used.can_switch_thinking:
            raise EngineError(f"{self.used.title} can't switch thinking on or off: leave it as it is.")

    @property
    def used(self) -> ChatTemplate:
        """The template that is in use. Raises EngineError when the model has none and none is given."""
        return self.template or self.model.template

    def _render(self, *contents: tuple[str, str], reply: bool) -> str:
        messages = [{"role": role, "content": content} for role, content in contents]
        if self.system is not None:
            messages.insert(0, {"role": "system", "content": self.system})
        return self.model.render(messages, reply=reply, template=self.template, think=self.think)

    @cached_property
    def marks(self) -> Marks:
        """Raises EngineError when the template shows no messages."""
        one, reply, two = ("user", _USER_1), ("assistant", _REPLY_1), ("user", _USER_2)
        whole = self._render(one, reply, two, reply=True)
        closed = self._render(one, reply, reply=False)
        alone = self._render(one, reply=False)
        try:
            before, rest = whole.split(_USER_1)
            _, rest = rest.split(_REPLY_1)
            between, reply_open = rest.split(_USER_2)
            _, reply_close = closed.split(_REPLY_1)
            _, user_close = alone.split(_USER_1)
        except ValueError:
            raise EngineError(
                f"{self.used.title} does not show every message once: use another template with --template."
            ) from None
        if not between.startswith(reply_close):  # it closes the last reply in another way than the others
            reply_close = between
        user_open = between[len(reply_close) :]
        # some templates merge the system prompt into the first message: then there is no head of its own
        cut = len(before) - len(user_open) if user_open and before.endswith(user_open) else 0
        plain = reply_open.partition(OPEN)[0]
        begun = reply_open[len(plain) :]
        return Marks(before[:cut], before[cut:], user_open, user_close, plain, begun, reply_close)

    def head(self) -> list[int]:
        return self.model.tokenize(self.marks.head, special=True)

    def user(self, text: str, *, first: bool) -> Piece:
        """A user's message and the start of the reply. first: nothing but the head comes before it."""
        return self._piece(self.marks.first_open if first else self.marks.user_open, text, self.marks.reply_open)

    def begin(self) -> list[int]:
        """What the reply begins with, if the template says so."""
        return self.model.tokenize(self.marks.begun, special=True)

    def said(self, text: str) -> Piece:
        """A user's message that nobody answers."""
        return self._piece(self.marks.first_open, text, self.marks.user_close)

    def close(self) -> list[int]:
        """What ends a reply."""
        return self.model.tokenize(self.marks.reply_close, special=True)

    def _piece(self, before: str, text: str, after: str) -> Piece:
        tokenize = self.model.tokenize
        opening, closing = tokenize(before, special=True), tokenize(after, special=True)
        plain = tokenize(text)
        apart = [*opening, *plain, *closing]
        # Together is how the template was meant and trained. Apart when the text spells control tokens: they are
        # what the user wrote, not an order to the model.
        together = tokenize(before + text + after, special=True)
        spelled = tokenize(text, special=True) != plain
        tokens = apart if spelled else together
        end = len(tokens) - len(closing)
        return Piece(tokens, (min(len(opening), end), end))
