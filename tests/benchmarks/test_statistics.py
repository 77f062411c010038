import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.statistics import (
    Estimate,
    estimate,
    interquartile_mean,
    performance_profile,
    pooled_iqm,
    probability_of_improvement,
    stratified_bootstrap,
)

VALUES = st.lists(st.integers(-1000, 1000).map(float), min_size=1, max_size=13)


# --- the interquartile mean -------------------------------------------------------------------------------


def trimmed_mean(values):
    """Must fail: it cuts whole runs only, and so less than a quarter of most numbers of seeds."""
    cut = int(0.25 * len(values))
    return np.mean(np.sort(values)[cut : len(values) - cut])


def of_middle_half(values):
    """By the definition: each value four times, and then the half in the middle has whole values."""
    repeated = np.sort(np.repeat(values, 4))
    return repeated[len(values) : 3 * len(values)].mean()


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([7.0], 7.0),
        ([1.0, 5.0], 3.0),
        ([0.0, 6.0, 30.0], 30 / 6 + 4),
        ([-99.0, 1.0, 2.0, 99.0], 1.5),
        ([5.0, 4.0, 3.0, 2.0, -1000.0], 0.3 * 2 + 0.4 * 3 + 0.3 * 4),
        ([8.0, 7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0], 4.5),
    ],
)
def test_known_interquartile_means(values, expected):
    assert interquartile_mean(values) == pytest.approx(expected, abs=1e-12)


@given(VALUES)
def test_it_is_the_mean_of_the_middle_half(values):
    assert interquartile_mean(values) == pytest.approx(of_middle_half(values), abs=1e-9)


def test_whole_runs_trimmed_are_not_the_middle_half():
    values = [0.0, 0.0, 1.0, 10.0, 10.0]
    assert trimmed_mean(values) != pytest.approx(of_middle_half(values))
    assert trimmed_mean(values[:4]) == pytest.approx(of_middle_half(values[:4]))  # 4 divides 4


@given(VALUES, st.integers(-5, 5), st.integers(-9, 9))
def test_it_follows_a_change_of_units(values, slope, offset):
    moved = interquartile_mean(slope * np.array(values) + offset)
    assert moved == pytest.approx(slope * interquartile_mean(values) + offset, abs=1e-8)


def test_it_is_taken_along_the_last_axis():
    rows = np.arange(24.0).reshape(2, 3, 4)
    assert interquartile_mean(rows) == pytest.approx(rows.mean(-1))


def test_of_nothing_there_is_none():
    with pytest.raises(ValueError, match="no values"):
        interquartile_mean([])


# --- the bootstrap ----------------------------------------------------------------------------------------


def test_resamples_have_the_known_distribution():
    means = stratified_bootstrap(lambda parts: parts[0].mean(-1), [np.array([0.0, 1.0])], resamples=20_000)
    shares = [(means == value).mean() for value in (0.0, 0.5, 1.0)]
    assert shares == pytest.approx([0.25, 0.5, 0.25], abs=0.01)


def coverage(interval_of, runs=20, repeats=300):
    """How often the interval of a normal sample holds the true interquartile mean, which is 0."""
    generator = np.random.default_rng(0)
    ends = [interval_of(generator.normal(size=runs), repeat) for repeat in range(repeats)]
    return np.mean([low <= 0 <= high for low, high in ends])


def percentile(values, seed):
    return pooled_iqm([values], resamples=400, seed=seed).interval


def without_replacement(values, seed):
    """Must fail: every resample is the sample."""
    value = float(interquartile_mean(np.random.default_rng(seed).permutation(values)))
    return value, value


def of_single_runs(values, seed):
    """Must fail: the spread of runs, not of their mean."""
    return tuple(np.quantile(values, [0.025, 0.975]))


def test_intervals_hold_the_truth_as_often_as_they_say():
    assert 0.91 <= coverage(percentile) <= 0.97
    assert coverage(without_replacement) < 0.5
    assert coverage(of_single_runs) == 1.0


def test_five_seeds_are_few():
    """What the report says about its intervals."""
    assert coverage(percentile, runs=5, repeats=600) == pytest.approx(0.91, abs=0.025)


def test_equal_contenders_are_seldom_told_apart():
    generator = np.random.default_rng(1)
    pairs = [[pooled_iqm([generator.normal(size=5)], resamples=400) for _ in range(2)] for _ in range(300)]
    assert np.mean([one.above(other) or other.above(one) for one, other in pairs]) < 0.04


def test_only_what_differs_within_a_task_counts():
    """Must fail: runs of an easy and of a hard task, drawn as if they were of one."""
    easy, hard = [0.90, 0.91, 0.92, 0.93], [0.10, 0.11, 0.12, 0.13]
    stratified, mixed = pooled_iqm([easy, hard]), pooled_iqm([[*easy, *hard]])
    assert stratified.value == mixed.value
    assert stratified.interval[1] - stratified.interval[0] < 0.05
    assert mixed.interval[1] - mixed.interval[0] > 0.3


def test_the_same_seed_gives_the_same_interval():
    runs = [np.random.default_rng(0).random(20)]
    assert pooled_iqm(runs) == pooled_iqm(runs)
    assert pooled_iqm(runs) != pooled_iqm(runs, seed=1)


def test_one_run_shows_no_spread():
    assert pooled_iqm([[0.5]]) == Estimate(0.5, None)
    assert pooled_iqm([[0.5], [0.7]]).interval is None
    assert pooled_iqm([[0.5], [0.6, 0.7]]).interval is not None


def test_intervals_that_touch_do_not_separate():
    low, high = Estimate(1.0, (0.9, 1.1)), Estimate(1.2, (1.1, 1.3))
    assert not high.above(low)
    assert Estimate(1.2, (1.11, 1.3)).above(low)
    assert not low.above(high)
    assert not Estimate(9.0).above(low)  # one run proves nothing


def test_a_stratum_without_runs_is_refused():
    for strata in ([], [np.array([])]):
        with pytest.raises(ValueError, match="without runs"):
            stratified_bootstrap(lambda parts: parts[0], strata)


# --- who beats whom ---------------------------------------------------------------------------------------


def mann_whitney_u(xs, ys):
    """U by the sum of X's ranks, ties sharing theirs (Mann & Whitney 1947)."""
    pooled = sorted([*xs, *ys])
    rank = {value: np.mean([place for place, other in enumerate(pooled, 1) if other == value]) for value in pooled}
    return sum(rank[x] for x in xs) - len(xs) * (len(xs) + 1) / 2


FEW = st.lists(st.integers(0, 4).map(float), min_size=1, max_size=6)


@given(FEW, FEW)
def test_it_is_mann_whitneys_u_by_the_pairs(xs, ys):
    found = probability_of_improvement([xs], [ys], resamples=2).value
    assert found == pytest.approx(mann_whitney_u(xs, ys) / (len(xs) * len(ys)), abs=1e-12)
    assert found + probability_of_improvement([ys], [xs], resamples=2).value == pytest.approx(1)


def test_by_hand():
    xs, ys = [1.0, 2.0, 2.0], [2.0, 3.0]
    assert probability_of_improvement([xs], [ys]).value == pytest.approx((0.5 + 0.5) / 6)
    wins = sum(x >= y for x, y in itertools.product(xs, ys)) / 6  # must fail: a tie is no win
    assert wins != pytest.approx(mann_whitney_u(xs, ys) / 6)


def test_tasks_weigh_the_same_however_many_runs_they_have():
    found = probability_of_improvement([[2.0] * 8, [0.0]], [[1.0] * 8, [1.0]])
    assert found.value == 0.5


def test_its_interval_is_certain_where_every_run_wins():
    assert probability_of_improvement([[2.0, 3.0]], [[0.0, 1.0]]) == Estimate(1.0, (1.0, 1.0))
    low, high = probability_of_improvement([[0.0, 1.0, 2.0]], [[0.5, 1.5, 2.5]]).interval
    assert low < 1 / 3 < high


def test_tasks_must_be_the_same():
    with pytest.raises(ValueError, match="2 tasks on one side, 1 on the other"):
        probability_of_improvement([[1.0], [1.0]], [[1.0]])


# --- performance profiles ---------------------------------------------------------------------------------


def test_shares_above_thresholds():
    shares, low, high = performance_profile([[0.0, 0.5], [1.0]], [-0.1, 0.0, 0.5, 0.99, 1.0])
    assert shares == pytest.approx([1, 2 / 3, 1 / 3, 1 / 3, 0])  # ">": a run at 1 is not above 1
    assert (low <= shares).all()
    assert (shares <= high).all()


@given(st.lists(FEW, min_size=1, max_size=3))
def test_a_profile_never_rises(strata):
    thresholds = np.linspace(-1, 5, 30)
    for curve in performance_profile(strata, thresholds, resamples=20):
        assert (np.diff(curve) <= 1e-12).all()
        assert curve[0] == 1
        assert curve[-1] == 0


def test_the_area_under_it_is_the_mean():
    scores = np.random.default_rng(0).random(40)
    shares, *_ = performance_profile([scores], np.linspace(0, 1, 2001), resamples=2)
    assert (shares[:-1] + shares[1:]).sum() / 4000 == pytest.approx(scores.mean(), abs=1e-3)


def test_any_statistic_can_be_estimated():
    found = estimate(lambda parts: parts[0].max(-1), [np.array([1.0, 2.0, 3.0])])
    assert found.value == 3
    assert not math.isnan(found.interval[0])
