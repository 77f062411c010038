"""Implicit Q-learning on logged episodes (ILQL; Snell et al. 2023): no environment is acted in while it learns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from agents.advantages import masked_mean
from agents.config import AlgorithmConfig, option
from agents.logged_rollouts import FromLoggedEpisodes
from agents.policy import chosen
from agents.q_learning import QLearner, QLearningConfig
from agents.q_policy import QPolicy, actions_of, spread
from agents.q_targets import expectile_loss, next_values, peng_q_lambda, td_loss
from agents.shaping import shaped_rewards
from agents.trajectories import Trajectories


@dataclass
class ILQLConfig(QLearningConfig):
    """ILQL's options."""

    episodes_per_rollout: int = option(128, "logged episodes drawn for each set of updates")
    minibatches: int = option(4, "optimiser steps that share them")
    q_heads: int = option(2, "Q heads; the value is fitted to the lowest of them")
    beta: float = option(4.0, "acts by softmax(log π_β + β (Q − V)), π_β the cloned model: nats a unit of reward")
    expectile: float = option(0.8, "τ of the value: .5 is the mean over the logged actions, 1 their best")
    cloning_coef: float = option(1.0, "weight of π_β's negative log-likelihood; 0 leaves the language model to the Qs")
    conservative_coef: float = option(0.0, "weight of −log softmax(Q) of the logged actions (CQL): lowers all others")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.expectile < 1:
            raise ValueError(f"expectile must lie between 0 and 1, got {self.expectile}")
        if self.minibatches < 1:
            raise ValueError(f"minibatches must be at least 1, got {self.minibatches}")
        for name in ("cloning_coef", "conservative_coef"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")


class ILQL(FromLoggedEpisodes, QLearner):
    """Q-learning from logged episodes alone, without ever asking for the Q of an action that was not logged.

    ``Q_k ← r + γ V(s')``, ``V ←`` an upper expectile of ``min_k Q'_k`` over the logged actions (Kostrikov et al. 2022,
    equations 5 and 6; Q' the slow copy), π_β by cloning, all in one forward and one of the slow copy. It acts by
    ``softmax(log π_β + β (Q − V))`` (Snell et al. 2023, section 4.3).

    Made and fed as `FromLoggedEpisodes` says.
    """

    config_class: ClassVar[type[AlgorithmConfig]] = ILQLConfig
    config: ILQLConfig
    policy: QPolicy
    has_prior = True

    def train(self, trajectories: Trajectories) -> None:
        """Learn from the drawn episodes, each once."""
        episodes = trajectories.replace(rewards_BT=shaped_rewards(trajectories, self.config))
        batches = torch.arange(len(episodes)).tensor_split(self.config.minibatches)
        self.log_updates([self.update(episodes.select(rows)) for rows in batches if len(rows)])

    def losses(self, part: Trajectories, count: int) -> tuple[Tensor, dict[str, Tensor]]:
        """The sum of the TD, expectile, cloning and conservative losses."""
        config, policy, mask_BT = self.config, self.policy, part.action_mask_BT
        assert policy.target is not None
        actions_N = actions_of(part)
        hidden_NH, logits_NV = policy.read(part)
        q_KBT = spread(policy.q_heads.taken(hidden_NH, actions_N), mask_BT)
        values_BT = spread(policy.value_head(hidden_NH).squeeze(-1), mask_BT)
        with torch.no_grad():
            after_BT = next_values(values_BT, mask_BT, part.bootstrap_values_B)
            targets_BT = peng_q_lambda(part.rewards_BT, after_BT, mask_BT, gamma=config.gamma, lam=0.0)
            target_NH, _ = policy.target.read(part, with_logits=False)
            slow_q_BT = spread(policy.target.q_heads.taken(target_NH, actions_N).min(0).values, mask_BT)
        parts = {
            "loss/td": td_loss(q_KBT, targets_BT, mask_BT, huber_delta=config.huber_delta, count=count),
            "loss/expectile": expectile_loss(slow_q_BT - values_BT, mask_BT, expectile=config.expectile, count=count),
        }
        loss = parts["loss/td"] + parts["loss/expectile"]
        forbidden_NV = None if part.allowed_BTV is None else ~part.allowed_BTV[mask_BT]

        def negative_log_likelihood(scores_NV: Tensor) -> Tensor:
            if forbidden_NV is not None:
                scores_NV = scores_NV.masked_fill(forbidden_NV, -torch.inf)
            log_probs_N = chosen(torch.log_softmax(scores_NV, -1), actions_N)
            return -masked_mean(spread(log_probs_N, mask_BT), mask_BT, count=count)

        if config.cloning_coef:
            parts["loss/cloning"] = negative_log_likelihood(logits_NV)
            loss = loss + config.cloning_coef * parts["loss/cloning"]
        if config.conservative_coef:
            parts["loss/conservative"] = negative_log_likelihood(policy.q_heads.mean(hidden_NH))
            loss = loss + config.conservative_coef * parts["loss/conservative"]
        return loss, {
            **parts,
            "q/mean": masked_mean(q_KBT.mean(0), mask_BT, count=count),
            "q/target_mean": masked_mean(targets_BT, mask_BT, count=count),
            "q/advantage_mean": masked_mean(q_KBT.mean(0) - values_BT, mask_BT, count=count),
        }
