"""log π and entropies over a large vocabulary, some rows at a time: the logits of all places never exist at once.

A softmax and its gradient keep about five tensors of places × vocabulary in float32: 16,000 places of 150,000 tokens
are 9 GB each. Here the backward pass computes every chunk's logits again, for one more product with the head.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

MOST_LOGITS = 2**26
"""Logits in one chunk: 256 MiB in float32. What has fewer in all is no cheaper in chunks."""


def chunked_log_probs(
    hidden_NH: Tensor,
    weight_VH: Tensor,
    bias_V: Tensor | None,
    actions_N: Tensor,
    *,
    temperature: float = 1.0,
    allowed_NV: Tensor | None = None,
    dtype: torch.dtype | None = None,
    with_entropy: bool = True,
    entropy_gradient: bool = True,
    most_logits: int = MOST_LOGITS,
) -> tuple[Tensor, Tensor]:
    """``log π(a)`` and entropy of ``π = softmax((W h + b) / temperature)``, as one softmax over all rows gives them.

    Args:
        hidden_NH: the hidden states of N places.
        weight_VH: the language-model head, a plain linear layer.
        bias_V: its bias, if it has one.
        actions_N: one action a place.
        temperature: divides the logits.
        allowed_NV: True where an action was allowed: the others have probability 0. None allows all.
        dtype: of the matrix products (bfloat16, say); by default the weight's. The softmax is float32 at least.
        with_entropy: whether entropies are wanted at all (else they are 0).
        entropy_gradient: whether gradients flow through them.
        most_logits: logits in one chunk; a row is the least.

    Returns:
        ``log_probs_N`` and ``entropies_N`` in nats, float32 at least; differentiable once.
    """
    rows = _Rows(
        actions_N,
        allowed_NV,
        temperature,
        dtype or weight_VH.dtype,
        max(1, most_logits // len(weight_VH)),
        with_entropy,
    )
    log_probs_N, entropies_N = _ChunkedLogProbs.apply(hidden_NH, weight_VH, bias_V, rows)
    return log_probs_N, entropies_N if entropy_gradient else entropies_N.detach()


@dataclass(frozen=True)
class _Rows:
    """What has no gradient."""

    actions_N: Tensor
    allowed_NV: Tensor | None
    temperature: float
    dtype: torch.dtype
    most: int
    with_entropy: bool

    def chunks(self) -> Iterator[slice]:
        return (slice(at, at + self.most) for at in range(0, len(self.actions_N), self.most))

    def log_probs(self, hidden_NH: Tensor, weight_VH: Tensor, bias_V: Tensor | None, at: slice) -> Tensor:
        """log π of every action, (chunk, V)."""
        logits_NV = functional.linear(hidden_NH[at].to(self.dtype), weight_VH, bias_V)
        logits_NV = logits_NV.to(_at_least_float32(logits_NV.dtype))
        if self.temperature != 1:
            logits_NV /= self.temperature
        if self.allowed_NV is not None:
            logits_NV.masked_fill_(~self.allowed_NV[at], -torch.inf)
        return torch.log_softmax(logits_NV, -1)

    def cast(self, weight_VH: Tensor, bias_V: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Weight and bias as the products want them, once for all chunks."""
        return weight_VH.to(self.dtype), None if bias_V is None else bias_V.to(self.dtype)


class _ChunkedLogProbs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden_NH: Tensor, weight_VH: Tensor, bias_V: Tensor | None, rows: _Rows
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(hidden_NH, weight_VH, bias_V)
        ctx.rows = rows
        ctx.set_materialize_grads(False)
        log_probs_N = hidden_NH.new_zeros(len(hidden_NH), dtype=_at_least_float32(rows.dtype))
        entropies_N = torch.zeros_like(log_probs_N)
        weight, bias = rows.cast(weight_VH, bias_V)
        for at in rows.chunks():
            log_probs_NV = rows.log_probs(hidden_NH, weight, bias, at)
            log_probs_N[at] = log_probs_NV.gather(-1, rows.actions_N[at, None]).squeeze(-1)
            if rows.with_entropy:
                probs_NV = log_probs_NV.exp()
                entropies_N[at] = -probs_NV.mul_(_finite(log_probs_NV)).sum(-1)
        return log_probs_N, entropies_N

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, to_log_probs_N: Tensor | None, to_entropies_N: Tensor | None) -> tuple[Tensor | None, ...]:
        """``∂ log π(a) / ∂z_j = [j = a] − p_j`` and ``∂H / ∂z_j = −p_j (log p_j + H)``, z the tempered logits."""
        hidden_NH, weight_VH, bias_V = ctx.saved_tensors
        rows: _Rows = ctx.rows
        if not rows.with_entropy:
            to_entropies_N = None
        if to_log_probs_N is None and to_entropies_N is None:
            return None, None, None, None
        wants_hidden, wants_weight, wants_bias, _ = ctx.needs_input_grad
        to_hidden_NH = torch.empty_like(hidden_NH) if wants_hidden else None
        to_weight_VH = torch.zeros_like(weight_VH, dtype=_at_least_float32(weight_VH.dtype)) if wants_weight else None
        to_bias_V = torch.zeros_like(bias_V, dtype=_at_least_float32(bias_V.dtype)) if wants_bias else None
        weight, bias = rows.cast(weight_VH, bias_V)
        for at in rows.chunks():
            to_logits_NV = _to_logits(
                rows.log_probs(hidden_NH, weight, bias, at),
                rows.actions_N[at],
                None if to_log_probs_N is None else to_log_probs_N[at],
                None if to_entropies_N is None else to_entropies_N[at],
            )
            if rows.allowed_NV is not None:  # a forbidden action can only be the chosen one by mistake
                to_logits_NV.masked_fill_(~rows.allowed_NV[at], 0.0)
            to_logits_NV = to_logits_NV.div_(rows.temperature).to(rows.dtype)
            if to_hidden_NH is not None:
                to_hidden_NH[at] = to_logits_NV @ weight
            if to_weight_VH is not None:
                to_weight_VH += to_logits_NV.T @ hidden_NH[at].to(rows.dtype)
            if to_bias_V is not None:
                to_bias_V += to_logits_NV.sum(0)
        return (
            to_hidden_NH,
            None if to_weight_VH is None else to_weight_VH.to(weight_VH.dtype),
            None if to_bias_V is None else to_bias_V.to(bias_V.dtype),
            None,
        )


def _to_logits(
    log_probs_NV: Tensor, actions_N: Tensor, to_log_probs_N: Tensor | None, to_entropies_N: Tensor | None
) -> Tensor:
    """The gradient of a chunk's tempered logits; ``log_probs_NV`` is spent on it."""
    probs_NV = log_probs_NV.exp()
    if to_entropies_N is None:
        assert to_log_probs_N is not None
        to_logits_NV = probs_NV.mul_(-to_log_probs_N[:, None])
    else:
        finite_NV = _finite(log_probs_NV)
        entropies_N = -(probs_NV * finite_NV).sum(-1)
        to_logits_NV = finite_NV.add_(entropies_N[:, None]).mul_(probs_NV).mul_(-to_entropies_N[:, None])
        if to_log_probs_N is not None:
            to_logits_NV.addcmul_(probs_NV, to_log_probs_N[:, None], value=-1)
    if to_log_probs_N is not None:
        to_logits_NV.scatter_add_(-1, actions_N[:, None], to_log_probs_N[:, None])
    return to_logits_NV


def _finite(log_probs_NV: Tensor) -> Tensor:
    """−∞ as a number, in place: 0 times it is 0, not NaN. exp(−10,000) is 0 in every precision."""
    return log_probs_NV.clamp_(min=-10_000)


def _at_least_float32(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)
