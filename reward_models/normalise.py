"""A reward brought to mean 0 and deviation 1 by what training has seen of it."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from reward_models.composite import formula
from reward_models.pointwise import Pointwise
from textgen_env.reward import Reward, RewardError
from textgen_env.reward_registry import resolve_reward


@dataclass
class RunningMoments:
    """Count, mean and sum of squared deviations of all the values so far, a batch at a time."""

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0
    """``Σ (x − mean)²``."""

    @property
    def deviation(self) -> float:
        """The standard deviation (of the population); 1 where there is none but rounding, which cannot be scaled."""
        deviation = math.sqrt(self.squares / self.count) if self.count else 0.0
        return deviation if deviation > 1e-8 * abs(self.mean) else 1.0

    def update(self, values_N: npt.NDArray[np.float64]) -> None:
        """Take in a batch: the pairwise update of Chan, Golub & LeVeque (1979, equations 1.5)."""
        if not len(values_N):
            return
        mean = float(values_N.mean())
        total = self.count + len(values_N)
        delta = mean - self.mean
        self.squares += float(((values_N - mean) ** 2).sum()) + delta**2 * self.count * len(values_N) / total
        self.mean += delta * len(values_N) / total
        self.count = total


class Normalise(Pointwise):
    """``(total − mean) / deviation``, by the running moments of the totals that training has asked about.

    A batch is taken in before it is normalised. Evaluation uses ``frozen()``, which normalises by the moments of that
    time and takes in nothing; before any training they are 0 and 1. The value before stays in the report as ``raw``.

    Args:
        reward: anything `resolve_reward` takes, about the finished text.
        center: subtract the mean; else only the scale changes.
        stop_after: learn from so many texts at least, then stand still, so that the reward is the same from there on.
            None never stops.
        name: its component's name; default: the reward's.

    Attributes:
        moments: the `RunningMoments`: plain numbers, which travel with pickles and copies.

    Raises:
        RewardError: the reward is dense, or ``stop_after`` is less than 1.

    >>> Normalise("rouge_l")
    Normalise(rouge_l)
    """

    def __init__(
        self, reward: Any, *, center: bool = True, stop_after: int | None = None, name: str | None = None
    ) -> None:
        if stop_after is not None and stop_after < 1:
            raise RewardError(f"stop_after must be at least 1 or None, got {stop_after}")
        self.center = center
        self.stop_after = stop_after
        self.moments = RunningMoments()
        self._learns = True
        super().__init__([resolve_reward(reward)], name)

    def __repr__(self) -> str:
        return f"Normalise({formula(self.parts[0])}" + (")" if self.center else ", center=False)")

    def frozen(self) -> Reward:
        """The same reward for evaluating: it reads the moments and takes in nothing."""
        view = super().frozen()
        assert isinstance(view, Normalise)
        view._learns = False
        return view

    def state(self) -> dict[str, Any]:
        """The moments, and what the part has learned."""
        return {**super().state(), "moments": asdict(self.moments)}

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from a `state`.

        Raises:
            RewardError: it is that of a reward made otherwise.
        """
        rest = dict(state)
        moments = RunningMoments(**rest.pop("moments", {}))
        super().load_state(rest)
        vars(self.moments).update(vars(moments))  # in place: frozen views go by the same ones

    def combine(self, *totals_N: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """The normalised totals."""
        (values_N,) = totals_N
        if self._learns and (self.stop_after is None or self.moments.count < self.stop_after):
            self.moments.update(values_N)
        return (values_N - (self.moments.mean if self.center else 0.0)) / self.moments.deviation
