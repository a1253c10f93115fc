"""How replies and progress look: Markdown in a terminal that can, plain text elsewhere; knows no session."""

from __future__ import annotations

import os
import re
import shutil
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

from deltamem_cli import config
from deltamem_cli.terminal.output import note
from deltamem_cli.text import harmless_lines

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult

_REFRESH_SECONDS = 0.08


class View(Protocol):
    """Where a reply goes as it grows."""

    def add(self, text: str) -> None:
        """Shows the next piece of the reply."""

    def close(self) -> None:
        """Ends the reply; nothing may follow."""


def can_render() -> bool:
    """Whether stdout is a terminal that shows more than plain text."""
    return sys.stdout.isatty() and os.environ.get("TERM", "") not in ("", "dumb") and not os.environ.get("NO_COLOR")


def shown(text: str) -> str:
    """What a model may write on a terminal: everything but control characters."""
    return harmless_lines(text, "\ufffd")


def tell(text: str) -> None:
    """A sentence for the person, wrapped between words where stderr is a terminal."""
    if sys.stderr.isatty():
        width = shutil.get_terminal_size().columns
        text = "\n".join(textwrap.fill(line, max(width, 20)) for line in text.split("\n"))
    note(text)


@contextmanager
def reply_view(*, stream: bool = True) -> Iterator[View]:
    """The view that fits stdout; what has been shown stays when the block ends, however it ends."""
    view: View = Markdown() if can_render() and config.value("markdown") else Plain()
    if not stream:
        view = Whole(view)
    try:
        yield view
    finally:
        view.close()


class Plain:
    """Text as it comes; to a pipe or file unchanged, and in whole lines, as several programs may write into one."""

    def __init__(self) -> None:
        self._terminal = sys.stdout.isatty()
        self._line = ""  # the last one, as far as it goes

    def add(self, text: str) -> None:
        """Shows a piece; to a pipe, the lines that it completes."""
        lines, feed, rest = text.rpartition("\n")
        if self._terminal:
            self._write(shown(text))
        elif feed:
            self._write(self._line + lines + feed)
        self._line = rest if feed else self._line + rest

    def close(self) -> None:
        """Ends the last line."""
        if self._line:
            self._write("\n" if self._terminal else self._line + "\n")
            self._line = ""

    def _write(self, text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()


class Whole:
    """All at the end."""

    def __init__(self, view: View) -> None:
        self._view = view
        self._parts: list[str] = []

    def add(self, text: str) -> None:
        """Keeps a piece for the end."""
        self._parts.append(text)

    def close(self) -> None:
        """Shows everything."""
        self._view.add("".join(self._parts))
        self._view.close()


class Markdown:
    """Rendered Markdown. Blocks that are complete are printed for good; only the last one is drawn again and again."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.live import Live

        self._console = Console(highlight=False, emoji=False)
        self._live = Live(console=self._console, auto_refresh=False, transient=True, vertical_overflow="crop")
        self._text = ""  # of the blocks that are not printed yet
        self._printed = False
        self._next = 0.0
        self._live.start()

    def add(self, text: str) -> None:
        """Prints the blocks that the piece completes, and draws the last one again if it is time."""
        self._text += shown(text)
        end = _complete(self._text)
        if end:
            self._live.update("")
            self._print(self._text[:end])
            self._text = self._text[end:]
        now = time.monotonic()
        if end or now >= self._next:
            self._live.update(_Rendered(self._text, tail=True), refresh=True)
            # a slow terminal or a long block must not hold up the model
            self._next = now + max(_REFRESH_SECONDS, 4 * (time.monotonic() - now))

    def close(self) -> None:
        """Prints the last block."""
        self._live.update("", refresh=True)
        self._live.stop()
        self._print(self._text)
        self._text = ""

    def _print(self, text: str) -> None:
        if not text.strip():
            return
        if self._printed:
            self._console.print()
        self._console.print(_Rendered(text))
        self._printed = True


class _Rendered:
    """Markdown, or its last lines: as many as the terminal has for a block that is being written."""

    def __init__(self, text: str, *, tail: bool = False) -> None:
        self._text = text
        self._tail = tail

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from rich.segment import Segment

        from deltamem_cli.terminal.markdown import rendered

        lines = rendered(self._text, console, options)
        for line in lines[-max(1, console.height - 2) :] if self._tail else lines:
            yield from line
            yield Segment.line()


_FENCE = re.compile(r" *(?:(?:[-*+]|\d+[.)]) +)*(`{3,}(?!.*`)|~{3,})(.*)")


def _complete(text: str) -> int:
    """Where the last complete block of `text` ends: before what follows a blank line at the margin; 0: nowhere."""
    end, position, fence, blank = 0, 0, "", False
    for line in text.splitlines(keepends=True):
        if blank and not fence and not line[0].isspace() and text[:position].strip():
            end = position
        found = _FENCE.match(line)
        if found and not fence:
            fence = found[1]
        elif found and found[1].startswith(fence) and not found[2].strip():
            fence = ""
        blank = not line.strip()
        position += len(line)
    return end


@contextmanager
def progress_bar(what: str) -> Iterator[Callable[[int, int], None]]:
    """A callback (done, total) that draws a bar on stderr while something is long; short things draw nothing."""
    bar: Any = None
    task: Any = None
    began = time.monotonic()

    def report(done: int, total: int) -> None:
        nonlocal bar, task
        if bar is None:
            if done >= total or time.monotonic() - began < 0.3 or not sys.stderr.isatty():
                return
            bar = _bar()
            task = bar.add_task(what, total=total)
            bar.start()
        bar.update(task, completed=done, total=total)
        if done >= total:
            bar.stop()

    try:
        yield report
    finally:
        if bar is not None:
            bar.stop()


def _bar() -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("tokens"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    )
