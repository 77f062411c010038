"""Products, ratios, clipped values and gates: what they pay, report and refuse."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from reward_models import Clip, Gate, Product, Spread, as_reward
from tests.reward_models.completions import completion, fixed, length, vowels, words
from textgen_env import RewardError

BATCH = [completion("a b", 1), completion("io", 2), completion("b c d", 4)]


def test_a_transformed_reward_keeps_its_name_and_its_raw_value() -> None:
    scores = (0.5 * Clip(length, 2.5, 4)).score(BATCH)
    assert list(scores.components) == ["length"]
    told = {kind: values.tolist() for kind, values in scores.components["length"].items()}
    assert told == {"raw": [3.0, 2.0, 5.0], "normalised": [3.0, 2.5, 4.0], "weighted": [1.5, 1.25, 2.0]}


def test_the_factors_are_reported_and_the_product_is_paid() -> None:
    scores = Product(length, words, name="both").score(BATCH)
    assert scores.info(2) == {
        "length": {"raw": 5.0, "normalised": 5.0, "weighted": 0.0},
        "words": {"raw": 3.0, "normalised": 3.0, "weighted": 0.0},
        "both": {"raw": 15.0, "normalised": 15.0, "weighted": 15.0},
    }
    assert [rewards.tolist() for rewards in scores.token_rewards] == [[6.0], [0.0, 2.0], [0, 0, 0, 15.0]]


def test_a_transform_of_a_mixture_is_a_component_beside_its_parts() -> None:
    scores = Clip(as_reward(length) - words, high=1.0, name="gap").score(BATCH)
    assert [scores.info(2)[name]["weighted"] for name in ("length", "words", "gap")] == [0.0, 0.0, 1.0]
    assert scores.info(2)["gap"]["normalised"] == 1.0


@pytest.mark.parametrize(
    ("reward", "text"),
    [
        (1 / as_reward(vowels), "b c d"),
        (length / as_reward(vowels), "b c d"),
        (as_reward(fixed("huge", 1e200, 1, 1)) * fixed("vast", 1e200, 1, 1), "a b"),
    ],
)
def test_a_result_that_is_not_finite_names_the_text(reward: Any, text: str) -> None:
    with pytest.raises(RewardError, match=rf"is inf, which is not finite, for completion \d of 3: '{text}'"):
        reward.score(BATCH)


@pytest.mark.parametrize("limits", [{}, {"low": 1, "high": 0}, {"low": math.nan}, {"low": 0, "high": math.nan}])
def test_clip_needs_limits_in_order(limits: dict[str, float]) -> None:
    with pytest.raises(RewardError, match="Clip needs low <= high, or one of them"):
        Clip(length, **limits)


def test_behind_a_closed_gate_nothing_is_asked() -> None:
    inside = fixed("inside", 7.0, 8.0)
    gate = Gate(words, inside, threshold=2, otherwise=-1)
    assert repr(gate) == "Gate(words >= 2, inside, otherwise=-1)"
    scores = (2 * gate).score(BATCH)
    assert inside.calls == [["a b", "b c d"]]
    assert scores.totals.tolist() == [14.0, -2.0, 16.0]
    told = {name: {kind: values[1] for kind, values in one.items()} for name, one in scores.components.items()}
    assert told["words"] == {"raw": 1.0, "normalised": 0.0, "weighted": -2.0}
    assert math.isnan(told["inside"]["raw"])
    assert told["inside"]["weighted"] == 0.0
    assert scores.info(0)["words"] == {"raw": 2.0, "normalised": 1.0, "weighted": 0.0}


def test_a_gate_that_nothing_passes_asks_no_one() -> None:
    inside = fixed("inside")
    assert Gate(words, inside, threshold=9).score(BATCH).totals.tolist() == [0.0, 0.0, 0.0]
    assert inside.calls == []


def test_an_open_gate_pays_where_the_reward_pays() -> None:
    scores = Gate(words, Spread(length)).score(BATCH)
    np.testing.assert_allclose(scores.token_rewards[2], np.full(4, 1.25))


def test_a_condition_may_be_a_formula() -> None:
    gate = Gate(as_reward(length) - words, vowels, threshold=1.5)
    assert gate.component_names == ("length", "words", "length - words >= 1.5", "vowels")
    assert gate.score(BATCH).totals.tolist() == [0.0, 0.0, 0.0]
    assert gate.judge(BATCH).components["length - words >= 1.5"]["normalised"].tolist() == [0.0, 0.0, 1.0]


@pytest.mark.parametrize("numbers", [{"threshold": math.nan}, {"otherwise": math.inf}])
def test_a_gate_needs_finite_numbers(numbers: dict[str, float]) -> None:
    with pytest.raises(RewardError, match="a gate needs finite numbers"):
        Gate(words, length, **numbers)
