"""What the model sees: the head and the latest turns. Makes room by letting the oldest turns go whole.

The memory is no part of it: what leaves the window stays in the state. Knows nothing of texts and databases.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from deltamem_cli.engine import EngineError, LazyGrammar, Sampling, Seat

# A message longer than the window leaves it in pieces of this part of the window.
_PIECES = 4


@dataclass
class Stretch:
    """Neighbouring tokens in the window that belong to one turn and leave it together."""

    turn: int
    tokens: list[int]


class Window:
    """The visible context of a seat."""

    def __init__(self, seat: Seat) -> None:
        self.seat = seat
        self.head: list[int] = []
        self.opening: list[int] = []  # of a message, where the head stands for that of the first visible one
        self._joined: int | None = None  # the turn whose opening that is
        self.stretches: list[Stretch] = []
        self.dropped: set[int] = set()  # turns that left, for the caller to tell the user

    def check_head(self, head: Sequence[int]) -> None:
        """Raises EngineError for a head that leaves too little room."""
        if len(head) > self.seat.n_ctx_seq // 2:
            raise EngineError(
                f"The system prompt takes {len(head)} of the context's {self.seat.n_ctx_seq} tokens: "
                "shorten it or use a larger --ctx-size."
            )

    def start(self, head: Sequence[int], opening: Sequence[int] = ()) -> None:
        """Empties the window and feeds its head, which is read and not written. Raises EngineError.

        opening: what every turn begins with and the head stands for in the first visible one: where a system prompt is
        put into the first message, it stays there whichever message that is.
        """
        self.check_head(head)
        self.stretches.clear()
        self.dropped.clear()
        self.head, self.opening, self._joined = list(head), list(opening), None
        self.seat.start(self.head)

    @property
    def n_past(self) -> int:
        """How many tokens the context holds."""
        return self.seat.n_past

    @property
    def turns(self) -> list[int]:
        """Turns of which something is visible, oldest first."""
        return list(dict.fromkeys(stretch.turn for stretch in self.stretches))

    def tokens(self, turn: int) -> list[int]:
        """What is visible of `turn`, with the opening that the head stands for."""
        return [*(self.opening if turn == self._joined else ()), *self._held(turn)]

    @property
    def shown(self) -> list[tuple[int, list[int]]]:
        """Every visible turn with its tokens."""
        return [(turn, self.tokens(turn)) for turn in self.turns]

    @property
    def is_whole(self) -> bool:
        """Whether the model sees what is noted here: not where something was broken off in between."""
        return self.n_past == len(self.head) + sum(len(stretch.tokens) for stretch in self.stretches)

    def hidden(self, turn: int, tokens: Sequence[int]) -> int:
        """How many of the tokens that `turn` begins with the head stands for; makes room for the others."""
        if not self.opening or self._held(turn) or self._joined == turn:
            return 0
        while self.stretches and self.seat.n_ctx_seq - self.n_past <= len(self.opening):
            self._drop_oldest(turn)
        size = len(self.opening)
        return size if not self.stretches and list(tokens[:size]) == self.opening else 0

    def feed(
        self,
        turn: int,
        tokens: Sequence[int],
        *,
        write: bool,
        spans: Sequence[int] | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> None:
        """Feeds tokens of `turn`, of any number. spans: as Message has them. progress: called with the number done.

        Raises engine.Cancelled; what was fed until then is in the window.
        """
        if hidden := self.hidden(turn, tokens):
            self._joined = turn
            tokens, spans = tokens[hidden:], None if spans is None else spans[hidden:]
        piece = max(1, self.seat.n_ctx_seq // _PIECES)
        done = 0
        while done < len(tokens):
            room = self.seat.n_ctx_seq - self.n_past
            if room == 0:
                self._drop_oldest(turn)
                continue
            stretch = self._stretch(turn, piece)
            size = min(len(tokens) - done, room, piece - len(stretch.tokens))
            part = tokens[done : done + size]
            part_spans = None if spans is None else spans[done : done + size]
            report = partial(_from, done, progress) if progress else None
            before = self.n_past
            try:
                self.seat.feed(part, write=write, spans=part_spans, progress=report)
            finally:
                fed = self.n_past - before
                stretch.tokens += part[:fed]
                done += fed

    def reply(
        self,
        turn: int,
        sampling: Sampling,
        *,
        write: bool,
        take: Callable[[int], int],
        max_tokens: int | None,
        grammar: str | LazyGrammar | None = None,
    ) -> Iterator[int]:
        """Draws tokens until the model ends its turn; each is in the window when it is yielded.

        take: called with each token before it is fed; tells its span id. grammar: GBNF that the reply keeps to.
        """
        sampler = self.seat.sampler(sampling, grammar)
        try:
            count = 0
            while max_tokens is None or count < max_tokens:
                token = sampler.sample()
                if self.seat.model.is_end(token):
                    return
                self.feed(turn, [token], write=write, spans=[take(token)])
                yield token
                count += 1
        finally:
            sampler.close()

    def cut(self, turn: int) -> bool:
        """Takes `turn` and all later ones out again, from the end. False when the model can't: it has to be fed anew."""
        size = 0
        while self.stretches and self.stretches[-1].turn >= turn:
            size += len(self.stretches.pop().tokens)
        if self._joined is not None and self._joined >= turn:
            self._joined = None
        start = self.n_past - size
        if not self.seat.keeps_without(start, self.n_past):
            return False
        self.seat.drop(start, self.n_past)
        return not self.seat.is_torn()

    def take_out(self, turn: int, count: int, *, behind: int) -> None:
        """Lets `count` tokens of the last turn go, those before its last `behind`, as far as they are visible."""
        end = self.n_past - behind
        start = max(end - count, self.n_past - len(self._held(turn)))
        if start >= end:
            return
        position = self.n_past
        for stretch in reversed(self.stretches):
            position -= len(stretch.tokens)
            del stretch.tokens[max(start - position, 0) : max(end - position, 0)]
        self.stretches = [stretch for stretch in self.stretches if stretch.tokens]
        self._drop(start, end)

    def drop_before(self, turn: int) -> None:
        """Lets all turns before `turn` go."""
        while self.stretches and self.stretches[0].turn < turn:
            self._drop_oldest(turn)

    def _stretch(self, turn: int, piece: int) -> Stretch:
        if not self.stretches or self.stretches[-1].turn != turn or len(self.stretches[-1].tokens) >= piece:
            self.stretches.append(Stretch(turn, []))
        return self.stretches[-1]

    def _drop_oldest(self, current: int) -> None:
        """Lets the oldest turn go whole, or when only `current` is left its oldest piece."""
        if not self.stretches:
            raise EngineError("The context is too small for this system prompt: use a larger --ctx-size.")
        oldest = self.stretches[0].turn
        count = 1
        if oldest != current:
            count = sum(1 for stretch in self.stretches if stretch.turn == oldest)
            self.dropped.add(oldest)
        size = sum(len(stretch.tokens) for stretch in self.stretches[:count])
        del self.stretches[:count]
        self._joined = None
        if oldest != current:
            size += self._join()
        self._drop(len(self.head), len(self.head) + size)

    def _join(self) -> int:
        """Takes the opening off the turn that is the first one now. Returns how many tokens that was."""
        turn, size = self.stretches[0].turn if self.stretches else 0, len(self.opening)
        if not size or self._held(turn)[:size] != self.opening:
            return 0
        self._joined = turn
        left = size
        for stretch in self.stretches:
            cut = min(left, len(stretch.tokens))
            del stretch.tokens[:cut]
            left -= cut
        self.stretches = [stretch for stretch in self.stretches if stretch.tokens]
        return size

    def _held(self, turn: int) -> list[int]:
        return [token for stretch in self.stretches if stretch.turn == turn for token in stretch.tokens]

    def _drop(self, start: int, end: int) -> None:
        """Takes the tokens [start, end) out of the cache; from the stretches they are gone already."""
        if start == end:
            return
        if self.seat.keeps_without(start, end):
            self.seat.drop(start, end)
        else:
            self._feed_again()

    def _feed_again(self) -> None:
        """Computes what stays anew, where the cache can't be moved up or a part taken out; it was written when it was new."""
        kept = [token for stretch in self.stretches for token in stretch.tokens]
        self.seat.clear_context()
        if self.head or kept:
            self.seat.feed([*self.head, *kept], write=False)


def _from(start: int, progress: Callable[[int], None], done: int) -> None:
    progress(start + done)
