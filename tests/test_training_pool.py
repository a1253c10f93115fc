"""Conversations that are mixed from written turns: what they tell, what they ask, and what is shown again before that."""

from training_support import need

need("torch", "faker")

import random
from pathlib import Path

import pytest
import torch
from training_tiny import TALK, memory_for, words

from deltamem_cli.episodes import Fact
from deltamem_cli.episodes.conversation import draw_conversation
from deltamem_cli.episodes.spoken import by_name
from deltamem_cli.training import pool as pooling
from deltamem_cli.training.backbone import Backbone
from deltamem_cli.training.batch import Written, ask, written_episodes
from deltamem_cli.training.encode import EncodedQuestion, Encoder
from deltamem_cli.training.pool import Pool, Query, Turn, size_of_batch
from deltamem_cli.training.retell import retell
from deltamem_cli.training.sources import dense_source, persona_source, recall_checks

MARK = "<|im_start|>assistant"


def mixed_pool(
    base: Path, encoder: Encoder, rng: random.Random, written: int, room: int = 2, retold: int = 0
) -> tuple[Pool, list[Written]]:
    """A pool with room for so many conversations, and all that were put into it."""
    backbone = Backbone(base)
    memory = memory_for(backbone)
    drawn = dense_source(encoder, TALK)(rng, written, 0.0)
    conversations = written_episodes(backbone, memory, drawn, keep_past=retold > 0)
    if retold:
        retell(encoder, backbone, memory, rng, conversations, retold)
    ask(backbone, memory, conversations)
    pool = Pool(room, mixed=True, encoder=encoder)
    pool.add(conversations)
    return pool, conversations


def turns_of(pool: Pool, mixed: Written) -> list[Turn]:
    """The turns that a conversation was mixed of."""
    every = [*pool.told, *pool.talk, *(t for turns in pool.asking.values() for t in turns)]
    found = []
    for n in range(0, int(mixed.spans.max()) + 1, 2):
        inputs = mixed.inputs[:, mixed.spans == n]
        # of talk that two conversations begin with, both are the same
        found.append(next(t for t in every if torch.equal(torch.cat(t.parts, 1), inputs)))
    return found


def shown_values(q: EncodedQuestion) -> list[str]:
    """What is told, in the turns that are shown before it, of what it asks for."""
    return [f.value for m in q.shown for f in m.facts if f.kind == q.question.kind]


def test_turns_shown_again_are_what_the_conversation_held_and_are_not_written(encoder: Encoder) -> None:
    told = draw_conversation(random.Random(0), 2, system="Be kind.")
    said = told.sessions[0]
    asked = encoder.question("Be kind.", told.questions[0], shown=said)
    session = encoder.session("Be kind.", said)
    begin, end = asked.written
    assert asked.prompt[:begin] == session.tokens
    alone = encoder.question("Be kind.", told.questions[0])
    assert asked.prompt[begin:end] == alone.prompt[slice(*alone.written)]
    assert (asked.head, asked.answer, asked.value_at) == (alone.head, alone.answer, alone.value_at)


def test_what_is_shown_again_before_a_question_never_tells_another_value(base: Path, encoder: Encoder) -> None:
    rng = random.Random(3)
    pool, written = mixed_pool(base, encoder, rng, 16, room=16)
    assert any(q.plain and q.shown for w in written for q in w.episode.questions)
    seen = others = 0
    for mixed in (m for _ in range(24) for m in pool.draw(rng, 12, 3, False, True)):
        for q in (q for q in mixed.episode.questions if q.value_at):
            told = shown_values(q)
            assert told[-1:] in ([], [q.question.value])
            seen += bool(told)
            others += not told and bool(q.shown)
            assert all(m.content in words(encoder, q.prompt[: q.written[0]]) for m in q.shown)
    assert seen > 20
    assert others


def test_whole_episodes_and_a_check_show_turns_again_too(encoder: Encoder) -> None:
    asked = [q for e in persona_source(encoder, TALK)(random.Random(0), 40, 1.0) for q in e.questions]
    assert any(q.shown for q in asked)
    for q in (q for q in asked if q.value_at):
        assert shown_values(q)[-1:] in ([], [q.question.value])
    for q in (q for e in recall_checks(encoder, cases=6)["shown again 3"] for q in e.questions):
        assert shown_values(q) == [q.question.value]


def test_only_batches_that_show_turns_again_show_any(base: Path, encoder: Encoder) -> None:
    rng = random.Random(4)
    pool, _ = mixed_pool(base, encoder, rng, 6, room=6)
    for mixed in (m for _ in range(8) for m in pool.draw(rng, 12, 3, False, False)):
        for q in mixed.episode.questions:
            assert not q.shown
            assert MARK not in words(encoder, q.prompt[: q.written[0]])


def test_a_mixed_conversation_asks_for_what_was_told_last(base: Path, encoder: Encoder) -> None:
    rng = random.Random(0)
    pool, written = mixed_pool(base, encoder, rng, 3)
    assert list(pool.written) == written[1:]  # the oldest left
    seen_asking = seen_talk = seen_together = 0
    for mixed in (m for _ in range(12) for m in pool.draw(rng, 12, *size_of_batch(rng, 6))):
        told: dict[str, str] = {}
        for turn in turns_of(pool, mixed):
            assert not (turn.asks and turn.asks not in told)  # it is asked for when it was told
            told |= dict(turn.facts)
            seen_asking += bool(turn.asks)
            seen_talk += not (turn.facts or turn.asks)
            seen_together += len(turn.facts) > 1
        asked = [q for q in mixed.episode.questions if q.value_at]
        assert {q.question.kind: q.question.value for q in asked} == told
        assert len(asked) == len(told)
        assert len(mixed.asked) == len(mixed.episode.questions)
        for q in asked:
            kind = q.question.kind
            assert q.question.value in q.question.answer
            seen = [p for t in pool.shown_again for f, own in t.showing.items() for p in own if f.kind == kind]
            # the prompt may be that of another turn, but asks for this kind
            prompts = [p.question for p in (*pool.prompts[False][kind], *pool.prompts[True][kind], *seen)]
            assert any(q.prompt in (p.prompt, p.at_value().prompt) for p in prompts)
    assert seen_asking and seen_talk and seen_together


def test_only_what_the_user_says_is_in_a_mixed_conversation(base: Path, encoder: Encoder) -> None:
    rng = random.Random(5)
    pool, written = mixed_pool(base, encoder, rng, 2)
    every = [*pool.told, *pool.talk, *(t for turns in pool.asking.values() for t in turns)]
    said = [m for w in written for m in w.episode.sessions[0].messages if m.role == "user"]
    marks = len(encoder.tokenizer.encode("<|im_start|>user\n<|im_end|>\n<|im_start|>assistant\n"))
    for turn in every:
        sizes = {
            marks + len(encoder.tokenizer.encode(m.content))
            for m in said
            if (m.facts, m.asks, m.corrects) == (turn.facts, turn.asks, turn.corrects)
        }
        assert sum(p.shape[1] for p in turn.parts) in sizes
    for mixed in pool.draw(rng, 12, 3, True, False):
        assert not (mixed.spans % 2).any()  # replies have the odd ones


def test_what_is_not_told_is_not_known(base: Path, encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pooling, "UNKNOWN_SHARE", 1.0)
    rng = random.Random(2)
    pool, _ = mixed_pool(base, encoder, rng, 4, room=4)
    alike = 0
    drawn = [m for _ in range(8) for m in pool.draw(rng, 12, 2, False, False)]
    for mixed in drawn:
        told = {f.kind for t in turns_of(pool, mixed) for f in t.facts}
        (q,) = [q for q in mixed.episode.questions if not q.value_at and not q.plain]
        assert q.question.kind not in told
        assert q.question.answer == by_name(q.question.kind).unknown
        assert words(encoder, q.answer).startswith("I don't know")
        assert any(q.prompt == p.question.prompt for p in pool.prompts[False][q.question.kind])
        alike += by_name(q.question.kind).base in {by_name(kind).base for kind in told}
    assert len(drawn) // 8 < alike < len(drawn)


def test_a_correction_follows_the_telling_of_the_value_that_it_names(
    base: Path, encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pooling, "UPDATED_SHARE", 1.0)
    rng = random.Random(1)
    pool, written = mixed_pool(base, encoder, rng, 4, room=4, retold=2)
    own = [m for w in written for m in w.episode.sessions[0].messages if m.corrects]
    assert len(own) == 8  # each conversation changed two facts
    corrections = [t for turns in pool.corrections.values() for t in turns]
    retold = [t for t in corrections if t.facts not in [m.facts for m in own]]
    assert len(retold) == 2 * (len(corrections) - len(retold)) > 0  # with two other values
    named = 0
    for mixed in (m for _ in range(90) for m in pool.draw(rng, 4, 1, False, False)):
        telling = [t for t in turns_of(pool, mixed) if t.facts]
        if len(telling) == 1:
            assert telling[0].corrects or len(telling[0].facts) > 1 or not pool.corrections[telling[0].facts[0].kind]
            continue
        told, correction = telling
        (fact,) = correction.facts
        old = Fact(fact.kind, correction.corrects)
        assert told.facts[0].kind == fact.kind
        if old in pool.by_fact:
            named += 1
            assert told.facts == (old,)
        (q,) = [q.question for q in mixed.episode.questions if q.value_at]
        assert (q.kind, q.value) == fact
    assert named > 5


def test_any_value_is_asked_for_by_any_prompt_of_its_kind(base: Path, encoder: Encoder) -> None:
    rng = random.Random(6)
    pool, _ = mixed_pool(base, encoder, rng, 2)
    for query in (q for queries in pool.prompts[False].values() for q in queries):
        asked = query.question.question
        for whole in (True, False):
            other = query.about(Fact(asked.kind, "Zanzibar"), encoder, whole)
            assert other.question.question.answer == asked.answer.replace(asked.value, "Zanzibar")
            given = words(encoder, other.question.prompt[query.question.written[1] :] + other.question.head)
            said = given.removeprefix("\n") + words(encoder, other.question.answer)
            answer = other.question.question.answer + "<|im_end|>"
            assert said == answer if whole else answer.startswith(said)
            size = len(other.question.prompt)
            assert all(t.shape[1] == size for t in other.asked.keys.values())
        assert isinstance(query.unknown(encoder), Query)
