"""What a filled memory does to ordinary text: perplexity of a text of the project's own, with and without."""

from __future__ import annotations

from collections.abc import Sequence

from deltamem_cli.engine import Seat

PLAIN_TEXT = """\
The old mill stands where the river bends to the south. For two hundred years its wheel turned day and night, and the \
farmers of the valley brought their grain in carts over the stone bridge. Then the railway came, and flour was made in \
the city, faster and for less money. The miller's daughter was the last who knew how to set the stones. When she closed \
the gate for the winter, she did not know that it would stay closed.

Today the building belongs to a small group of people who meet there every month. They have mended the roof and cleaned \
the channel, and on the first weekend of spring they let the water in again. Visitors are often surprised by the noise: \
the floor trembles, the belts hiss, and a fine white dust hangs in the light of the windows. A mill is a machine, and \
like every machine it wants to be watched. If the stones run dry they strike sparks, and in a room full of flour a spark \
is a danger. That is why the miller never left the house while the wheel was turning.
"""


def perplexity(seat: Seat, tokens: Sequence[int]) -> float:
    """Of `tokens` in an empty context, with the state that the seat holds; they are written as they are read."""
    import numpy as np

    seat.clear_context()
    logits = seat.feed(tokens, all_logits=True)[:-1].astype(np.float64)
    logits -= logits.max(axis=1, keepdims=True)
    chosen = logits[np.arange(len(logits)), list(tokens[1:])]
    return float(np.exp((np.log(np.exp(logits).sum(axis=1)) - chosen).mean()))
