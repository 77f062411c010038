"""What the Q-learners share: heads and their slow copy, and one gradient step on whole episodes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from transformers import PreTrainedModel

from agents.base import TextAlgorithm
from agents.config import AlgorithmConfig, option
from agents.policy import TextPolicy
from agents.q_policy import PolicyWithTarget, QPolicy
from agents.trajectories import Trajectories


@dataclass
class QLearningConfig(AlgorithmConfig):
    """Options of all Q-learners."""

    q_heads: int = option(1, "Q heads; targets take the lowest of them (clipped double Q-learning)")
    beta: float = option(100.0, "sampled answers are drawn from softmax(β Q): nats a unit of reward")
    target_tau: float = option(0.01, "how far the slow copy moves towards the network at each update (Polyak)")
    huber_delta: float | None = option(1.0, "errors beyond this count linearly; none squares them all")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.target_tau <= 1:
            raise ValueError(f"target_tau must lie in (0, 1], got {self.target_tau}")
        if self.huber_delta is not None and self.huber_delta <= 0:
            raise ValueError(f"huber_delta must be above 0, or none, got {self.huber_delta}")


class QLearner(TextAlgorithm):
    """Base of the Q-learners: a subclass writes ``losses(part, count)`` and decides what to learn from."""

    config_class: ClassVar[type[AlgorithmConfig]] = QLearningConfig
    config: QLearningConfig
    policy: PolicyWithTarget  # type: ignore[assignment]
    has_prior: ClassVar[bool] = False
    """Whether the language model's own distribution takes part in acting."""

    def _make_policy(self, model: PreTrainedModel, vocab_size: int) -> PolicyWithTarget:
        config = self.config
        return QPolicy(
            model,
            vocab_size,
            num_heads=config.q_heads,
            beta=config.beta,
            prior=self.has_prior,
            **config.policy_options,
        )

    def _make_reference(self) -> TextPolicy | None:
        return None

    def refresh_reference(self) -> None:
        """Let the slow copy start from the policy as it is now (after a supervised warm start, say)."""
        self.policy.update_target(1.0)
        super().refresh_reference()

    def losses(self, part: Trajectories, count: int) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of some episodes, with gradients, and what to log of it: sums over tokens divided by ``count``."""
        raise NotImplementedError

    def update(self, batch: Trajectories) -> dict[str, float]:
        """One gradient step on some episodes of every rank, in micro-batches, and one of the slow copy."""
        count = self.world.sum(batch.num_tokens)

        def loss(_rows: Tensor, part: Trajectories) -> tuple[Tensor, dict[str, Tensor]]:
            return self.losses(part.to(self.policy.device), count)

        stats = self.world.sums(self.micro_batches.accumulate(batch, loss))
        stats["policy/grad_norm"] = self.optimiser_step()
        self.policy.update_target(self.config.target_tau)
        return stats

    def log_updates(self, updates: list[dict[str, float]]) -> None:
        """Log the means over the updates since the last rollout."""
        for name in updates[0]:
            self.logger.record(name, sum(stats[name] for stats in updates) / len(updates))
        self.logger.record("policy/optimiser_steps", len(updates))
