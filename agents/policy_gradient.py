"""What the policy-gradient algorithms share: rewards with their KL penalty, advantages, and one pass of gradients.

An algorithm says how advantages are estimated, what its policy loss is, and how often it steps.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from agents.advantages import explained_variance, gae, leave_one_out, masked_mean, whiten
from agents.base import TextAlgorithm
from agents.config import AlgorithmConfig, check_choice, option
from agents.kl import ESTIMATORS, KLController, KLEstimator, k3, kl_metrics, penalised_rewards
from agents.losses import value_loss
from agents.policy import TextPolicy
from agents.shaping import shaped_rewards, to_unit_variance
from agents.trajectories import Trajectories

KLPlace: TypeAlias = Literal["reward", "loss"]


@dataclass
class PolicyGradientConfig(AlgorithmConfig):
    """Options of every policy-gradient algorithm. The KL coefficient is charged for the KL of a whole completion."""

    entropy_coef: float = option(0.0, "weight of the entropy bonus, a token")
    whiten_advantages: bool = option(True, "advantages of a rollout to mean 0, variance 1")
    whiten_rewards: bool = option(False, "rewards of a rollout, KL penalty included, to variance 1")
    kl_coef_per_sequence: float = option(0.02, "reward units charged a nat of a completion's KL from the reference")
    kl_estimator: KLEstimator = option(
        "k1", "k1 = d (for the reward: exact), k2 = d²/2 or k3 = e^(−d) − 1 + d (for the loss), d = log π − log π_ref"
    )
    kl_in: KLPlace = option("reward", "charge the KL in the reward, or (k2, k3) as a term of the loss")
    kl_target_per_sequence: float | None = option(None, "steer the coefficient towards this KL (nats a completion)")
    kl_horizon_episodes: float = option(10_000, "episodes over which the steering works")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("kl_estimator", self.kl_estimator, KLEstimator)
        check_choice("kl_in", self.kl_in, KLPlace)
        if self.kl_coef_per_sequence < 0:
            raise ValueError("a negative kl_coef_per_sequence would pay the policy for leaving the reference")
        if self.kl_target_per_sequence is not None and self.kl_coef_per_sequence == 0:
            raise ValueError("steering starts from kl_coef_per_sequence and multiplies it: 0 would stay 0")
        if self.kl_in == "loss" and self.kl_estimator == "k1":
            raise ValueError("kl_in='loss' with k1 has an expected gradient of 0: take kl_estimator='k2' or 'k3'")


@dataclass
class ActorCriticConfig(PolicyGradientConfig):
    """Options of the algorithms that learn a value function."""

    value_coef: float = option(0.1, "weight of the value loss")
    gae_lambda: float = option(0.95, "λ of generalised advantage estimation; 1 is return minus value")
    prompt_baseline: bool = option(
        True, "where samples_per_prompt > 1, measure a return against the mean of the prompt's other samples"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.prompt_baseline and self.samples_per_prompt > 1 and self.gamma != 1:
            raise ValueError(
                "prompt_baseline shifts the return of a whole completion, which needs gamma = 1: turn one of them off"
            )


@dataclass(frozen=True)
class Batch:
    """A rollout with what its update compares against."""

    trajectories: Trajectories
    advantages_BT: Tensor
    returns_BT: Tensor | None
    """The value targets; None without a critic."""
    reference_BT: Tensor | None
    """log π_ref of the actions, where the loss charges the KL."""


class PolicyGradient(TextAlgorithm):
    """Base of the policy-gradient algorithms, on whole completions.

    A subclass writes ``estimate_advantages``, ``policy_loss`` and ``train``.
    """

    config: PolicyGradientConfig
    shards = True

    def estimate_advantages(self, trajectories: Trajectories, rewards_BT: Tensor) -> tuple[Tensor, Tensor | None]:
        """``advantages_BT``, and the value targets ``returns_BT`` of an algorithm with a critic."""
        raise NotImplementedError

    def policy_loss(self, log_probs_BT: Tensor, episodes: Trajectories, advantages_BT: Tensor, count: int) -> Tensor:
        """The loss of some episodes' actions, divided by ``count`` actions."""
        raise NotImplementedError

    def _setup_model(self) -> None:
        super()._setup_model()
        if not hasattr(self, "kl_controller"):  # a loaded agent brings its own, where it had got to
            self.kl_controller = KLController(
                self.config.kl_coef_per_sequence, self.config.kl_target_per_sequence, self.config.kl_horizon_episodes
            )

    def _make_reference(self) -> TextPolicy | None:
        return super()._make_reference() if self.config.kl_coef_per_sequence > 0 else None

    def prepare(self, trajectories: Trajectories) -> Batch:
        """Everything that stays fixed during an update: old log-probabilities and values, advantages, returns."""
        if self.policy.precision != "float32":
            # In bf16 the cached and the full forward round differently: ratios must compare like with like.
            log_probs_BT, values_BT = self.rescore(self.policy, trajectories)
            trajectories = trajectories.replace(log_probs_BT=log_probs_BT, values_BT=values_BT)
        mask_BT = trajectories.action_mask_BT
        reference_BT = log_ratio_BT = None
        if self.reference is not None:
            reference_BT, _ = self.rescore(self.reference, trajectories)
            log_ratio_BT = (trajectories.log_probs_BT - reference_BT) * mask_BT
        rewards_BT = self.learner_rewards(trajectories, log_ratio_BT)
        if log_ratio_BT is not None:
            self._log_and_steer_kl(log_ratio_BT, mask_BT)
        if self.config.whiten_rewards:
            rewards_BT = to_unit_variance(rewards_BT, mask_BT, world=self.world)
        advantages_BT, returns_BT = self.estimate_advantages(trajectories, rewards_BT)
        if self.config.whiten_advantages:
            advantages_BT = whiten(advantages_BT, mask_BT, world=self.world)
        return Batch(trajectories, advantages_BT, returns_BT, reference_BT if self.config.kl_in == "loss" else None)

    def learner_rewards(self, trajectories: Trajectories, log_ratio_BT: Tensor | None) -> Tensor:
        """The environment's rewards as the options shape them, less the KL charge where it goes in the reward.

        Args:
            trajectories: the episodes.
            log_ratio_BT: log π − log π_ref of their actions; None without a reference.
        """
        rewards_BT = shaped_rewards(trajectories, self.config)
        if log_ratio_BT is None or self.config.kl_in == "loss":
            return rewards_BT
        coef, estimator = self.kl_controller.coef, self.config.kl_estimator
        return penalised_rewards(rewards_BT, log_ratio_BT, coef, trajectories.action_mask_BT, estimator)

    def _log_and_steer_kl(self, log_ratio_BT: Tensor, mask_BT: Tensor) -> None:
        metrics = kl_metrics(log_ratio_BT, mask_BT, world=self.world)
        for name, value in metrics.items():
            self.logger.record(name, value)
        self.logger.record("kl/coef_per_sequence", self.kl_controller.coef)
        self.kl_controller.update(metrics["kl/per_sequence"], self.world.sum(len(mask_BT)))

    def accumulate_gradients(self, batch: Batch, rows: Tensor) -> dict[str, float]:
        """Add the gradients of some episodes, in micro-batches; the sum does not depend on how it is split.

        The loss is divided by the actions of all ranks: what is left to do is a sum (`TextAlgorithm.optimiser_step`).

        Returns:
            Means over all ranks' actions, under the names of the log.
        """
        minibatch = batch.trajectories.select(rows)
        count = self.world.sum(minibatch.num_tokens)

        def loss(micro_rows: Tensor, episodes: Trajectories) -> tuple[Tensor, Mapping[str, Tensor]]:
            return self._loss(batch, rows[micro_rows], episodes, count)

        return self.world.sums(self.micro_batches.accumulate(minibatch, loss))

    def _loss(
        self, batch: Batch, rows: Tensor, episodes: Trajectories, count: int
    ) -> tuple[Tensor, Mapping[str, Tensor]]:
        config = self.config
        mask_BT = episodes.action_mask_BT
        steps = mask_BT.shape[1]
        log_probs_BT, values_BT, entropies_BT = self.policy.score(episodes, entropy_gradient=config.entropy_coef != 0)
        loss = self.policy_loss(log_probs_BT, episodes, batch.advantages_BT[rows, :steps], count)
        entropy = masked_mean(entropies_BT, mask_BT, count=count)
        stats = {"loss/policy": loss, "entropy": entropy}
        if config.entropy_coef:
            loss = loss - config.entropy_coef * entropy
        if batch.returns_BT is not None:
            stats["loss/value"] = self._value_loss(values_BT, batch.returns_BT[rows, :steps], episodes, count)
            loss = loss + config.value_coef * stats["loss/value"]  # type: ignore[attr-defined]
        if batch.reference_BT is not None:
            log_ratio_BT = log_probs_BT - batch.reference_BT[rows, :steps]
            stats["loss/kl"] = masked_mean(ESTIMATORS[config.kl_estimator](log_ratio_BT), mask_BT, count=count)
            loss = loss + self.kl_controller.coef * stats["loss/kl"]
        with torch.no_grad():
            log_ratio_BT = log_probs_BT - episodes.log_probs_BT
            stats |= self._moved(log_ratio_BT, mask_BT, count)
        return loss, stats

    def _value_loss(self, values_BT: Tensor, returns_BT: Tensor, episodes: Trajectories, count: int) -> Tensor:
        return value_loss(values_BT, returns_BT, episodes.action_mask_BT, count=count)

    def _moved(self, log_ratio_BT: Tensor, mask_BT: Tensor, count: int) -> dict[str, Tensor]:
        """How far the policy is from the one that acted."""
        return {
            "policy/approxkl": masked_mean(k3(-log_ratio_BT), mask_BT, count=count),
            "policy/ratio": masked_mean(log_ratio_BT.exp(), mask_BT, count=count),
        }

    def log_update(self, batch: Batch, steps: list[dict[str, float]]) -> None:
        """Record the means over an update's optimiser steps, their number, and how good the critic was."""
        for name in steps[0] if steps else ():
            self.logger.record(name, sum(stats[name] for stats in steps) / len(steps))
        self.logger.record("policy/optimiser_steps", len(steps))
        if batch.returns_BT is not None:
            episodes = batch.trajectories
            variance = explained_variance(
                episodes.values_BT, batch.returns_BT, episodes.action_mask_BT, world=self.world
            )
            self.logger.record("explained_variance", variance)


def actor_critic_advantages(
    trajectories: Trajectories, rewards_BT: Tensor, config: ActorCriticConfig
) -> tuple[Tensor, Tensor]:
    """GAE and value targets, the returns measured against the prompt's other samples where there are any."""
    if config.prompt_baseline and config.samples_per_prompt > 1:
        # Charged at the end it shifts every return-to-go alike: the critic then learns what a prefix adds to
        # the prompt's own level, for which its first answer, 0, is already right.
        baseline_B = leave_one_out(rewards_BT.sum(-1), trajectories.prompt_groups_B)
        rewards_BT = rewards_BT.scatter_add(1, trajectories.lengths_B[:, None] - 1, -baseline_B[:, None])
    return gae(
        rewards_BT,
        trajectories.values_BT,
        trajectories.action_mask_BT,
        gamma=config.gamma,
        lam=config.gae_lambda,
        bootstrap_values_B=trajectories.bootstrap_values_B,
    )
