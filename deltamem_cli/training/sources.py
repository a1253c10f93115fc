"""What a training run is fed: built-in persona episodes in rising difficulty, or conversations from a file."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from functools import partial

from deltamem_cli.episodes import TRAIN, VALIDATION, Episode, Message, Question, generate_episode
from deltamem_cli.episodes.episode import question_about
from deltamem_cli.episodes.kinds import BY_NAME
from deltamem_cli.training.encode import EncodedEpisode, EncodedQuestion, Encoder

PLAIN_SHARE = 0.3
PLAIN_TOKENS = 24  # of an answer that the memory must leave as it is
SHOWN_SHARE, SHOWN_TURNS = 0.35, 5  # of questions, that come after earlier turns shown again; of how many at most

Talk = Sequence[tuple[str, str]]
# (random numbers, how many, progress 0..1) -> fresh episodes
Source = Callable[[random.Random, int, float], list[EncodedEpisode]]


def dense_source(encoder: Encoder, talk: Talk) -> Source:
    """Episodes to take apart and mix: many facts, each asked about, some recalled, one updated, one never told, some talk."""

    def draw(rng: random.Random, n: int, progress: float) -> list[EncodedEpisode]:
        return [_dense(encoder, rng, talk) for _ in range(n)]

    return draw


def _dense(encoder: Encoder, rng: random.Random, talk: Talk) -> EncodedEpisode:
    episode = generate_episode(rng, 7, talk_turns=1, talk=talk, recalls=1, updates=1, unknown=1, max_questions=0)
    said = episode.sessions[0]
    told = [m for m in said if m.kind and m.role == "user"]
    episode.questions += [question_about(rng, BY_NAME[m.kind], m.value) for m in told]
    encoded = _encoded(encoder, rng, episode)
    encoded.questions.append(plain_question(encoder, rng, episode.system, talk, _shown(rng, said)))
    return encoded


def _encoded(encoder: Encoder, rng: random.Random, episode: Episode) -> EncodedEpisode:
    """Some of its questions come after turns of the last session that are shown again."""
    sessions = [encoder.session(episode.system, messages) for messages in episode.sessions]
    last = episode.sessions[-1]
    return EncodedEpisode(
        sessions, [encoder.question(episode.system, q, shown=_shown(rng, last, q)) for q in episode.questions]
    )


def _shown(rng: random.Random, said: Sequence[Message], asked: Question | None = None) -> Sequence[Message]:
    """Turns that follow each other, to be shown again before a question, or none; most tell what is asked for.

    None either where they tell it with a value that has changed since.
    """
    if rng.random() >= SHOWN_SHARE:
        return ()
    size = rng.randint(1, SHOWN_TURNS)
    first, last = 0, len(said) // 2 - size
    telling = [n // 2 for n, m in enumerate(said) if asked and asked.value and m.value == asked.value]
    if telling and rng.random() < 0.5:
        first, last = max(first, telling[0] - size + 1), min(last, telling[0])
    start = rng.randint(first, max(first, last))
    shown = said[2 * start : 2 * (start + size)]
    values = [m.value for m in shown if asked and m.kind == asked.kind]
    return shown if asked is None or not values or values[-1] == asked.value else ()


def plain_question(
    encoder: Encoder, rng: random.Random, system: str, talk: Talk, shown: Sequence[Message] = ()
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
    facts = rng.choice((1, 2, 3) if progress < 0.1 else (1, 2, 3, 4) if progress < 0.3 else (1, 2, 3, 4, 5, 6))
    late = progress > 0.2
    episode = generate_episode(
        rng,
        facts,
        talk_turns=rng.choice((0, 0, 1, 2, 4) if late else (0, 0, 0, 1)),
        talk=talk,
        recalls=int(late and rng.random() < 0.3),
        updates=int(late and rng.random() < 0.25),
        unknown=int(rng.random() < (0.15 if late else 0.05)),
        sessions=2 if late and rng.random() < 0.2 else 1,
        max_questions=4,
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


def recall_checks(encoder: Encoder, seed: int = 777, cases: int = 24) -> dict[str, list[EncodedEpisode]]:
    """Validation episodes: phrasings of the validation part, values never trained on (unseen) or trained on (seen), and never
    trained on after all turns, which are shown again."""
    checks = {}
    for name, facts, part, n, encode in (
        ("unseen 1", 1, VALIDATION, cases, encoder.episode),
        ("unseen 3", 3, VALIDATION, 2 * cases // 3, encoder.episode),
        ("unseen 6", 6, VALIDATION, cases // 3, encoder.episode),
        ("shown again 3", 3, VALIDATION, cases // 3, partial(shown_again, encoder)),
        ("seen 1", 1, TRAIN, cases, encoder.episode),
        ("seen 3", 3, TRAIN, cases // 2, encoder.episode),
    ):
        rng = random.Random(f"{seed} {name}")
        checks[name] = [
            encode(generate_episode(rng, facts, value_part=part, phrasing_part=VALIDATION, system="")) for _ in range(n)
        ]
    return checks
