"""Whether an agent learns on a device as it does on the CPU."""

from __future__ import annotations

from benchmarks import trial
from benchmarks.statistics import Estimate, pooled_iqm
from benchmarks.table import Row

_SLACK = 0.01
"""Between intervals of scores: where all seeds stand at the ceiling, an interval has no width."""


def learning(device: str, seeds: int, budget: float = 1.0) -> list[Row]:
    """Whether PPO learns Reverse on the device as on the CPU: by how much the intervals of the scores miss each other.

    Raises:
        RuntimeError: a run failed; with its traceback.
    """
    found: dict[str, Estimate] = {}
    for place in ("cpu", device):
        lines = [trial.run(trial.Job("Reverse", "ppo", seed, budget, device=place)) for seed in range(seeds)]
        for line in lines:
            if "error" in line:
                raise RuntimeError(f"Reverse, PPO, seed {line['seed']} on {place} failed:\n{line['error']}")
        found[place] = pooled_iqm([[line["normalised"] for line in lines]])
    on_cpu, there = found["cpu"], found[device]
    note = "; ".join(f"{place} {_interval(estimate)}" for place, estimate in found.items())
    name = f"learning, PPO on Reverse, {seeds} seeds: gap between the intervals"
    return [Row(name, "score", gap(on_cpu, there), target=f"<= {_SLACK}", note=f"normalised score: {note}")]


def gap(one: Estimate, other: Estimate) -> float:
    """The distance between two intervals; 0 where they overlap.

    Raises:
        ValueError: one has no interval, for want of a second seed.
    """
    if one.interval is None or other.interval is None:
        raise ValueError("one seed has no interval: compare two or more on each device")
    return max(0.0, one.interval[0] - other.interval[1], other.interval[0] - one.interval[1])


def _interval(estimate: Estimate) -> str:
    low, high = estimate.interval or (estimate.value, estimate.value)
    return f"{estimate.value:.3f} [{low:.3f}, {high:.3f}]"
