"""What is known of a built-in task, declared beside its code: the scores to measure against, and how it is fooled."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from textgen_env.types import Prompt


@dataclass(frozen=True)
class Hack:
    """A way to a high reward without doing the task, and the reward that falls for it."""

    description: str
    """What the cheater does, in one sentence."""
    answer: Callable[[Prompt], str]
    """The cheater's completion of a prompt."""
    naive: Any
    """The reward that falls for it: what `resolve_reward` accepts."""
    naive_score: float
    """What the cheater earns under ``naive``, a mean over the test split."""
    robust_score: float
    """The same under ``robust``."""
    robust: Any = None
    """The reward that does not. Default: the task's own."""


@dataclass(frozen=True)
class Rung:
    """A task's scores at its default arguments: means over the test split, under what the task is judged by.

    Declared here, recomputed by `tests/benchmarks/test_ladder.py`.
    """

    random: float
    """Uniformly random tokens, the action mask left aside."""
    supervised: float
    """A small transformer fitted to the references of the train split (see `benchmarks.setups`), greedy."""
    optimum: float
    """The best there is: exact, or a proven bound."""
    hack: Hack

    def normalised(self, score: float) -> float:
        """``(score − random) / (optimum − random)``: 0 for random tokens, 1 at the optimum."""
        return (score - self.random) / (self.optimum - self.random)
