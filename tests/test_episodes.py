"""Training, validation and held-out cases share nothing; episodes say what they later ask."""

import random
from itertools import combinations

import pytest

from deltamem_cli.episodes import HELD_OUT, TRAIN, VALIDATION, generate_episode
from deltamem_cli.episodes import phrasings as p
from deltamem_cli.episodes.episode import talk_prompt
from deltamem_cli.episodes.kinds import KINDS, Kind, kinds_of
from deltamem_cli.episodes.split import phrasings_of
from deltamem_cli.episodes.values import values, vocabulary

PARTS = (TRAIN, VALIDATION, HELD_OUT)


def test_no_value_is_in_two_parts_even_across_vocabularies() -> None:
    names = {kind.vocabulary for kind in KINDS}
    parts = [{v.lower() for n in names for v in values(n, part)} for part in PARTS]
    assert all(parts)
    assert not any(a & b for a, b in combinations(parts, 2))
    assert set().union(*parts) == {v.lower() for n in names for v in vocabulary(n)}


def test_every_vocabulary_has_values_in_both_parts() -> None:
    for name in {kind.vocabulary for kind in KINDS}:
        assert len(values(name, TRAIN)) >= 8, name
        assert len(values(name, HELD_OUT)) >= 2, name


def test_open_vocabularies_hold_thousands() -> None:
    assert len(values("first name", TRAIN)) > 2000
    assert len(values("last name", TRAIN)) > 2000


def sayings(kind: Kind, part: str) -> set[str]:
    """Every text that may state or ask a fact of this kind, with {v} for the value."""
    said, asked = ({t for group in of(kind, part) for t in group} for of in (p.said, p.asked))
    stated = {w.replace("{s}", t) for ws in (p.WRAPPED, p.CORRECTED) for w in p.of_part(ws, part) for t in said}
    return stated | {w.replace("{q}", t) for w in p.of_part(p.ASKED_WRAPPED, part) for t in asked}


def other_texts(part: str) -> set[str]:
    return {*p.of_part(p.ACKNOWLEDGED, part), *(question for question, _ in p.talk(part))}


def disjoint(parts: list[set[str]]) -> bool:
    """Whether no two share a text, and only the part that validates may be empty."""
    return bool(parts[0] and parts[2]) and not any(a & b for a, b in combinations(parts, 2))


def test_no_phrasing_is_in_two_parts() -> None:
    for kind in KINDS:
        for of in (p.said, p.asked):
            assert disjoint([{t for group in of(kind, part) for t in group} for part in PARTS]), kind.name
    for lists in (p.WRAPPED, p.CORRECTED, p.ASKED_WRAPPED):
        assert disjoint([set(p.of_part(lists, part)) for part in PARTS])
    assert disjoint([set(phrasings_of(p.TOPICS, part)) for part in PARTS])
    assert disjoint([other_texts(part) for part in PARTS])


def test_the_models_own_talk_is_asked_for_in_words_of_its_part() -> None:
    rng = random.Random(3)
    held_out = {v for name in p.TOPIC_VOCABULARIES for v in values(name, HELD_OUT)}
    for _ in range(300):
        said = talk_prompt(rng)
        assert said not in {question for question, _ in p.talk(HELD_OUT)}
        assert not any(said == t.replace("{t}", v) for t in p.TOPICS for v in held_out)


def test_what_is_recalled_in_a_conversation_was_told_before_and_holds_then() -> None:
    rng = random.Random(6)
    for _ in range(40):
        episode = generate_episode(rng, 3, talk_turns=1, recalls=2, updates=1, sessions=2)
        now: dict[str, str] = {}
        recalled = 0
        for message in (m for s in episode.sessions for m in s if m.value):
            if message.role == "user":
                now[message.kind] = message.value
            else:
                recalled += 1
                assert now[message.kind] == message.value
                assert message.value in message.content
        assert recalled == 2


@pytest.mark.parametrize("part", PARTS)
def test_an_episode_uses_phrasings_of_its_part_alone(part: str) -> None:
    rng = random.Random(2)
    by_name = {k.name: k for k in KINDS}
    for _ in range(60):
        episode = generate_episode(rng, 3, phrasing_part=part, talk_turns=1, updates=1)
        for message in (m for s in episode.sessions for m in s if m.role == "user"):
            known = sayings(by_name[message.kind], part) if message.kind else other_texts(part)
            assert any(t.replace("{v}", message.value) == message.content for t in known), message.content
        for question in episode.questions:
            assert question.content in sayings(by_name[question.kind], part)


def test_no_kind_is_in_both_parts() -> None:
    train, held_out = ({k.name for k in kinds_of(part)} for part in (TRAIN, HELD_OUT))
    assert held_out
    assert not train & held_out
    assert train | held_out == {k.name for k in KINDS}


@pytest.mark.parametrize("part", [TRAIN, HELD_OUT])
def test_what_is_asked_was_told_and_the_last_telling_counts(part: str) -> None:
    rng = random.Random(5)
    for _ in range(60):
        episode = generate_episode(
            rng, 4, value_part=part, phrasing_part=part, talk_turns=1, updates=1, unknown=1, sessions=2
        )
        told = [m for s in episode.sessions for m in s if m.role == "user"]
        assert [m.role for s in episode.sessions for m in s][::2] == ["user"] * len(told)
        assert len(episode.sessions) == 2
        for q in episode.questions:
            if q.about == "unknown":
                assert "not known" in q.answer
                continue
            assert q.value in q.answer
            assert any(q.value in m.content for m in told)
            if q.old_value:
                last = max(i for i, m in enumerate(told) if m.value == q.value)
                assert last > max(i for i, m in enumerate(told) if m.value == q.old_value)


def test_what_is_not_known_is_answered_in_the_same_words_up_to_the_value() -> None:
    for kind in KINDS:
        known = kind.answer_for("|")
        unknown = p.UNKNOWN.replace("{n}", kind.noun)
        assert unknown.startswith(known[: known.index("|")])


def test_values_come_from_the_part_that_was_asked_for() -> None:
    rng = random.Random(1)
    for _ in range(50):
        episode = generate_episode(rng, 3, value_part=HELD_OUT)
        for q in episode.questions:
            assert q.value in {v for k in KINDS if k.name == q.kind for v in values(k.vocabulary, HELD_OUT)}


def test_the_same_seed_draws_the_same_episode() -> None:
    assert generate_episode(random.Random(3), 3) == generate_episode(random.Random(3), 3)
    assert generate_episode(random.Random(3), 3) != generate_episode(random.Random(4), 3)
