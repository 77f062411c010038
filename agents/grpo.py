"""Group-relative policy optimisation (Shao et al. 2024): PPO's update, its critic replaced by the prompt's samples."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from agents.advantages import group_relative
from agents.config import option
from agents.kl import KLEstimator
from agents.policy_gradient import KLPlace
from agents.ppo import PPO, ClippedConfig
from agents.trajectories import Trajectories


@dataclass
class GRPOConfig(ClippedConfig):
    """GRPO's options: groups of samples, the KL as a term of the loss."""

    samples_per_prompt: int = option(8, "episodes that share a prompt: the group")
    scale_by_group_std: bool = option(
        True, "divide a group's advantages by their standard deviation; off weighs prompts as their rewards do"
    )
    whiten_advantages: bool = option(False, "advantages of a rollout to mean 0, variance 1")
    kl_estimator: KLEstimator = option(
        "k3", "k1 = d (for the reward: exact), k2 = d²/2 or k3 = e^(−d) − 1 + d (for the loss), d = log π − log π_ref"
    )
    kl_in: KLPlace = option("loss", "charge the KL in the reward, or (k2, k3) as a term of the loss")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.samples_per_prompt < 2:
            raise ValueError("GRPO compares a prompt's samples: set samples_per_prompt above 1")
        if self.gamma != 1:
            raise ValueError("GRPO credits all tokens of a completion alike, so gamma has no effect: leave it at 1")


class GRPO(PPO):
    """GRPO: PPO's clipped epochs on advantages relative to the prompt's other samples; no critic.

    The loss is a mean over tokens, not over each completion's: long completions are not favoured where they fail.
    """

    config_class = GRPOConfig  # type: ignore[assignment]
    config: GRPOConfig  # type: ignore[assignment]

    def estimate_advantages(self, trajectories: Trajectories, rewards_BT: Tensor) -> tuple[Tensor, None]:
        """Each completion's return relative to its group, on all of its tokens; nothing for a critic."""
        advantages_B = group_relative(
            rewards_BT.sum(-1), trajectories.prompt_groups_B, scale=self.config.scale_by_group_std
        )
        return advantages_B[:, None] * trajectories.action_mask_BT, None
