"""Targets and losses of Q-learning: pure functions over [episodes, steps] tensors."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from agents.advantages import masked_mean


def next_values(values_BT: Tensor, mask_BT: Tensor, bootstrap_values_B: Tensor | None = None) -> Tensor:
    """The value of the prefix that each action leads to, 0 outside the mask.

    Args:
        values_BT: the value of the prefix each action was taken in.
        mask_BT: True where an action was taken; each row a run of True from step 0.
        bootstrap_values_B: the value after the last action, for episodes cut short from outside; default 0
            (terminal: nothing follows).
    """
    after_BT = torch.zeros_like(values_BT)
    after_BT[:, :-1] = values_BT[:, 1:] * mask_BT[:, 1:]
    if bootstrap_values_B is not None:
        last_B1 = mask_BT.sum(-1, keepdim=True) - 1
        after_BT.scatter_(1, last_B1, bootstrap_values_B[:, None].to(after_BT.dtype))
    return after_BT


def peng_q_lambda(rewards_BT: Tensor, next_values_BT: Tensor, mask_BT: Tensor, *, gamma: float, lam: float) -> Tensor:
    """Peng's Q(λ) targets (Peng & Williams 1996, "Incremental multi-step Q-learning", section 3).

    ``G_t = r_t + γ [(1 − λ) max_a Q(s_{t+1}, a) + λ G_{t+1}]``, and ``G = r + γ · next value`` at the last action.
    λ = 0 is one-step Q-learning, λ = 1 the Monte Carlo return. Between them nothing corrects for exploring
    actions: the fixed point lies between the Q of the behaviour and Q* (Kozuno et al. 2021), and reaches Q* as the
    behaviour becomes greedy.

    Args:
        rewards_BT: reward of each action.
        next_values_BT: the greedy value of the prefix that each action leads to, without gradient (`next_values`).
        mask_BT: True where an action was taken; each row a run of True from step 0.
        gamma: discount.
        lam: λ.

    Returns:
        ``targets_BT``, 0 outside the mask.
    """
    targets_BT = torch.zeros_like(next_values_BT)
    last_BT = mask_BT & ~torch.cat([mask_BT[:, 1:], torch.zeros_like(mask_BT[:, :1])], dim=1)
    after_B = torch.zeros_like(next_values_BT[:, 0])
    for t in reversed(range(rewards_BT.shape[1])):
        value_B = next_values_BT[:, t]
        mixed_B = torch.where(last_BT[:, t], value_B, (1 - lam) * value_B + lam * after_B)
        after_B = (rewards_BT[:, t] + gamma * mixed_B) * mask_BT[:, t]
        targets_BT[:, t] = after_B
    return targets_BT


def soft_q_lambda(
    rewards_BT: Tensor,
    log_ratios_BT: Tensor,
    next_values_BT: Tensor,
    mask_BT: Tensor,
    *,
    kl_coef: float,
    gamma: float,
    lam: float,
) -> Tensor:
    """Q(λ) targets of KL-regularised Q-learning, of which every intermediate action has paid for its KL.

    ``G_t = r_t + γ [(1 − λ) V(s_{t+1}) + λ (G_{t+1} − β d_{t+1})]`` with ``d_t = log π(a_t|s_t) − log π_0(a_t|s_t)``,
    and ``G = r + γ · next value`` at the last action. λ = 0 is G-learning (Fox et al. 2016), λ = 1 the path consistency
    of Nachum et al. (2017) to the end of the episode, with the prior π_0 in place of a uniform one.

    Where ``π(a|s) = π_0(a|s) exp((Q(s, a) − V(s)) / β)`` and ``V(s) = β log Σ_a π_0(a|s) exp(Q(s, a) / β)``,
    ``G_{t+1} − β d_{t+1} = V(s_{t+1}) + G_{t+1} − Q(s_{t+1}, a_{t+1})``: at the optimum that is V(s_{t+1}), whatever
    the action. So the optimum is a fixed point for every λ and any behaviour, unlike that of `peng_q_lambda`.

    Args:
        rewards_BT: reward of each action.
        log_ratios_BT: d, without gradient.
        next_values_BT: V of the prefix that each action leads to, without gradient (`next_values`).
        mask_BT: True where an action was taken; each row a run of True from step 0.
        kl_coef: β, reward units a nat.
        gamma: discount.
        lam: λ.

    Returns:
        ``targets_BT``, 0 outside the mask.
    """
    charges_BT = torch.where(mask_BT, kl_coef * log_ratios_BT, 0.0)
    # G − βd, which has paid for its own action too, follows the recursion of Peng's targets.
    return charges_BT + peng_q_lambda(rewards_BT - charges_BT, next_values_BT, mask_BT, gamma=gamma, lam=lam)


def td_loss(
    q_KBT: Tensor, targets_BT: Tensor, mask_BT: Tensor, *, huber_delta: float | None, count: int | None = None
) -> Tensor:
    """The regression of K heads to one target, summed over the heads: ``Σ_k E[h(Q_k − G)]``.

    ``h(u) = ½u²`` where ``|u| ≤ δ`` and ``δ(|u| − ½δ)`` beyond (Huber 1964; Mnih et al. 2015 clip the error at 1,
    which is δ = 1).

    Args:
        q_KBT: Q of the actions, with gradients.
        targets_BT: the targets, without.
        mask_BT: True where an action was taken.
        huber_delta: δ; None is the plain ½u².
        count: see `masked_mean`.
    """
    targets_KBT = targets_BT.expand_as(q_KBT)
    if huber_delta is None:
        losses_KBT = 0.5 * (q_KBT - targets_KBT) ** 2
    else:
        losses_KBT = functional.huber_loss(q_KBT, targets_KBT, reduction="none", delta=huber_delta)
    return masked_mean(losses_KBT.sum(0), mask_BT, count=count)


def expectile_loss(errors_BT: Tensor, mask_BT: Tensor, *, expectile: float, count: int | None = None) -> Tensor:
    """``E[|τ − 1(u < 0)| u²]`` with ``u = Q − V`` (Kostrikov et al. 2022, equations 4 and 5).

    τ = ½ makes V the mean of Q over the logged actions (halved squared error); towards 1 it becomes their maximum.

    Args:
        errors_BT: u; the gradient flows through V.
        mask_BT: True where an action was taken.
        expectile: τ.
        count: see `masked_mean`.
    """
    weights_BT = (expectile - (errors_BT < 0).to(errors_BT.dtype)).abs()
    return masked_mean(weights_BT * errors_BT**2, mask_BT, count=count)
