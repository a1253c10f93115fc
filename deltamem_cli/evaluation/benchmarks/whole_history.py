"""Questions behind all of a history in one message. What the messages begin with alike is read once for all of them."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from deltamem_cli.engine import Seat
from deltamem_cli.engine.sampling import Sampling
from deltamem_cli.evaluation.benchmarks import scoring
from deltamem_cli.session.prompt import Prompt


@dataclass(frozen=True)
class Reply:
    """tokens: of the message and the answer; seconds: as long as it takes from an empty context on."""

    text: str
    tokens: int
    seconds: float


@dataclass(frozen=True)
class Reader:
    """writes: whether the memory, if the seat has one, is written as the history is read; questions always are."""

    seat: Seat
    prompt: Prompt
    sampling: Sampling
    most: int  # tokens of an answer
    first_line: bool  # nothing behind it is wanted
    state: NDArray[np.float32] | None = None  # None: empty
    writes: bool = True

    @property
    def room(self) -> int:
        """Tokens that a message may have."""
        frame = len(self.prompt.head()) + len(self.prompt.user("").tokens) + len(self.prompt.begin())
        return self.seat.n_ctx_seq - self.most - frame - 1

    def ask(self, messages: Sequence[str], another: str) -> Iterator[Reply]:
        """The replies, each as if its message were the only one.

        another: a message with the same history and another question. What it begins with alike is the history.
        """
        *prompts, other = (
            [*self.prompt.head(), *self.prompt.user(m).tokens, *self.prompt.begin()] for m in (*messages, another)
        )
        # one token at least is left to read, for there is nothing to draw from otherwise
        shared = min(len(os.path.commonprefix([*prompts, other])), min(map(len, prompts)) - 1)
        seat = self.seat
        seat.clear_context()
        if self.state is not None:
            seat.set_state(self.state)
        elif seat.has_memory:
            seat.clear_state()
        begin = time.perf_counter()
        if shared:
            seat.feed(prompts[0][:shared], write=self.writes)
        reading = time.perf_counter() - begin
        state = seat.state() if seat.has_memory else None
        for tokens in prompts:
            begin = time.perf_counter()
            seat.drop(shared, seat.n_past)
            if state is not None:
                seat.set_state(state)
            seat.feed(tokens[shared:])
            text, drawn = self._draw()
            yield Reply(text, len(tokens) + drawn, reading + time.perf_counter() - begin)

    def _draw(self) -> tuple[str, int]:
        seat, drawn, text = self.seat, list[int](), ""
        sampler = seat.sampler(self.sampling)
        try:
            while len(drawn) < self.most:
                token = sampler.sample()
                if seat.model.is_end(token):
                    break
                drawn.append(token)
                text = seat.model.text(drawn)
                if self.first_line and text.endswith("\n") and scoring.first_line(text):
                    break
                seat.feed([token])
        finally:
            sampler.close()
        return text.strip(), len(drawn)
