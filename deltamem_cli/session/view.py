"""What the model sees and holds at one moment, as a value, and the one way to bring a model to it. Knows no database."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from deltamem_cli.engine import Cancelled, Seat
from deltamem_cli.session.prompt import Prompt
from deltamem_cli.session.running_turn import Progress, Stop
from deltamem_cli.session.window import Window
from deltamem_cli.store.ids import new_id
from deltamem_cli.store.records import TurnContext

Shown = tuple[int, Sequence[int]]  # a turn's number, and what is visible of it


@dataclass(frozen=True, eq=False)
class View:
    """head, opening: as Window.start takes them; `prompt` says them. turns: the visible ones, oldest first.

    state: [layers, heads, rank, rank] float32; None: nothing is remembered. last: number of the last turn, visible or
    not.
    """

    prompt: Prompt
    head: Sequence[int]
    opening: Sequence[int]
    turns: Sequence[Shown]
    state: NDArray[np.float32] | None
    last: int

    def with_prompt(self, prompt: Prompt) -> View:
        """Raises EngineError when the template has no place for it."""
        return replace(self, prompt=prompt, head=prompt.head(), opening=prompt.opening())

    def before(self, turn: int, state: NDArray[np.float32] | None) -> View:
        """As it was before `turn`, which left the state `state` to begin with."""
        return replace(self, turns=[shown for shown in self.turns if shown[0] < turn], state=state, last=turn - 1)


class Applied:
    """What a window and its seat's memory were brought to.

    view: that; None: something was left half done. run: what a turn's record keeps of the window since it was fed from
    its head on.
    """

    def __init__(self, window: Window) -> None:
        self.window = window
        self.run: TurnContext = {}
        self.view: View | None = None

    def apply(self, view: View, whole: Callable[[View], View], stop: Stop, progress: Progress | None = None) -> View:
        """Brings window and memory to `view`. Returns it with the tokens that the window shows.

        What was shown last is cut off where that is all there is to do; else everything is fed again, with `whole` of
        the view: what a replay feeds. Raises engine.Cancelled when stopped, and others; the next call begins anew.
        """

        def report(done: int, total: int) -> None:
            if progress:
                progress(done, total)
            if stop.wanted and done < total:
                raise Cancelled(done)

        if view is self.view:
            return view
        if self.go_back(view):
            # the turn that takes the number of one that was shown again was not shown before itself
            self.run["replayed"] = [number for number in self.run.get("replayed", []) if number <= view.last]
            return view
        view = whole(view)
        stop.reading = True
        try:
            self._feed(view, report)
        finally:
            stop.reading = False
        self.run = {
            "run": new_id(),
            "head": list(view.head),
            "replayed": [number for number, _ in view.turns],
        }
        if view.opening:
            self.run["opening"] = list(view.opening)
        self.view = replace(view, turns=self.window.shown)
        return self.view

    def go_back(self, view: View) -> bool:
        """As far as that takes no time: the memory, and what the window shows beyond `view`. Returns whether that was all."""
        begun, self.view = self.view is not None, None
        put_state(self.window.seat, view.state)
        if begun and self._cut(view):
            self.view = view
        return self.view is view

    def _cut(self, view: View) -> bool:
        """Takes what `view` has not off the window's end. False when that is not all there is between the two."""
        window, shown = self.window, self.window.shown
        wanted = [(number, list(tokens)) for number, tokens in view.turns]
        if not window.is_whole or window.head != list(view.head) or window.opening != list(view.opening):
            return False
        if shown[: len(wanted)] != wanted:
            return False
        return len(shown) == len(wanted) or window.cut(shown[len(wanted)][0])

    def _feed(self, view: View, report: Progress) -> None:
        """Empties the window and feeds all of `view`. None of it is written: the memory holds each once."""
        self.window.start(view.head, view.opening)
        total, done = sum(len(tokens) for _, tokens in view.turns), 0
        for number, tokens in view.turns:
            report(done, total)
            self.window.feed(number, tokens, write=False)
            done += len(tokens)
        report(done, total)
        self.window.dropped.clear()


def put_state(seat: Seat, state: NDArray[np.float32] | None) -> None:
    """Makes it the seat's, if that has a memory."""
    if not seat.has_memory:
        return
    if state is None:
        seat.clear_state()
    else:
        seat.set_state(state)
