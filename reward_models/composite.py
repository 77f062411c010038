"""Arithmetic on rewards: ``0.6 * Rouge("L") + 0.3 * Bleu() - brevity``, and what each part of it paid."""

from __future__ import annotations

import copy
import math
import numbers
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from textgen_env.reward import Judgement, Reward, RewardError
from textgen_env.reward_registry import resolve_reward
from textgen_env.types import Completion, Components

Bounds = tuple[float, float]

CONSTANT = "constant"
"""The component of the numbers that are added to rewards, wherever in a formula they stand."""


class Composable:
    """Gives a reward ``+ - * /`` and unary minus, with numbers, rewards, plain functions and registered names.

    >>> from reward_models import Rouge
    >>> def brevity(completions):
    ...     return [-len(text) for text in completions]
    >>> 0.6 * Rouge("L") + brevity
    0.6 * rouge_l + brevity
    """

    __array_ufunc__ = None  # else a NumPy scalar on the left would make an array of us

    def __add__(self, other: Any) -> WeightedSum:
        return WeightedSum([(1.0, self), (1.0, other)]) if _is_operand(other) else NotImplemented

    def __radd__(self, other: Any) -> WeightedSum:
        return WeightedSum([(1.0, other), (1.0, self)]) if _is_operand(other) else NotImplemented

    def __sub__(self, other: Any) -> WeightedSum:
        return WeightedSum([(1.0, self), (-1.0, other)]) if _is_operand(other) else NotImplemented

    def __rsub__(self, other: Any) -> WeightedSum:
        return WeightedSum([(1.0, other), (-1.0, self)]) if _is_operand(other) else NotImplemented

    def __neg__(self) -> WeightedSum:
        return WeightedSum([(-1.0, self)])

    def __mul__(self, other: Any) -> Composition:
        if isinstance(other, numbers.Real):
            return WeightedSum([(float(other), self)])
        return _pointwise("Product", self, other) if _is_operand(other) else NotImplemented

    def __rmul__(self, other: Any) -> Composition:
        if isinstance(other, numbers.Real):
            return WeightedSum([(float(other), self)])
        return _pointwise("Product", other, self) if _is_operand(other) else NotImplemented

    def __truediv__(self, other: Any) -> Composition:
        if isinstance(other, numbers.Real):
            if not other:
                raise RewardError(f"cannot divide reward {self!r} by 0")
            return WeightedSum([(1.0 / float(other), self)])
        return _pointwise("Ratio", self, other) if _is_operand(other) else NotImplemented

    def __rtruediv__(self, other: Any) -> Composition:
        return _pointwise("Ratio", other, self) if _is_operand(other) else NotImplemented

    def named(self, name: str) -> Reward:
        """The same reward under another name, where two in one composition would have the same."""
        return as_reward(self, name)


def as_reward(reward: Any, name: str | None = None) -> Reward:
    """Anything `resolve_reward` takes, with operators: ``0.3 * as_reward(brevity) + 0.7 * as_reward("rouge_l")``.

    Args:
        reward: a registered name, ``"module:attr"``, a function, an object or a `Reward`.
        name: what to call it instead.

    Raises:
        ValueError, TypeError, ImportError: as `resolve_reward`.
    """
    found = resolve_reward(reward, name)
    return found if isinstance(found, Composable) else WeightedSum([(1.0, found)])


class Composition(Composable, Reward):
    """A reward made of rewards. Subclasses say in ``judge`` how.

    Args:
        parts: the rewards it is made of.
        name: what to call the whole; default: its formula.

    Raises:
        RewardError: two components have the same name.
    """

    def __init__(self, parts: Sequence[Reward], name: str | None = None) -> None:
        self.parts = tuple(parts)
        self.kind = "terminal"
        self.bounds = None
        self.name = name or repr(self)
        self._check_names()

    def judge(self, completions: Sequence[Completion]) -> Judgement:
        """Ask the parts, and combine their answers."""
        raise NotImplementedError

    @property
    def component_names(self) -> tuple[str, ...]:
        """Those of the parts."""
        return tuple(name for part in self.parts for name in part.component_names)

    def frozen(self) -> Reward:
        """The same composition for evaluating, all parts frozen."""
        view = copy.copy(self)
        view.parts = tuple(part.frozen() for part in self.parts)
        return view

    def state(self) -> dict[str, Any]:
        """What training has taught the parts, by their number."""
        states = {str(number): part.state() for number, part in enumerate(self.parts)}
        return {number: state for number, state in states.items() if state}

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from a `state`.

        Raises:
            RewardError: it is that of a reward made otherwise.
        """
        known = {str(number): part for number, part in enumerate(self.parts)}
        if not state.keys() <= known.keys():
            raise RewardError(f"the saved state is not one of {self!r}: make the environment with the same reward")
        for number, part in known.items():
            part.load_state(state.get(number, {}))

    def renamed(self, name: str) -> Reward:
        """The same composition, the whole under another name.

        Raises:
            RewardError: a part has that name already.
        """
        twin = copy.copy(self)
        twin.name = name
        twin._check_names()
        return twin

    def _check_names(self) -> None:
        seen: set[str] = set()
        for component in self.component_names:
            if component in seen:
                raise RewardError(
                    f"two components of {self!r} are called '{component}': give one of them another name, "
                    "with .named('other') or as_reward(function, name='other')"
                )
            seen.add(component)
        if any(part.name == CONSTANT and not isinstance(part, Composition) for part in self.parts):
            raise RewardError(f"'{CONSTANT}' is what the numbers in {self!r} are called: name the reward otherwise")


class WeightedSum(Composition):
    """``Σ weight · reward + constant``, every part reported under its own name.

    A part of weight 0 is computed and reported, not paid, and its failures are raised. A part that answers ``None``
    for a text pays 0 for it; where no part that pays applies, the sum does not apply. Sums of sums are one sum. The
    sum is dense if a part that pays is: the terminal parts are then asked once, about the finished text, and pay on
    its last token.

    Args:
        terms: pairs of a weight and a reward, or of a weight and a number (which goes into the constant).
        name: what to call the whole; default: its formula.

    Raises:
        RewardError: a weight is not finite, there is no reward, or two have the same name.

    >>> WeightedSum([(0.6, "rouge_l"), (0, "rouge_2")])
    0.6 * rouge_l + 0 * rouge_2
    """

    def __init__(self, terms: Iterable[tuple[float, Any]], *, name: str | None = None) -> None:
        weights: list[float] = []
        parts: list[Reward] = []
        self.constant = 0.0
        for weight, term in terms:
            if isinstance(term, numbers.Real):
                self.constant += weight * float(term)
                continue
            reward = resolve_reward(term)
            if isinstance(reward, WeightedSum):
                weights += [weight * own for own in reward.weights]
                parts += reward.parts
                self.constant += weight * reward.constant
            else:
                weights.append(float(weight))
                parts.append(reward)
        self.weights: tuple[float, ...] = tuple(weights)
        if not parts:
            raise RewardError("a sum of rewards needs at least one reward")
        if not all(map(math.isfinite, (*weights, self.constant))):
            raise RewardError(f"the weights of a sum of rewards must be finite, got {weights} and {self.constant}")
        super().__init__(parts, name)
        paying = [part for weight, part in self.terms if weight]
        self.kind = "dense" if any(part.kind == "dense" for part in paying) else "terminal"
        self.bounds = self._sum_of_bounds()

    @property
    def terms(self) -> list[tuple[float, Reward]]:
        """Weights and rewards."""
        return list(zip(self.weights, self.parts, strict=True))

    @property
    def component_names(self) -> tuple[str, ...]:
        """Those of the parts, and one for all constants."""
        names = super().component_names
        constant = (CONSTANT,) if self.constant or CONSTANT in names else ()
        return (*(name for name in names if name != CONSTANT), *constant)

    def __repr__(self) -> str:
        text = ""  # Reads like 0.6 * rouge_l - brevity + 1
        for weight, part in self.terms:
            sign = ("-" if weight < 0 else "") if not text else (" - " if weight < 0 else " + ")
            factor = "" if abs(weight) == 1 else f"{abs(weight):g} * "
            text += sign + factor + formula(part)
        return text + (f" {'-' if self.constant < 0 else '+'} {abs(self.constant):g}" if self.constant else "")

    def judge(self, completions: Sequence[Completion]) -> Judgement:
        """Ask every part, each about all completions in one call."""
        token_rewards = [np.zeros(len(completion.token_ids)) for completion in completions]
        applies = np.zeros(len(completions), dtype=np.bool_)
        finished = np.array([completion.stop_reason is not None for completion in completions], dtype=np.bool_)
        components: Components = {}
        for weight, part in self.terms:
            waits = self.kind == "dense" and not (weight and part.kind == "dense")
            judgement = judge_some(part, completions, finished) if waits else part.judge(completions)
            if weight or not any(self.weights):
                applies |= judgement.valid
            if weight:
                paid = on_last_token(judgement.totals, completions) if waits else judgement.token_rewards
                for row in np.flatnonzero(judgement.valid):
                    token_rewards[row] += weight * paid[row]
            for name, values in judgement.components.items():
                values = {**values, "weighted": weight * values["weighted"] + 0.0}  # + 0.0: no -0.0
                components[name] = _added(components[name], values) if name == CONSTANT in components else values
        if self.constant:
            constant = np.where(applies & (finished | (self.kind == "terminal")), self.constant, 0.0)
            for rewards, value in zip(token_rewards, constant, strict=True):
                rewards[-1] += value
            told = {kind: constant for kind in ("raw", "normalised", "weighted")}
            components[CONSTANT] = _added(components.pop(CONSTANT), told) if CONSTANT in components else told
        elif CONSTANT in components:
            components[CONSTANT] = components.pop(CONSTANT)  # the last, as in component_names
        for row in np.flatnonzero(~applies):
            token_rewards[row][:] = np.nan
        return Judgement(token_rewards, applies, components)

    def renamed(self, name: str) -> Reward:
        """The sum under another name; with one term, that is the name of its component too."""
        twin = copy.copy(self)
        if len(self.parts) == 1:
            twin.parts = (self.parts[0].renamed(name),)
        return Composition.renamed(twin, name)

    def _sum_of_bounds(self) -> Bounds | None:
        low = high = self.constant
        for weight, part in self.terms:
            if weight:
                if part.bounds is None:
                    return None
                ends = sorted(weight * bound for bound in part.bounds)
                low, high = low + ends[0], high + ends[1]
        return low, high


def formula(reward: Reward, *bracketed: type[Composition]) -> str:
    """How a reward stands in the formula of a composition; sums of one term need no brackets."""
    if not isinstance(reward, Composition):
        return reward.name
    text = repr(reward)
    return f"({text})" if isinstance(reward, bracketed) and text != reward.parts[0].name else text


def on_last_token(
    values_B: npt.NDArray[np.float64], completions: Sequence[Completion]
) -> list[npt.NDArray[np.float64]]:
    """B arrays of shape (T_i,) with the value on the last token; all NaN where it is NaN."""
    token_rewards = [np.zeros(len(completion.token_ids)) for completion in completions]
    for rewards, value in zip(token_rewards, values_B, strict=True):
        rewards[-1] = value
        if math.isnan(value):
            rewards[:] = value
    return token_rewards


def judge_some(reward: Reward, completions: Sequence[Completion], asked_B: npt.NDArray[np.bool_]) -> Judgement:
    """Ask about some completions, in one call. The others pay 0 and have NaN in the report."""
    rows = np.flatnonzero(asked_B)
    found = reward.judge([completions[int(row)] for row in rows])
    token_rewards = [np.zeros(len(completion.token_ids)) for completion in completions]
    for row, rewards in zip(rows, found.token_rewards, strict=True):
        token_rewards[row] = rewards
    valid = np.ones(len(completions), dtype=np.bool_)
    valid[rows] = found.valid
    components: Components = {}
    for name, told in found.components.items():
        components[name] = {}
        for kind, values in told.items():
            components[name][kind] = np.full(len(completions), 0.0 if kind == "weighted" else np.nan)
            components[name][kind][rows] = values
    return Judgement(token_rewards, valid, components)


def _added(
    first: dict[str, npt.NDArray[np.float64]], second: dict[str, npt.NDArray[np.float64]]
) -> dict[str, npt.NDArray[np.float64]]:
    """Two constants as one; NaN is where a gate was closed on one of them."""
    return {kind: np.nan_to_num(values) + np.nan_to_num(second[kind]) for kind, values in first.items()}


def _is_operand(other: Any) -> bool:
    return isinstance(other, (numbers.Real, str, Reward)) or callable(other)


def _pointwise(kind: str, left: Any, right: Any) -> Composition:
    from reward_models import pointwise  # it builds on this module

    made: Composition = getattr(pointwise, kind)(left, right)
    return made
