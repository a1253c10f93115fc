"""Conversations that are mixed from written turns: what they tell, what they ask, and what is shown again before that."""

from training_support import need

need("torch", "faker")

import random
from pathlib import Path

import pytest
import torch
from training_tiny import TALK, memory_for

from deltamem_cli.episodes import generate_episode
from deltamem_cli.episodes.kinds import KINDS
from deltamem_cli.synthetic import write_model
from deltamem_cli.training import pool as pooling
from deltamem_cli.training.backbone import Backbone
from deltamem_cli.training.batch import Written, ask, written_episodes
from deltamem_cli.training.encode import EncodedQuestion, Encoder
from deltamem_cli.training.pool import Pool, size_of_batch
from deltamem_cli.training.sources import dense_source, persona_source, recall_checks
from deltamem_cli.training.tokens import GGUFTokenizer

MARK = "<|im_start|>assistant"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model") / "tiny.gguf", "llama", seed=1)


@pytest.fixture(scope="module")
def encoder(base: Path) -> Encoder:
    return Encoder(GGUFTokenizer(base))


def mixed_pool(
    base: Path, encoder: Encoder, rng: random.Random, written: int, room: int = 2
) -> tuple[Pool, list[Written]]:
    """A pool with room for so many conversations, and all that were put into it."""
    backbone = Backbone(base)
    memory = memory_for(backbone)
    conversations = written_episodes(backbone, memory, dense_source(encoder, TALK)(rng, written, 0.0))
    ask(backbone, memory, conversations)
    pool = Pool(room, mixed=True)
    pool.add(conversations)
    return pool, conversations


def shown_values(q: EncodedQuestion) -> list[str]:
    """What is told, in the turns that are shown before it, of what it asks for."""
    return [m.value for m in q.shown if m.kind == q.question.kind]


def words(encoder: Encoder, tokens: list[int]) -> str:
    return b"".join(encoder.tokenizer.piece(t) for t in tokens).decode()


def test_turns_shown_again_are_what_the_conversation_held_and_are_not_written(encoder: Encoder) -> None:
    told = generate_episode(random.Random(0), 2, system="Be kind.")
    said = told.sessions[0]
    asked = encoder.question("Be kind.", told.questions[0], shown=said)
    session = encoder.session("Be kind.", said)
    assert asked.prompt[: asked.opening] == session.tokens
    alone = encoder.question("Be kind.", told.questions[0])
    assert asked.prompt[asked.opening :] == alone.prompt[alone.opening :]
    assert (asked.head, asked.answer, asked.value_at) == (alone.head, alone.answer, alone.value_at)


def test_what_is_shown_again_before_a_question_never_tells_another_value(base: Path, encoder: Encoder) -> None:
    rng = random.Random(3)
    pool, written = mixed_pool(base, encoder, rng, 16, room=16)
    assert any(q.plain and q.shown for w in written for q in w.episode.questions)
    seen = others = 0
    for mixed in (m for _ in range(8) for m in pool.draw(rng, 12, 3, False, True)):
        for q in (q for q in mixed.episode.questions if q.value_at):
            told = shown_values(q)
            assert told[-1:] in ([], [q.question.value])
            seen += bool(told)
            others += not told and bool(q.shown)
            assert all(m.content in words(encoder, q.prompt[: q.opening]) for m in q.shown)
    assert seen > 20
    assert others > 10


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
            assert MARK not in words(encoder, q.prompt[: q.opening])


def test_a_mixed_conversation_asks_for_what_was_told_last_and_for_nothing_else(base: Path, encoder: Encoder) -> None:
    rng = random.Random(0)
    pool, written = mixed_pool(base, encoder, rng, 3)
    assert list(pool.written) == written[1:]  # the oldest left
    assert {t.about.question.kind for t in pool.told if t.about} <= {k.name for k in KINDS}
    repeats = [turn for turns in pool.recalled.values() for turn in turns]
    assert repeats
    seen_repeats = seen_talk = 0
    for mixed in (m for _ in range(12) for m in pool.draw(rng, 12, *size_of_batch(rng, 6))):
        told = {}
        for n in range(int(mixed.spans.max()) // 2 + 1):
            turn = mixed.inputs[:, mixed.spans // 2 == n]
            for known in pool.told:
                if known.about is not None and torch.equal(torch.cat(known.parts, 1), turn):
                    told[known.about.question.kind] = known.about.question
            seen_talk += any(torch.equal(torch.cat(t.parts, 1), turn) for t in pool.talk)
            for repeat in repeats:
                if torch.equal(torch.cat(repeat.parts, 1), turn):
                    seen_repeats += 1
                    assert repeat.about is not None
                    # what is repeated is what holds by then
                    assert told[repeat.about.question.kind].value == repeat.about.question.value
        asked = [q for q in mixed.episode.questions if q.value_at]
        assert {q.question.kind: q.question for q in asked} == told
        assert all(q.plain or q.question.kind not in told for q in mixed.episode.questions if not q.value_at)
        assert len(mixed.asked) == len(mixed.episode.questions)
        for q in asked:
            kind = q.question.kind
            seen = [p for t in pool.shown_again if t.about and t.about.question.kind == kind for p in t.showing]
            # the prompt may be that of another turn, but asks for this kind
            prompts = [p.question for p in (*pool.prompts[False][kind], *pool.prompts[True][kind], *seen)]
            assert any(q.prompt in (p.prompt, p.at_value().prompt) for p in prompts)
    assert seen_repeats
    assert seen_talk


def test_a_change_is_told_after_what_it_changes(base: Path, encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pooling, "UPDATED_SHARE", 1.0)
    monkeypatch.setattr(pooling, "CORRECTED_SHARE", 1.0)
    rng = random.Random(1)
    pool, _ = mixed_pool(base, encoder, rng, 2)
    assert len(pool.corrections) == sum(t.corrects for t in pool.told) == 2  # each conversation changed one fact
    changed = 0
    for mixed in (m for _ in range(12) for m in pool.draw(rng, 4, 1, False, False)):
        (q,) = [q.question for q in mixed.episode.questions if q.value_at]
        if q.kind in pool.corrections:
            changed += 1
            assert q.value == pool.corrections[q.kind][0].about.question.value  # type: ignore[union-attr]
    assert changed
