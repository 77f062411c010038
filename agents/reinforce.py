"""REINFORCE (Williams 1992) with the baselines the field uses, and credit by token or by whole completion."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from agents.advantages import gae, leave_one_out
from agents.config import check_choice, option
from agents.losses import policy_gradient_loss
from agents.policy_gradient import PolicyGradient, PolicyGradientConfig
from agents.shaping import shaped_rewards
from agents.sharding import whole
from agents.trajectories import Trajectories

Baseline: TypeAlias = Literal["none", "batch_mean", "moving_average", "leave_one_out", "self_critical", "value"]
Credit: TypeAlias = Literal["token", "sequence"]


@dataclass
class REINFORCEConfig(PolicyGradientConfig):
    """REINFORCE's options. The defaults are RLOO: several samples a prompt, each measured against the others."""

    baseline: Baseline = option(
        "leave_one_out",
        "what a return is measured against: none, batch_mean, moving_average (of earlier rollouts), leave_one_out "
        "(the prompt's other samples), self_critical (the prompt's greedy completion), value (a learned one)",
    )
    credit: Credit = option("token", "token: the rewards from an action on; sequence: the whole completion's")
    samples_per_prompt: int = option(4, "episodes that share a prompt")
    episodes_per_rollout: int = option(32, "episodes started, and played to their end, before each update")
    whiten_advantages: bool = option(False, "advantages of a rollout to mean 0, variance 1")
    moving_average_decay: float = option(0.95, "share of the old moving average that a rollout keeps")
    value_coef: float = option(0.1, "weight of the value loss, with baseline='value'")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("baseline", self.baseline, Baseline)
        check_choice("credit", self.credit, Credit)
        if self.baseline == "leave_one_out" and self.samples_per_prompt < 2:
            raise ValueError("baseline='leave_one_out' compares a prompt's samples: set samples_per_prompt above 1")
        if not 0 <= self.moving_average_decay < 1:
            raise ValueError(f"moving_average_decay must lie in [0, 1), got {self.moving_average_decay}")


class REINFORCE(PolicyGradient):
    """REINFORCE: one step along log π times the return, less a baseline."""

    config_class = REINFORCEConfig
    config: REINFORCEConfig

    moving_average: float | None = None
    """Of the mean return of earlier rollouts, with baseline='moving_average'."""

    def train(self, trajectories: Trajectories) -> None:
        """One optimiser step on the whole rollout."""
        batch = self.prepare(trajectories)
        stats = self.accumulate_gradients(batch, torch.arange(len(trajectories)))
        self.log_update(batch, [{**stats, "policy/grad_norm": self.optimiser_step()}])

    def estimate_advantages(self, trajectories: Trajectories, rewards_BT: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return less baseline; value targets where the baseline is learned."""
        mask_BT, values_BT = trajectories.action_mask_BT, trajectories.values_BT
        learned = self.config.baseline == "value"
        returns_BT, _ = gae(
            rewards_BT,
            torch.zeros_like(values_BT),
            mask_BT,
            gamma=self.config.gamma,
            lam=1.0,
            bootstrap_values_B=trajectories.bootstrap_values_B if learned else None,
        )
        whole_B = returns_BT[:, 0]
        if self.config.credit == "sequence":
            returns_BT, values_BT = whole_B[:, None] * mask_BT, values_BT[:, :1]
        if learned:
            return (returns_BT - values_BT) * mask_BT, returns_BT
        baseline = self._baseline(trajectories, whole_B)
        return (returns_BT - baseline.expand_as(whole_B)[:, None]) * mask_BT, None

    def policy_loss(self, log_probs_BT: Tensor, episodes: Trajectories, advantages_BT: Tensor, count: int) -> Tensor:
        """``−E[A log π]``."""
        return policy_gradient_loss(log_probs_BT, advantages_BT, episodes.action_mask_BT, count=count)

    def _baseline(self, trajectories: Trajectories, returns_B: Tensor) -> Tensor:
        """What the returns of whole completions are measured against: one number, or one an episode."""
        kind = self.config.baseline
        if kind == "leave_one_out":
            return leave_one_out(returns_B, trajectories.prompt_groups_B)
        if kind == "self_critical":
            return self._greedy_returns(trajectories)
        mean = self.world.concat(returns_B).mean()
        if kind == "moving_average":
            before = float(mean) if self.moving_average is None else self.moving_average
            decay = self.config.moving_average_decay
            self.moving_average = decay * before + (1 - decay) * float(mean)
            return torch.as_tensor(before, dtype=returns_B.dtype, device=returns_B.device)
        return mean if kind == "batch_mean" else torch.zeros_like(mean)

    def _greedy_returns(self, trajectories: Trajectories) -> Tensor:
        """The reward of each prompt's greedy completion (self-critical training, Rennie et al. 2017), shape (B,).

        Its tokens count as played.

        Raises:
            ValueError: the environment draws its prompts itself.
        """
        samples = self.config.samples_per_prompt
        prompts: list[Any] = [info.get("prompt_index") for info in trajectories.infos[::samples]]
        with whole(self.policy):  # ranks take different numbers of steps
            greedy = self.collector.collect(len(prompts), prompt_indices=prompts, greedy=True)
        assert greedy is not None  # nobody abandons it
        self.num_timesteps += self.world.sum(greedy.num_tokens)
        return shaped_rewards(greedy, self.config).sum(-1).repeat_interleave(samples)
