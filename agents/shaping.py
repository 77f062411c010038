"""From the environment's rewards to those a learner gets: scale, clip, and the price of a text without an end."""

from __future__ import annotations

import torch
from torch import Tensor

from agents.advantages import masked_mean
from agents.config import AlgorithmConfig
from agents.distributed import ALONE, World
from agents.trajectories import Trajectories


def shaped_rewards(trajectories: Trajectories, config: AlgorithmConfig) -> Tensor:
    """``clip(scale · r_t, ±clip)``, less a penalty on the last token of a completion cut by the length cap.

    The penalty is the "EOS trick" of lm-human-preferences (Ziegler et al. 2019): where the score of a cut text says
    nothing about its missing end, the policy need not learn to stop.

    Returns:
        ``rewards_BT``, 0 outside the action mask. What is logged as ``reward`` stays the environment's.
    """
    rewards_BT = trajectories.rewards_BT * config.reward_scale
    if config.reward_clip is not None:
        rewards_BT = rewards_BT.clamp(-config.reward_clip, config.reward_clip)
    if config.missing_eos_penalty:
        cut = [info.get("stop_reason") == "length" for info in trajectories.infos]
        penalty_B = config.missing_eos_penalty * torch.tensor(cut, device=rewards_BT.device).to(rewards_BT.dtype)
        rewards_BT = rewards_BT.scatter_add(1, trajectories.lengths_B[:, None] - 1, -penalty_B[:, None])
    return rewards_BT


def to_unit_variance(rewards_BT: Tensor, mask_BT: Tensor, *, eps: float = 1e-8, world: World = ALONE) -> Tensor:
    """Rewards divided by their standard deviation over the mask, that of all of ``world``'s ranks.

    As the reward whitening of lm-human-preferences, but for the mean: putting it back a token, as there, would pay
    for length. A constant reward cannot be scaled to unit variance and stays as it is.
    """
    mean = masked_mean(rewards_BT, mask_BT, world=world)
    variance = masked_mean((rewards_BT - mean) ** 2, mask_BT, world=world)
    constant = variance <= eps * mean**2  # all that varies is rounding
    return rewards_BT if constant else rewards_BT * torch.rsqrt(variance + eps)
