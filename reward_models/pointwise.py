"""Rewards that are a function of other rewards' totals: products, ratios, clipped values, gates."""

from __future__ import annotations

import itertools
import math
import numbers
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from reward_models.composite import (
    CONSTANT,
    Bounds,
    Composition,
    WeightedSum,
    formula,
    judge_some,
    on_last_token,
)
from textgen_env.reward import Judgement, Reward, RewardError
from textgen_env.reward_registry import resolve_reward
from textgen_env.types import Completion, Components


class Pointwise(Composition):
    """A function of the totals of terminal rewards, paid on the last token.

    It applies where all its parts do. The parts are reported and have paid nothing; the result is a component of its
    own, unless there is one part of one component: then it is that component's ``normalised`` value.

    Raises:
        RewardError: a part is dense, or two components have the same name; when scoring, a result is not finite.
    """

    def __init__(self, parts: Sequence[Reward], name: str | None = None) -> None:
        for part in parts:
            want_terminal(part, type(self).__name__)
        names = [component for part in parts for component in _without_constant(part)]
        self._transforms_one = len(names) == 1
        super().__init__(parts, name or (names[0] if self._transforms_one else None))

    def combine(self, *totals_N: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """The result for N completions, from the totals of each part."""
        raise NotImplementedError

    @property
    def component_names(self) -> tuple[str, ...]:
        """Those of the parts, and the result's."""
        names = tuple(name for part in self.parts for name in _without_constant(part))
        return (self.name,) if self._transforms_one else (*names, self.name)

    def judge(self, completions: Sequence[Completion]) -> Judgement:
        """Ask every part, each about all completions in one call."""
        judgements = [part.judge(completions) for part in self.parts]
        valid = np.logical_and.reduce([judgement.valid for judgement in judgements])
        values = np.full(len(completions), np.nan)
        with np.errstate(all="ignore"):  # what is not finite is an error, below
            values[valid] = self.combine(*(judgement.totals[valid] for judgement in judgements))
        for index in np.flatnonzero(valid & ~np.isfinite(values)):
            raise self._error(f"is {values[index]}, which is not finite,", completions, int(index))
        told = [unpaid(judgement.components) for judgement in judgements]
        components = {
            name: one[name] for part, one in zip(self.parts, told, strict=True) for name in _without_constant(part)
        }
        raw = values
        if self._transforms_one:
            raw = components.popitem()[1]["raw"]
        components[self.name] = {"raw": raw, "normalised": values, "weighted": np.where(valid, values, 0.0)}
        return Judgement(on_last_token(values, completions), valid, components)


class Product(Pointwise):
    """``a · b · …``: what ``a * b`` makes. Products of products are one product."""

    def __init__(self, *rewards: Any, name: str | None = None) -> None:
        parts: list[Reward] = []
        for reward in map(resolve_reward, rewards):
            parts += reward.parts if isinstance(reward, Product) else [reward]
        super().__init__(parts, name)
        self.bounds = _corners(parts, lambda *factors: math.prod(factors))

    def __repr__(self) -> str:
        return " * ".join(formula(part, WeightedSum) for part in self.parts)

    def combine(self, *totals_N: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """The product of the totals."""
        return np.prod(totals_N, axis=0)


class Ratio(Pointwise):
    """``numerator / denominator``: what ``a / b`` makes. Where the denominator is 0, scoring is an error.

    A number as the numerator makes its inverse.
    """

    def __init__(self, numerator: Any, denominator: Any, *, name: str | None = None) -> None:
        below = resolve_reward(denominator)
        self.scale = float(numerator) if isinstance(numerator, numbers.Real) else None
        parts = [below] if self.scale is not None else [resolve_reward(numerator), below]
        super().__init__(parts, name)
        if below.bounds is not None and not below.bounds[0] <= 0.0 <= below.bounds[1]:
            self.bounds = _corners(parts, lambda *ends: (ends[0] if len(ends) > 1 else self.scale) / ends[-1])

    def __repr__(self) -> str:
        above = formula(self.parts[0], WeightedSum) if self.scale is None else f"{self.scale:g}"
        return f"{above} / {formula(self.parts[-1], WeightedSum, Pointwise)}"

    def combine(self, *totals_N: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """The quotient of the totals."""
        return (totals_N[0] if self.scale is None else self.scale) / totals_N[-1]


class Clip(Pointwise):
    """A reward's total, cut to the range from ``low`` to ``high``; the value before stays in the report as ``raw``.

    Args:
        reward: anything `resolve_reward` takes, about the finished text.
        low: the lowest value paid; None for no limit.
        high: the highest value paid; None for no limit.
        name: its component's name; default: the reward's.

    Raises:
        RewardError: the limits are in the wrong order or no numbers, there is none, or the reward is dense.

    >>> Clip("rouge_l", high=0.5)
    Clip(rouge_l, None, 0.5)
    """

    def __init__(
        self, reward: Any, low: float | None = None, high: float | None = None, *, name: str | None = None
    ) -> None:
        self.low, self.high = low, high
        bottom, top = -math.inf if low is None else float(low), math.inf if high is None else float(high)
        if (low is None and high is None) or not bottom <= top:
            raise RewardError(f"Clip needs low <= high, or one of them, got low={low}, high={high}")
        part = resolve_reward(reward)
        super().__init__([part], name)
        inner = part.bounds or (-math.inf, math.inf)
        ends = (min(max(inner[0], bottom), top), min(max(inner[1], bottom), top))
        self.bounds = ends if all(map(math.isfinite, ends)) else None

    def __repr__(self) -> str:
        return f"Clip({formula(self.parts[0])}, {self.low}, {self.high})"

    def combine(self, *totals_N: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """``min(max(total, low), high)``."""
        return np.clip(totals_N[0], self.low, self.high)


class Gate(Composition):
    """``reward`` where a condition's total reaches a threshold, ``otherwise`` elsewhere.

    The reward is asked only about the texts that pass (in one call), so it need not cope with the others: its
    components are NaN there. The condition's component tells its raw value, 1 or 0 for open or closed as
    ``normalised``, and has paid ``otherwise`` where it was closed. Where the condition does not apply, neither does
    the gate.

    Args:
        condition: the reward that decides.
        reward: what is paid where it is open, on the tokens on which the reward itself pays.
        threshold: the gate is open where the condition's total is at least this.
        otherwise: what a closed gate pays, on the last token.
        name: what to call the whole; default: its formula.

    Raises:
        RewardError: one of the two is dense, two components have the same name, or a number is not finite.

    >>> Gate("rouge_1", "rouge_2", threshold=0.2, otherwise=-1)
    Gate(rouge_1 >= 0.2, rouge_2, otherwise=-1)
    """

    def __init__(
        self,
        condition: Any,
        reward: Any,
        *,
        threshold: float = 1.0,
        otherwise: float = 0.0,
        name: str | None = None,
    ) -> None:
        if not (math.isfinite(threshold) and math.isfinite(otherwise)):
            raise RewardError(f"a gate needs finite numbers, got threshold={threshold}, otherwise={otherwise}")
        self.otherwise = otherwise
        inside = resolve_reward(reward)
        want_terminal(inside, "Gate")
        super().__init__([_Reaches(condition, threshold), inside], name)
        if inside.bounds is not None:
            self.bounds = (min(inside.bounds[0], otherwise), max(inside.bounds[1], otherwise))

    def __repr__(self) -> str:
        condition, reward = self.parts
        return f"Gate({condition!r}, {formula(reward)}" + (
            f", otherwise={self.otherwise:g})" if self.otherwise else ")"
        )

    def judge(self, completions: Sequence[Completion]) -> Judgement:
        """Ask the condition about all, the reward about those that pass."""
        condition, reward = self.parts
        decision = condition.judge(completions)
        is_open = decision.totals == 1.0
        closed = decision.valid & ~is_open
        inside = judge_some(reward, completions, is_open)
        values = np.where(closed, self.otherwise, np.nan)
        token_rewards = on_last_token(values, completions)
        for row in np.flatnonzero(is_open):
            token_rewards[row] = inside.token_rewards[row]
        components = unpaid(decision.components)
        components[condition.name]["weighted"] = np.where(closed, self.otherwise, 0.0)
        return Judgement(token_rewards, closed | (is_open & inside.valid), {**components, **inside.components})


class _Reaches(Pointwise):
    """1 where a total is at least the threshold, else 0."""

    def __init__(self, reward: Any, threshold: float) -> None:
        self.threshold = threshold
        super().__init__([resolve_reward(reward)])
        self.bounds = (0.0, 1.0)

    def __repr__(self) -> str:
        return f"{formula(self.parts[0])} >= {self.threshold:g}"

    def combine(self, *totals_N: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Whether the total reaches the threshold."""
        return (totals_N[0] >= self.threshold).astype(np.float64)


def want_terminal(reward: Reward, what: str) -> None:
    """Refuse a dense reward where only the total of a finished text has a meaning."""
    if reward.kind == "dense":
        raise RewardError(
            f"{what} needs a reward about the finished text, and '{reward.name}' is dense (asked at every step): "
            f"Spread(reward, at=()) asks it at the end alone and pays the total there"
        )


def unpaid(components: Components) -> Components:
    """Components that are reported only: what they said, and that it paid 0."""
    return {name: {**told, "weighted": np.zeros_like(told["weighted"])} for name, told in components.items()}


def _without_constant(part: Reward) -> list[str]:
    """The components of a part of a formula; a constant pays nothing there."""
    return [name for name in part.component_names if name != CONSTANT]


def _corners(parts: Sequence[Reward], function: Callable[..., float]) -> Bounds | None:
    """Bounds of a function that is monotone in every argument; None if those of an argument are unknown."""
    bounds = [part.bounds for part in parts if part.bounds is not None]
    if len(bounds) < len(parts):
        return None
    values = [function(*corner) for corner in itertools.product(*bounds)]
    return min(values), max(values)
