"""Tokens drawn and fed one by one, as a reply is, without a window around them."""

from __future__ import annotations

from collections.abc import Iterator

from deltamem_cli.engine import Sampling, Seat


def draw(seat: Seat, sampling: Sampling, max_tokens: int, *, write: bool = True) -> Iterator[int]:
    """After a feed(); ends before a token that ends the model's turn. Each has been fed when it is yielded."""
    sampler = seat.sampler(sampling)
    try:
        for _ in range(max_tokens):
            token = sampler.sample()
            if seat.model.is_end(token):
                return
            seat.feed([token], write=write)
            yield token
    finally:
        sampler.close()
