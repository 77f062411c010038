"""What a rollout looked like, under the names of the log."""

from __future__ import annotations

import numpy as np

from agents.distributed import ALONE, World
from agents.trajectories import Trajectories


def rollout_metrics(trajectories: Trajectories, world: World = ALONE) -> dict[str, float]:
    """Reward, its components, and lengths: means over all ranks' episodes, as `docs/metrics.md` defines them."""
    returns_B, lengths_B = world.concat(trajectories.returns_B), world.concat(trajectories.lengths_B)
    cut = world.chain([info.get("stop_reason") == "length" for info in trajectories.infos])
    metrics = {"reward": float(returns_B.mean()), "reward_std": float(returns_B.std(correction=0))}
    metrics |= {f"rewards/{name}/mean": value for name, value in component_means(trajectories, world).items()}
    return metrics | {
        "completions/mean_length": float(lengths_B.float().mean()),
        "completions/clipped_ratio": float(np.mean(cut)),
    }


def component_means(trajectories: Trajectories, world: World = ALONE) -> dict[str, float]:
    """Mean raw value of each reward component over the scored episodes; one may apply to some of them only."""
    raw: dict[str, list[float]] = {}
    rewards = [info.get("reward", {}) for info in trajectories.infos]
    for row in world.chain([{name: values["raw"] for name, values in reward.items()} for reward in rewards]):
        for name, value in row.items():
            raw.setdefault(name, []).append(value)
    return {name: float(np.nanmean(values)) for name, values in raw.items() if not np.isnan(values).all()}
