"""Arithmetic on rewards: each part keeps its name and its value, and what the parts paid is the reward."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from reward_models import (
    Cached,
    Clip,
    Composable,
    Gate,
    Normalise,
    PotentialShaping,
    Product,
    Ratio,
    Rouge,
    Spread,
    WeightedSum,
    as_reward,
)
from tests.reward_models.completions import (
    TRAJECTORIES,
    completion,
    finished,
    fixed,
    id_tenths,
    length,
    make_mdp,
    short_only,
    vowels,
    words,
)
from textgen_env import Completion, Reward, RewardError, TextGenEnv, TextGenVectorEnv, resolve_reward
from textgen_env.types import Prompt

BATCH = [completion("a b", 1), completion("io", 2), completion("b c d", 4, stop_reason="length")]


def weighted(reward: Reward, batch: list[Completion] = BATCH) -> dict[str, list[float]]:
    return {name: values["weighted"].tolist() for name, values in reward.score(batch).components.items()}


# --- operators --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reward", "text", "totals"),
    [
        (0.5 * as_reward(length) + words, "0.5 * length + words", [3.5, 2.0, 5.5]),
        (words + as_reward(length), "words + length", [5.0, 3.0, 8.0]),
        (as_reward(length) - words, "length - words", [1.0, 1.0, 2.0]),
        (words - as_reward(length), "words - length", [-1.0, -1.0, -2.0]),
        (-as_reward(length), "-length", [-3.0, -2.0, -5.0]),
        (as_reward(length) / 2, "0.5 * length", [1.5, 1.0, 2.5]),
        (1 - as_reward(length) * 2, "-2 * length + 1", [-5.0, -3.0, -9.0]),
        (as_reward(length) - 3, "length - 3", [0.0, -1.0, 2.0]),
        (as_reward(length) * words, "length * words", [6.0, 2.0, 15.0]),
        (words * as_reward(length) * vowels, "words * length * vowels", [6.0, 4.0, 0.0]),
        (as_reward(length) / words, "length / words", [1.5, 2.0, 5 / 3]),
        (words / as_reward(length), "words / length", [2 / 3, 0.5, 0.6]),
        (6 / as_reward(length), "6 / length", [2.0, 3.0, 1.2]),
        (as_reward(length) * (as_reward(words) + 1), "length * (words + 1)", [9.0, 4.0, 20.0]),
        (as_reward(length) / (as_reward(words) * vowels + 1), "length / (words * vowels + 1)", [1.0, 2 / 3, 5.0]),
        (0.5 * (as_reward(length) - 2 * as_reward(words)), "0.5 * length - words", [-0.5, 0.0, -0.5]),
        (np.float64(0.5) * as_reward(length), "0.5 * length", [1.5, 1.0, 2.5]),
        (Rouge("1") + "rouge_2", "rouge_1 + rouge_2", [2.0, 0.0, 0.4]),
        (sum([as_reward(length), words, vowels]), "length + words + vowels", [6.0, 5.0, 8.0]),
    ],
)
def test_arithmetic_reads_and_counts_like_arithmetic(reward: Any, text: str, totals: list[float]) -> None:
    assert isinstance(reward, Reward)
    assert isinstance(reward, Composable)
    assert repr(reward) == text
    assert reward.score(BATCH).totals.tolist() == pytest.approx(totals)


@pytest.mark.parametrize("other", [None, {1.0}, 1j])
@pytest.mark.parametrize("operator", ["+", "-", "*", "/"])
def test_what_is_no_reward_is_no_operand(other: Any, operator: str) -> None:
    for left, right in (("reward", "other"), ("other", "reward")):
        with pytest.raises(TypeError, match="unsupported operand"):
            eval(f"{left} {operator} {right}", {"reward": as_reward(length), "other": other})


def test_operands_are_found_as_rewards_are() -> None:
    with pytest.raises(ValueError, match="unknown reward 'rouge_k'; did you mean"):
        Rouge() + "rouge_k"
    with pytest.raises(RewardError, match="cannot divide reward length by 0"):
        as_reward(length) / 0
    for weight in (math.nan, math.inf):
        with pytest.raises(RewardError, match="must be finite"):
            weight * as_reward(length)
    with pytest.raises(RewardError, match="needs at least one reward"):
        WeightedSum([(1.0, 2.0)])


def test_a_composition_goes_wherever_a_reward_goes() -> None:
    reward = 0.5 * as_reward(length) + words
    assert resolve_reward(reward) is reward
    renamed = resolve_reward(reward, name="mine")
    assert (renamed.name, reward.name) == ("mine", "0.5 * length + words")
    env = TextGenEnv(task=make_mdp(words).task, reward=reward)
    env.reset(options={"prompt_index": 0})
    env.step(2)
    _, paid, _, _, info = env.step(1)
    assert paid == 1.5
    assert info["reward"] == {
        "length": {"raw": 1.0, "normalised": 1.0, "weighted": 0.5},
        "words": {"raw": 1.0, "normalised": 1.0, "weighted": 1.0},
    }


# --- names ------------------------------------------------------------------------------------------------


def test_two_components_of_one_name_are_refused_until_one_is_renamed() -> None:
    message = r"two components of rouge_l \+ rouge_l are called 'rouge_l'.*\.named\('other'\)"
    with pytest.raises(RewardError, match=message):
        Rouge("L") + Rouge("L")
    both = Rouge("L") + 0.5 * Rouge("L", use_stemmer=True).named("stemmed")
    assert list(weighted(both)) == ["rouge_l", "stemmed"]
    assert list(weighted(Rouge("L") + (0.5 * Rouge("L")).named("half"))) == ["rouge_l", "half"]
    with pytest.raises(RewardError, match="are called 'length'"):
        as_reward(length) * words + length
    with pytest.raises(RewardError, match="are called 'words'"):
        (as_reward(length) * words).named("words")
    with pytest.raises(RewardError, match=r"'constant' is what the numbers .* are called"):
        as_reward(length, name="constant") + 1


def test_names_are_known_before_anything_is_scored() -> None:
    for reward in EVERY_KIND:
        assert tuple(reward.judge([]).components) == reward.component_names
        assert len(set(reward.component_names)) == len(reward.component_names)


# --- sums -------------------------------------------------------------------------------------------------


def test_weight_zero_reports_and_does_not_pay() -> None:
    reward = as_reward(length) + 0 * as_reward(words)
    assert repr(reward) == "length + 0 * words"
    scores = reward.score(BATCH)
    assert scores.totals.tolist() == [3.0, 2.0, 5.0]
    assert scores.info(2)["words"] == {"raw": 3.0, "normalised": 3.0, "weighted": 0.0}
    assert math.copysign(1, scores.info(2)["words"]["weighted"]) == 1
    with pytest.raises(RewardError, match="'broken' raised"):
        (as_reward(length) + 0 * as_reward(lambda completions: 1 / 0, name="broken")).score(BATCH)


def test_what_does_not_apply_pays_nothing_and_is_reported_as_nan() -> None:
    scores = (as_reward(short_only) + 2 * as_reward(words)).score(BATCH)
    assert scores.totals.tolist() == [7.0, 4.0, 6.0]
    told = scores.info(2)["short_only"]
    assert told["weighted"] == 0.0
    assert math.isnan(told["raw"])
    assert math.isnan(told["normalised"])


@pytest.mark.parametrize(
    "reward",
    [
        as_reward(short_only),
        -2 * as_reward(short_only) + 1,
        as_reward(short_only) + 0 * as_reward(words),
        as_reward(short_only) * words,
        Clip(short_only, high=3),
        Gate(words, short_only),
        Gate(short_only, words),
        Normalise(short_only),
        Spread(short_only),
        Cached(short_only),
    ],
    ids=repr,
)
def test_where_nothing_that_pays_applies_there_is_no_reward(reward: Reward) -> None:
    judgement = reward.judge(BATCH)
    assert judgement.valid.tolist() == [True, True, False]
    assert np.isnan(judgement.token_rewards[2]).all()
    assert sum(values["weighted"][2] for values in judgement.components.values()) == 0.0
    with pytest.raises(RewardError, match=r"returned None \(does not apply\).*completion 2 of 3: 'b c d'"):
        reward.score(BATCH)


def test_a_sum_of_metrics_alone_pays_zero() -> None:
    assert (0 * as_reward(length) + 0 * as_reward(short_only)).score(BATCH).totals.tolist() == [0.0, 0.0, 0.0]


def test_arrays_of_terminal_rewards_add_up_token_by_token() -> None:
    reward = as_reward(fixed("array", [1.0], [1.0, 2.0], [0, 0, 0, 4.0])) + 0.5 * as_reward(length)
    assert [rewards.tolist() for rewards in reward.score(BATCH).token_rewards] == [[2.5], [1.0, 3.0], [0, 0, 0, 6.5]]


def test_bounds_follow_the_formula() -> None:
    unit, signed = fixed("unit", bounds=(0, 1)), fixed("signed", bounds=(-2, 3))
    assert (2 * as_reward(unit) - signed + 1).bounds == (-2.0, 5.0)
    assert (as_reward(unit) + 0 * as_reward(length)).bounds == (0.0, 1.0)
    assert (as_reward(unit) + length).bounds is None
    assert (as_reward(unit) * signed).bounds == (-2.0, 3.0)
    assert (as_reward(unit) / signed).bounds is None
    assert (signed / (as_reward(unit) + 1)).bounds == (-2.0, 3.0)
    assert (4 / (as_reward(unit) + 1)).bounds == (2.0, 4.0)
    assert Clip(signed, 0).bounds == (0.0, 3.0)
    assert Clip(length, 0).bounds is None
    assert Clip(length, 0, 1).bounds == (0.0, 1.0)
    assert Gate(length, unit, otherwise=-1).bounds == (-1.0, 1.0)
    assert Spread(signed).bounds == (-2.0, 3.0)
    assert PotentialShaping(unit, length).bounds == (0.0, 1.0)
    assert PotentialShaping(unit, length, gamma=0.9).bounds is None


def test_all_constants_are_one_component() -> None:
    reward = Gate(vowels, 1 - as_reward(words)) + (2 - as_reward(length))
    assert reward.component_names == ("vowels", "words", "length", "constant")
    scores = reward.score(BATCH)
    assert scores.totals.tolist() == [1 - 2 + 2 - 3, 1 - 1 + 2 - 2, 2 - 5]
    assert scores.components["constant"]["weighted"].tolist() == [3.0, 3.0, 2.0]
    assert (as_reward(length) * (as_reward(words) + 1)).component_names == ("length", "words", "length * (words + 1)")


# --- dense and terminal together --------------------------------------------------------------------------


def play(mdp: Any, ids: tuple[int, ...], prompt_index: int = 0) -> tuple[list[float], dict[str, Any]]:
    env = TextGenVectorEnv(1, mdp=mdp, autoreset_mode="Disabled")
    env.reset(options={"prompt_index": prompt_index})
    steps = [env.step(np.array([token])) for token in ids]
    assert steps[-1][2].all()
    return [float(step[1][0]) for step in steps], steps[-1][4]


def test_in_a_dense_sum_the_terminal_parts_are_asked_once_at_the_end() -> None:
    def count(completions: list[str]) -> list[float]:
        asked.append(list(completions))
        return words(completions)

    asked: list[list[str]] = []
    reward = 10 * as_reward(id_tenths) + count + 0 * as_reward(Spread(vowels)) + 100
    assert reward.kind == "dense"
    paid, info = play(make_mdp(reward), (2, 3, 3, 1))
    assert paid == pytest.approx([2.0, 3.0, 3.0, 1.0 + 3.0 + 100])
    assert asked == [["a b b"]]
    told = {name: values["weighted"][0] for name, values in info["reward"].items() if not name.startswith("_")}
    assert told == pytest.approx({"id_tenths": 9.0, "count": 3.0, "vowels": 0.0, "constant": 100.0})


def test_a_dense_metric_of_weight_zero_does_not_make_a_sum_dense() -> None:
    reward = as_reward(length) + 0 * as_reward(id_tenths)
    assert reward.kind == "terminal"
    _, info = play(make_mdp(reward), (2, 1))
    assert info["reward"]["id_tenths"]["raw"][0] == pytest.approx(0.3)


def test_per_token_shares_of_a_terminal_part_are_not_lost_in_a_dense_sum() -> None:
    """Must fail if they were paid where they stand: the step that could have paid them is over."""
    paid, _ = play(make_mdp(as_reward(id_tenths) + Spread(length)), (2, 3, 1))
    assert paid == pytest.approx([0.2, 0.3, 0.1 + 3.0])


@pytest.mark.parametrize("kind", [Product, Ratio, Clip, Gate, Normalise])
def test_what_needs_a_finished_text_refuses_dense_rewards_and_names_the_mend(kind: Any) -> None:
    arguments = {Clip: {"low": 0}, Product: {}, Ratio: {"denominator": words}, Gate: {"reward": words}, Normalise: {}}
    with pytest.raises(RewardError, match=r"'id_tenths' is dense.*Spread\(reward, at=\(\)\)"):
        kind(id_tenths, **arguments[kind])
    kind(Spread(id_tenths, at=()), **arguments[kind])


def test_deferred_scoring_stays_one_batch_a_rollout() -> None:
    first, second = fixed("first", 1, 2), fixed("second", 3, 4)
    env = TextGenVectorEnv(
        2,
        task=make_mdp(words).task,
        reward=Clip(first, 0) + 0.5 * as_reward(second),
        autoreset_mode="Disabled",
        defer_scoring=True,
    )
    env.reset(options={"prompt_index": 0})
    env.step(np.array([2, 1]))
    env.step(np.array([1, 1]))
    assert first.calls == second.calls == []
    scores = env.mdp.score([finished(env.mdp, (2, 1)), finished(env.mdp, (1,))])
    assert scores.totals.tolist() == [2.5, 4.0]
    assert first.calls == second.calls == [["a", ""]]


# --- the whole, at random ---------------------------------------------------------------------------------


@dataclass
class Tree:
    """A random composition beside a plain function that says what it must pay, as a whole."""

    reward: Reward
    value: Callable[[Completion], float | None]
    terms: list[tuple[float, Tree]] = field(default_factory=list)
    constant: float = 0.0


def random_leaf(generator: np.random.Generator, name: str) -> Tree:
    table = dict(zip(TRAJECTORIES, generator.normal(size=len(TRAJECTORIES)).round(2).tolist(), strict=True))
    missing = {ids for ids in TRAJECTORIES if generator.random() < 0.1}

    def leaf(completion_ids: list[list[int]]) -> list[float | None]:
        return [None if tuple(ids) in missing else table[tuple(ids)] for ids in completion_ids]

    def value(one: Completion) -> float | None:
        return leaf([list(one.token_ids)])[0]

    return Tree(as_reward(leaf, name=name), value)


def random_sum(generator: np.random.Generator, parts: list[Tree]) -> Tree:
    weights = generator.choice([0.0, 1.0, -0.5, 2.0], size=len(parts)).tolist()
    constant = float(generator.choice([0.0, 0.25]))
    reward = WeightedSum([*((weight, part.reward) for weight, part in zip(weights, parts, strict=True)), (1, constant)])
    terms = []
    for weight, part in zip(weights, parts, strict=True):
        terms += [(weight * own, term) for own, term in part.terms] or [(weight, part)]
        constant += weight * part.constant

    def value(one: Completion) -> float | None:
        paying = [(weight, term.value(one)) for weight, term in terms if weight]
        if not paying:
            paying = [(weight, term.value(one)) for weight, term in terms]
        applying = [(weight, found) for weight, found in paying if found is not None]
        return sum(weight * found for weight, found in applying) + constant if applying else None

    return Tree(reward, value, terms, constant)


def random_tree(generator: np.random.Generator, depth: int, names: list[str]) -> Tree:
    if depth == 0:
        names.append(f"leaf{len(names)}")
        return random_leaf(generator, names[-1])
    kind = generator.choice(["sum", "sum", "product", "clip", "gate", "spread", "ratio"])
    first, second = (random_tree(generator, depth - 1, names) for _ in range(2))
    names.append(f"{kind}{len(names)}")
    if kind == "sum":
        return random_sum(generator, [first, second])
    if kind == "product":
        return Tree(Product(first.reward, second.reward, name=names[-1]), both(first, second, lambda a, b: a * b))
    if kind == "clip":
        return Tree(Clip(first.reward, -0.5, 0.7, name=names[-1]), only(first, lambda a: min(max(a, -0.5), 0.7)))
    if kind == "spread":
        return Tree(Spread(first.reward, at=[2]), first.value)
    if kind == "ratio":
        return Tree(
            Ratio(first.reward, second.reward + 50, name=names[-1]), both(first, second, lambda a, b: a / (b + 50))
        )

    def gated(one: Completion) -> float | None:
        condition = first.value(one)
        if condition is None:
            return None
        return second.value(one) if condition >= 0.1 else -0.3

    gate = Gate(as_reward(first.reward), second.reward, threshold=0.1, otherwise=-0.3)
    return Tree(gate, gated)


def both(first: Tree, second: Tree, function: Callable[[float, float], float]) -> Callable[[Completion], float | None]:
    def value(one: Completion) -> float | None:
        left, right = first.value(one), second.value(one)
        return None if left is None or right is None else function(left, right)

    return value


def only(first: Tree, function: Callable[[float], float]) -> Callable[[Completion], float | None]:
    def value(one: Completion) -> float | None:
        found = first.value(one)
        return None if found is None else function(found)

    return value


@pytest.mark.parametrize("seed", range(60))
def test_what_the_parts_paid_is_the_reward_and_what_the_formula_says(seed: int) -> None:
    generator = np.random.default_rng(seed)
    names: list[str] = []
    tree = random_sum(generator, [random_tree(generator, int(generator.integers(3)), names) for _ in range(3)])
    mdp = make_mdp(tree.reward)
    everything = [finished(mdp, ids) for ids in TRAJECTORIES]
    judgement = tree.reward.judge(everything)
    expected = [tree.value(one) for one in everything]
    assert judgement.valid.tolist() == [value is not None for value in expected]
    paid = np.sum([told["weighted"] for told in judgement.components.values()], axis=0)
    for index in np.flatnonzero(judgement.valid):
        assert judgement.token_rewards[index].sum() == pytest.approx(expected[index], abs=1e-12)
        assert paid[index] == pytest.approx(expected[index], abs=1e-12)
    assert tuple(judgement.components) == tree.reward.component_names


@pytest.mark.parametrize("seed", range(10))
def test_what_an_episode_paid_is_what_its_info_reports(seed: int) -> None:
    """With dense parts and shaping in the mixture, step after step."""
    generator = np.random.default_rng(seed)
    leaf = random_leaf(generator, "leaf").reward
    reward = (
        PotentialShaping(leaf, words, gamma=0.9)
        - 0.5 * as_reward(id_tenths)
        + Clip(vowels, high=1)
        + 0 * as_reward(length)
    )
    mdp = make_mdp(reward)
    for ids in TRAJECTORIES:
        paid, info = play(mdp, ids)
        told = [values["weighted"][0] for name, values in info["reward"].items() if not name.startswith("_")]
        assert sum(told) == pytest.approx(sum(paid), abs=1e-12)
        assert mdp.returns([finished(mdp, ids)])[0] == pytest.approx(sum(paid), abs=1e-12)


# --- copies -----------------------------------------------------------------------------------------------


EVERY_KIND = [
    0.6 * Rouge("L") - 0.5 * as_reward(words) + 1,
    as_reward(length) * words / (as_reward(vowels) + 1),
    Clip(0.5 * as_reward(words), -1, 1),
    Gate(words, length, threshold=2, otherwise=-1),
    Normalise(length) + Spread(words, at=[5]),
    PotentialShaping(length, words) + id_tenths,
    Cached(length),
]


@pytest.mark.parametrize("reward", EVERY_KIND, ids=repr)
def test_compositions_pickle_and_copy(reward: Reward) -> None:
    batch = [Completion(Prompt("Say:", ("a b",)), text, (5, 6, 7), "eos", lambda ids: "x" * len(ids)) for text in "ab"]
    for twin in (pickle.loads(pickle.dumps(reward)), copy.deepcopy(reward), reward.frozen()):
        assert repr(twin) == repr(reward)
        assert (twin.name, twin.kind, twin.bounds) == (reward.name, reward.kind, reward.bounds)
        assert twin.frozen().score(batch).totals.tolist() == reward.frozen().score(batch).totals.tolist()
