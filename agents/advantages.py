"""Advantage estimation: pure functions over [episodes, steps] tensors."""

from __future__ import annotations

import torch
from torch import Tensor

from agents.distributed import ALONE, World


def gae(
    rewards_BT: Tensor,
    values_BT: Tensor,
    mask_BT: Tensor,
    *,
    gamma: float,
    lam: float,
    bootstrap_values_B: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation (Schulman et al. 2016, equation 16).

    ``δ_t = r_t + γ V_{t+1} − V_t`` and ``A_t = Σ_l (γλ)^l δ_{t+l}``, each episode on its own length.

    Args:
        rewards_BT: reward of each action.
        values_BT: V of the prefix each action was taken in.
        mask_BT: True where an action was taken; each row a run of True from step 0.
        gamma: discount.
        lam: λ; 1 is the Monte Carlo return minus the value, 0 the one-step error.
        bootstrap_values_B: V after the last action, for episodes cut short from outside; default 0 (terminal).

    Returns:
        ``advantages_BT`` and ``returns_BT = advantages + values`` (the value targets), 0 outside the mask.
    """
    steps = rewards_BT.shape[1]
    advantages_BT = torch.zeros_like(values_BT)
    after_B = torch.zeros_like(values_BT[:, 0])
    next_values_B = after_B if bootstrap_values_B is None else bootstrap_values_B
    for t in reversed(range(steps)):
        running_B = mask_BT[:, t]
        delta_B = rewards_BT[:, t] + gamma * next_values_B - values_BT[:, t]
        # Steps past a row's end leave its carried values as they are: 0 and the bootstrap.
        after_B = torch.where(running_B, delta_B + gamma * lam * after_B, after_B)
        next_values_B = torch.where(running_B, values_BT[:, t], next_values_B)
        advantages_BT[:, t] = after_B * running_B
    return advantages_BT, (advantages_BT + values_BT) * mask_BT


def leave_one_out(returns_B: Tensor, groups_B: Tensor) -> Tensor:
    """For each episode the mean return of the *other* episodes of its group, shape (B,).

    As a baseline it is independent of the episode's own actions, so it leaves the policy gradient unbiased
    (Kool et al. 2019; RLOO, Ahmadian et al. 2024).

    Raises:
        ValueError: a group has a single episode.
    """
    _, row_B, sizes_R = torch.unique(groups_B, return_inverse=True, return_counts=True)
    if (sizes_R < 2).any():
        raise ValueError("a leave-one-out baseline needs at least two episodes of every prompt")
    sums_R = torch.zeros(len(sizes_R), dtype=returns_B.dtype, device=returns_B.device).index_add(0, row_B, returns_B)
    return (sums_R[row_B] - returns_B) / (sizes_R[row_B] - 1)


def group_relative(returns_B: Tensor, groups_B: Tensor, *, scale: bool = True, eps: float = 1e-4) -> Tensor:
    """``(R − mean) / (std + ε)`` over each group (GRPO, Shao et al. 2024, section 4.1.2), shape (B,).

    Without ``scale`` only the mean is taken off (Liu et al. 2025, "Dr. GRPO"). The standard deviation is the sample's
    (n − 1), 0 for a group of one.
    """
    _, row_B, sizes_R = torch.unique(groups_B, return_inverse=True, return_counts=True)

    def total(values_B: Tensor) -> Tensor:
        return torch.zeros(len(sizes_R), dtype=values_B.dtype, device=values_B.device).index_add(0, row_B, values_B)

    # Counted from the group's least: the mean of equal returns is then exact, and no rounding is scaled up.
    least_R = returns_B.new_zeros(len(sizes_R)).scatter_reduce(0, row_B, returns_B, "amin", include_self=False)
    above_B = returns_B - least_R[row_B]
    centred_B = above_B - (total(above_B) / sizes_R)[row_B]
    if not scale:
        return centred_B
    std_R = (total(centred_B**2) / (sizes_R - 1).clamp(min=1)).sqrt()
    return centred_B / (std_R[row_B] + eps)


def whiten(values_BT: Tensor, mask_BT: Tensor, *, eps: float = 1e-8, world: World = ALONE) -> Tensor:
    """Shift and scale to mean 0 and variance 1 over the mask, that of all of ``world``'s ranks; 0 outside it.

    A single masked entry, or all entries alike, become 0.
    """
    mean = masked_mean(values_BT, mask_BT, world=world)
    variance = masked_mean((values_BT - mean) ** 2, mask_BT, world=world)
    return (values_BT - mean) * torch.rsqrt(variance + eps) * mask_BT


def masked_mean(values_BT: Tensor, mask_BT: Tensor, *, count: int | None = None, world: World = ALONE) -> Tensor:
    """The mean over the mask, a scalar; with a ``world`` over all its ranks' masks, without gradient.

    ``count`` replaces the number of masked entries as the divisor: a micro-batch divides by the count of its
    whole minibatch, so that the micro-batches' sum is the minibatch's mean.
    """
    total = world.sum(torch.where(mask_BT, values_BT, torch.zeros_like(values_BT)).sum())
    return total / (world.sum(mask_BT.sum()) if count is None else count)


def explained_variance(values_BT: Tensor, returns_BT: Tensor, mask_BT: Tensor, *, world: World = ALONE) -> float:
    """``1 − Var[R − V] / Var[R]`` over all ranks' masks: 1 is a perfect critic, 0 one no better than a constant.

    NaN where the returns do not vary.
    """
    returns = world.concat(returns_BT[mask_BT])
    variance = returns.var(correction=0)
    if variance == 0:
        return float("nan")
    return float(1 - (returns - world.concat(values_BT[mask_BT])).var(correction=0) / variance)
