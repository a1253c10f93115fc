"""Training, validation and held-out cases share nothing; episodes and conversations say what they later ask."""

import random
import re
from collections.abc import Iterator
from itertools import combinations
from typing import Any

import pytest

from deltamem_cli.episodes import (
    HELD_OUT,
    TRAIN,
    VALIDATION,
    Episode,
    Fact,
    Utterance,
    generate_episode,
    requests,
    spoken,
)
from deltamem_cli.episodes import phrasings as p
from deltamem_cli.episodes.conversation import draw_conversation, draw_kinds, other_values, told_prompt
from deltamem_cli.episodes.episode import talk_prompt
from deltamem_cli.episodes.kinds import KINDS, Kind, kinds_of
from deltamem_cli.episodes.requests import REQUESTS, WORDS, draw_request
from deltamem_cli.episodes.split import phrasings_of
from deltamem_cli.episodes.spoken import Everyday, Short
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
    assert disjoint([set(phrasings_of(REQUESTS, part)) for part in PARTS])
    assert disjoint([other_texts(part) for part in PARTS])


def test_the_models_own_talk_is_asked_for_in_words_of_its_part() -> None:
    rng = random.Random(3)
    held_out = {v for name in p.TOPIC_VOCABULARIES for v in values(name, HELD_OUT)}
    for _ in range(300):
        said = talk_prompt(rng)
        assert said not in {question for question, _ in p.talk(HELD_OUT)}
        assert not any(said == t.replace("{t}", v) for t in p.TOPICS for v in held_out)


def test_ordinary_requests_are_in_words_of_their_part_with_nothing_left_open() -> None:
    rng = random.Random(4)
    assert len(set(REQUESTS)) == len(REQUESTS)
    drawn = {part: {draw_request(rng, part) for _ in range(1500)} for part in (TRAIN, HELD_OUT)}
    assert len(drawn[TRAIN]) > 600 and not drawn[TRAIN] & drawn[HELD_OUT]
    assert not any("{" in said or " a a" in said for part in drawn.values() for said in part)
    words = {word for name in WORDS for word in requests.words(name, HELD_OUT)}
    assert not {word for word in words if any(f" {word}." in said or f" {word}?" in said for said in drawn[TRAIN])}


def test_a_good_part_of_ordinary_talk_is_short_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deltamem_cli.episodes.episode.draw_request", lambda rng, part: "a request")
    rng = random.Random(5)
    assert 90 < [talk_prompt(rng) for _ in range(300)].count("a request") < 180


@pytest.mark.parametrize("part", PARTS)
def test_an_episode_uses_phrasings_of_its_part_alone(part: str) -> None:
    rng = random.Random(2)
    by_name = {k.name: k for k in KINDS}
    for _ in range(60):
        episode = generate_episode(rng, 3, phrasing_part=part, talk_turns=1, updates=1)
        for message in (m for s in episode.sessions for m in s if m.role == "user"):
            (fact,) = message.facts or (Fact("", ""),)
            known = sayings(by_name[fact.kind], part) if fact.kind else other_texts(part)
            assert any(t.replace("{v}", fact.value) == message.content for t in known), message.content
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
                assert q.answer.startswith("I don't know")
                assert not q.value
                continue
            assert q.value in q.answer
            assert any(q.value in m.content for m in told)
            if q.old_value:
                last = max(i for i, m in enumerate(told) if Fact(q.kind, q.value) in m.facts)
                assert last > max(i for i, m in enumerate(told) if Fact(q.kind, q.old_value) in m.facts)


def test_an_answer_holds_its_value_once_and_what_is_not_told_is_not_known() -> None:
    rng = random.Random(8)
    for kind in KINDS:
        assert kind.answer_for("|").count("|") == 1, kind.name
        assert kind.answer.count("{}") == bool(kind.answer), kind.name
        assert Short(kind).unknown == f"I don't know your {kind.noun}."
        for part in (TRAIN, HELD_OUT):
            asked, answer = Short(kind).ask(rng, part)
            assert asked in sayings(kind, part)
            assert answer.count("{v}") == 1


def test_values_come_from_the_part_that_was_asked_for() -> None:
    rng = random.Random(1)
    for _ in range(50):
        episode = generate_episode(rng, 3, value_part=HELD_OUT)
        for q in episode.questions:
            assert q.value in {v for k in KINDS if k.name == q.kind for v in values(k.vocabulary, HELD_OUT)}


def test_the_same_seed_draws_the_same_episode() -> None:
    assert generate_episode(random.Random(3), 3) == generate_episode(random.Random(3), 3)
    assert generate_episode(random.Random(3), 3) != generate_episode(random.Random(4), 3)


# conversations as people hold them


def conversations(
    count: int, seed: int = 0, facts: int = 4, **settings: Any
) -> Iterator[tuple[Episode, list[Utterance]]]:
    """Conversations and what their user says."""
    rng = random.Random(seed)
    for _ in range(count):
        episode = draw_conversation(rng, facts, **settings)
        (session,) = episode.sessions
        assert [m.role for m in session] == ["user", "assistant"] * (len(session) // 2)
        assert not any(m.facts or m.asks or m.corrects for m in session[1::2])
        yield episode, session[::2]


def test_every_fact_is_told_word_for_word_and_asked_about_as_it_was_told_last() -> None:
    together = alone = 0
    for episode, said in conversations(60, talk_turns=1, updates=1):
        now: dict[str, str] = {}
        for message in said:
            assert len(message.facts) <= 3
            together += len(message.facts) > 1
            alone += len(message.facts) == 1
            assert all(f.value in message.content for f in message.facts)
            now |= dict(message.facts)
        assert len(now) == len(set(now.values())) == 4  # the answer must say which fact was meant
        assert {q.kind: q.value for q in episode.questions} == now
        assert all(q.value in q.answer for q in episode.questions)
        assert not any(re.search(rf"(?<!\w){re.escape(q.value)}(?!\w)", q.content) for q in episode.questions)
        assert sum(not (m.facts or m.asks) for m in said) == 1  # talk
    assert together > 30
    assert alone > 60


def test_a_correction_names_what_was_told_before_and_counts_from_then_on() -> None:
    named = 0
    for episode, said in conversations(60, updates=2, asks=1):
        corrections = [(n, m) for n, m in enumerate(said) if m.corrects]
        assert len(corrections) == 2
        for n, message in corrections:
            (fact,) = message.facts
            assert message.corrects != fact.value
            before = [f.value for m in said[:n] for f in m.facts if f.kind == fact.kind]
            assert before == [message.corrects]
            assert [q.value for q in episode.questions if q.kind == fact.kind] == [fact.value]
            named += message.corrects in message.content
    assert named > 20


def test_what_is_asked_for_in_a_conversation_was_told_before_and_is_answered_as_it_holds_then() -> None:
    for episode, said in conversations(60, facts=3, talk_turns=1, updates=1, asks=2):
        now: dict[str, str] = {}
        asked = 0
        for n, message in enumerate(said):
            now |= dict(message.facts)
            if message.asks:
                asked += 1
                assert not message.facts
                assert now[message.asks] in episode.sessions[0][2 * n + 1].content
        assert asked == 2


def test_a_kind_that_is_not_told_is_asked_for_and_not_known() -> None:
    for episode, said in conversations(60, facts=2, unknown=2):
        told = {f.kind for m in said for f in m.facts}
        unknown = [q for q in episode.questions if q.kind not in told]
        assert len(unknown) == 2
        for q in unknown:
            assert q.answer == spoken.by_name(q.kind).unknown
            assert q.answer.startswith("I don't know")
            assert not q.value


def test_some_facts_of_a_conversation_are_alike_but_for_whom_they_are_about() -> None:
    rng = random.Random(0)
    alike = 0
    for _ in range(40):
        kinds = draw_kinds(rng, 4)
        assert len({kind.name for kind in kinds}) == 4
        alike += len({kind.base for kind in kinds}) < 4
    assert 10 < alike < 40


@pytest.mark.parametrize("part", [TRAIN, VALIDATION])
def test_a_conversation_has_kinds_of_the_training_and_values_and_phrasings_of_its_part(part: str) -> None:
    kinds = {k.name for k in (*spoken.short(TRAIN), *spoken.everyday(TRAIN))}
    checked = 0
    for episode, said in conversations(60, part=part, updates=1, unknown=1):
        assert {q.kind for q in episode.questions} <= kinds
        for message in said:
            for kind, value in ((spoken.by_name(f.kind), f.value) for f in message.facts):
                assert kind.name in kinds
                # a part with hardly any values of a kind runs out of them
                assert value in kind.values(part) or (len(kind.values(part)) < 6 and value in kind.values(TRAIN))
                if isinstance(kind, Everyday) and len(message.facts) == 1:
                    checked += 1
                    said_so = spoken._of_part(kind.corrected if message.corrects else kind.said, part)
                    texts = (t.replace("{old}", message.corrects).replace("{v}", value) for t in said_so)
                    assert message.content in [t.replace("{who}", kind.who) for t in texts]
    assert checked > 60


def test_what_the_model_answers_without_memory_tells_a_fact() -> None:
    rng = random.Random(0)
    prompts = {told_prompt(rng) for _ in range(40)}
    assert len(prompts) > 30
    assert not any("{" in prompt for prompt in prompts)


def test_the_other_values_of_a_kind_are_trained_on_and_not_taken() -> None:
    rng = random.Random(0)
    for kind in spoken.everyday(TRAIN)[::20]:
        taken = set(kind.values(TRAIN)[:3])
        found = other_values(rng, kind, taken, 8)
        assert len(set(found)) == len(found) == min(8, len(kind.values(TRAIN)) - 3)
        assert set(found) <= set(kind.values(TRAIN)) - taken


def test_the_same_seed_draws_the_same_conversation() -> None:
    drawn = [draw_conversation(random.Random(seed), 3, updates=1, asks=1) for seed in (3, 3, 4)]
    assert drawn[0] == drawn[1] != drawn[2]
