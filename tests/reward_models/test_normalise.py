"""Running normalisation: the moments of everything so far, frozen wherever an agent is evaluated."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest

from agents.evaluation import on_split
from reward_models import Clip, Normalise, WeightedSum, as_reward
from reward_models.normalise import RunningMoments
from tests.reward_models.completions import completion, finished, length, make_mdp, words
from textgen_env import Completion, RewardError, TextMDP


def texts(*lengths: int) -> list[Completion]:
    return [completion("x" * size) for size in lengths]


@pytest.mark.parametrize("offset", [0.0, 1e6])
def test_moments_are_those_of_all_values_at_once(offset: float) -> None:
    values = np.random.default_rng(0).normal(offset, 3.0, size=100)
    moments = RunningMoments()
    for batch in np.split(values, [1, 1, 7, 40]):  # an empty batch among them
        moments.update(batch)
    assert moments.count == 100
    assert moments.mean == pytest.approx(values.mean(), rel=1e-12)
    assert moments.deviation == pytest.approx(values.std(), rel=1e-9)


def test_what_does_not_vary_is_not_scaled() -> None:
    moments = RunningMoments()
    assert moments.deviation == 1.0
    moments.update(np.full(3, 0.1))
    assert moments.deviation == 1.0
    assert Normalise(length).score(texts(4)).totals.tolist() == [0.0]


def test_a_batch_is_taken_in_before_it_is_normalised() -> None:
    reward = 2 * Normalise(length)
    first = reward.score(texts(1, 3))
    assert first.totals.tolist() == [-2.0, 2.0]
    assert first.info(0)["length"] == {"raw": 1.0, "normalised": -1.0, "weighted": -2.0}
    seen = np.array([1.0, 3.0, 8.0])
    assert reward.score(texts(8)).totals[0] == pytest.approx(2 * (8 - seen.mean()) / seen.std())


def test_only_the_scale_changes_without_centering() -> None:
    assert Normalise(length, center=False).score(texts(2, 6)).totals.tolist() == [1.0, 3.0]


def test_it_stands_still_after_enough_texts() -> None:
    reward = Normalise(length, stop_after=2)
    reward.score(texts(1, 3))
    assert reward.score(texts(5)).totals.tolist() == [3.0]
    assert reward.moments.count == 2
    with pytest.raises(RewardError, match="stop_after must be at least 1"):
        Normalise(length, stop_after=0)


def nested() -> tuple[WeightedSum, Normalise]:
    inner = Normalise(length)
    return 0.5 * Clip(inner, -2, 2) + words, inner


def test_a_frozen_view_reads_the_moments_of_that_time_and_takes_in_nothing() -> None:
    reward, inner = nested()
    view = reward.frozen()
    assert view.score(texts(3)).totals.tolist() == [0.5 * 2 + 1]  # before any training: mean 0, deviation 1, clipped
    reward.score(texts(1, 3))
    state = copy.copy(inner.moments)
    assert view.score(texts(3)).totals.tolist() == [0.5 * 1 + 1]
    assert view.score(texts(9)).info(0)["length"] == {"raw": 9.0, "normalised": 2.0, "weighted": 1.0}
    assert inner.moments == state
    reward.score(texts(9))
    assert inner.moments != state  # Must fail if freezing the view had frozen the reward.


def test_evaluation_leaves_the_moments_alone() -> None:
    reward, inner = nested()
    train = make_mdp(reward)
    mdp = TextMDP(train.task, reward)
    mdp.score([finished(mdp, (2, 1)), finished(mdp, (2, 3, 1))])
    state = copy.copy(inner.moments)
    assert state.count == 2
    mdp.returns([finished(mdp, (2, 2, 2, 1))])
    held_out = on_split(mdp, "train")
    held_out.score([finished(held_out, (2, 2, 2, 1))])
    assert inner.moments == state
    mdp.score([finished(mdp, (1,))])
    assert inner.moments.count == 3


def test_what_was_learnt_travels_with_pickles() -> None:
    reward, inner = nested()
    reward.score(texts(1, 3, 4))
    twin = pickle.loads(pickle.dumps(reward))
    assert twin.score(texts(7)).totals.tolist() == reward.score(texts(7)).totals.tolist()
    assert inner.moments.count == 4


def test_what_does_not_apply_is_not_taken_in() -> None:
    def sometimes(completions: list[str]) -> list[float | None]:
        return [None if text == "x" else float(len(text)) for text in completions]

    reward = Normalise(sometimes)
    (reward + 0.0 * as_reward(words)).judge(texts(1, 2, 4))
    assert (reward.moments.count, reward.moments.mean) == (2, 3.0)


def test_the_state_goes_on_where_it_was_and_frozen_views_follow() -> None:
    first = Normalise(length) + 0.5 * Normalise(words)
    first.score([completion("aaaa a"), completion("a")])
    again = Normalise(length) + 0.5 * Normalise(words)
    view = again.frozen()
    again.load_state(first.state())
    assert again.state() == first.state() != {}
    asked = texts(2, 9)
    np.testing.assert_array_equal(view.score(asked).totals, first.frozen().score(asked).totals)
    with pytest.raises(RewardError, match="learns nothing"):
        (as_reward(words) + Normalise(length)).load_state({"0": {"moments": {"count": 1}}})
