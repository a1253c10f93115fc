"""What training's tests train: a memory for a tiny model, and talk for its conversations."""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch

from deltamem_cli.adapter.format import AdapterConfig
from deltamem_cli.episodes import generate_episode
from deltamem_cli.training.backbone import Backbone
from deltamem_cli.training.encode import EncodedEpisode, Encoder
from deltamem_cli.training.memory import Memory

TALK = [
    ("Tell me about tea.", "Tea is a drink. It is made of leaves and hot water."),
    ("Hello!", "Hello, how are you?"),
]


def memory_for(backbone: Backbone, **settings: object) -> Memory:
    torch.manual_seed(0)
    shape = backbone.shape
    layers = tuple(range(1, shape.n_layer))
    config = AdapterConfig(shape.architecture, shape.hidden, shape.n_layer, layers, rank=4, **settings)  # type: ignore[arg-type]
    return Memory(config, backbone.widths, beta_bias=-2.0)


def words(encoder: Encoder, tokens: Sequence[int]) -> str:
    """The text that tokens stand for."""
    return b"".join(encoder.tokenizer.piece(t) for t in tokens).decode()


def episodes(encoder: Encoder, n: int, seed: int = 0) -> list[EncodedEpisode]:
    """Conversations of two facts in two sessions."""
    rng = random.Random(seed)
    return [encoder.episode(generate_episode(rng, 2, talk_turns=1, sessions=2, system="")) for _ in range(n)]
