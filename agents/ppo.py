"""Proximal policy optimisation with a frozen reference and a KL penalty (Schulman et al. 2017; Ziegler et al. 2019)."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import torch
from torch import Tensor

from agents.advantages import explained_variance, gae, leave_one_out, masked_mean, whiten
from agents.base import TextAlgorithm
from agents.config import AlgorithmConfig, option
from agents.kl import KLController, k3, penalised_rewards
from agents.losses import clipped_policy_loss, value_loss
from agents.policy import TextPolicy
from agents.trajectories import Trajectories


@dataclass
class PPOConfig(AlgorithmConfig):
    """PPO's options. The KL coefficient's unit is in its name: it is charged for the KL of the whole completion."""

    epochs: int = option(4, "passes over a rollout")
    minibatches: int = option(2, "optimiser steps an epoch")
    clip_range: float = option(0.2, "ε of the clipped surrogate")
    value_clip_range: float | None = option(0.2, "ε of the clipped value loss; none turns it off")
    value_coef: float = option(0.1, "weight of the value loss")
    entropy_coef: float = option(0.0, "weight of the entropy bonus, a token")
    gae_lambda: float = option(0.95, "λ of generalised advantage estimation")
    prompt_baseline: bool = option(
        True, "where samples_per_prompt > 1, measure a return against the mean of the prompt's other samples"
    )
    whiten_advantages: bool = option(True, "advantages of a rollout to mean 0, variance 1")
    target_kl: float | None = option(None, "stop a rollout's epochs when the mean k3 from the old policy passes this")
    kl_coef_per_sequence: float = option(0.02, "reward units charged a nat of a completion's KL from the reference")
    kl_target_per_sequence: float | None = option(None, "steer the coefficient towards this KL (nats a completion)")
    kl_horizon_episodes: float = option(10_000, "episodes over which the steering works")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("epochs", "minibatches", "clip_range"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}")
        prompts = self.episodes_per_rollout // self.samples_per_prompt
        if self.minibatches > prompts:
            raise ValueError(f"{self.minibatches} minibatches need as many prompts, got {prompts}")
        if self.prompt_baseline and self.samples_per_prompt > 1 and self.gamma != 1:
            raise ValueError(
                "prompt_baseline shifts the return of a whole completion, which needs gamma = 1: turn one of them off"
            )
        if self.kl_coef_per_sequence < 0:
            raise ValueError("a negative kl_coef_per_sequence would pay the policy for leaving the reference")
        if self.kl_target_per_sequence is not None and self.kl_coef_per_sequence == 0:
            raise ValueError("steering starts from kl_coef_per_sequence and multiplies it: 0 would stay 0")


class PPO(TextAlgorithm):
    """PPO on whole completions: one forward over each sequence gives every token's log-probability and value."""

    config_class = PPOConfig
    config: PPOConfig

    def _setup_model(self) -> None:
        super()._setup_model()
        if not hasattr(self, "kl_controller"):  # a loaded agent brings its own, where it had got to
            self.kl_controller = KLController(
                self.config.kl_coef_per_sequence, self.config.kl_target_per_sequence, self.config.kl_horizon_episodes
            )

    def _make_reference(self) -> TextPolicy | None:
        return super()._make_reference() if self.config.kl_coef_per_sequence > 0 else None

    def train(self, trajectories: Trajectories) -> None:
        """One PPO update: rewards with KL penalty, GAE, then clipped epochs over the episodes."""
        batch = self.prepare(trajectories)
        diagnostics: dict[str, list[float]] = defaultdict(list)
        for _epoch in range(self.config.epochs):
            for rows in trajectories.minibatches(self.config.minibatches, self.collector.shuffle):
                stats = self.accumulate_gradients(batch, rows)
                if self.config.target_kl is not None and stats["policy/approxkl"] > self.config.target_kl:
                    self.policy.optimizer.zero_grad(set_to_none=True)
                    self._log_update(batch, diagnostics)
                    return
                stats["policy/grad_norm"] = self.optimiser_step()
                for name, value in stats.items():
                    diagnostics[name].append(value)
        self._log_update(batch, diagnostics)

    def prepare(self, trajectories: Trajectories) -> PPOBatch:
        """Everything that stays fixed during the epochs: old log-probabilities and values, advantages, returns."""
        mask_BT = trajectories.action_mask_BT
        if self.policy.precision != "float32":
            # In bf16 the cached and the full forward round differently: ratios must compare like with like.
            log_probs_BT, values_BT = self.rescore(self.policy, trajectories)
            trajectories = trajectories.replace(log_probs_BT=log_probs_BT, values_BT=values_BT)
        rewards_BT = trajectories.rewards_BT
        if self.reference is not None:
            reference_BT, _ = self.rescore(self.reference, trajectories)
            log_ratio_BT = (trajectories.log_probs_BT - reference_BT) * mask_BT
            rewards_BT = penalised_rewards(rewards_BT, log_ratio_BT, self.kl_controller.coef, mask_BT)
            kl = float(log_ratio_BT.sum(-1).mean())
            self.logger.record("kl/per_sequence", kl)
            self.logger.record("kl/per_token", float(masked_mean(log_ratio_BT, mask_BT)))
            self.logger.record("kl/k3_per_token", float(masked_mean(k3(log_ratio_BT), mask_BT)))
            self.logger.record("kl/coef_per_sequence", self.kl_controller.coef)
            self.kl_controller.update(kl, len(trajectories))
        if self.config.prompt_baseline and self.config.samples_per_prompt > 1:
            # Charged at the end it shifts every return-to-go alike: the critic then learns what a prefix adds to
            # the prompt's own level, for which its first answer, 0, is already right.
            baseline_B = leave_one_out(rewards_BT.sum(-1), trajectories.prompt_groups_B)
            last_B = trajectories.lengths_B - 1
            rewards_BT = rewards_BT.scatter_add(1, last_B[:, None], -baseline_B[:, None])
        advantages_BT, returns_BT = gae(
            rewards_BT,
            trajectories.values_BT,
            mask_BT,
            gamma=self.config.gamma,
            lam=self.config.gae_lambda,
            bootstrap_values_B=trajectories.bootstrap_values_B,
        )
        if self.config.whiten_advantages:
            advantages_BT = whiten(advantages_BT, mask_BT)
        return PPOBatch(trajectories, advantages_BT, returns_BT)

    def accumulate_gradients(self, batch: PPOBatch, rows: Tensor) -> dict[str, float]:
        """Add the gradients of one minibatch, in micro-batches; the sum does not depend on how it is split."""
        config = self.config
        minibatch = batch.trajectories.select(rows)
        count = minibatch.num_tokens
        sums: dict[str, Tensor] = defaultdict(lambda: torch.zeros((), device=self.policy.device))
        for micro_rows, part in minibatch.micro_batches(config.micro_batch_tokens):
            at = rows[micro_rows]
            mask_BT = part.action_mask_BT
            advantages_BT = batch.advantages_BT[at, : mask_BT.shape[1]]
            returns_BT = batch.returns_BT[at, : mask_BT.shape[1]]
            log_probs_BT, values_BT, entropies_BT = self.policy.score_actions(
                part.input_ids_BS,
                part.prompt_lengths_B,
                mask_BT,
                groups_B=part.prompt_groups_B,
                entropy_gradient=config.entropy_coef != 0,
            )
            policy_loss = clipped_policy_loss(
                log_probs_BT, part.log_probs_BT, advantages_BT, mask_BT, clip_range=config.clip_range, count=count
            )
            critic_loss = value_loss(
                values_BT,
                returns_BT,
                mask_BT,
                old_values_BT=part.values_BT,
                clip_range=config.value_clip_range,
                count=count,
            )
            entropy = masked_mean(entropies_BT, mask_BT, count=count)
            (policy_loss + config.value_coef * critic_loss - config.entropy_coef * entropy).backward()
            with torch.no_grad():
                log_ratio_BT = log_probs_BT - part.log_probs_BT
                far_BT = ((log_ratio_BT.exp() - 1).abs() > config.clip_range).float()
                sums["loss/policy"] += policy_loss
                sums["loss/value"] += critic_loss
                sums["entropy"] += entropy
                sums["policy/approxkl"] += masked_mean(k3(-log_ratio_BT), mask_BT, count=count)
                sums["policy/clipfrac"] += masked_mean(far_BT, mask_BT, count=count)
                sums["policy/ratio"] += masked_mean(log_ratio_BT.exp(), mask_BT, count=count)
        return {name: float(value) for name, value in sums.items()}

    def _log_update(self, batch: PPOBatch, diagnostics: dict[str, list[float]]) -> None:
        for name, values in diagnostics.items():
            self.logger.record(name, sum(values) / len(values))
        self.logger.record("policy/optimiser_steps", len(diagnostics["loss/policy"]))
        mask_BT = batch.trajectories.action_mask_BT
        variance = explained_variance(batch.trajectories.values_BT, batch.returns_BT, mask_BT)
        self.logger.record("explained_variance", variance)


@dataclass(frozen=True)
class PPOBatch:
    """A rollout with what the epochs compare against."""

    trajectories: Trajectories
    advantages_BT: Tensor
    returns_BT: Tensor
