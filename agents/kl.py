"""KL divergence from a reference policy: estimators, the penalty in the reward, and its coefficient.

All estimators take ``d = log π(a) − log π_ref(a)`` of actions sampled from π (Schulman, "Approximating KL
divergence", 2020). ``k1 = d`` and ``k3 = e^(−d) − 1 + d`` are unbiased values of KL(π‖π_ref), ``k2 = d²/2``
is not. Their expected gradients are another matter:

- In the reward, k1's is that of the whole completion's KL(π‖π_ref), exactly. k3's lacks KL(π_ref‖π)'s of each
  token: near the reference, where the two are alike, next to nothing is left.
- As a loss, of each token in the prefix where it was chosen: k2's is that of KL(π‖π_ref), k3's that of
  KL(π_ref‖π), k1's zero. What a token does to the KL of later ones is only charged in the reward.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

from torch import Tensor

from agents.advantages import masked_mean
from agents.distributed import ALONE, World

KLEstimator: TypeAlias = Literal["k1", "k2", "k3"]


def k1(log_ratio: Tensor) -> Tensor:
    """``d``: unbiased, may be negative."""
    return log_ratio


def k2(log_ratio: Tensor) -> Tensor:
    """``d²/2``: biased, never negative."""
    return log_ratio**2 / 2


def k3(log_ratio: Tensor) -> Tensor:
    """``e^(−d) − 1 + d``: unbiased, never negative."""
    return (-log_ratio).exp() - 1 + log_ratio


ESTIMATORS: dict[KLEstimator, Callable[[Tensor], Tensor]] = {"k1": k1, "k2": k2, "k3": k3}


def penalised_rewards(
    rewards_BT: Tensor,
    log_ratio_BT: Tensor,
    coef_per_sequence: float,
    mask_BT: Tensor,
    estimator: KLEstimator = "k1",
) -> Tensor:
    """``r_t − β k(d_t)`` on the mask (Ziegler et al. 2019, equation 2, with k1), without gradient.

    Summed over an episode the charge is β times the sequence's KL in nats: that is the unit of β.
    """
    return (rewards_BT - coef_per_sequence * ESTIMATORS[estimator](log_ratio_BT.detach())) * mask_BT


def kl_metrics(log_ratio_BT: Tensor, mask_BT: Tensor, *, world: World = ALONE) -> dict[str, float]:
    """What is logged of a rollout's KL, nats a completion and nats a token.

    Args:
        log_ratio_BT: log π − log π_ref of the actions, drawn from π; 0 outside the mask.
        mask_BT: True where an action was taken.
        world: over whose ranks' actions.
    """
    return {
        "kl/per_sequence": float(world.concat(log_ratio_BT.sum(-1)).mean()),
        "kl/per_token": float(masked_mean(log_ratio_BT, mask_BT, world=world)),
        "kl/k3_per_token": float(masked_mean(k3(log_ratio_BT), mask_BT, world=world)),
    }


@dataclass
class KLController:
    """The coefficient β, fixed or steered towards a target (Ziegler et al. 2019, section 2.2).

    ``β ← β · (1 + clip(KL / target − 1, ±0.2) · episodes / horizon)``.
    """

    coef: float
    """β: reward units for a nat of KL of the whole sequence."""
    target: float | None = None
    """The KL of a sequence, in nats, to steer towards; None keeps β fixed."""
    horizon: float = 10_000
    """Episodes over which a steady error of 20 % changes β by 20 %."""

    def update(self, kl_per_sequence: float, episodes: int) -> None:
        """Take note of the mean KL of the last ``episodes`` episodes."""
        if self.target is not None:
            error = min(max(kl_per_sequence / self.target - 1, -0.2), 0.2)
            self.coef *= 1 + error * episodes / self.horizon
