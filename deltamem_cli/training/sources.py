"""What a training run is fed: built-in persona episodes in rising difficulty, or conversations from a file."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

from deltamem_cli.episodes import TRAIN, VALIDATION, Episode, Fact, Question, Utterance, generate_episode, phrasings
from deltamem_cli.episodes.conversation import draw_conversation, question
from deltamem_cli.episodes.spoken import by_name
from deltamem_cli.training.encode import EncodedEpisode, EncodedQuestion, Encoder

PLAIN_SHARE = 0.3
PLAIN_TOKENS = 24  # of an answer that the memory must leave as it is
SHOWN_SHARE, SHOWN_TURNS = 0.3, 4  # of questions, that come after earlier turns shown again; of how many at most
AGAIN, AGAIN_SHOWN = (
    4,
    0.7,
)  # facts of a conversation to mix that are asked for twice; the share of these that show turns

Talk = Sequence[tuple[str, str]]
# (random numbers, how many, progress 0..1) -> fresh episodes
Source = Callable[[random.Random, int, float], list[EncodedEpisode]]


def dense_source(encoder: Encoder, talk: Talk, answered: Talk = ()) -> Source:
    """Episodes to take apart and mix: many facts, each asked about, some corrected, some asked for in between, some talk.

    answered: what told facts are answered with by the model without memory; empty: talk is all that is kept as it is.
    """

    def draw(rng: random.Random, n: int, progress: float) -> list[EncodedEpisode]:
        return [_dense(encoder, rng, talk, answered or talk) for _ in range(n)]

    return draw


def _dense(encoder: Encoder, rng: random.Random, talk: Talk, own: Talk) -> EncodedEpisode:
    system = "" if rng.random() < 0.8 else rng.choice(phrasings.SYSTEMS)
    episode = draw_conversation(rng, 8, talk=talk, talk_turns=1, updates=2, asks=1, system=system)
    said = episode.sessions[0]
    # each fact is asked for alone, so that all of them can be mixed; and some again, mostly after turns shown again
    encoded = _encoded(encoder, rng, episode, shown=0.0)
    now = {f.kind: f.value for m in said for f in m.facts}
    for kind in rng.sample(sorted(now), AGAIN):
        asked = question(rng, by_name(kind), now[kind])
        shown = _shown(rng, said, AGAIN_SHOWN, asked)
        encoded.questions.append(encoder.question(episode.system, asked, shown=shown))
    for pairs in (talk, own):
        shown = _shown(rng, said, SHOWN_SHARE)
        encoded.questions.append(plain_question(encoder, rng, episode.system, pairs, shown))
    return encoded


def _encoded(encoder: Encoder, rng: random.Random, episode: Episode, shown: float = SHOWN_SHARE) -> EncodedEpisode:
    """A share of its questions come after turns of the last session that are shown again."""
    sessions = [encoder.session(episode.system, messages) for messages in episode.sessions]
    last = episode.sessions[-1]
    return EncodedEpisode(
        sessions, [encoder.question(episode.system, q, shown=_shown(rng, last, shown, q)) for q in episode.questions]
    )


def _shown(
    rng: random.Random, said: Sequence[Utterance], share: float, asked: Question | None = None
) -> Sequence[Utterance]:
    """Turns that follow each other, to be shown again before a share of the questions; most tell what is asked for.

    None where they tell it with a value that has changed since.
    """
    if rng.random() >= share:
        return ()
    size = rng.randint(1, SHOWN_TURNS)
    first, last = 0, len(said) // 2 - size
    fact = asked and Fact(asked.kind, asked.value)
    telling = [n // 2 for n, m in enumerate(said) if fact in m.facts]
    if telling and rng.random() < 0.6:
        first, last = max(first, telling[0] - size + 1), min(last, telling[0])
    start = rng.randint(first, max(first, last))
    shown = said[2 * start : 2 * (start + size)]
    values = [f.value for m in shown for f in m.facts if asked and f.kind == asked.kind]
    return shown if asked is None or not values or values[-1] == asked.value else ()


def plain_question(
    encoder: Encoder, rng: random.Random, system: str, talk: Talk, shown: Sequence[Utterance] = ()
) -> EncodedQuestion:
    """Ordinary talk, or ordinary text with no chat around it, in the frozen model's own words."""
    asked, answer = rng.choice(talk)
    if rng.random() < 0.5:
        words = answer.split(" ")
        question = encoder.text(" ".join(words[rng.randrange(max(1, len(words) // 2)) :]))
        if question.answer:
            question.answer = question.answer[:PLAIN_TOKENS]
            return question
    question = encoder.question(system, Question(asked, answer, "", "talk", "plain"), plain=True, shown=shown)
    question.answer = question.answer[:PLAIN_TOKENS]
    return question


def persona_source(encoder: Encoder, talk: Talk) -> Source:
    """Episodes of the training part; more facts, more talk, more sessions and updates as progress goes from 0 to 1."""

    def draw(rng: random.Random, n: int, progress: float) -> list[EncodedEpisode]:
        return [encoder_episode(encoder, rng, progress, talk) for _ in range(n)]

    return draw


def encoder_episode(encoder: Encoder, rng: random.Random, progress: float, talk: Talk) -> EncodedEpisode:
    """A conversation that is drawn anew; more facts, and later ones, as the run goes on."""
    facts = rng.choice((1, 2, 3) if progress < 0.1 else (1, 2, 3, 4) if progress < 0.3 else (1, 2, 3, 4, 5, 6))
    late = progress > 0.2
    episode = draw_conversation(
        rng,
        facts,
        talk_turns=rng.choice((0, 0, 1, 2, 4) if late else (0, 0, 0, 1)),
        talk=talk,
        asks=int(late and rng.random() < 0.3),
        updates=int(late and rng.random() < 0.25),
        unknown=int(rng.random() < (0.3 if late else 0.1)),
    )
    encoded = _encoded(encoder, rng, episode)
    if rng.random() < PLAIN_SHARE:
        encoded.questions.append(plain_question(encoder, rng, episode.system, talk))
    return encoded


def shown_again(encoder: Encoder, episode: Episode) -> EncodedEpisode:
    """All questions after all turns of the last session."""
    encoded = encoder.episode(episode)
    last = episode.sessions[-1]
    encoded.questions = [encoder.question(episode.system, q, shown=last) for q in episode.questions]
    return encoded


def recall_checks(encoder: Encoder, seed: int = 777, cases: int = 12) -> dict[str, list[EncodedEpisode]]:
    """Validation episodes: phrasings of the validation part, values never trained on (unseen) or trained on (seen), and never
    trained on after all turns, which are shown again; facts of kinds.py alone (short), or as people speak."""

    def short(facts: int, part: str, rng: random.Random) -> Episode:
        return generate_episode(rng, facts, value_part=part, phrasing_part=VALIDATION, system="")

    def spoken(facts: int, part: str, rng: random.Random, updates: int = 0) -> Episode:
        return draw_conversation(rng, facts, part=part, phrasing_part=VALIDATION, updates=updates)

    def not_told(facts: int, part: str, rng: random.Random) -> Episode:
        episode = draw_conversation(rng, facts, part=part, phrasing_part=VALIDATION, unknown=2)
        return replace(episode, questions=[q for q in episode.questions if not q.value])

    def corrected(facts: int, part: str, rng: random.Random) -> Episode:
        episode = spoken(facts, part, rng, updates=1)
        (kind,) = [f.kind for m in episode.sessions[0] if m.corrects for f in m.facts]
        return replace(episode, questions=[q for q in episode.questions if q.kind == kind])

    checks = {}
    for name, facts, part, n, draw, encode in (
        ("unseen 1", 1, VALIDATION, cases, spoken, encoder.episode),
        ("unseen 3", 3, VALIDATION, 2 * cases // 3, spoken, encoder.episode),
        ("unseen 6", 6, VALIDATION, cases // 3, spoken, encoder.episode),
        ("short 1", 1, VALIDATION, cases, short, encoder.episode),
        ("short 3", 3, VALIDATION, cases // 3, short, encoder.episode),
        ("corrected", 2, VALIDATION, cases, corrected, encoder.episode),
        ("not told", 2, VALIDATION, 2 * cases // 3, not_told, encoder.episode),
        ("shown again 3", 3, VALIDATION, cases // 3, spoken, partial(shown_again, encoder)),
        ("seen 1", 1, TRAIN, cases, spoken, encoder.episode),
        ("seen 3", 3, TRAIN, cases // 2, spoken, encoder.episode),
    ):
        rng = random.Random(f"{seed} {name}")
        checks[name] = [encode(draw(facts, part, rng)) for _ in range(n)]
    return checks
