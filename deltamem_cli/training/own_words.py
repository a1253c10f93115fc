"""Ordinary talk in the frozen model's own words: what the memory must neither keep nor change."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable

import torch

from deltamem_cli.episodes import Question
from deltamem_cli.episodes.episode import talk_prompt
from deltamem_cli.training.backbone import Backbone, Past
from deltamem_cli.training.encode import EncodedQuestion, Encoder

TEMPERATURE = 0.8
ANSWER_TOKENS = 40
ROWS = 48
CANDIDATES = 8  # prompts that are drawn for each that is asked


def own_talk(
    backbone: Backbone,
    encoder: Encoder,
    seed: int,
    pairs: int,
    report: Callable[[int], None] = lambda done: None,
    tokens: int = ANSWER_TOKENS,
    prompt: Callable[[random.Random], str] = talk_prompt,
) -> list[tuple[str, str]]:
    """Prompts, of ordinary talk unless given, and the model's sampled answers, cut after a sentence where there is one.

    report: is told how many answers there are so far
    """
    rng = random.Random(f"{seed} talk")
    generator = torch.Generator(backbone.device).manual_seed(seed)
    # rows of one length need no padding, and many rows cost little more than one: so the commonest lengths
    by_length: dict[int, dict[str, EncodedQuestion]] = defaultdict(dict)
    for _ in range(CANDIDATES * pairs):
        said = prompt(rng)
        question = encoder.question("", Question(said, "x", "", "talk", "plain"))
        by_length[len(question.prompt)][said] = question
    found: list[tuple[str, str]] = []
    for _, asked in sorted(by_length.items(), key=lambda item: (-len(item[1]), item[0])):
        rows = list(asked.items())[: pairs - len(found)]
        for at in range(0, len(rows), ROWS):
            part = rows[at : at + ROWS]
            answers = sample(backbone, [q.prompt + q.head for _, q in part], tokens, generator)
            for (said, _), answer in zip(part, answers, strict=True):
                text = _whole_sentences(_text(encoder, answer))
                if text:
                    found.append((said, text))
            report(len(found))
    return found


@torch.no_grad()
def sample(backbone: Backbone, prompts: list[list[int]], tokens: int, generator: torch.Generator) -> list[list[int]]:
    """Continues prompts of one length by `tokens` tokens each."""
    ids = torch.tensor(prompts, device=backbone.device)
    past: Past | None = None
    chosen: list[torch.Tensor] = []
    for _ in range(tokens):
        lengths = torch.full((len(ids),), ids.shape[1], device=backbone.device)
        h, past = backbone.run(backbone.embed(ids), lengths, past)
        ids = torch.multinomial((backbone.logits(h[:, -1]) / TEMPERATURE).softmax(-1), 1, generator=generator)
        chosen.append(ids)
    rows: list[list[int]] = torch.cat(chosen, 1).tolist()
    return rows


def _text(encoder: Encoder, answer: list[int]) -> str:
    end = next((i for i, token in enumerate(answer) if encoder.tokenizer.ends_reply(token)), len(answer))
    return b"".join(encoder.tokenizer.piece(t) for t in answer[:end]).decode(errors="ignore").strip()


def _whole_sentences(text: str) -> str:
    end = max(text.rfind(mark) for mark in ".!?")
    return text[: end + 1] if end > 0 else text
