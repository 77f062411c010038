"""Policy-gradient losses: pure functions, each a mean over the actions of the mask."""

from __future__ import annotations

import torch
from torch import Tensor

from agents.advantages import masked_mean


def policy_gradient_loss(
    log_probs_BT: Tensor, advantages_BT: Tensor, mask_BT: Tensor, *, count: int | None = None
) -> Tensor:
    """``−E[A log π(a)]``, whose gradient is the policy gradient (Williams 1992; Sutton et al. 2000).

    Args:
        log_probs_BT: log π of the actions, with gradients.
        advantages_BT: advantages, without gradients.
        mask_BT: True where an action was taken.
        count: see `masked_mean`.
    """
    return -masked_mean(log_probs_BT * advantages_BT, mask_BT, count=count)


def clipped_policy_loss(
    log_probs_BT: Tensor,
    old_log_probs_BT: Tensor,
    advantages_BT: Tensor,
    mask_BT: Tensor,
    *,
    clip_range: float,
    count: int | None = None,
) -> Tensor:
    """PPO's clipped surrogate (Schulman et al. 2017, equation 7), negated: ``−E[min(ρA, clip(ρ, 1±ε)A)]``.

    Args:
        log_probs_BT: log π of the actions, with gradients.
        old_log_probs_BT: log π when the actions were sampled.
        advantages_BT: advantages, without gradients.
        mask_BT: True where an action was taken.
        clip_range: ε.
        count: see `masked_mean`.
    """
    ratio_BT = (log_probs_BT - old_log_probs_BT).exp()
    clipped_BT = ratio_BT.clamp(1 - clip_range, 1 + clip_range)
    return -masked_mean(torch.min(ratio_BT * advantages_BT, clipped_BT * advantages_BT), mask_BT, count=count)


def value_loss(
    values_BT: Tensor,
    returns_BT: Tensor,
    mask_BT: Tensor,
    *,
    old_values_BT: Tensor | None = None,
    clip_range: float | None = None,
    count: int | None = None,
) -> Tensor:
    """``½ E[(V − R)²]``; with a clip range ``½ E[max((V − R)², (V_old + clip(V − V_old, ±ε) − R)²)]``.

    The maximum is that of lm-human-preferences: clipping never makes the loss smaller.
    """
    squared_BT = (values_BT - returns_BT) ** 2
    if clip_range is not None:
        if old_values_BT is None:
            raise ValueError("clipping the value loss needs old_values_BT")
        clipped_BT = old_values_BT + (values_BT - old_values_BT).clamp(-clip_range, clip_range)
        squared_BT = torch.max(squared_BT, (clipped_BT - returns_BT) ** 2)
    return 0.5 * masked_mean(squared_BT, mask_BT, count=count)
