"""A text gone on with as it stands, without chat template and memory; nothing of it is kept."""

from __future__ import annotations

import time
from collections.abc import Sequence

from deltamem_cli.engine import Seat
from deltamem_cli.server.conversations.asking import Answer, Finished, Question
from deltamem_cli.server.conversations.places import Places
from deltamem_cli.server.problems import Problem
from deltamem_cli.session.reply import Reply
from deltamem_cli.session.request import replies, settle
from deltamem_cli.session.settings import TurnStats
from deltamem_cli.session.window import Window


class Continuation(Answer):
    """text: or its tokens. question: how it is gone on with."""

    def __init__(self, places: Places, text: str | Sequence[int], question: Question) -> None:
        super().__init__(places, question)
        self._text = text

    async def _held(self) -> Finished:
        async with self._places.bare(self._ticket) as seat:
            return await self._places.run(lambda: self._go_on(seat))

    def _go_on(self, seat: Seat) -> Finished:
        """In a thread."""
        question, stats, window = self._question, TurnStats(), Window(seat)
        own = {**self._places.loaded.options, **settle(self._places.request, None).options}
        settings = replies({**own, **question.options})
        prompt = self._tokens(seat)
        most = settings.get("max_tokens") or seat.n_ctx_seq
        if seat.has_memory:
            seat.clear_state()
        window.start([])
        reply = Reply(
            seat, begun="", first_span=0, write_answer=False, write_thinking=False, marks=(), stop=question.stop
        )
        start = time.perf_counter()
        window.feed(1, prompt, write=False, progress=lambda done: self._check())
        stats.prompt_tokens, stats.prompt_seconds = len(prompt), time.perf_counter() - start
        for _ in window.reply(
            1, settings["sampling"], write=False, take=reply.take, max_tokens=most, grammar=question.grammar
        ):
            self._tell(reply.news())
            if reply.is_stopped or self._is_unwanted:
                break
        else:
            stats.cut = len(reply.tokens) >= most
        self._tell(reply.finish())
        stats.reply_tokens, stats.reply_seconds = len(reply.tokens), time.perf_counter() - start - stats.prompt_seconds
        return Finished(stats, "length" if stats.cut else "stop")

    def _tokens(self, seat: Seat) -> list[int]:
        """Raises Problem when they don't fit."""
        model = seat.model
        if isinstance(self._text, str):
            bos = [model.bos] if model.adds_bos and model.bos is not None else []
            tokens = [*bos, *model.tokenize(self._text, special=True)]
            tokens = tokens or [model.bos or 0]
        else:
            tokens = list(self._text)
            if not all(0 <= token < model.n_vocab for token in tokens):
                raise Problem(400, f"The tokens of the prompt must be 0 to {model.n_vocab - 1}.", param="prompt")
        if len(tokens) >= seat.n_ctx_seq:
            raise Problem(
                400,
                f"The prompt has {len(tokens)} tokens, and {seat.n_ctx_seq - 1} fit: shorten it.",
                code="context_length_exceeded",
                param="prompt",
            )
        return tokens
