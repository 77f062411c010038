"""Answers kept by content: what is the same, what is forgotten, and what is never kept."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest

from reward_models import Cached, Normalise, Rouge, as_reward
from tests.reward_models.completions import completion, length
from textgen_env import Completion, Reward, RewardError
from textgen_env.types import Prompt


class Counting:
    """Scores texts by their length and counts what it was asked."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []

    def __call__(self, completions: list[str]) -> list[float]:
        self.batches.append(list(completions))
        return length(completions)


def texts(*words: str) -> list[Completion]:
    return [completion(word) for word in words]


def test_each_text_is_asked_about_once() -> None:
    counting = Counting()
    reward = Cached(counting)
    assert reward.score(texts("a", "bb", "a")).totals.tolist() == [1.0, 2.0, 1.0]
    assert reward.score(texts("bb", "ccc", "a")).totals.tolist() == [2.0, 3.0, 1.0]
    assert reward.score(texts("a")).totals.tolist() == [1.0]
    assert counting.batches == [["a", "bb"], ["ccc"]]
    assert (reward.hits, reward.misses) == (4, 3)


def test_it_is_the_reward_it_stands_for() -> None:
    bare, cached = Reward(Rouge("L")), Cached(Rouge("L"))
    assert (cached.name, cached.kind, cached.bounds) == (bare.name, bare.kind, bare.bounds)
    batch = texts("a b", "b", "a b")
    for _ in range(2):
        assert cached.score(batch).totals.tolist() == bare.score(batch).totals.tolist()
    assert repr(0.5 * cached + length) == "0.5 * rouge_l + length"


def test_only_what_the_function_is_given_counts() -> None:
    """The same text of other token ids is the same to a function of texts; arrays would not fit, and say so."""
    counting = Counting()
    reward = Cached(counting)
    scores = reward.score([completion("a", 1), completion("a", 3)])
    assert [rewards.tolist() for rewards in scores.token_rewards] == [[1.0], [0.0, 0.0, 1.0]]
    assert counting.batches == [["a"]]
    with pytest.raises(RewardError, match="returned 1 per-token rewards for 3 tokens"):
        Cached(lambda completions: [[1.0]] * len(completions)).score([completion("a", 1), completion("a", 3)])


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (1, True),
        (1, 1.0),
        (0, None),
        ("1", 1),
        ([1, 2], (1, 2)),
        ([1, 2], [1, "2"]),
        ([[], "str"], ["list"]),
        ({"a": 1}, {"a": 2}),
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
        ([["a"], "b"], [["a", "b"]]),
        (np.array([1, 2]), np.array([1, 3])),
        (np.float32(1), np.float64(1)),
        (frozenset({1}), frozenset({2})),
    ],
)
def test_contents_that_differ_are_told_apart(first: Any, second: Any) -> None:
    def by_type(level: list[Any]) -> list[float]:
        asked.extend(level)
        return [0.0] * len(level)

    asked: list[Any] = []
    reward = Cached(by_type)
    for value in (first, second, first, second):
        reward.score([completion("x", level=value)])
    assert len(asked) == 2


def test_everything_counts_for_a_function_that_takes_everything() -> None:
    def spy(**everything: Any) -> list[float]:
        asked.append(everything)
        return [0.0] * len(everything["completions"])

    asked: list[Any] = []
    one = completion("x")
    others = [
        Completion(Prompt("Ask:", ("a b",)), "x", one.token_ids, "eos"),
        Completion(Prompt("Say:", ("a",)), "x", one.token_ids, "eos"),
        Completion(one.prompt, "y", one.token_ids, "eos"),
        Completion(one.prompt, "x", (5, 6), "eos"),
        Completion(one.prompt, "x", one.token_ids, "length"),
        completion("x", level=1),
    ]
    reward = Cached(spy)
    for other in [one, *others] * 2:
        reward.score([other])
    assert len(asked) == 1 + len(others)


def test_the_least_recently_used_answer_goes_first() -> None:
    counting = Counting()
    reward = Cached(counting, size=2)
    for word in ("a", "b", "a", "c", "a", "b"):
        reward.score(texts(word))
    assert counting.batches == [["a"], ["b"], ["c"], ["b"]]
    assert reward.score(texts("d", "e", "f")).totals.tolist() == [1.0, 1.0, 1.0]  # more than it can keep


@pytest.mark.parametrize("wrong", [float("nan"), "1", [1.0]])
def test_failures_are_never_kept(wrong: Any) -> None:
    answers = iter([wrong, 1.0])
    reward = Cached(lambda completions: [next(answers)], name="moody")
    with pytest.raises(RewardError, match="reward 'moody' returned"):
        reward.score(texts("a"))
    assert reward.score(texts("a")).totals.tolist() == [1.0]


def test_that_it_does_not_apply_is_kept() -> None:
    calls: list[int] = []
    reward = Cached(lambda completions: calls.append(1) or [None])
    assert not reward.judge(texts("a")).valid.any()
    assert not reward.judge(texts("a")).valid.any()
    assert len(calls) == 1


def test_the_columns_are_those_of_the_whole_batch() -> None:
    def graded(completions: list[str], answer: list[str | None]) -> list[float]:
        return [float(text == known) for text, known in zip(completions, answer, strict=True)]

    reward = Cached(graded)
    with_answer = completion("x", answer="x")
    reward.score([with_answer])
    assert reward.score([with_answer, completion("y")]).totals.tolist() == [1.0, 0.0]


def test_what_adapts_or_has_parts_is_not_cached() -> None:
    for inner in (as_reward(length) + Rouge(), Normalise(length), Cached(length)):
        with pytest.raises(RewardError, match="is a composition: cache its expensive part"):
            Cached(inner)
    with pytest.raises(RewardError, match="size must be at least 1"):
        Cached(length, size=0)


def test_content_that_cannot_be_compared_is_an_error() -> None:
    with pytest.raises(RewardError, match="cannot cache reward 'graded': it is given a function"):
        Cached(lambda level: [0.0], name="graded").score([completion("x", level=lambda: 0)])


def test_answers_travel_with_pickles() -> None:
    reward = Cached(Counting())
    reward.score(texts("a"))
    twin = pickle.loads(pickle.dumps(reward))
    twin.score(texts("a", "b"))
    assert twin.function.batches == [["a"], ["b"]]
