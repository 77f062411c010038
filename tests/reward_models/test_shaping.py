"""Spreading a reward over tokens; shaping by a potential, on everything that can happen in a small world."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from reward_models import PotentialDifference, PotentialShaping, Spread, as_reward
from tests.reward_models.completions import (
    TRAJECTORIES,
    completion,
    finished,
    fixed,
    id_tenths,
    length,
    make_mdp,
    short_only,
    words,
)
from textgen_env import Reward, RewardError, TextGenEnv, dense


def paid(reward: Any, ids: tuple[int, ...]) -> list[float]:
    """What an environment pays, step by step."""
    env = TextGenEnv(task=make_mdp(reward).task, reward=reward)
    env.reset(options={"prompt_index": 0})
    return [env.step(token)[1] for token in ids]


def discounted(rewards: list[float], gamma: float) -> float:
    return sum(gamma**step * reward for step, reward in enumerate(rewards))


def random_reward(seed: int) -> Any:
    """A reward of its own for each of the 31 texts."""
    generator = np.random.default_rng(seed)
    table = dict(zip(TRAJECTORIES, generator.normal(size=len(TRAJECTORIES)).tolist(), strict=True))

    def reward(completion_ids: list[list[int]]) -> list[float]:
        return [table[tuple(ids)] for ids in completion_ids]

    return reward


def random_potential(seed: int) -> Any:
    """A potential of its own for each text so far; larger than the rewards, so that it would show."""
    generator = np.random.default_rng(seed)
    table: dict[tuple[int, ...], float] = {}

    def potential(completion_ids: list[list[int]], stop_reasons: list[Any]) -> list[float]:
        assert set(stop_reasons) <= {None}
        return [table.setdefault(tuple(ids), float(generator.normal(scale=10))) for ids in completion_ids]

    return potential


def bonus(potential: Any) -> Any:
    """The must-fail twin: the potential itself is paid, not its difference."""

    @dense
    def paying_the_potential(completion_ids: list[list[int]], stop_reasons: list[Any]) -> list[list[float]]:
        return [
            [
                0.0 if stop and at == len(ids) else potential(completion_ids=[ids[:at]], stop_reasons=[None])[0]
                for at in range(1, len(ids) + 1)
            ]
            for ids, stop in zip(completion_ids, stop_reasons, strict=True)
        ]

    return paying_the_potential


def best(reward: Any, gamma: float) -> tuple[int, ...]:
    return max(TRAJECTORIES, key=lambda ids: discounted(paid(reward, ids), gamma))


@pytest.mark.parametrize("gamma", [1.0, 0.9])
@pytest.mark.parametrize("seed", range(3))
def test_shaping_changes_no_return_and_so_no_optimum(seed: int, gamma: float) -> None:
    plain, shaped = random_reward(seed), PotentialShaping(random_reward(seed), random_potential(seed + 50), gamma=gamma)
    differ = 0
    for ids in TRAJECTORIES:
        before, after = paid(plain, ids), paid(shaped, ids)
        assert discounted(after, gamma) == pytest.approx(discounted(before, gamma), abs=1e-12)
        differ += before != pytest.approx(after)
    assert differ == len(TRAJECTORIES) - 1  # all but the EOS at once, which passes no state
    assert best(plain, gamma) == best(shaped, gamma)


def test_a_bonus_that_is_no_difference_moves_the_optimum() -> None:
    moved = [
        best(random_reward(seed), 1.0) != best(as_reward(random_reward(seed)) + bonus(random_potential(seed + 50)), 1.0)
        for seed in range(3)
    ]
    assert any(moved)


def test_another_discount_than_the_learners_changes_returns() -> None:
    ids = (2, 3, 2, 1)
    shaped = PotentialShaping(random_reward(0), random_potential(50), gamma=0.9)
    assert discounted(paid(shaped, ids), 1.0) != pytest.approx(discounted(paid(random_reward(0), ids), 1.0), abs=0.1)


def test_what_is_paid_by_hand() -> None:
    """The potential is the number of words: 1, 2, 3 and 0 again at the end."""
    assert paid(PotentialDifference(words), (2, 3, 2, 1)) == [1.0, 1.0, 1.0, -3.0]
    assert paid(PotentialDifference(words), (2, 3, 2, 3)) == [1.0, 1.0, 1.0, -3.0]
    assert paid(PotentialDifference(words, gamma=0.5), (2, 3, 1)) == [0.5, 0.0, -2.0]
    assert paid(PotentialDifference(words), (1,)) == [0.0]
    assert paid(PotentialShaping(length, words), (2, 3, 1)) == [1.0, 1.0, -2.0 + 3.0]


def test_the_report_of_a_shaped_reward() -> None:
    reward = PotentialShaping(length, words, gamma=0.5)
    assert (repr(reward), reward.kind) == ("length + shaping(words, gamma=0.5)", "dense")
    mdp = make_mdp(reward)
    scores = mdp.score([finished(mdp, (2, 3, 1))])
    assert scores.info(0) == {
        "length": {"raw": 3.0, "normalised": 3.0, "weighted": 3.0},
        "shaping(words, gamma=0.5)": {"raw": 2.0, "normalised": -1.5, "weighted": -1.5},
    }


def test_the_potentials_of_a_batch_are_asked_for_in_one_call() -> None:
    asked: list[list[str]] = []

    def potential(completions: list[str]) -> list[float]:
        asked.append(completions)
        return words(completions)

    mdp = make_mdp(PotentialDifference(potential))
    mdp.score([finished(mdp, (2, 3, 1)), mdp.complete(0, (2, 2, 3), None), mdp.complete(0, (3,), None)])
    assert asked == [["a", "a b", "a a", "a a b", "b"]]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PotentialShaping(length, id_tenths), "potential 'id_tenths' is dense"),
        (lambda: PotentialShaping(length, words, gamma=0.0), r"gamma must lie in \(0, 1\], got 0.0"),
        (lambda: PotentialDifference(words, gamma=1.1), r"gamma must lie in \(0, 1\], got 1.1"),
        (lambda: paid(PotentialDifference(short_only), (2, 3, 2, 1)), "'short_only' returned None for .* 'a b a'"),
    ],
)
def test_what_is_no_potential_is_refused(make: Any, message: str) -> None:
    with pytest.raises(RewardError, match=message):
        make()


def test_without_the_environments_decoder_prefixes_have_no_text() -> None:
    with pytest.raises(ValueError, match="made without decode="):
        PotentialDifference(words).score([completion("a b c")])


# --- spreading --------------------------------------------------------------------------------------------

BATCH = [completion("abc", 3), completion("ab", 1), completion("abcdef", 4)]  # ids 5, 6, 7, 8


@pytest.mark.parametrize(
    ("at", "shares"),
    [
        (None, [[1.0, 1.0, 1.0], [2.0], [1.5, 1.5, 1.5, 1.5]]),
        ((), [[0.0, 0.0, 3.0], [2.0], [0.0, 0.0, 0.0, 6.0]]),
        ([6, 7, 99], [[0.0, 1.5, 1.5], [2.0], [0.0, 2.0, 2.0, 2.0]]),
    ],
)
def test_shares_stand_where_they_were_asked_for(at: Any, shares: list[list[float]]) -> None:
    scores = Spread(length, at=at).score(BATCH)
    assert [rewards.tolist() for rewards in scores.token_rewards] == shares
    assert scores.components["length"]["weighted"].tolist() == [3.0, 2.0, 6.0]


def test_a_dense_reward_spread_is_asked_at_the_end_alone() -> None:
    reward: Reward = Spread(id_tenths, at=())
    assert reward.kind == "terminal"
    assert reward.score(BATCH).token_rewards[0].tolist() == pytest.approx([0.0, 0.0, 1.8])


def test_a_loop_of_steps_is_paid_the_sum_and_told_the_shares() -> None:
    env = TextGenEnv(task=make_mdp(length).task, reward=Spread(fixed("six", 6.0)))
    env.reset(options={"prompt_index": 0})
    env.step(2)
    env.step(3)
    _, reward, _, _, info = env.step(1)
    assert reward == 6.0
    assert info["token_rewards"] == (2.0, 2.0, 2.0)
