"""Learning by imitation, the honest baselines: of the task's references, or of the policy's own best completions."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from stable_baselines3.common.callbacks import BaseCallback
from torch import Tensor

from agents.advantages import masked_mean
from agents.base import TextAlgorithm
from agents.config import AlgorithmConfig, option
from agents.logged import reference_episodes
from agents.logged_rollouts import FromLoggedEpisodes
from agents.trajectories import Trajectories


@dataclass
class CloningConfig(AlgorithmConfig):
    """Options of the algorithms that imitate."""

    epochs: int = option(1, "passes over the episodes that are imitated")
    minibatches: int = option(1, "optimiser steps a pass")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("epochs", "minibatches"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")


class Cloning(TextAlgorithm):
    """Base of the algorithms that imitate whole episodes: maximum likelihood of their actions."""

    config: CloningConfig

    def imitate(self, episodes: Trajectories) -> None:
        """Epochs of optimiser steps on the mean negative log-likelihood of the episodes' actions."""
        steps: list[dict[str, float]] = []
        for _epoch in range(self.config.epochs):
            for rows in episodes.minibatches(self.config.minibatches, self.collector.shuffle):
                if not self.world.any(not len(rows)):  # fewer prompts than minibatches, on this rank or another
                    stats = self.accumulate_gradients(episodes.select(rows))
                    steps.append({**stats, "policy/grad_norm": self.optimiser_step()})
        for name in steps[0] if steps else ():
            self.logger.record(name, sum(stats[name] for stats in steps) / len(steps))
        self.logger.record("policy/optimiser_steps", len(steps))

    def accumulate_gradients(self, episodes: Trajectories) -> dict[str, float]:
        """Add the gradients of one minibatch, in micro-batches; the sum does not depend on how it is split."""
        return likelihood_gradients(self, episodes)


def likelihood_gradients(agent: TextAlgorithm, episodes: Trajectories) -> dict[str, float]:
    """Add the gradients of ``−E[log π(a)]`` over the actions of some episodes of every rank, in micro-batches.

    Returns:
        The loss and the mean entropy, in nats a token.
    """
    count = agent.world.sum(episodes.num_tokens)

    def loss(_rows: Tensor, part: Trajectories) -> tuple[Tensor, dict[str, Tensor]]:
        log_probs_BT, _, entropies_BT = agent.policy.score(part, entropy_gradient=False)
        negative = -masked_mean(log_probs_BT, part.action_mask_BT, count=count)
        entropy = masked_mean(entropies_BT, part.action_mask_BT, count=count)
        return negative, {"loss/policy": negative, "entropy": entropy}

    return agent.world.sums(agent.micro_batches.accumulate(episodes, loss))


class Supervised(FromLoggedEpisodes, Cloning):
    """Maximum likelihood of the task's references, or of logged episodes: what every RL result is measured against.

    Fed as `FromLoggedEpisodes` says; without data it learns the references of the environment's own split.
    """

    config_class = CloningConfig
    config: CloningConfig

    def collect_rollouts(self, callback: BaseCallback) -> Trajectories | None:
        """Draw logged episodes; None when a callback asked to stop.

        Raises:
            ValueError: there are none, and the environment's prompts have no references.
        """
        if self.data is None and self._mdp is not None:
            self.set_data(reference_episodes(self._mdp))
        return super().collect_rollouts(callback)

    def train(self, trajectories: Trajectories) -> None:
        """Imitate the drawn episodes."""
        self.imitate(trajectories)


@dataclass
class ExpertIterationConfig(CloningConfig):
    """Expert iteration's options."""

    samples_per_prompt: int = option(8, "episodes that share a prompt")
    keep_fraction: float = option(
        0.25, "best share of each prompt's samples that is imitated (of the whole rollout's, with one sample a prompt)"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.keep_fraction < 1:
            raise ValueError(f"keep_fraction must lie between 0 and 1, got {self.keep_fraction}")


class ExpertIteration(Cloning):
    """Expert iteration (filtered behaviour cloning): imitate the best of the policy's own completions.

    Anthony et al. 2017; with language models RAFT (Dong et al. 2023) and ReST (Gulcehre et al. 2023).
    """

    config_class = ExpertIterationConfig
    config: ExpertIterationConfig

    def train(self, trajectories: Trajectories) -> None:
        """Imitate what was better than the rest; nothing where all were alike, on this rank or another."""
        alone = self.config.samples_per_prompt == 1
        groups_B = torch.zeros_like(trajectories.prompt_groups_B) if alone else trajectories.prompt_groups_B
        kept = best_of_groups(trajectories.returns_B, groups_B, self.config.keep_fraction).nonzero().squeeze(-1)
        self.logger.record("policy/imitated_episodes", len(kept))
        if not self.world.any(not len(kept)):
            self.imitate(trajectories.select(kept))


def best_of_groups(returns_B: Tensor, groups_B: Tensor, fraction: float) -> Tensor:
    """True for the best ``⌈fraction · n⌉`` of each group's n episodes, shape (B,); those no better than its mean never.

    Of equal returns the earlier episode counts as the better.
    """
    kept_B = torch.zeros(len(returns_B), dtype=torch.bool, device=returns_B.device)
    for group in torch.unique(groups_B):
        rows = (groups_B == group).nonzero().squeeze(-1)
        returns = returns_B[rows]
        count = -int(-len(rows) * fraction // 1)
        best = returns.argsort(descending=True, stable=True)[:count]
        kept_B[rows[best]] = returns[best] > returns.mean()
    return kept_B
