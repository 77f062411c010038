"""What a rollout looked like, under the names of the log."""

from __future__ import annotations

import numpy as np

from agents.trajectories import Trajectories


def rollout_metrics(trajectories: Trajectories) -> dict[str, float]:
    """Reward, its components, and lengths: means over the episodes, as `docs/metrics.md` defines them."""
    returns_B = trajectories.returns_B
    cut = [info.get("stop_reason") == "length" for info in trajectories.infos]
    metrics = {"reward": float(returns_B.mean()), "reward_std": float(returns_B.std(correction=0))}
    metrics |= {f"rewards/{name}/mean": value for name, value in component_means(trajectories).items()}
    return metrics | {
        "completions/mean_length": float(trajectories.lengths_B.float().mean()),
        "completions/clipped_ratio": float(np.mean(cut)),
    }


def component_means(trajectories: Trajectories) -> dict[str, float]:
    """Mean raw value of each reward component over the scored episodes; one may apply to some of them only."""
    raw: dict[str, list[float]] = {}
    for info in trajectories.infos:
        for name, values in info.get("reward", {}).items():
            raw.setdefault(name, []).append(values["raw"])
    return {name: float(np.nanmean(values)) for name, values in raw.items() if not np.isnan(values).all()}
