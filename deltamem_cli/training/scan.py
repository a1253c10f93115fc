"""The delta rule over a stretch of tokens, chunk by chunk; the same numbers as the readable reference in the tests, in PyTorch, with gradients."""

from __future__ import annotations

import torch
from torch import Tensor


def chunked_delta_scan(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_keep: Tensor,
    erase: Tensor,
    write: Tensor,
    state: Tensor,
    chunk: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Reads before every write, then the state after the last token.

    q, k, v: [..., T, r] float32; log_keep, erase, write: [..., T, G], G = r (a gate per row) or 1
    state: [..., r, r], row = value dimension. Returns reads [..., T, r] and the new state.

    A row of the state is s <- keep*s + u*k with u = write*v - erase*(s.k), so within a chunk the u solve a
    lower-triangular system, one per row (or one for all rows that share a gate).
    """
    if chunk is None:
        # measured on a CPU: a gate per row makes r triangles per chunk, so smaller ones
        chunk = 32 if log_keep.shape[-1] == 1 else 16
    reads = []
    for start in range(0, q.shape[-2], chunk):
        part = slice(start, start + chunk)
        parts = [t[..., part, :] for t in (q, k, v, log_keep, erase, write)]
        r, state = _chunk(parts, state)
        reads.append(r)
    return torch.cat(reads, dim=-2), state


def _chunk(parts: list[Tensor], state: Tensor) -> tuple[Tensor, Tensor]:
    q, k, v, log_keep, erase, write = parts
    tokens, rank, gates = q.shape[-2], q.shape[-1], log_keep.shape[-1]
    # rows that share a gate are solved together: [..., G, T, r/G]
    v = v.unflatten(-1, (gates, rank // gates)).transpose(-3, -2)
    rows = state.unflatten(-2, (gates, rank // gates))  # [..., G, r/G, r]
    total = log_keep.cumsum(-2).transpose(-1, -2)  # [..., G, T], log of the product of keeps up to t
    before = total - log_keep.transpose(-1, -2)  # the same up to t-1
    earlier = torch.ones(tokens, tokens, dtype=torch.bool, device=q.device).tril(-1)
    # masked before exp: above the diagonal the difference is positive and would overflow
    decay = (before[..., :, None] - total[..., None, :]).masked_fill(~earlier, -torch.inf).exp()  # [..., G, T, T]
    erase, write = erase.transpose(-1, -2)[..., None], write.transpose(-1, -2)[..., None]  # [..., G, T, 1]
    kk, qk = k @ k.transpose(-1, -2), q @ k.transpose(-1, -2)  # [..., T, T]
    seen_k = before.exp()[..., None] * (k[..., None, :, :] @ rows.transpose(-1, -2))  # what s0 gives each key
    lower = erase * decay * kk[..., None, :, :]
    u = torch.linalg.solve_triangular(lower, write * v - erase * seen_k, upper=False, unitriangular=True)
    seen_q = before.exp()[..., None] * (q[..., None, :, :] @ rows.transpose(-1, -2))
    reads = seen_q + (decay * qk[..., None, :, :]) @ u  # [..., G, T, r/G]
    left = (total[..., -1:] - total).exp()[..., None] * u  # decayed to the end of the chunk
    rows = total[..., -1, None, None].exp() * rows + left.transpose(-1, -2) @ k[..., None, :, :]
    return reads.transpose(-3, -2).flatten(-2), rows.flatten(-3, -2)
