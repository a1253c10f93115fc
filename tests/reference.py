"""δ-mem of one attention layer in numpy, written to be read: what every faster version is held against.

Knows nothing of models, files or llama.cpp. All arithmetic is done in the type of the numbers that go in, so float64
input gives a reference for float32 code. Symbols: r rank, H state heads, G gates (H*r, or H when they are scalar).

    read first     r_t = S q_t
    then write     S  <- diag(keep) S - diag(erase) (S k_t) k_t^T + diag(write) v_t k_t^T    all from the same old S
    corrections    dy_t = Dy r_t   for y among q, k, v, o

Source: arXiv 2605.12357 and declare-lab/delta-Mem. It differs from the published code in one corner: there, a pass in
which every token has span id -1 writes per token, as if it had no ids; here -1 always means read only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

L2_EPS = 1e-6  # on the norm, not on its square


@dataclass(frozen=True)
class ScanParams:
    """The settings of the recurrence and the biases of its gates.

    beta_bias, lambda_bias: [G]; lambda_bias is used only where lambda has its own parameters (has_lambda)
    """

    rank: int
    heads: int
    beta_bias: Array
    lambda_bias: Array | None = None
    granularity: str = "token"
    rankwise_gates: bool = True
    couple_lambda: bool = True
    state_update: str = "standard"
    normalize_qk: bool = True

    @property
    def read_width(self) -> int:
        return self.heads * self.rank

    @property
    def gate_width(self) -> int:
        return self.read_width if self.rankwise_gates else self.heads

    @property
    def has_lambda(self) -> bool:
        return not self.couple_lambda and self.state_update != "no_lambda"

    @property
    def n_proj(self) -> int:
        """Projected numbers per token, in the order q, k, v, beta and, if it has its own, lambda."""
        return 3 * self.read_width + self.gate_width * (2 if self.has_lambda else 1)


@dataclass(frozen=True)
class LayerWeights:
    """The matrices of one layer as in an adapter file.

    q, k, v: [H*r, hidden]    beta, lam: [G, hidden]; lam is None where lambda has no parameters of its own
    delta: head -> [width, H*r], scales folded in    delta_o_norm: [hidden], or None where do is not normed
    """

    q: Array
    k: Array
    v: Array
    beta: Array
    lam: Array | None
    delta: Mapping[str, Array]
    delta_o_norm: Array | None = None
    delta_o_norm_eps: float = 1e-6


@dataclass(frozen=True)
class _Projected:
    """The numbers that the recurrence runs on, each [n_tokens, H, r]."""

    q: Array
    k: Array
    v: Array
    keep: Array
    erase: Array
    write: Array


def sigmoid(x: Array) -> Array:
    return np.exp(-np.logaddexp(0, -x))  # this form overflows nowhere


def l2_normalize(x: Array) -> Array:
    norm = np.sqrt((x * x).sum(axis=-1, keepdims=True))
    return x / np.maximum(norm, np.asarray(L2_EPS, x.dtype))


def _project(p: Array, params: ScanParams) -> _Projected:
    """Takes raw projected numbers p [n, n_proj] apart and applies tanh, norms, biases and sigmoids."""
    n = p.shape[0]
    width, gates = params.read_width, params.gate_width
    q, k, v, beta, lam = np.split(p, np.cumsum([width, width, width, gates]), axis=1)

    def per_head(x: Array) -> Array:
        # head-major; a scalar gate counts for all rows of its head
        split = x.reshape(n, params.heads, x.shape[1] // params.heads)
        return np.broadcast_to(split, (n, params.heads, params.rank))

    q, k, v = per_head(q), per_head(k), per_head(v)
    if params.normalize_qk:
        q, k = l2_normalize(np.tanh(q)), l2_normalize(np.tanh(k))
    beta = per_head(sigmoid(beta + params.beta_bias.astype(p.dtype)))
    if params.has_lambda:
        assert params.lambda_bias is not None
        lam = per_head(sigmoid(lam + params.lambda_bias.astype(p.dtype)))
    else:
        lam = 1 - beta

    keep, erase = {
        "standard": (lam, beta),
        "lambda_outside": (lam, lam * beta),
        "no_lambda": (np.ones_like(beta), beta),
    }[params.state_update]
    return _Projected(q, k, v, keep, erase, beta)


def _read(state: Array, q: Array) -> Array:
    """state [H, r, r], q [..., H, r] -> [..., H, r]"""
    return np.einsum("hij,...hj->...hi", state, q)


def _written(state: Array, p: _Projected, t: int) -> Array:
    """The state [H, r, r] after the write of row t."""
    k_t = p.k[t][:, None, :]  # a row vector per head
    predicted = _read(state, p.k[t])
    return (
        p.keep[t][:, :, None] * state
        - (p.erase[t] * predicted)[:, :, None] * k_t
        + (p.write[t] * p.v[t])[:, :, None] * k_t
    )


def span_means(p: Array, spans: Sequence[int] | Array) -> Array:
    """The mean of p over each span, in ascending order of the span ids; tokens with id -1 belong to none.

    p: [n_tokens, n_proj], spans: [n_tokens] -> [n_spans, n_proj]
    The projections are linear, so the mean of projected numbers is the projection of the mean of x.
    """
    ids = np.asarray(spans)
    return np.array([p[ids == i].mean(axis=0) for i in np.unique(ids[ids >= 0])], dtype=p.dtype).reshape(-1, p.shape[1])


def delta_rule_scan(
    p: Array,
    params: ScanParams,
    state: Array,
    spans: Sequence[int] | Array | None = None,
    write: bool = True,
) -> tuple[Array, Array]:
    """One forward pass of one layer and one sequence, from projected numbers.

    p: [n_tokens, n_proj] raw: before tanh, norms, biases and sigmoids    state: [H, r, r] before the pass
    spans: a span id per token, for the granularities message_mean and sentence_mean; without ids every token writes
    Returns reads [n_tokens, H*r] and the state [H, r, r] after the pass.
    """
    state = state.astype(p.dtype)
    tokens = _project(p, params)
    writes_spans = spans is not None and params.granularity != "token"
    if not write or writes_spans:
        # every token reads the state from before the pass
        reads = _read(state, tokens.q)
        if write and spans is not None:
            means = _project(span_means(p, spans), params)
            for t in range(means.k.shape[0]):
                state = _written(state, means, t)
    else:
        reads = np.empty_like(tokens.q)
        for t in range(p.shape[0]):
            reads[t] = _read(state, tokens.q[t])  # read before write
            state = _written(state, tokens, t)
    return reads.reshape(p.shape[0], params.read_width), state


def project(x: Array, weights: LayerWeights) -> Array:
    """x: [n_tokens, hidden] -> p: [n_tokens, n_proj]"""
    matrices = [weights.q, weights.k, weights.v, weights.beta, weights.lam]
    return x @ np.concatenate([matrix for matrix in matrices if matrix is not None]).astype(x.dtype).T


def corrections(reads: Array, weights: LayerWeights) -> dict[str, Array]:
    """reads: [n_tokens, H*r] -> head: [n_tokens, width of that projection]"""
    result = {head: reads @ matrix.astype(reads.dtype).T for head, matrix in weights.delta.items()}
    if weights.delta_o_norm is not None:
        o = result["o"]
        mean_square = (o * o).mean(axis=-1, keepdims=True)
        scale = weights.delta_o_norm.astype(o.dtype)
        result["o"] = o / np.sqrt(mean_square + np.asarray(weights.delta_o_norm_eps, o.dtype)) * scale
    return result


def deltamem_layer(
    x: Array,
    weights: LayerWeights,
    params: ScanParams,
    state: Array,
    spans: Sequence[int] | Array | None = None,
    write: bool = True,
) -> tuple[dict[str, Array], Array]:
    """One forward pass of one layer and one sequence, from its attention input.

    x: [n_tokens, hidden] after the input norm; state, spans and write as in delta_rule_scan
    Returns the corrections by head, each [n_tokens, width], and the state [H, r, r] after the pass. dq, dk and dv are
    added to the projections before q/k norm and RoPE, do to the attention block's output.
    """
    reads, state = delta_rule_scan(project(x, weights), params, state, spans, write)
    return corrections(reads, weights), state
