"""Tells what a model thinks from what it answers, as a reply grows. Text in, text out; knows no tokens.

A thinking model begins its reply with <think>, or its template does that for it, and answers behind </think>.
"""

from __future__ import annotations

from collections.abc import Iterable

OPEN, CLOSE = "<think>", "</think>"


class Thought(str):
    """A piece of text that was thought, not answered."""


def parted(pieces: Iterable[str]) -> tuple[str, str]:
    """What was thought and what was answered, of all pieces of a reply."""
    every = list(pieces)
    thought = "".join(piece for piece in every if isinstance(piece, Thought))
    return thought, "".join(piece for piece in every if not isinstance(piece, Thought))


class Splitter:
    """Takes a reply piece by piece. A tag that may be coming is held back until it is there or is none."""

    def __init__(self, begun: str = "") -> None:
        """begun: what the template has begun the reply with."""
        self.thought = ""  # what was thought so far
        self.answer = ""
        self.began = OPEN in begun  # to think
        self._held = ""
        # maybe: nothing but white space or the beginning of a tag; between: white space behind the closing tag
        self._where = "maybe"
        if self.began:
            self._where = "inside"
            self.add(begun.partition(OPEN)[2])

    @property
    def thinking(self) -> bool:
        """Whether all that was added so far belongs to the thinking part."""
        return self._where in ("inside", "between") or (self._where == "maybe" and bool(self._held.strip()))

    @property
    def is_over(self) -> bool:
        """Whether what comes next is answered."""
        return self._where in ("between", "answer")

    def add(self, text: str) -> list[str]:
        """What can be shown now: Thoughts and plain text."""
        self._held += text
        pieces: list[str] = []
        while self._step(pieces):
            pass
        return [piece for piece in pieces if piece]

    def finish(self) -> list[str]:
        """What was held back, when nothing follows."""
        rest, self._held = self._held, ""
        return [piece for piece in [self._think(rest) if self._where == "inside" else self._reply(rest)] if piece]

    def _step(self, pieces: list[str]) -> bool:
        """Takes one part off what is held; False when more text is needed."""
        if self._where == "maybe":
            lead = self._held.lstrip()
            if lead.startswith(OPEN):
                self._where, self._held = "inside", lead[len(OPEN) :]
                self.began = True
                return True
            if OPEN.startswith(lead):
                return False
            self._where = "answer"
        if self._where == "inside":
            inside, tag, rest = self._held.partition(CLOSE)
            if not tag:
                end = len(inside) - _overlap(inside, CLOSE)
                pieces.append(self._think(inside[:end]))
                self._held = inside[end:]
                return False
            pieces.append(self._think(inside))
            self._where, self._held = "between", rest
        if self._where == "between":
            self._held = self._held.lstrip()
            if not self._held:
                return False
            self._where = "answer"
        pieces.append(self._reply(self._held))
        self._held = ""
        return False

    def _think(self, text: str) -> str:
        if not self.thought:
            text = text.lstrip("\n")
        self.thought += text
        return Thought(text)

    def _reply(self, text: str) -> str:
        self.answer += text
        return text


def _overlap(text: str, tag: str) -> int:
    """Length of the longest end of `text` that `tag` begins with."""
    return next(n for n in range(min(len(text), len(tag) - 1), -1, -1) if text.endswith(tag[:n]))
