"""Holds the PyTorch backbone against llama.cpp on the same tokens, before hours go into a model that it computes wrongly."""

from __future__ import annotations

import random
from pathlib import Path

import torch
from torch import Tensor

from deltamem_cli.engine import Engine, EngineOptions, Model, Seat
from deltamem_cli.episodes.conversation import draw_conversation
from deltamem_cli.errors import DeltamemError
from deltamem_cli.training.backbone import Backbone
from deltamem_cli.training.encode import Encoder

# The share of the logits' spread that they may differ by, at half of the tokens. llama.cpp rounds what it multiplies with
# quantised weights to 8 bits, which makes 0.01 to 0.04; a bias or a norm that is left out makes 0.3, wrong positions 0.4.
TOLERANCE = 0.1
TOKENS = 256
LONGEST_WINDOW = 1024  # a longer one is seen by no conversation of a run


def check_backbone(source: Path, backbone: Backbone, encoder: Encoder) -> float:
    """The share that differs. Raises DeltamemError where it is more than TOLERANCE."""
    tokens = _tokens(backbone, encoder)
    error = difference(logits_there(source, tokens), logits_here(backbone, tokens))
    if not error <= TOLERANCE:
        raise DeltamemError(
            f"{source} gives other numbers in PyTorch than in llama.cpp (they differ by {error:.0%} of their spread, and "
            f"{TOLERANCE:.0%} are rounding), so an adapter would learn from a wrong model; choose another base model"
        )
    return error


def difference(there: Tensor, here: Tensor) -> float:
    """Of logits [tokens, vocab]: how far here is from there, as a share of there's spread, at the median token.

    What all logits of a token share changes no probability, and one token's tie no other's.
    """
    there, here = (logits - logits.mean(-1, keepdim=True) for logits in (there, here))
    return float(((here - there).norm(dim=-1) / there.norm(dim=-1)).median())


def logits_there(source: Path, tokens: list[int]) -> Tensor:
    """llama.cpp's, without an adapter: [tokens, vocab]"""
    options = EngineOptions(
        ctx_size=len(tokens) + 1, cache_type_k="f32", cache_type_v="f32", flash_attention="off"
    )  # nothing is rounded that need not be
    with Model(source) as model, Engine(model, None, options) as engine:
        return torch.from_numpy(Seat(engine).feed(tokens, all_logits=True))


@torch.no_grad()
def logits_here(backbone: Backbone, tokens: list[int]) -> Tensor:
    """[T, vocabulary] logits of the PyTorch backbone for one row of tokens."""
    ids = torch.tensor([tokens], device=backbone.device)
    hidden, _ = backbone.run(backbone.embed(ids), torch.tensor([len(tokens)], device=backbone.device))
    return backbone.logits(hidden)[0].cpu()


def _tokens(backbone: Backbone, encoder: Encoder) -> list[int]:
    """Of conversations as a run has them; more than a window is long, so that it slides."""
    wanted = TOKENS + (backbone.shape.window if backbone.shape.window <= LONGEST_WINDOW else 0)
    rng, tokens = random.Random("check"), list[int]()
    while len(tokens) < wanted:
        tokens += encoder.session("", draw_conversation(rng, 6).sessions[0]).tokens
    return tokens[:wanted]
