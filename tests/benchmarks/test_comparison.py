import math

import pytest

from benchmarks.comparison import Comparison, Spread, circumstances
from benchmarks.records import gather
from benchmarks.statistics import interquartile_mean, pooled_iqm
from tests.benchmarks.made_up import cell, failed, ladder, line


def one_cell(*runs):
    return Comparison(gather(runs)).cells["Reverse", "ppo"]


# --- one contender on one task ----------------------------------------------------------------------------


def test_scores_and_regret_are_interquartile_means():
    normalised = [0.1, 0.9, 0.5, 0.6, 0.4]
    found = one_cell(*cell(*normalised))
    assert found.normalised == pooled_iqm([normalised])
    assert found.score.value == pytest.approx(1 + 2 * interquartile_mean(normalised))
    assert found.regret == pytest.approx(3 - found.score.value)


def test_without_an_optimum_there_is_the_score_alone():
    found = one_cell(line(normalised=None))
    assert (found.normalised, found.regret, found.solved) == (None, None, None)
    assert found.score.value == 5


def test_a_figure_that_some_runs_lack_is_that_of_the_others():
    found = one_cell(line(kl_per_sequence=None), line(seed=1, kl_per_sequence=4.0))
    assert found.middle("kl_per_sequence") == 4
    assert found.middle("nothing") is None


def test_a_seed_that_never_solved_it_takes_for_ever():
    """Must fail: the median of those that did, which makes the unreliable look quick."""
    when = [{"tokens": tokens, "episodes": 1, "cpu_seconds": tokens / 10} for tokens in (10, 20, 40)]
    solved = [line(seed=seed, normalised=1.0, solved_at=at) for seed, at in enumerate(when)]
    found = one_cell(*solved, *[line(seed=seed, normalised=0.5) for seed in (3, 4)])
    assert found.solved == 3
    assert found.to_solve("tokens") == Spread(40, math.inf)
    assert found.to_solve("cpu_seconds") == Spread(4, math.inf)
    assert one_cell(*solved).to_solve("tokens") == Spread(20, 40)
    assert one_cell(solved[0], line(seed=1), line(seed=2)).to_solve("tokens").median == math.inf


def test_what_the_curve_reached_and_the_end_did_not_is_unsolved():
    passed = {"tokens": 10, "episodes": 1, "cpu_seconds": 1.0}
    assert one_cell(line(normalised=0.98, solved_at=passed)).solved == 0
    late = one_cell(line(normalised=1.0, solved_at=None))
    assert late.to_solve("tokens") == Spread(41, 41)  # the whole run


@pytest.mark.parametrize(
    ("costs", "expected"),
    [
        ([3.0, 1.0, 2.0], (2, 3)),
        ([4.0, 1.0, 2.0, 3.0], (2.5, 4)),
        ([1.0, 2.0, math.inf, math.inf], (math.inf, math.inf)),
        ([math.inf, math.inf], (math.inf, math.inf)),
    ],
)
def test_medians_of_what_may_be_infinite(costs, expected):
    assert Spread.of(costs) == Spread(*expected)


def test_the_spread_of_nothing_is_unknown():
    assert math.isnan(Spread.of([]).median)


def curve(*points):
    return [{"tokens": at, "episodes": 0, "cpu_seconds": 0.0, "score": 9.0, "normalised": y} for at, y in points]


@pytest.mark.parametrize(
    ("points", "area"),
    [
        ([(0, 0.0), (10, 1.0)], 0.5),
        ([(0, 0.0), (5, 1.0), (20, 1.0)], (2.5 + 15) / 20),
        ([(4, 0.5), (8, 0.5)], 0.5),
    ],
)
def test_on_the_way_is_the_area_under_the_curve(points, area):
    assert one_cell(line(curve=curve(*points))).on_the_way.value == pytest.approx(area)


def test_on_the_way_there_must_be_a_way():
    assert one_cell(line(curve=[])).on_the_way is None
    assert one_cell(line(curve=curve((0, 0.5)))).on_the_way is None
    read = Comparison(gather([line(contender="supervised")])).cells["Reverse", "supervised"]
    assert read.on_the_way is None  # its tokens are those that it read


# --- all tasks --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def comparison():
    return Comparison(gather(ladder()))


def test_runs_are_pooled_over_the_tasks_that_have_an_optimum(comparison):
    assert comparison.normalised_tasks == ["Reverse", "Add"]
    of_dqn = [first - 0.01 * seed for first in (0.88, 0.48) for seed in range(5)]
    assert comparison.overall["dqn"].value == pytest.approx(interquartile_mean(of_dqn))
    assert comparison.solved_tasks("ppo") == 1


def test_the_best_come_first(comparison):
    assert comparison.contenders == ["ppo", "dqn", "trl_ppo", "supervised", "ilql"]  # of one task, that is last
    assert [found.contender for found in comparison.of_task("Add")] == ["ppo", "dqn", "trl_ppo", "supervised"]


def test_contenders_meet_on_the_tasks_of_both(comparison):
    assert comparison.improvement("ppo", "dqn").value == 1
    assert comparison.improvement("dqn", "ppo").value == 0
    assert comparison.tasks_of("ilql", "ppo") == ["Reverse"]
    apart = Comparison(gather([line("Reverse", "ppo"), line("Add", "dqn")]))
    assert apart.improvement("ppo", "dqn") is None


def test_profiles_are_of_the_pooled_runs(comparison):
    shares, low, high = comparison.profile("ppo")
    assert (shares[0], shares[50], shares[70], shares[100]) == (1, 1, 0.5, 0)
    assert len(shares) == len(low) == len(high)


def test_a_task_separates_those_whose_intervals_do_not_overlap(comparison):
    at_the_end = comparison.separated("Reverse", lambda found: found.score)
    assert ("ppo", "dqn") in at_the_end
    assert ("dqn", "ppo") not in at_the_end
    assert not any("supervised" in pair for pair in at_the_end)  # baselines are there to be beaten
    assert len(at_the_end) == len(comparison.pairs("Reverse")) == 6
    assert comparison.pairs("Add") == [("ppo", "dqn"), ("ppo", "trl_ppo"), ("dqn", "trl_ppo")]


def test_overlapping_intervals_separate_nobody():
    both = [*cell(0.1, 0.9, 0.5, 0.4, 0.6), *cell(0.2, 0.9, 0.5, 0.4, 0.6, contender="dqn")]
    assert Comparison(gather(both)).separated("Reverse", lambda found: found.score) == []
    single = [line(normalised=0.1), line(contender="dqn", normalised=0.9)]
    assert Comparison(gather(single)).separated("Reverse", lambda found: found.score) == []


def test_what_failed_altogether_is_counted_but_not_averaged():
    found = Comparison(gather([failed(), *cell(0.5, contender="dqn")]))
    assert found.cells["Reverse", "ppo"].score is None
    assert found.cells["Reverse", "ppo"].solved is None
    assert list(found.overall) == ["dqn"]
    assert found.contenders == ["dqn", "ppo"]


def test_nothing_at_all():
    found = Comparison(gather([failed()]))
    assert found.overall == {}
    assert found.normalised_tasks == []


# --- circumstances ----------------------------------------------------------------------------------------


def test_every_circumstance_that_occurs_is_there():
    runs = [
        line(circumstances={"date": date, "commit": commit, "versions": {"torch": "2"}, "cpu_flags": ["a", "b"]})
        for date, commit in (("2030-01-02", "new"), ("2030-01-01", "old"), ("2030-01-03", "new"))
    ]
    assert circumstances([*runs, line(circumstances=None)]) == {
        "dates": {"2030-01-01 to 2030-01-03": 3},
        "commit": {"new": 2, "old": 1},
        "versions: torch": {"2": 3},
        "cpu_flags": {"a b": 3},
    }
