"""The frozen model in its own words."""

from training_support import need

need("torch", "faker", "accelerate")

import random
from pathlib import Path

import torch

from deltamem_cli.episodes import Question
from deltamem_cli.episodes.conversation import told_prompt
from deltamem_cli.training.backbone import Backbone
from deltamem_cli.training.encode import Encoder
from deltamem_cli.training.own_words import CANDIDATES, TEMPERATURE, own_talk, sample


def test_own_talk_is_what_the_frozen_model_says_and_repeats_by_seed(base: Path, encoder: Encoder) -> None:
    backbone = Backbone(base)
    first, again, other = (own_talk(backbone, encoder, seed, 6, tokens=8) for seed in (0, 0, 1))
    assert first == again != other
    prompt = encoder.question("", Question(first[0][0], "x", "", "talk")).prompt
    generator = torch.Generator().manual_seed(0)
    (row,) = sample(backbone, [prompt], 5, generator)
    # token by token what the model gives when it reads all at once
    ids = torch.tensor([prompt + row])
    h, _ = backbone.run(backbone.embed(ids), torch.tensor([ids.shape[1]]))
    weights = (backbone.logits(h[0, len(prompt) - 1 : -1]) / TEMPERATURE).softmax(-1)
    again_generator = torch.Generator().manual_seed(0)
    redrawn = [int(torch.multinomial(w[None], 1, generator=again_generator)) for w in weights]
    assert redrawn == row


def test_what_told_facts_are_answered_with_is_sampled_too(base: Path, encoder: Encoder) -> None:
    pairs = own_talk(Backbone(base), encoder, 0, 4, tokens=8, prompt=told_prompt)
    assert pairs
    rng = random.Random("0 talk")
    assert {said for said, _ in pairs} <= {told_prompt(rng) for _ in range(4 * CANDIDATES)}
