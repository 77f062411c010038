"""Deep Q-learning on tokens, greedy or KL-regularised, with Q(λ) targets and a replay of whole episodes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from transformers import PreTrainedModel

from agents.advantages import masked_mean
from agents.config import AlgorithmConfig, option
from agents.decoder import sample_actions
from agents.kl import kl_metrics
from agents.policy import TextPolicy
from agents.q_learning import QLearner, QLearningConfig
from agents.q_policy import PolicyWithTarget, QPolicy, actions_of, spread
from agents.q_targets import next_values, peng_q_lambda, soft_q_lambda, td_loss
from agents.reference import frozen_copy
from agents.replay import ReplayBuffer
from agents.rollout import ActionRule
from agents.shaping import shaped_rewards
from agents.trajectories import Trajectories


@dataclass
class DQNConfig(QLearningConfig):
    """DQN's options. Every episode has its ε, uniform in [0, 2 · mean], so that some are near greedy."""

    episodes_per_rollout: int = option(64, "episodes started, and played to their end, before each set of updates")
    q_lambda: float = option(0.8, "λ of the Q(λ) targets: 0 suits dense rewards, 1 is Monte Carlo")
    kl_coef_per_sequence: float = option(
        0.0,
        "reward units charged a nat of a completion's KL from the reference: above 0 the Q-learning is soft, the "
        "policy starts as the language model, and samples are its exploration (no ε, no beta)",
    )
    epsilon_start: float = option(0.5, "mean ε of an episode at the start")
    epsilon_end: float = option(0.02, "mean ε of an episode after epsilon_fraction of the run")
    epsilon_fraction: float = option(0.5, "part of the run over which ε falls")
    updates_per_rollout: int = option(4, "optimiser steps after each rollout")
    batch_episodes: int = option(64, "episodes of an optimiser step")
    replay_episodes: int = option(10_000, "the newest episodes, which are replayed")
    learning_starts: int = option(256, "episodes played before the first update")
    success_share: float = option(0.5, "part of a batch drawn from the best tenth of the replay")
    demonstration_share: float = option(0.1, "part of a batch drawn from the demonstrations, where there are any")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("updates_per_rollout", "batch_episodes", "replay_episodes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        shares = (
            "q_lambda",
            "epsilon_start",
            "epsilon_end",
            "epsilon_fraction",
            "success_share",
            "demonstration_share",
        )
        for name in shares:
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must lie in [0, 1], got {getattr(self, name)}")
        if self.kl_coef_per_sequence < 0:
            raise ValueError("a negative kl_coef_per_sequence would pay the policy for leaving the reference")
        if self.kl_coef_per_sequence and self.q_heads != 1:
            raise ValueError("with kl_coef_per_sequence the language model's own head is Q: leave q_heads at 1")
        if self.learning_starts > self.replay_episodes:
            raise ValueError(
                f"learning_starts={self.learning_starts} is never reached: the replay holds {self.replay_episodes}"
            )


class DQN(QLearner):
    """Token-level Q-learning (Mnih et al. 2015) on whole episodes: one forward gives Q before every token.

    Double (van Hasselt et al. 2016): the network selects the best next action, its slow copy evaluates it. Duelling
    heads (Wang et al. 2016). It acts greedily but for its exploration; ``generate`` and ``evaluate`` sample from
    ``softmax(β Q)``. The language model's own distribution plays no part: a random token is as likely as any other.
    Where the vocabulary is large, give it demonstrations or an environment with action masks.

    With ``kl_coef_per_sequence`` β above 0 it maximises ``E[r] − β KL(π‖π_0)`` instead, π_0 the policy as it was
    (`refresh_reference`), and the language model itself is what learns:

        ``V(s) = β log Σ_a π_0(a|s) exp(Q(s, a) / β)``,  ``π(a|s) = π_0(a|s) exp((Q(s, a) − V(s)) / β)``

    (G-learning, Fox et al. 2016; path consistency, Nachum et al. 2017). Read the other way round,
    ``Q(s, a) = V(s) + β log(π(a|s) / π_0(a|s))``: π is the language model's head, V the value head, and the first
    equation holds by itself, π summing to 1 (Rafailov et al. 2024, "From r to Q*"). One forward of one model acts,
    and what it learns is a language model again. It acts by drawing from π.
    """

    config_class: ClassVar[type[AlgorithmConfig]] = DQNConfig
    config: DQNConfig
    replay: ReplayBuffer

    def _setup_model(self) -> None:
        super()._setup_model()
        self.replay = ReplayBuffer(self.config.replay_episodes)

    @property
    def is_soft(self) -> bool:
        """Whether it is KL-regularised."""
        return self.config.kl_coef_per_sequence > 0

    def _make_policy(self, model: PreTrainedModel, vocab_size: int) -> PolicyWithTarget:
        if not self.is_soft:
            return super()._make_policy(model, vocab_size)
        policy = PolicyWithTarget(model, vocab_size, **self.config.policy_options)
        policy.add_target()
        return policy

    def _make_reference(self) -> TextPolicy | None:
        if not self.is_soft:
            return None
        target, self.policy.target = self.policy.target, None
        try:
            return frozen_copy(self.policy)
        finally:
            self.policy.target = target

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        names, tensors = super()._get_torch_save_params()
        return [*names, "replay"], tensors

    def set_demonstrations(self, episodes: Trajectories) -> None:
        """Mix these episodes into every batch (see `agents.logged`, which makes them of texts). They are saved."""
        self.replay.demonstrations = episodes.replace(rewards_BT=shaped_rewards(episodes, self.config))

    # ---------------------------------------------------------------- acting

    @property
    def epsilon(self) -> float:
        """The mean ε of an episode now."""
        config, elapsed = self.config, 1 - self._current_progress_remaining
        fallen = 1.0 if elapsed >= config.epsilon_fraction else elapsed / config.epsilon_fraction
        return config.epsilon_start + fallen * (config.epsilon_end - config.epsilon_start)

    def _action_rule(self, num_episodes: int) -> ActionRule | None:
        if self.is_soft:
            return None
        self.logger.record("exploration/epsilon", self.epsilon)
        return epsilon_greedy(self.epsilon, num_episodes, self.collector.generator)

    # ---------------------------------------------------------------- learning

    def train(self, trajectories: Trajectories) -> None:
        """Put the episodes into the replay and learn from batches of it."""
        config, replay = self.config, self.replay
        if self.reference is not None:
            reference_BT, _ = self.rescore(self.reference, trajectories)
            log_ratio_BT = trajectories.log_probs_BT - reference_BT
            for name, value in kl_metrics(log_ratio_BT, trajectories.action_mask_BT).items():
                self.logger.record(name, value)
        replay.add(trajectories.replace(rewards_BT=shaped_rewards(trajectories, config)))
        self.logger.record("replay/episodes", len(replay))
        self.logger.record("replay/successes", len(replay.success_rows))
        if len(replay) < config.learning_starts:
            return
        updates = []
        for _ in range(config.updates_per_rollout):
            batch = replay.sample(
                config.batch_episodes,
                self.collector.shuffle,
                success_share=config.success_share,
                demonstration_share=config.demonstration_share,
            )
            updates.append(self.update(batch))
        self.log_updates(updates)

    def losses(self, part: Trajectories, count: int) -> tuple[Tensor, dict[str, Tensor]]:
        """The Huber loss of the taken actions' Q against their Q(λ) targets."""
        mask_BT = part.action_mask_BT
        q_KBT, targets_BT = self._soft(part) if self.is_soft else self._greedy(part)
        loss = td_loss(q_KBT, targets_BT, mask_BT, huber_delta=self.config.huber_delta, count=count)
        return loss, {
            "loss/td": loss,
            "q/mean": masked_mean(q_KBT.mean(0), mask_BT, count=count),
            "q/target_mean": masked_mean(targets_BT, mask_BT, count=count),
        }

    def _greedy(self, part: Trajectories) -> tuple[Tensor, Tensor]:
        """Q of the taken actions by K heads, (K, B, T), and what it is fitted to."""
        assert isinstance(self.policy, QPolicy)
        hidden_NH, _ = self.policy.read(part, with_logits=False)
        q_KBT = spread(self.policy.q_heads.taken(hidden_NH, actions_of(part)), part.action_mask_BT)
        return q_KBT, self.targets(part, hidden_NH)

    def _soft(self, part: Trajectories) -> tuple[Tensor, Tensor]:
        """The same with K = 1, KL-regularised."""
        assert self.reference is not None
        with torch.no_grad():
            prior_BT, _, _ = self.reference.score(part, with_entropy=False)
        log_probs_BT, values_BT, _ = self.policy.score(part, with_entropy=False)
        q_BT = values_BT + self.config.kl_coef_per_sequence * (log_probs_BT - prior_BT)
        return q_BT[None], self.soft_targets(part, prior_BT)

    @torch.no_grad()
    def soft_targets(self, part: Trajectories, prior_BT: Tensor) -> Tensor:
        """``targets_BT``: `soft_q_lambda` on the slow copy's V and π.

        Args:
            part: the episodes.
            prior_BT: log π_0 of their actions.
        """
        assert self.policy.target is not None
        mask_BT, config = part.action_mask_BT, self.config
        log_probs_BT, values_BT, _ = self.policy.target.score(part, with_entropy=False)
        return soft_q_lambda(
            part.rewards_BT,
            log_probs_BT - prior_BT,
            next_values(values_BT, mask_BT, part.bootstrap_values_B),
            mask_BT,
            kl_coef=config.kl_coef_per_sequence,
            gamma=config.gamma,
            lam=config.q_lambda,
        )

    @torch.no_grad()
    def targets(self, part: Trajectories, hidden_NH: Tensor) -> Tensor:
        """``targets_BT``: Q(λ) on ``min_k Q'_k(s', argmax_a Q(s', a))``, Q' the slow copy, the argmax over the allowed.

        With one head that is double DQN (van Hasselt et al. 2016, equation 4), with several its clipped form
        (Fujimoto et al. 2018, equation 10).

        Args:
            part: the episodes.
            hidden_NH: the network's own `QPolicy.read` of them.
        """
        assert isinstance(self.policy, QPolicy)
        assert self.policy.target is not None
        mask_BT = part.action_mask_BT
        allowed_NV = None if part.allowed_BTV is None else part.allowed_BTV[mask_BT]
        best_N = self.policy.q_heads.best(hidden_NH, allowed_NV)
        target_NH, _ = self.policy.target.read(part, with_logits=False)
        values_N = self.policy.target.q_heads.taken(target_NH, best_N).min(0).values
        after_BT = next_values(spread(values_N, mask_BT), mask_BT, part.bootstrap_values_B)
        config = self.config
        return peng_q_lambda(part.rewards_BT, after_BT, mask_BT, gamma=config.gamma, lam=config.q_lambda)


def epsilon_greedy(mean_epsilon: float, num_episodes: int, generator: torch.Generator) -> ActionRule:
    """ε-greedy actions with an ε of its own for every episode, uniform in [0, 2 · mean].

    The random action is uniform over what is allowed, the greedy one is the logits' highest.

    Args:
        mean_epsilon: the mean of ε; what exceeds 1 counts as 1.
        num_episodes: episodes that will be played.
        generator: draws every ε and every random action.
    """
    device = generator.device
    epsilons_E = 2 * mean_epsilon * torch.rand(num_episodes, generator=generator, device=device)

    def act(logits_NV: Tensor, episodes_N: npt.NDArray[np.int64]) -> Tensor:
        explores_N = torch.rand(len(logits_NV), generator=generator, device=device)
        explores_N = explores_N < epsilons_E[torch.from_numpy(episodes_N).to(device)]
        uniform_NV = torch.zeros_like(logits_NV).masked_fill(logits_NV == -torch.inf, -torch.inf)
        return torch.where(explores_N, sample_actions(uniform_NV, generator), logits_NV.argmax(-1))

    return act
