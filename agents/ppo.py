"""Proximal policy optimisation with a frozen reference and a KL penalty (Schulman et al. 2017; Ziegler et al. 2019)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from agents.advantages import masked_mean
from agents.config import option
from agents.losses import clipped_policy_loss, value_loss
from agents.policy_gradient import ActorCriticConfig, PolicyGradient, PolicyGradientConfig, actor_critic_advantages
from agents.trajectories import Trajectories


@dataclass
class ClippedConfig(PolicyGradientConfig):
    """Options of the clipped surrogate and the epochs it allows."""

    epochs: int = option(4, "passes over a rollout")
    minibatches: int = option(2, "optimiser steps an epoch")
    clip_range: float = option(0.2, "ε of the clipped surrogate")
    target_kl: float | None = option(None, "stop a rollout's epochs when the mean k3 from the old policy passes this")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("epochs", "minibatches", "clip_range"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}")
        prompts = self.episodes_per_rollout // self.samples_per_prompt
        if self.minibatches > prompts:
            raise ValueError(f"{self.minibatches} minibatches need as many prompts, got {prompts}")


@dataclass
class PPOConfig(ClippedConfig, ActorCriticConfig):
    """PPO's options."""

    value_clip_range: float | None = option(0.2, "ε of the clipped value loss; none turns it off")


class PPO(PolicyGradient):
    """PPO: several epochs on each rollout, kept close to the policy that acted by clipping the ratio."""

    config_class = PPOConfig
    config: PPOConfig

    def train(self, trajectories: Trajectories) -> None:
        """Clipped epochs over the episodes in shuffled minibatches, until ``target_kl`` is passed."""
        batch = self.prepare(trajectories)
        steps: list[dict[str, float]] = []
        for _epoch in range(self.config.epochs):
            for rows in trajectories.minibatches(self.config.minibatches, self.collector.shuffle):
                stats = self.accumulate_gradients(batch, rows)
                if self.config.target_kl is not None and stats["policy/approxkl"] > self.config.target_kl:
                    self.policy.optimizer.zero_grad(set_to_none=True)
                    self.log_update(batch, steps)
                    return
                steps.append({**stats, "policy/grad_norm": self.optimiser_step()})
        self.log_update(batch, steps)

    def estimate_advantages(self, trajectories: Trajectories, rewards_BT: Tensor) -> tuple[Tensor, Tensor | None]:
        """Generalised advantages and value targets."""
        return actor_critic_advantages(trajectories, rewards_BT, self.config)

    def policy_loss(self, log_probs_BT: Tensor, episodes: Trajectories, advantages_BT: Tensor, count: int) -> Tensor:
        """``−E[min(ρA, clip(ρ, 1±ε)A)]``."""
        return clipped_policy_loss(
            log_probs_BT,
            episodes.log_probs_BT,
            advantages_BT,
            episodes.action_mask_BT,
            clip_range=self.config.clip_range,
            count=count,
        )

    def _value_loss(self, values_BT: Tensor, returns_BT: Tensor, episodes: Trajectories, count: int) -> Tensor:
        return value_loss(
            values_BT,
            returns_BT,
            episodes.action_mask_BT,
            old_values_BT=episodes.values_BT,
            clip_range=self.config.value_clip_range,
            count=count,
        )

    def _moved(self, log_ratio_BT: Tensor, mask_BT: Tensor, count: int) -> dict[str, Tensor]:
        far_BT = ((log_ratio_BT.exp() - 1).abs() > self.config.clip_range).to(log_ratio_BT.dtype)
        clipped = masked_mean(far_BT, mask_BT, count=count)
        return super()._moved(log_ratio_BT, mask_BT, count) | {"policy/clipfrac": clipped}
