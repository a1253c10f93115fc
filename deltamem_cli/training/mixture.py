"""What a training run is fed: built-in persona episodes in rising difficulty, or conversations from a file."""

from __future__ import annotations

import random
from collections.abc import Callable

from deltamem_cli.episodes import HELD_OUT, TRAIN, Question, generate_episode
from deltamem_cli.episodes.episode import question_about
from deltamem_cli.episodes.kinds import BY_NAME
from deltamem_cli.episodes.phrasings import talk
from deltamem_cli.training.encode import EncodedEpisode, EncodedQuestion, Encoder

PLAIN_SHARE = 0.15
DENSE_PLAIN_SHARE = 0.5


def dense_source(encoder: Encoder) -> Callable[[random.Random, int, float], list[EncodedEpisode]]:
    """Episodes to take apart and mix: many facts, each asked about, one updated, one never told, some ordinary talk."""

    def draw(rng: random.Random, n: int, progress: float) -> list[EncodedEpisode]:
        return [_dense(encoder, rng) for _ in range(n)]

    return draw


def _dense(encoder: Encoder, rng: random.Random) -> EncodedEpisode:
    episode = generate_episode(rng, 7, talk_turns=1, updates=1, unknown=1, max_questions=0)
    told = [m for s in episode.sessions for m in s if m.kind]
    episode.questions += [question_about(rng, BY_NAME[m.kind], m.value) for m in told]
    encoded = encoder.episode(episode)
    if rng.random() < DENSE_PLAIN_SHARE:
        encoded.questions.append(_plain(encoder, rng, episode.system))
    return encoded


def _plain(encoder: Encoder, rng: random.Random, system: str) -> EncodedQuestion:
    asked, answer = rng.choice(talk(TRAIN))
    return encoder.question(system, Question(asked, answer, "", "talk", "plain"), plain=True)


def persona_source(encoder: Encoder) -> Callable[[random.Random, int, float], list[EncodedEpisode]]:
    """Episodes of the training part; more facts, more talk, more sessions and updates as progress goes from 0 to 1."""

    def draw(rng: random.Random, n: int, progress: float) -> list[EncodedEpisode]:
        return [encoder_episode(encoder, rng, progress) for _ in range(n)]

    return draw


def encoder_episode(encoder: Encoder, rng: random.Random, progress: float) -> EncodedEpisode:
    facts = rng.choice((1, 2, 3) if progress < 0.1 else (1, 2, 3, 4) if progress < 0.3 else (1, 2, 3, 4, 5, 6))
    late = progress > 0.2
    episode = generate_episode(
        rng,
        facts,
        talk_turns=rng.choice((0, 0, 1, 2) if late else (0, 0, 0, 1)),
        updates=int(late and rng.random() < 0.25),
        unknown=int(rng.random() < (0.15 if late else 0.05)),
        sessions=2 if late and rng.random() < 0.2 else 1,
        max_questions=4,
    )
    encoded = encoder.episode(episode)
    if rng.random() < PLAIN_SHARE:
        encoded.questions.append(_plain(encoder, rng, episode.system))
    return encoded


def recall_checks(encoder: Encoder, seed: int = 777, cases: int = 32) -> dict[str, list[EncodedEpisode]]:
    """Validation episodes: held-out phrasings, values never trained on (unseen) or trained on (seen), told once."""
    checks = {}
    for name, facts, part, n in (
        ("unseen 1", 1, HELD_OUT, cases),
        ("unseen 3", 3, HELD_OUT, cases // 2),
        ("unseen 6", 6, HELD_OUT, cases // 4),
        ("seen 1", 1, TRAIN, cases),
        ("seen 3", 3, TRAIN, cases // 2),
    ):
        rng = random.Random(f"{seed} {name}")
        checks[name] = [
            encoder.episode(generate_episode(rng, facts, value_part=part, phrasing_part=HELD_OUT, system=""))
            for _ in range(n)
        ]
    return checks
