"""Advantage actor-critic (Mnih et al. 2016), its workers one batch of parallel episodes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from agents.config import option
from agents.losses import policy_gradient_loss
from agents.policy_gradient import ActorCriticConfig, PolicyGradient, actor_critic_advantages
from agents.trajectories import Trajectories


@dataclass
class A2CConfig(ActorCriticConfig):
    """A2C's options: small rollouts, one step on each."""

    episodes_per_rollout: int = option(32, "episodes started, and played to their end, before each update")
    gae_lambda: float = option(1.0, "λ of generalised advantage estimation; 1 is return minus value, as in the paper")
    whiten_advantages: bool = option(False, "advantages of a rollout to mean 0, variance 1")


class A2C(PolicyGradient):
    """A2C: one step along the policy gradient a rollout, its advantages from a learned value."""

    config_class = A2CConfig
    config: A2CConfig

    def train(self, trajectories: Trajectories) -> None:
        """One optimiser step on the whole rollout."""
        batch = self.prepare(trajectories)
        stats = self.accumulate_gradients(batch, torch.arange(len(trajectories)))
        self.log_update(batch, [{**stats, "policy/grad_norm": self.optimiser_step()}])

    def estimate_advantages(self, trajectories: Trajectories, rewards_BT: Tensor) -> tuple[Tensor, Tensor]:
        """Generalised advantages and value targets."""
        return actor_critic_advantages(trajectories, rewards_BT, self.config)

    def policy_loss(self, log_probs_BT: Tensor, episodes: Trajectories, advantages_BT: Tensor, count: int) -> Tensor:
        """``−E[A log π]``."""
        return policy_gradient_loss(log_probs_BT, advantages_BT, episodes.action_mask_BT, count=count)
