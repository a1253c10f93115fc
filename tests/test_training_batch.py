"""What a batch computes from kept inputs equals real passes, and writes what a chat writes."""

from training_support import need

need("torch", "faker", "accelerate")

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from training_tiny import TALK, episodes, memory_for, words

from deltamem_cli.episodes import TRAIN, Fact, Utterance, generate_episode
from deltamem_cli.episodes.conversation import draw_conversation
from deltamem_cli.episodes.spoken import by_name
from deltamem_cli.training.backbone import Backbone
from deltamem_cli.training.batch import (
    ask,
    frozen_answers,
    read_answers,
    replay_answers,
    replay_writes,
    run_prompts,
    run_writes,
    written_episodes,
)
from deltamem_cli.training.encode import EncodedEpisode, Encoder
from deltamem_cli.training.pool import Query
from deltamem_cli.training.retell import SETTLED, retell
from deltamem_cli.training.sources import dense_source, shown_again

# after a message: its end, and what leads to the reply
MARKS_BEHIND = len("\nassistant\n") + 2


@pytest.mark.parametrize(
    ("granularity", "system", "shown"),
    [("token", "", False), ("message_mean", "", False), ("token", "Be kind.", False), ("token", "Be kind.", True)],
)
def test_replay_equals_the_real_passes_in_states_and_answers(
    base: Path, encoder: Encoder, granularity: str, system: str, shown: bool
) -> None:
    """The real ones go by what is marked as not written, the replay by what was left out."""
    backbone = Backbone(base)
    memory = memory_for(backbone, write_granularity=granularity)
    rng = random.Random(0)
    made = [generate_episode(rng, 2, talk_turns=1, sessions=2, system=system) for _ in range(3)]
    told = [shown_again(encoder, e) if shown else encoder.episode(e) for e in made]
    assert all((q.written[0] > 0) == bool(system or shown) for e in told for q in e.questions)
    pool = written_episodes(backbone, memory, told)
    ask(backbone, memory, pool)
    states, _ = run_writes(backbone, memory, told)
    replayed, _ = replay_writes(memory, pool)
    torch.testing.assert_close(replayed, states, atol=5e-3, rtol=5e-2)  # inputs are kept in bfloat16
    own = torch.tensor([i for i, e in enumerate(told) for _ in e.questions])
    questions = [q for e in told for q in e.questions]
    real = read_answers(backbone, memory, states[own], questions)
    prompts = [a for w in pool for a in w.asked if a is not None]
    assert len(prompts) == len(questions)
    own_facts = [Fact(q.question.kind, q.question.value) for q in questions]
    pairs = [(Query(q, a), fact) for q, a, fact in zip(questions, prompts, own_facts, strict=True)]
    whole = [query.about(fact, encoder) for query, fact in pairs]
    assert [w.question.answer for w in whole] == [q.answer for q in questions]
    for _ in range(2):  # the second time with what was kept of the layers below the memory
        again = replay_answers(backbone, memory, states[own], [w.asked for w in whole], [w.question for w in whole])
        torch.testing.assert_close(again.logits, real.logits, atol=2e-2, rtol=5e-2)
    assert real.lengths == [len(q.answer) for q in questions]
    # from the value on: the last rows of the same answers, among some tokens only
    part = [query.about(fact, encoder, whole=False) for query, fact in pairs]
    some = torch.tensor(sorted({t for q in questions for t in q.answer} | {0, 1}))
    values = replay_answers(backbone, memory, states[own], [p.asked for p in part], [p.question for p in part], some)
    rows = real.logits.split(real.lengths)
    wanted = [row[q.value_at[0] : q.value_at[-1] + 2] for row, q in zip(rows, questions, strict=True)]
    torch.testing.assert_close(values.logits, torch.cat(wanted)[:, some], atol=2e-2, rtol=5e-2)
    assert [some[i] for i in values.labels] == [t for p in part for t in p.question.answer]
    # and another answer to the same words
    unknown = [query.unknown(encoder) for query, _ in pairs]
    real = read_answers(backbone, memory, states[own], [u.question for u in unknown])
    again = replay_answers(backbone, memory, states[own], [u.asked for u in unknown], [u.question for u in unknown])
    torch.testing.assert_close(again.logits, real.logits, atol=2e-2, rtol=5e-2)


def test_what_all_questions_of_a_conversation_begin_with_is_read_once(
    base: Path, encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Openings of all lengths, and a text with none, beside each other give what each prompt gives alone."""
    backbone = Backbone(base)
    memory = memory_for(backbone)
    rng = random.Random(0)
    systems = ("", "Be kind.", "You are a helpful assistant who likes long answers.")
    told = [encoder.episode(generate_episode(rng, 3, system=system)) for system in systems]
    told[1].questions.append(encoder.text("Tea is a drink. It is made of leaves and hot water."))
    written = written_episodes(backbone, memory, told)
    ran: list[int] = []
    run = backbone.run

    def counted(h: torch.Tensor, lengths: torch.Tensor, *args: Any, **settings: Any) -> Any:
        ran.append(int(lengths.sum()))
        return run(h, lengths, *args, **settings)

    monkeypatch.setattr(backbone, "run", counted)
    ask(backbone, memory, written)
    openings = [e.sessions[0].opening for e in told]
    assert len(set(openings)) == 3
    prompts = [q.at_value().prompt for e in told for q in e.questions]
    frozen = sum(len(q.prompt + q.head + q.answer[:-1]) for e in told for q in e.questions if q.plain)
    saved = sum(
        opening * (sum(not q.plain for q in e.questions) - 1) for opening, e in zip(openings, told, strict=True)
    )
    assert sum(ran) - frozen == sum(map(len, prompts)) - saved
    for w in written:
        for q, asked in zip(w.episode.questions, w.asked, strict=True):
            assert asked is not None
            past, session = run_prompts(
                backbone, memory, w.state[None], [q.at_value().prompt], [q.written], keep_inputs=True
            )
            for n in range(backbone.shape.n_layer):
                torch.testing.assert_close(asked.keys[n], past.keys[n][0], atol=1e-5, rtol=1e-4)
                torch.testing.assert_close(asked.values[n], past.values[n][0], atol=1e-5, rtol=1e-4)
            alone = torch.stack(session.inputs, 1)[0, :, slice(*q.written)]
            torch.testing.assert_close(asked.inputs, alone, atol=1e-2, rtol=1e-2)  # kept in bfloat16


def test_only_what_the_user_says_changes_the_state(base: Path, encoder: Encoder) -> None:
    backbone = Backbone(base)
    memory = memory_for(backbone)
    said = draw_conversation(random.Random(0), 2).sessions[0]

    def state(messages: list[Utterance]) -> torch.Tensor:
        states, _ = run_writes(backbone, memory, [EncodedEpisode([encoder.session("", messages)], [])])
        return states

    own = state(said)
    torch.testing.assert_close(state([*said[:-1], Utterance("assistant", "Another reply, a longer one.")]), own)
    assert not torch.allclose(state([*said[:-2], Utterance("user", "Something else."), said[-1]]), own)
    # of an earlier reply what is told later sees something, as a system prompt is seen
    other = [*said[:1], Utterance("assistant", "Another reply, a longer one."), *said[2:]]
    rows = [EncodedEpisode([encoder.session("", messages)], []) for messages in (said, other)]
    assert rows[0].written == rows[1].written
    sizes = [w.inputs.shape[1] for w in written_episodes(backbone, memory, rows)]
    assert sizes == [len(rows[0].written)] * 2


def test_an_answer_reads_what_the_question_left_and_writes_nothing(base: Path, encoder: Encoder) -> None:
    backbone = Backbone(base)
    memory = memory_for(backbone)
    told = episodes(encoder, 2)
    questions = [q for e in told for q in e.questions]
    states = memory.zero_states(len(questions))
    # an empty memory changes nothing, unless something is written into it
    silent = [replace(q, written=(0, 0)) for q in questions]
    wanted = [backbone.logits(h) for h in frozen_answers(backbone, questions)]
    torch.testing.assert_close(
        read_answers(backbone, memory, states, silent).logits, torch.cat(wanted), atol=1e-4, rtol=1e-4
    )
    assert not torch.allclose(
        read_answers(backbone, memory, states, questions).logits, torch.cat(wanted), atol=1e-2, rtol=1e-2
    )


def test_the_gradient_of_an_answer_reaches_what_wrote_the_state(base: Path, encoder: Encoder) -> None:
    backbone = Backbone(base)
    memory = memory_for(backbone)
    told = episodes(encoder, 2)
    states, _ = run_writes(backbone, memory, told)
    questions = [e.questions[0] for e in told]
    read = read_answers(backbone, memory, states, questions)
    torch.nn.functional.cross_entropy(read.logits, read.labels).backward()
    rank = memory.config.rank
    assert memory.proj.grad is not None
    assert memory.gate.grad is not None
    # keys and values only matter through writes
    assert (memory.proj.grad[:, rank : 2 * rank].abs().sum((1, 2)) > 0).all()
    assert (memory.proj.grad[:, 2 * rank :].abs().sum((1, 2)) > 0).all()
    assert memory.gate.grad.abs().sum() > 0


@pytest.mark.parametrize("system", ["", "Be kind."])
def test_a_retold_fact_is_as_if_it_had_been_told_with_the_other_value(
    base: Path, encoder: Encoder, system: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = Backbone(base)
    memory = memory_for(backbone)
    rng = random.Random(3)
    told = draw_conversation(rng, 4, talk_turns=1, talk=TALK, updates=1, asks=1, system=system)
    said = told.sessions[0]
    assert any(len(m.facts) > 1 for m in said)
    (w,) = written_episodes(backbone, memory, [encoder.episode(told)], keep_past=True)
    run, ran = backbone.run, 0

    def counted(*args: Any, **settings: Any) -> Any:
        nonlocal ran
        ran += 1
        return run(*args, **settings)

    with monkeypatch.context() as patched:
        patched.setattr(backbone, "run", counted)
        retell(encoder, backbone, memory, rng, [w], 2)
    assert ran == 1  # few tokens at once do not keep a processor busy
    assert w.past is None
    values = {f.value for m in said for f in m.facts}
    assert sorted({r.message for r in w.retold}) == [n for n, m in enumerate(said) if m.facts]
    assert len(w.retold) == 2 * sum(len(m.facts) for m in said)
    for r in w.retold:
        ((old, new),) = [pair for pair in zip(said[r.message].facts, r.facts, strict=True) if pair[0] != pair[1]]
        assert new.kind == old.kind
        assert new.value in by_name(new.kind).values(TRAIN) and new.value not in values
        again = [*said]
        content = new.value.join(said[r.message].content.rsplit(old.value, 1))
        again[r.message] = replace(said[r.message], content=content, facts=r.facts)
        (real,) = written_episodes(backbone, memory, [EncodedEpisode([encoder.session(system, again)], [])])
        turn, own = (x.inputs[:, x.spans == r.message] for x in (real, w))
        inputs = torch.cat(r.parts, 1)
        assert inputs.shape == turn.shape
        # run again are the value and what settles after it; the rest is the conversation's
        behind = len(encoder.tokenizer.encode(said[r.message].content.rpartition(old.value)[2]))
        until = inputs.shape[1] - behind - MARKS_BEHIND
        torch.testing.assert_close(inputs[:, :until], turn[:, :until], atol=0.05, rtol=0.05)
        rest = inputs.shape[1] - until - SETTLED - 1
        assert torch.equal(inputs[:, -rest:], own[:, -rest:])


def test_messages_are_counted_from_the_first_one_whatever_the_system_prompt(encoder: Encoder) -> None:
    told = generate_episode(random.Random(0), 2, system="")
    counts = []
    for system in ("", "Be kind."):
        session = encoder.session(system, told.sessions[0])
        spans = session.spans[session.opening :]
        assert (spans[0], spans[-1]) == (0, len(told.sessions[0]) - 1)
        counts.append(spans)
    assert counts[0] == counts[1]


def test_an_answer_from_the_value_on_is_the_value_and_what_ends_it(encoder: Encoder) -> None:
    rng = random.Random(4)
    for episode in [encoder.episode(generate_episode(rng, 3, system="")) for _ in range(8)]:
        for q in episode.questions:
            part = q.at_value()
            assert q.prompt + q.head + q.answer[: q.value_at[-1] + 2] == part.prompt + part.head + part.answer
            assert len(part.head) == 1
            assert len(part.answer) == len(part.value_at) + 1
            text = b"".join(encoder.tokenizer.piece(t) for t in part.answer)
            assert q.question.value.encode() in text


def test_plain_answers_keep_what_the_frozen_model_would_say(base: Path, encoder: Encoder) -> None:
    backbone = Backbone(base)
    memory = memory_for(backbone)
    rng = random.Random(1)
    written = written_episodes(backbone, memory, dense_source(encoder, TALK)(rng, 4, 0.0))
    ask(backbone, memory, written)
    found = [(q, a) for w in written for q, a in zip(w.episode.questions, w.asked, strict=True) if q.plain]
    assert found
    for q, asked in found:
        ids = torch.tensor([q.prompt + q.head + q.answer[:-1]])
        h, _ = backbone.run(backbone.embed(ids), torch.tensor([ids.shape[1]]))
        assert asked is not None
        assert asked.frozen is not None
        torch.testing.assert_close(asked.frozen, h[0, -len(q.answer) :], atol=1e-4, rtol=1e-4)


def test_the_system_prompt_is_seen_and_never_written(base: Path, encoder: Encoder) -> None:
    backbone = Backbone(base)
    memory = memory_for(backbone)
    rng = random.Random(0)
    told = draw_conversation(rng, 1)
    states = []
    for system in ("Be kind.", "You are a helpful assistant who likes long answers."):
        session = encoder.session(system, told.sessions[0])
        question = encoder.question(system, told.questions[0])
        for text in (
            words(encoder, session.tokens[: session.opening]),
            words(encoder, question.prompt[: question.written[0]]),
        ):
            assert system in text and "<|im_start|>user" not in text
        alone = EncodedEpisode([session], [question])
        (written,) = written_episodes(backbone, memory, [alone])
        assert written.inputs.shape[1] == sum(session.writes)
        # what remains is the same text: the states differ only by what it saw of the system prompt
        states.append(written.episode.written)
    assert states[0] == states[1]
