"""A frozen decoder in PyTorch with llama.cpp's numbers, from a GGUF or a Hugging Face directory; knows nothing of memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from deltamem_cli.training.shape import BackboneShape
from deltamem_cli.training.weights import load_weights

Correct = Callable[[int, Tensor], dict[str, Tensor]]


@dataclass
class Past:
    """Keys and values of rows that were run before: per layer [B, kv heads, S, head dim], and how many of S count."""

    keys: dict[int, Tensor]
    values: dict[int, Tensor]
    lengths: Tensor

    def of_row(self, row: int) -> Past:
        """A copy of one row's, so that the others can be let go."""
        keys, values = ({n: t[row : row + 1].clone() for n, t in side.items()} for side in (self.keys, self.values))
        return Past(keys, values, self.lengths[row : row + 1])

    def begun(self, sizes: Sequence[int]) -> Past:
        """The first tokens of one row, so many before each way to go on."""
        keys, values = (
            {n: t[:, :, : max(sizes)].expand(len(sizes), -1, -1, -1) for n, t in side.items()}
            for side in (self.keys, self.values)
        )
        return Past(keys, values, torch.tensor(sizes, device=self.lengths.device))

    def of_rows(self, rows: Tensor, lengths: Tensor) -> Past:
        """Those rows, one may stand several times, and what counts of each."""
        keys, values = ({n: t[rows] for n, t in side.items()} for side in (self.keys, self.values))
        return Past(keys, values, lengths)


class _Packing:
    """Rows of a padded batch without their padding, side by side: products with weights are then of real tokens only."""

    def __init__(self, lengths: Tensor, tokens: int) -> None:
        self.shape = (len(lengths), tokens)
        real = torch.arange(tokens, device=lengths.device) < lengths[:, None]
        self.places = None if bool(real.all()) else real.flatten().nonzero()[:, 0]

    def pack(self, x: Tensor) -> Tensor:
        """[B, T, width] -> [tokens, width]"""
        x = x.flatten(0, 1)
        return x if self.places is None else x[self.places]

    def unpack(self, x: Tensor) -> Tensor:
        """[tokens, width] -> [B, T, width], zero where padding is"""
        batch, tokens = self.shape
        if self.places is not None:
            x = x.new_zeros(batch * tokens, x.shape[-1]).index_copy(0, self.places, x)
        return x.view(batch, tokens, -1)


class Backbone:
    """Weights are in the basis of the GGUF, so that corrections learned on them fit it without permuting."""

    def __init__(self, source: Path, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> None:
        self.shape, tensors = load_weights(source)
        self.dtype, self.device = dtype, torch.device(device)
        s = self.shape

        def weight(name: str) -> Tensor:
            return tensors[name].to(self.device, dtype)

        def vector(name: str) -> Tensor | None:
            return tensors[name].to(self.device, torch.float32) if name in tensors else None

        self.embedding = weight("token_embd.weight")
        self.head = weight("output.weight") if "output.weight" in tensors else self.embedding
        self.final_norm = vector("output_norm.weight")
        widths = self.widths
        self.layers: list[dict[str, Any]] = []
        for n in range(s.n_layer):
            p = f"blk.{n}."
            biases = [vector(p + f"attn_{h}.bias") for h in "qkv"]
            if any(b is not None for b in biases):
                zeros = (torch.zeros(widths[h], device=self.device) for h in "qkv")
                bias = torch.cat([zero if b is None else b for b, zero in zip(biases, zeros, strict=True)])
            else:
                bias = vector(p + "attn_qkv.bias")
            fused, gate = p + "attn_qkv.weight", p + "ffn_gate.weight"
            self.layers.append(
                {
                    "attn_norm": vector(p + "attn_norm.weight"),
                    "ffn_norm": vector(p + "ffn_norm.weight"),
                    "attn_post_norm": vector(p + "post_attention_norm.weight"),
                    "ffn_post_norm": vector(p + "post_ffw_norm.weight"),
                    "q_norm": vector(p + "attn_q_norm.weight"),
                    "k_norm": vector(p + "attn_k_norm.weight"),
                    # side by side: one large product is faster than several small ones
                    "qkv": weight(fused)
                    if fused in tensors
                    else torch.cat([weight(p + f"attn_{h}.weight") for h in "qkv"]),
                    "qkv_bias": bias,
                    "o": weight(p + "attn_output.weight"),
                    # a fused one has the gate first
                    "up": torch.cat([weight(gate), weight(p + "ffn_up.weight")])
                    if gate in tensors
                    else weight(p + "ffn_up.weight"),
                    "down": weight(p + "ffn_down.weight"),
                }
            )
        half = torch.arange(0, s.rope_dim, 2, device=self.device, dtype=torch.float32)
        factors = vector("rope_freqs.weight")
        self.frequencies = s.rope_base ** (-half / s.rope_dim) / s.rope_scale / (1.0 if factors is None else factors)
        self.window_frequencies = s.window_rope_base ** (-half / s.rope_dim) if s.window else self.frequencies

    @property
    def widths(self) -> dict[str, int]:
        """Output widths of the projections that a memory may correct."""
        s = self.shape
        return {"q": s.n_head * s.head_dim, "k": s.n_head_kv * s.head_dim, "v": s.n_head_kv * s.head_dim, "o": s.hidden}

    def embed(self, ids: Tensor) -> Tensor:
        """[B, T] token ids -> [B, T, hidden], scaled as the architecture wants."""
        return F.embedding(ids, self.embedding).float() * self.shape.embedding_scale

    def run(
        self,
        h: Tensor,
        lengths: Tensor,
        past: Past | None = None,
        correct: Correct | None = None,
        layers: range | None = None,
        to_the_end: bool = True,
    ) -> tuple[Tensor, Past]:
        """h [B, T, hidden], right-padded -> hidden after the last of layers (all unless given), and the keys and values.

        correct(layer, x) returns what to add to q, k, v and o; x is the layer's attention input, float32.
        to_the_end: False where only inputs, keys and values are wanted: the last layer stops at them, and hidden is its input
        """
        tokens = h.shape[1]
        start = torch.zeros_like(lengths) if past is None else past.lengths
        positions = start[:, None] + torch.arange(tokens, device=h.device)
        seen = self._mask(tokens, past)
        views = {False: (_turns(positions, self.frequencies), seen)}
        if self.shape.window:
            views[True] = (_turns(positions, self.window_frequencies), seen + self._beyond_window(positions, past))
        new = Past({}, {}, lengths if past is None else past.lengths + lengths)
        layers = layers or range(self.shape.n_layer)
        packing = _Packing(lengths, tokens)
        h = packing.pack(h)
        for n in layers:
            whole = to_the_end or n != layers[-1]
            h, new.keys[n], new.values[n] = self._layer(
                n, h, packing, *views[self.shape.slides(n)], past, correct, whole
            )
        return packing.unpack(h), new

    def logits(self, hidden: Tensor, vocabulary: Tensor | None = None) -> Tensor:
        """Of all tokens, or of those of vocabulary: [..., tokens]"""
        head = self.head if vocabulary is None else self.head[vocabulary]
        return _capped(F.linear(self._norm(hidden, self.final_norm).to(self.dtype), head).float(), self.shape.logit_cap)

    def _mask(self, tokens: int, past: Past | None) -> Tensor:
        """[B or 1, 1, T, S + T] added to the scores."""
        causal = torch.full((tokens, tokens), -torch.inf, device=self.device).triu(1)[None, None]
        if past is None:
            return causal
        size = next(iter(past.keys.values())).shape[2]
        gone = torch.arange(size, device=self.device) >= past.lengths[:, None]
        before = torch.zeros(gone.shape, device=self.device).masked_fill(gone, -torch.inf)
        before = before[:, None, None].expand(-1, 1, tokens, -1)
        return torch.cat([before, causal.expand(len(gone), -1, -1, -1)], -1)

    def _beyond_window(self, positions: Tensor, past: Past | None) -> Tensor:
        """[B, 1, T, S + T], minus infinity where a key lies too far back for a layer with a window. positions: [B, T]"""
        keys = positions
        if past is not None:
            size = next(iter(past.keys.values())).shape[2]
            before = torch.arange(size, device=self.device).expand(len(positions), -1)
            keys = torch.cat([before, positions], 1)
        far = positions[:, :, None] - keys[:, None] >= self.shape.window
        return torch.zeros(far.shape, device=self.device).masked_fill(far, -torch.inf)[:, None]

    def _norm(self, x: Tensor, weight: Tensor | None) -> Tensor:
        return F.rms_norm(x, x.shape[-1:], weight, self.shape.norm_eps)

    def _post_norm(self, x: Tensor, weight: Tensor | None) -> Tensor:
        return x if weight is None else self._norm(x, weight)

    def _rope(self, x: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
        """x [B, heads, T, head dim] float32"""
        cos, sin = rope
        dim = self.shape.rope_dim
        x, rest = x[..., :dim], x[..., dim:]
        if self.shape.rope_pairs:  # llama.cpp's NORM: neighbours turn together
            a, b = x[..., 0::2], x[..., 1::2]
            turned = torch.stack([a * cos - b * sin, a * sin + b * cos], -1).flatten(-2)
        else:  # NEOX: halves turn together
            a, b = x.chunk(2, -1)
            turned = torch.cat([a * cos - b * sin, a * sin + b * cos], -1)
        return torch.cat([turned, rest], -1) if rest.shape[-1] else turned

    def _layer(
        self,
        n: int,
        h: Tensor,
        packing: _Packing,
        rope: tuple[Tensor, Tensor],
        mask: Tensor,
        past: Past | None,
        correct: Correct | None,
        whole: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """h: packed; whole: False leaves it as it is, for the keys and values alone."""
        s, w = self.shape, self.layers[n]
        batch, tokens = packing.shape
        x = self._norm(h, w["attn_norm"])
        deltas = correct(n, packing.unpack(x)) if correct else {}
        qkv = F.linear(x.to(self.dtype), w["qkv"]).float()
        if w["qkv_bias"] is not None:
            qkv = qkv + w["qkv_bias"]
        q, k, v = packing.unpack(qkv).split([self.widths["q"], self.widths["k"], self.widths["v"]], -1)
        q, k, v = (t + deltas[name] if name in deltas else t for name, t in (("q", q), ("k", k), ("v", v)))
        q, k, v = (t.view(batch, tokens, -1, s.head_dim).transpose(1, 2) for t in (q, k, v))
        if w["q_norm"] is not None:
            q, k = self._norm(q, w["q_norm"]), self._norm(k, w["k_norm"])
        if s.turns(n):
            q, k = self._rope(q, rope), self._rope(k, rope)
        q, k, v = (t.to(self.dtype) for t in (q, k, v))
        if past is not None:
            k, v = torch.cat([past.keys[n], k], 2), torch.cat([past.values[n], v], 2)
        if not whole:
            return h, k, v
        o = F.linear(packing.pack(self._attend(q, k, v, mask)), w["o"]).float()
        if "o" in deltas:
            o = o + packing.pack(deltas["o"])
        h = h + self._post_norm(o, w["attn_post_norm"])
        gate, up = F.linear(self._norm(h, w["ffn_norm"]).to(self.dtype), w["up"]).chunk(2, -1)
        gate = F.gelu(gate, approximate="tanh") if s.gemma else F.silu(gate)
        return h + self._post_norm(F.linear(gate * up, w["down"]).float(), w["ffn_post_norm"]), k, v

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        """Plain products, not a flash kernel: rows are short, and on a CPU the kernel is slower for them."""
        batch, heads, tokens, dim = q.shape
        groups = heads // k.shape[1]
        grouped = (q * self.shape.score_scale).reshape(batch, k.shape[1], groups * tokens, dim)
        scores = (grouped @ k.transpose(-1, -2)).float().view(batch, k.shape[1], groups, tokens, -1)
        scores = _capped(scores, self.shape.score_cap)
        weights = (scores + mask.unsqueeze(2)).softmax(-1).to(v.dtype)
        o = weights.view(batch, k.shape[1], groups * tokens, -1) @ v
        return o.view(batch, heads, tokens, dim).transpose(1, 2).reshape(batch, tokens, heads * dim)


def _turns(positions: Tensor, frequencies: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines and sines, [B, 1, T, rope dim / 2] each."""
    angles = positions[..., None].float() * frequencies
    return angles.cos()[:, None], angles.sin()[:, None]


def _capped(x: Tensor, cap: float) -> Tensor:
    return (x / cap).tanh() * cap if cap else x


__all__ = ["Backbone", "BackboneShape", "Past"]
