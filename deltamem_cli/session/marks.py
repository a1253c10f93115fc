"""The texts that a chat template puts around messages, found by rendering marked ones. Knows no tokens and no model."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from deltamem_cli.engine.template import TemplateRefusal
from deltamem_cli.session.form import Said

USER_1, REPLY_1, USER_2 = "\u2402u1\u2403", "\u2402r1\u2403", "\u2402u2\u2403"
_ONE, _REPLY, _TWO = ("user", USER_1), ("assistant", REPLY_1), ("user", USER_2)


@dataclass(frozen=True)
class Marks:
    """joined: the head ends inside the first user message, as where a template puts the system prompt into that. Then
    it stands for the `user_open` of the first message that is visible.
    """

    head: str  # system prompt and what else comes before the first message
    joined: bool
    user_open: str  # before a user message
    user_close: str  # after a user message when no reply follows
    reply_open: str  # after a user message up to where the reply begins, `user_close` included
    begun: str  # what the reply begins with, when the template itself opens a thinking part, or leaves it empty
    reply_close: str  # after a reply


# render(messages, reply=, system=): the text of messages; system: whether the system prompt is put in
Render = Callable[..., str]


def find(render: Render, *, system: bool, thoughts: Iterable[str]) -> Marks:
    """Raises ValueError for a template that does not show every message once, EngineError for one that fails.

    system: whether there is a system prompt. thoughts: what a thinking part may begin with.
    """
    before, _ = render([_ONE], reply=True).split(USER_1)
    between, reply_open = _later(render([_ONE, _REPLY, _TWO], reply=True))
    bare = before
    if system:
        # a system prompt that goes with the last message is no part of what stands between two others
        plain = _rendered(render, [_ONE, _REPLY, _TWO], reply=True, system=False)
        if plain and plain.count(USER_1) == 1:
            bare, _ = plain.split(USER_1)
            between, _ = _later(plain)
    closes = [
        _behind(_rendered(render, [_ONE, _REPLY], reply=False), REPLY_1),
        _behind(alone := _rendered(render, [_ONE], reply=False), USER_1),
    ]
    user_open = _user_open(between, closes, bare)
    joined = not before.endswith(user_open)
    start = min((reply_open.find(mark) for mark in thoughts if mark in reply_open), default=len(reply_open))
    return Marks(
        head=before if joined else before[: len(before) - len(user_open)],
        joined=joined,
        user_open=user_open,
        user_close=_behind(alone, USER_1),
        reply_open=reply_open[:start],
        begun=reply_open[start:],
        reply_close=between[: len(between) - len(user_open)],
    )


def _later(whole: str) -> tuple[str, str]:
    """What stands between the first reply and the second message, and behind that."""
    _, rest = whole.split(REPLY_1)
    between, reply_open = rest.split(USER_2)
    return between, reply_open


def _rendered(render: Render, messages: Sequence[Said], **how: bool) -> str:
    """Nothing when the template refuses: some take no conversation that ends so, and serve for those that are held."""
    try:
        return render(messages, **how)
    except TemplateRefusal:
        return ""


def _behind(text: str, mark: str) -> str:
    return text.partition(mark)[2]


def _user_open(between: str, closes: Sequence[str], bare: str) -> str:
    """The part of `between` that opens a user's message. closes: what ends messages when nothing follows them.
    bare: what stands before a first message where there is no system prompt.
    """
    rests = [between[len(close) :] for close in closes if between.startswith(close)]
    for rest in rests:
        if rest and rest != between and bare.endswith(rest):
            return rest
    # it closes the last message in another way than the others
    size = 0
    while size < min(len(between), len(bare)) and between[-1 - size] == bare[-1 - size]:
        size += 1
    common = between[len(between) - size :]
    if size < min(len(between), len(bare)):  # from where a mark begins: two that end alike have that end in common
        begins = re.search(r"[<\[〈\n]", common)
        common = common[begins.start() :] if begins else common
    if re.search(r"\w", common):
        return common
    return next((rest for rest in rests if rest), between)
