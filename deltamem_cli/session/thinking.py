"""Tells what a model thinks from what it answers, as a reply grows. Text in, text out; knows no tokens.

A thinking model begins its reply with a mark such as <think>, or its template does that for it, and answers behind the
mark that closes it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

# Stand around the name of a control token, which is no text: a mark may be made of it, and nothing else shows it.
_CONTROL, _END = "\ufdd0", "\ufdd1"
_CONTROLS = re.compile(f"{_CONTROL}[^{_END}]*{_END}")


@dataclass(frozen=True)
class Mark:
    """What a thought stands between. label: what an answer may begin with, which says only that it is one."""

    open: str
    close: str
    label: str = ""


THINK = Mark("<think>", "</think>")
# As the templates of public models have them.
KNOWN = (
    THINK,
    Mark("<thinking>", "</thinking>"),
    Mark("<thought>", "</thought>"),
    Mark("<reasoning>", "</reasoning>"),
    Mark("<seed:think>", "</seed:think>"),
    Mark("<mm:think>", "</mm:think>"),
    Mark("<think:opensource>", "</think:opensource>"),
    Mark("[THINK]", "[/THINK]"),
    Mark("◁think▷", "◁/think▷"),
    Mark("<|START_THINKING|>", "<|END_THINKING|>"),
    Mark("<|inner_prefix|>", "<|inner_suffix|>"),
    Mark("<|channel>thought", "<channel|>"),
    Mark("<|open|>think<|sep|>", "<|close|>think<|sep|>", "<|open|>response<|sep|>"),
    Mark("<|think|>", "<|end|><|begin|>assistant", "<|content|>"),
    Mark("<|channel|>analysis<|message|>", "<|end|><|start|>assistant", "<|channel|>final<|message|>"),
    Mark(" to=self<|message|>", "<|eot|><|start|>assistant", " to=user<|message|>"),
    Mark("Here are my reasoning steps:", "[BEGIN FINAL RESPONSE]"),
    Mark("Here is my thought process:", "Here is my response:"),
)


def control(name: str) -> str:
    """A control token in what is given to a Splitter."""
    return f"{_CONTROL}{name}{_END}"


class Thought(str):
    """A piece of text that was thought, not answered."""


def parted(pieces: Iterable[str]) -> tuple[str, str]:
    """What was thought and what was answered, of all pieces of a reply."""
    every = list(pieces)
    thought = "".join(piece for piece in every if isinstance(piece, Thought))
    return thought, "".join(piece for piece in every if not isinstance(piece, Thought))


class Splitter:
    """Takes a reply piece by piece. A mark that may be coming is held back until it is there or is none."""

    def __init__(self, begun: str = "", marks: Sequence[Mark] = (THINK,)) -> None:
        """begun: what the template has begun the reply with."""
        self._marks = marks
        for name in {name for mark in marks for name in _CONTROLS.findall(mark.open + mark.close)}:
            begun = begun.replace(name[1:-1], name)
        self._mark = next((mark for mark in marks if mark.open in begun), None)
        self.thought = ""  # what was thought so far
        self.answer = ""
        self.began = self._mark is not None  # to think
        self._held = ""
        # maybe: nothing but white space or the beginning of a mark; between: white space behind the closing mark;
        # label: the beginning of a label
        self._where = "maybe"
        if self._mark:
            self._where = "inside"
            self.add(begun.partition(self._mark.open)[2])

    @property
    def thinking(self) -> bool:
        """Whether all that was added so far belongs to the thinking part."""
        return self._where in ("inside", "between") or (self._where == "maybe" and bool(self._held.strip()))

    @property
    def is_over(self) -> bool:
        """Whether what comes next is answered."""
        return self._where in ("between", "label", "answer")

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
            found = next((mark for mark in self._marks if self._begins_with(mark.open)), None)
            if found:
                self._mark, self.began, self._where = found, True, "inside"
                return True
            labels = [mark.label for mark in self._marks if mark.label]
            if any(self._begins_with(label) for label in labels):
                self._where = "answer"
                return True
            if any(self._may_become(text) for text in (*(mark.open for mark in self._marks), *labels)):
                return False
            self._where = "answer"
        if self._where == "inside" and self._mark:
            inside, tag, rest = self._held.partition(self._mark.close)
            if not tag:
                end = len(inside) - _overlap(inside, self._mark.close)
                pieces.append(self._think(inside[:end]))
                self._held = inside[end:]
                return False
            pieces.append(self._think(inside))
            self._where, self._held = "between", rest
        if self._where in ("between", "label"):
            label = self._mark.label if self._mark else ""
            if label and not self._begins_with(label) and self._held.strip() and self._may_become(label):
                self._where = "label"
                return False
            self._held = self._held.lstrip()
            if self._where == "between" and not self._held:
                return False
            self._where = "answer"
        pieces.append(self._reply(self._held))
        self._held = ""
        return False

    def _begins_with(self, mark: str) -> bool:
        """Whether `mark`, before which white space may stand, is held; takes it off."""
        lead = self._held.lstrip()
        if not lead.startswith(mark.lstrip()):
            return False
        self._held = lead[len(mark.lstrip()) :]
        return True

    def _may_become(self, mark: str) -> bool:
        return mark.lstrip().startswith(self._held.lstrip())

    def _think(self, text: str) -> str:
        text = _CONTROLS.sub("", text)
        if not self.thought:
            text = text.lstrip("\n")
        self.thought += text
        return Thought(text)

    def _reply(self, text: str) -> str:
        text = _CONTROLS.sub("", text)
        self.answer += text
        return text


def _overlap(text: str, tag: str) -> int:
    """Length of the longest end of `text` that `tag` begins with."""
    return next(n for n in range(min(len(text), len(tag) - 1), -1, -1) if text.endswith(tag[:n]))
