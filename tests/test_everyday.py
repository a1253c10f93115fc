"""The hand-written kinds of everyday.json keep their rules, and what trains shares nothing with what is held out."""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Iterator
from itertools import combinations

import pytest

from deltamem_cli.episodes import HELD_OUT, TRAIN, VALIDATION, phrasings, spoken
from deltamem_cli.episodes.kinds import KINDS
from deltamem_cli.episodes.split import part_of_value
from deltamem_cli.episodes.spoken import Everyday, everyday
from deltamem_cli.episodes.values import vocabulary

PARTS = (TRAIN, VALIDATION, HELD_OUT)
EVERY = (*everyday(TRAIN), *everyday(HELD_OUT))
ABOUT = {kind.base: kind for kind in EVERY}  # one of each, where several are about different people


def all_values(kind: Everyday) -> tuple[str, ...]:
    return kind.own_values or vocabulary(kind.vocabulary)


def names(text: str, value: str) -> bool:
    """Whether a text holds a value as words of its own."""
    return re.search(rf"(?<!\w){re.escape(value)}(?!\w)", text) is not None


def of_whom(kind: Everyday, found: Iterable[str]) -> list[str]:
    return [text.replace("{who}", kind.who) for text in found]


def texts(kind: Everyday) -> dict[str, tuple[str, ...]]:
    """Its hand-written lists, by what they are for."""
    return {"said": kind.said, "corrected": kind.corrected, "asked": tuple(question for question, _ in kind.asked)}


def with_value(kind: Everyday) -> Iterator[str]:
    """All texts that tell or answer a value."""
    yield from (*kind.said, *kind.corrected, *(answer for _, answer in kind.asked))


def test_there_are_many_kinds_with_names_of_their_own_and_many_ways_to_tell_and_ask() -> None:
    assert len(ABOUT) >= 300
    names = [kind.name for kind in EVERY]
    assert len(set(names)) == len(names)
    assert not set(names) & {kind.name for kind in KINDS}
    assert not set(ABOUT) & {kind.vocabulary for kind in KINDS}
    assert len({(said, asked) for kind in ABOUT.values() for said in kind.said for asked, _ in kind.asked}) >= 20_000


def test_every_kind_has_values_and_texts_enough_and_none_twice() -> None:
    for kind in EVERY:
        assert bool(kind.own_values) != bool(kind.vocabulary), kind.name
        assert len(all_values(kind)) >= 16, kind.name
        assert len(set(all_values(kind))) == len(all_values(kind)), kind.name
        for what, least in (("said", 10), ("corrected", 3), ("asked", 10)):
            found = texts(kind)[what]
            assert len(set(found)) == len(found) >= least, (kind.name, what)


def test_a_value_stands_once_in_what_tells_it_and_in_its_answer() -> None:
    for kind in EVERY:
        assert [t for t in with_value(kind) if t.count("{v}") != 1] == [], kind.name
        assert [t for t in kind.corrected if t.count("{old}") > 1] == [], kind.name


def test_a_value_is_found_where_it_was_put() -> None:
    """The encoder and the retelling look for the last mention of it."""
    for kind in EVERY:
        for text in with_value(kind):
            after = text.replace("{old}", "").partition("{v}")[2]
            assert [(v, text) for v in all_values(kind) if v in after] == [], kind.name


def test_no_question_gives_a_value_away() -> None:
    for kind in EVERY:
        questions = " | ".join(texts(kind)["asked"])
        assert "{v}" not in questions, kind.name
        given = [v for v in all_values(kind) if kind.own_values and names(questions.lower(), v.lower())]
        assert given == [], kind.name


def test_what_is_not_told_is_not_known() -> None:
    for kind in EVERY:
        assert kind.unknown.startswith("I don't know"), kind.name


def test_only_known_slots_are_left_open_and_all_texts_say_whom_they_are_about() -> None:
    for kind in EVERY:
        said = (*with_value(kind), *texts(kind)["asked"], kind.unknown)
        assert set(re.findall(r"\{(\w+)\}", " ".join(said))) <= {"v", "old", "who"}, kind.name
        about = (*kind.said, *kind.corrected, *texts(kind)["asked"])
        assert [t for t in about if ("{who}" in t) != bool(kind.who)] == [], kind.name
        assert kind.who in kind.unknown and "{" not in kind.unknown


def test_no_kind_is_in_both_parts_whoever_it_is_about() -> None:
    train, held_out = ({kind.base for kind in everyday(part)} for part in (TRAIN, HELD_OUT))
    assert held_out
    assert not train & held_out
    assert everyday(VALIDATION) == everyday(TRAIN)


def drawn(kind: Everyday, part: str) -> dict[str, tuple[str, ...]]:
    """What a part may draw of its lists."""
    return {what: spoken._of_part(found, part) for what, found in texts(kind).items()}


def test_no_phrasing_is_trained_on_and_held_out() -> None:
    for kind in EVERY:
        parts = [drawn(kind, part) for part in PARTS]
        for what, every in texts(kind).items():
            train, validation, held_out = (set(part[what]) for part in parts)
            assert train and held_out, (kind.name, what)
            assert not held_out & (train | validation), (kind.name, what)
            # a list too short to validate with is trained on alone
            assert train == validation if len(every) < 10 else not train & validation, (kind.name, what)
            assert train | validation | held_out == set(every), (kind.name, what)


def test_no_value_of_a_kind_is_in_two_parts_where_there_are_enough() -> None:
    for kind in EVERY:
        parts = []
        for part in PARTS:
            own = [v for v in all_values(kind) if part_of_value(v) == part]
            # a list without any for a part gives it one, which is another part's
            assert list(kind.values(part)) == (own or [all_values(kind)[0]]), (kind.name, part)
            parts.append(set(own))
        assert len(parts[0]) >= 9, kind.name  # what a fact is retold with, beside its own
        assert not any(a & b for a, b in combinations(parts, 2))


@pytest.mark.parametrize("part", PARTS)
def test_what_is_said_and_asked_is_drawn_of_the_part(part: str) -> None:
    rng = random.Random(0)
    for kind in EVERY[::16]:
        own = drawn(kind, part)
        wraps = phrasings.of_part(phrasings.ASKED_WRAPPED, part)
        answers = dict(kind.asked)
        for n in range(20):
            assert kind.tell(rng, part, short=n % 2 > 0) in of_whom(kind, own["said"]), kind.name
            assert kind.correct(rng, part, "{old}") in of_whom(kind, own["corrected"]), kind.name
            asked, answer = kind.ask(rng, part)
            meant = [q for q in own["asked"] if asked in of_whom(kind, [q, *(w.replace("{q}", q) for w in wraps)])]
            assert answer in of_whom(kind, [answers[q] for q in meant]), kind.name
