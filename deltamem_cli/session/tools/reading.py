"""Finds the calls in a reply that comes piece by piece, in the form of its template. Text in, text and calls out."""

from __future__ import annotations

import re

from deltamem_cli.session.tools.calls import Call, reply
from deltamem_cli.session.tools.form import HERMES, ToolForm

PYTHON = "<|python_tag|>"  # may stand before a call that is the whole reply, as Llama 3 has it


class Reader:
    """Takes a reply piece by piece. A call that may be coming is held back until it is there or is none."""

    def __init__(self, form: ToolForm = HERMES) -> None:
        self._form = form
        self._held = ""
        self._is_text = False  # the whole reply would have been a call
        mark = re.escape(form.mark) if form.mark else rf"(?:\A\s*)(?:{re.escape(PYTHON)})?(?=\s*\{{)"
        end = rf"(?:{re.escape(form.end)}|\Z)" if form.end else r"\Z"
        self._one = re.compile(rf"\s*{mark}(.*?){end}", re.DOTALL)

    def add(self, text: str) -> list[str | Call]:
        """What has come so far."""
        self._held += text
        if not self._form.mark:
            return self._add_to_whole()
        found: list[str | Call] = []
        mark, end = self._form.mark, self._form.end
        while end and mark in self._held and end in self._held.partition(mark)[2]:
            found += self._take()
        if mark not in self._held:
            size = len(self._held) - self._possible()
            found += filter(None, [self._held[:size]])
            self._held = self._held[size:]
        return found

    def finish(self) -> list[str | Call]:
        """The rest, when nothing follows: a call that nobody closed is one all the same."""
        found = self._take() if not self._is_text and self._form.mark in self._held else []
        rest, self._held = self._held, ""
        return [*found, *filter(None, [rest])]

    def _add_to_whole(self) -> list[str | Call]:
        begun = self._held.lstrip()
        if not self._is_text and (begun.startswith(("{", PYTHON)) or PYTHON.startswith(begun)):
            return []
        self._is_text = True
        said, self._held = self._held, ""
        return [said] if said else []

    def _take(self) -> list[str | Call]:
        match = self._one.search(self._held)
        if not match:
            return []
        before, self._held = self._held[: match.start()], self._held[match.end() :]
        made = self._form.read(match[1])
        if made:
            return [*filter(None, [before]), *made]
        return [piece for piece in (before, match[0]) if piece]

    def _possible(self) -> int:
        """Length of the end that may belong to a call: white space, and the beginning of its mark."""
        mark = self._form.mark
        size = next(n for n in range(len(mark) - 1, -1, -1) if self._held.endswith(mark[:n]))
        before = self._held[: len(self._held) - size]
        return size + len(before) - len(before.rstrip())


def pieces(text: str, form: ToolForm = HERMES) -> list[str | Call]:
    """What a whole reply says and calls."""
    reader = Reader(form)
    return [*reader.add(text), *reader.finish()]


def neutral(text: str, form: ToolForm) -> str:
    """The reply with its calls as they are the same for all templates, whatever white space a model put between."""
    found = pieces(text, form)
    calls = [piece for piece in found if isinstance(piece, Call)]
    return reply("".join(piece for piece in found if isinstance(piece, str)), calls) if calls else text


def written(text: str, form: ToolForm) -> list[tuple[str, bool]]:
    """A neutral reply in a template's form, in parts as ToolForm.written() has them."""
    found = pieces(text)
    calls = [piece for piece in found if isinstance(piece, Call)]
    if not calls:
        return [(text, False)]
    said = "".join(piece for piece in found if isinstance(piece, str))
    return [*([(f"{said}\n", False)] if said else []), *form.written(calls)]
