"""The trainable memory of all adapted layers; knows the backbone only by the widths of its projections."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deltamem_cli.adapter.format import AdapterConfig
from deltamem_cli.training.scan import chunked_delta_scan

NORM_EPS = 1e-6


class Memory(nn.Module):
    """Parameters are stacked over the adapted layers (L), so that a whole write pass is one matrix product.

    proj: [L, 3*H*r + gates, hidden], rows in the order q, k, v, beta, lambda; delta: per head [L, width, H*r]
    """

    def __init__(self, config: AdapterConfig, widths: dict[str, int], beta_bias: float = -4.0) -> None:
        super().__init__()
        self.config = config
        n, read, gate, hidden = len(config.layers), config.read_width, config.gate_width, config.embedding_length
        n_gates = 2 if config.has_lambda else 1
        self.proj = nn.Parameter(torch.randn(n, 3 * read, hidden) / hidden**0.5)
        self.gate = nn.Parameter(torch.zeros(n, n_gates * gate, hidden))
        bias = torch.full((n, n_gates * gate), beta_bias)
        bias[:, gate:] = -beta_bias  # lambda keeps as much as a coupled one would
        self.gate_bias = nn.Parameter(bias)
        self.delta = nn.ParameterDict(
            {h: nn.Parameter(0.02 * torch.randn(n, widths[h], read)) for h in config.delta_heads}
        )
        # what D is multiplied by: parameters stay small, so that one learning rate fits all layers; folded in on export
        self.scale = nn.ParameterDict({h: nn.Parameter(torch.ones(n), requires_grad=False) for h in config.delta_heads})
        self.delta_o_norm = nn.Parameter(torch.ones(n, hidden)) if config.delta_o_norm_eps is not None else None
        self.slot = {layer: i for i, layer in enumerate(config.layers)}

    def zero_states(self, rows: int) -> Tensor:
        """[rows, L, H, r, r] float32"""
        c = self.config
        return self.proj.new_zeros(rows, len(c.layers), c.state_heads, c.rank, c.rank)

    def project(self, x: Tensor, slot: int | slice) -> Tensor:
        """x [..., T, hidden] -> [..., T, 3*H*r + gates]; with a slice, x is [..., L, T, hidden]."""
        weight = torch.cat([self.proj[slot], self.gate[slot]], dim=-2)
        return x.float() @ weight.transpose(-1, -2)

    def scan(self, projected: Tensor, slot: int | slice, state: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """projected [..., T, W], state [..., H, r, r], mask [..., T] (1 = write) -> reads [..., T, H*r], state, beta."""
        c = self.config
        q, k, v, gates = projected.split(
            [c.read_width, c.read_width, c.read_width, projected.shape[-1] - 3 * c.read_width], -1
        )
        q, k, v = (self._heads(t) for t in (q, k, v))
        if c.normalize_qk:
            q, k = (F.normalize(t.tanh(), dim=-1, eps=NORM_EPS) for t in (q, k))
        logits = gates + self.gate_bias[slot].unsqueeze(-2)
        beta_logit = self._heads(logits[..., : c.gate_width])
        beta = beta_logit.sigmoid()
        on = mask[..., None, :, None].to(beta.dtype)
        if c.state_update == "no_lambda":
            log_keep = torch.zeros_like(beta)
        elif c.has_lambda:
            log_keep = F.logsigmoid(self._heads(logits[..., c.gate_width :]))
        else:
            log_keep = F.logsigmoid(-beta_logit)  # log(1 - beta), exact for small beta
        erase = beta * log_keep.exp() if c.state_update == "lambda_outside" else beta
        reads, state = chunked_delta_scan(q, k, v, log_keep * on, erase * on, beta * on, state)
        return reads.transpose(-3, -2).flatten(-2), state, beta

    def read(self, x: Tensor, slot: int, state: Tensor) -> Tensor:
        """What tokens read that do not write: x [B, T, hidden], state [B, H, r, r] -> [B, T, H*r]"""
        c = self.config
        q = self._heads(x.float() @ self.proj[slot, : c.read_width].T)
        if c.normalize_qk:
            q = F.normalize(q.tanh(), dim=-1, eps=NORM_EPS)
        return (q @ state.transpose(-1, -2)).transpose(-3, -2).flatten(-2)

    def _heads(self, t: Tensor) -> Tensor:
        """[..., T, H*n] -> [..., H, T, n]"""
        return t.unflatten(-1, (self.config.state_heads, -1)).transpose(-3, -2)

    def correct(self, slot: int, reads: Tensor) -> dict[str, Tensor]:
        """What is added to the outputs of the layer's projections. reads [..., H*r] -> head: [..., width]"""
        deltas = {head: (self.scale[head][slot] * reads) @ weight[slot].T for head, weight in self.delta.items()}
        eps = self.config.delta_o_norm_eps
        if self.delta_o_norm is not None and eps is not None:
            o = deltas["o"]
            deltas["o"] = o * torch.rsqrt(o.square().mean(-1, keepdim=True) + eps) * self.delta_o_norm[slot]
        return deltas

    def write(self, x: Tensor, state: Tensor, mask: Tensor, spans: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """A write pass over layer inputs that are already known: x [B, L, T, hidden] -> states [B, L, H, r, r], mean beta [L].

        spans: [B, T] message of each token, for adapters that write once per message.
        """
        projected = self.project(x, slice(None))
        if spans is not None and self.config.write_granularity != "token":
            projected, mask = span_means(projected, spans, mask)
        _, state, beta = self.scan(projected, slice(None), state, mask[:, None])
        on = mask[:, None, None, :, None].to(beta.dtype)
        return state, (beta * on).sum((0, 2, 3, 4)) / (on.sum() * beta.shape[2] * beta.shape[4]).clamp_min(1)


def span_means(projected: Tensor, spans: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Means over the tokens of each span, one row per span in order. projected [B, ..., T, W], spans [B, T]."""
    spans = spans.masked_fill(~mask.bool(), -1)
    n = int(spans.max()) + 1
    member = F.one_hot(spans + 1, n + 1)[..., 1:].to(projected.dtype)  # [B, T, n]
    count = member.sum(1)  # [B, n]
    weights = (member / count.clamp_min(1)[:, None]).transpose(1, 2)
    while weights.dim() < projected.dim():
        weights = weights.unsqueeze(1)
    return weights @ projected, count > 0


class Session:
    """The memory of a batch of rows while the backbone runs over them; call it as the backbone's correct hook.

    mask: [B, T], true for tokens that write; None: all are read only
    """

    def __init__(
        self,
        memory: Memory,
        states: Tensor,
        mask: Tensor | None = None,
        spans: Tensor | None = None,
        keep_inputs: bool = False,
    ) -> None:
        self.memory, self.mask, self.spans = memory, mask, spans
        self.states = list(states.unbind(1))
        self.inputs: list[Tensor] = []
        self.keep_inputs = keep_inputs
        self.betas: list[Tensor] = []

    def __call__(self, layer: int, x: Tensor) -> dict[str, Tensor]:
        """Reads and writes one layer. x: [B, T, hidden]. Returns corrections by head, none for a layer without memory."""
        memory = self.memory
        slot = memory.slot.get(layer)
        if slot is None:
            return {}
        if self.keep_inputs:
            self.inputs.append(x.to(torch.bfloat16))
        if self.mask is None:
            return memory.correct(slot, memory.read(x, slot, self.states[slot]))
        projected, state = memory.project(x, slot), self.states[slot]
        if memory.config.write_granularity == "token" or self.spans is None:
            reads, self.states[slot], beta = memory.scan(projected, slot, state, self.mask)
        else:
            # all tokens read the state from before the pass, then one write per message
            reads, _, beta = memory.scan(projected, slot, state, torch.zeros_like(self.mask))
            means, on = span_means(projected, self.spans, self.mask)
            _, self.states[slot], _ = memory.scan(means, slot, state, on)
        self.betas.append(beta)
        return memory.correct(slot, reads)

    @property
    def stacked(self) -> Tensor:
        """The states of all layers: [batch, layers, heads, rank, rank]."""
        return torch.stack(self.states, 1)
