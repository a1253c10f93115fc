"""A model's chat template cut into pieces that can be fed one after the other; runs no model.

A conversation grows at its end, so its turns are fed as pieces: head, then per turn the user's message up to where the
reply begins, the reply, and what closes it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from deltamem_cli.engine import ChatTemplate, EngineError, Model
from deltamem_cli.session import marks as marking
from deltamem_cli.session.form import Form, Said, form_of
from deltamem_cli.session.marks import REPLY_1, USER_1, Marks
from deltamem_cli.session.thinking import KNOWN, THINK, Mark, control
from deltamem_cli.session.tools import form as tool_forms
from deltamem_cli.session.tools import reading
from deltamem_cli.session.tools.calls import OPEN, as_json, results_in
from deltamem_cli.session.tools.form import ToolForm


@dataclass(frozen=True)
class Piece:
    """Tokens of one message as fed: marks around `content` included. content: [start, end) in tokens."""

    tokens: list[int]
    content: tuple[int, int]


class Prompt:
    """Pieces for one model and one system prompt.

    template: to use in place of the model's own. think: what to tell a template that can switch thinking; None: nothing.
    tools: what the model may call, as OpenAI's chat completions have them; None: calls and results do not occur at all.
    Raises EngineError for one that can't, at once or when it is first used for one that fails.
    """

    def __init__(
        self,
        model: Model,
        system: str | None = None,
        template: ChatTemplate | None = None,
        think: bool | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> None:
        self.model = model
        self.system = system
        self.template = template
        self.think = think
        self.tools = tools
        if think is not None and not self.used.can_switch_thinking:
            raise EngineError(f"{self.used.title} can't switch thinking on or off: leave it as it is.")
        if tools is not None and self.tool_form is None:
            raise EngineError(f"{self.used.title} has no tools of a form that is known here: leave them out.")

    def changed(self, **changes: Any) -> Prompt:
        """Another one, with some of the arguments in other words."""
        same = {name: getattr(self, name) for name in ("model", "system", "template", "think", "tools")}
        return Prompt(**{**same, **changes})

    @property
    def used(self) -> ChatTemplate:
        """The template that is in use. Raises EngineError when the model has none and none is given."""
        return self.template or self.model.template

    @property
    def why_no_system(self) -> str | None:
        """A sentence, when the template would have left the system prompt out."""
        if self.system is None or self._form.system != "ignored":
            return None
        return f"{self.used.title} has no place for a system prompt, so it goes before the first message."

    @cached_property
    def marks(self) -> Marks:
        """Raises EngineError when the template shows no messages."""
        try:
            return marking.find(
                self._render, system=self.system is not None, thoughts=[mark.open for mark in self._thoughts]
            )
        except ValueError:
            raise EngineError(
                f"{self.used.title} does not show every message once: use another template with --template."
            ) from None

    @cached_property
    def thinking(self) -> list[Mark]:
        """What this model's thoughts may stand between, also where it has control tokens for that."""
        found = []
        for mark in self._thoughts:
            spelled = Mark(*(self._with_controls(text) for text in (mark.open, mark.close, mark.label)))
            found += [mark] if spelled == mark else [spelled, mark]
        return found

    @cached_property
    def tool_form(self) -> ToolForm | None:
        """How the template writes calls of tools; None where it does not, or in a form that is not known."""
        form = tool_forms.form_of(self._render_calls, self.marks, self._thoughts)
        return form if form and self._frames(1, form) else None

    @cached_property
    def spelled(self) -> Sequence[str]:
        """What belongs to a reply's text also where the vocabulary has control tokens for it."""
        if not self.tools or self.tool_form is None:
            return ()
        form = self.tool_form
        text = "".join([reading.PYTHON, form.open, form.middle, form.between or "", form.close])
        return [self.model.text([t], special=True) for t in self._tokens(text) if not self.model.piece(t)]

    def head(self) -> list[int]:
        """It begins with the vocabulary's own first token, once, if the template or the vocabulary wants it."""
        marks, bos = self.marks, self.model.bos
        head = self._tokens(marks.head)
        while bos is not None and head[:2] == [bos, bos]:
            del head[0]
        first = (head or self._tokens(marks.user_open))[:1]
        if bos is not None and self.model.adds_bos and first != [bos]:
            head.insert(0, bos)
        return head

    def opening(self) -> list[int]:
        """What a user's message begins with that the head stands for, where it is the first one that is visible."""
        return self._tokens(self.marks.user_open) if self.marks.joined else []

    def user(self, text: str) -> Piece:
        """A user's message, or results of calls, and the start of the reply."""
        told = results_in(text) if self.tools is not None else []
        frames = self._frames(len(told), self.tool_form) if told and self.tool_form else None
        if frames:
            return self._results(told, frames)
        return self._piece(self.marks.user_open, self._shown(text), self.marks.reply_open)

    def begin(self) -> list[int]:
        """What the reply begins with, if the template says so."""
        return self._tokens(self.marks.begun)

    def said(self, text: str) -> Piece:
        """A user's message that nobody answers."""
        return self._piece(self.marks.user_open, self._shown(text), self.marks.user_close)

    def reply(self, text: str) -> list[int]:
        """A reply that was given, of which calls are as they are the same for all templates."""
        if OPEN not in text or self.tool_form is None:
            return self.model.tokenize(text)
        parts = reading.written(text, self.tool_form)
        return [t for part, is_form in parts for t in self.model.tokenize(part, special=is_form)]

    def close(self) -> list[int]:
        """What ends a reply."""
        return self._tokens(self.marks.reply_close)

    @cached_property
    def _form(self) -> Form:
        return form_of(
            lambda messages, *, reply: self.model.render(
                messages, reply=reply, template=self.template, think=self.think, tools=self.tools or ()
            ),
            system=self.system is not None,
        )

    def _render(self, said: Sequence[Said], *, reply: bool, system: bool = True) -> str:
        messages = self._form.messages(said, self.system if system else None)
        return self.model.render(
            messages, reply=reply, template=self.template, think=self.think, tools=self.tools or ()
        )

    def _render_calls(self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]]) -> str:
        if self._form.parts:
            messages = [
                {**each, "content": [{"type": "text", "text": each["content"]}] if each["content"] else ""}
                for each in messages
            ]
        return self.model.render(messages, template=self.template, think=self.think, tools=tools)

    def _frames(self, n_results: int, form: ToolForm) -> list[str] | None:
        """What stands before, between and behind so many results of calls."""
        n_calls = n_results if form.between else 1
        try:
            whole = self._render_calls(tool_forms.messages(n_calls, n_results), self.tools or [tool_forms.PROBE])
        except EngineError:  # it has its own idea of how many there may be
            return None
        return tool_forms.told(whole, self.marks, n_calls, n_results)

    def _results(self, told: Sequence[str], frames: Sequence[str]) -> Piece:
        quoted = frames[0].endswith('"') and frames[1].startswith('"')  # the template makes JSON of a result
        texts = [as_json(text)[1:-1] for text in told] if quoted else list(told)
        opening, closing = self._tokens(frames[0]), self._tokens(frames[-1])
        parts = [frames[0], *(part for pair in zip(texts, frames[1:], strict=True) for part in pair)]
        if all(self._tokens(text) == self.model.tokenize(text) for text in texts):
            tokens = self._tokens("".join(parts))
        else:  # as in _piece()
            tokens = [t for i, part in enumerate(parts) for t in self.model.tokenize(part, special=i % 2 == 0)]
        end = len(tokens) - len(closing)
        return Piece(tokens, (min(len(opening), end), end))

    def _shown(self, text: str) -> str:
        """As the template puts it: some trim a message, or take words out of it."""
        marks = self.marks
        behind = marks.reply_open + marks.begun
        try:
            whole = self._render([("user", USER_1), ("assistant", REPLY_1), ("user", text)], reply=True, system=False)
        except EngineError:  # it has its own idea of what may be said; the model is told all the same
            return text
        _, reply, rest = whole.partition(REPLY_1)
        before = marks.reply_close + marks.user_open
        if not (reply and rest.startswith(before) and rest.endswith(behind) and len(rest) >= len(before + behind)):
            return text
        return rest[len(before) : len(rest) - len(behind)]

    @cached_property
    def _thoughts(self) -> list[Mark]:
        """A mark counts that the template or the vocabulary has: to other models it is a text like any other."""
        source = self.used.source
        return [m for m in KNOWN if m is THINK or m.open in source or len(self._tokens(m.open)) == 1]

    def _with_controls(self, text: str) -> str:
        """`text` as a reply is given to a Splitter."""
        model = self.model
        names = {model.text([t], special=True) for t in self._tokens(text) if not model.piece(t)}
        for name in filter(None, names):
            text = text.replace(name, control(name))
        return text

    def _tokens(self, text: str) -> list[int]:
        return self.model.tokenize(text, special=True)

    def _piece(self, before: str, text: str, after: str) -> Piece:
        tokenize = self.model.tokenize
        opening, closing = self._tokens(before), self._tokens(after)
        plain = tokenize(text)
        apart = [*opening, *plain, *closing]
        # Together is how the template was meant and trained. Apart when the text spells control tokens: they are
        # what the user wrote, not an order to the model.
        spelled = self._tokens(text) != plain
        if spelled:
            tokens = apart
        elif self.marks.joined:  # what may be taken off its front has tokens of its own
            tokens = [*opening, *self._behind_a_line(text + after)]
        else:
            tokens = self._tokens(before + text + after)
        end = len(tokens) - len(closing)
        return Piece(tokens, (min(len(opening), end), end))

    def _behind_a_line(self, text: str) -> list[int]:
        """Tokens of `text` where something stands before it: some vocabularies put a space before all that begins."""
        line, both = self._tokens("\n"), self._tokens("\n" + text)
        return both[len(line) :] if both[: len(line)] == line else self._tokens(text)
