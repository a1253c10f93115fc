"""What values a setting takes: how they are read from a line of text and from TOML. Knows no setting by name."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deltamem_cli import paths

_LARGEST = 2**31 - 1  # llama.cpp's numbers are C ints

_SWITCH_WORDS = {
    **dict.fromkeys(("true", "yes", "on", "1"), True),
    **dict.fromkeys(("false", "no", "off", "0"), False),
}


@dataclass(frozen=True)
class Kind:
    """`expects` ends a sentence: it must be …"""

    type: type
    expects: str
    fits: Callable[[Any], bool]
    choices: tuple[str, ...] = ()

    def from_text(self, text: str) -> Any:
        """The value that a command line or the environment means. Raises ValueError."""
        if self.type is bool:
            if text.lower() not in _SWITCH_WORDS:
                raise ValueError(text)
            return _SWITCH_WORDS[text.lower()]
        if self.type is Path:
            return self._checked(paths.expanded(text).absolute() if text else None)
        return self._checked(self.type(text))

    def from_toml(self, value: Any, folder: Path) -> Any:
        """The value that the file means; relative paths count from `folder`, the file's own. Raises ValueError."""
        if self.type is Path and isinstance(value, str):
            return self._checked(folder / paths.expanded(value) if value else None)
        if self.type is float and type(value) is int:
            try:
                value = float(value)
            except OverflowError:
                raise ValueError(value) from None
        if type(value) is not self.type:  # True is an int to Python, and no whole number to us
            raise ValueError(value)
        return self._checked(value)

    def _checked(self, value: Any) -> Any:
        if not self.fits(value):
            raise ValueError(value)
        return value


def text() -> Kind:
    """Any text."""
    return Kind(str, "a text", lambda value: True)


def name(expects: str) -> Kind:
    """A text that is not empty."""
    return Kind(str, expects, lambda value: bool(value.strip()))


def path() -> Kind:
    """The path of a file."""
    return Kind(Path, "the path of a file", lambda value: value is not None)


def switch() -> Kind:
    """True or false."""
    return Kind(bool, "true or false", lambda value: True, choices=("true", "false"))


def one_of(*choices: str) -> Kind:
    """One of these words."""
    return Kind(str, f"one of {', '.join(choices)}", lambda value: value in choices, choices=choices)


def whole(low: int, high: int = _LARGEST) -> Kind:
    """A whole number from `low` to `high`."""
    upper = "or more" if high == _LARGEST else f"to {high}"
    return Kind(int, f"a whole number, {low} {upper}", lambda value: low <= value <= high)


def number(expects: str, fits: Callable[[float], bool]) -> Kind:
    """A finite number for which `fits` holds; `expects` ends the phrase "a number" for messages."""
    return Kind(float, f"a number{expects}", lambda value: math.isfinite(value) and fits(value))
