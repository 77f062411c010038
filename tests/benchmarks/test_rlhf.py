"""The figures of the loop's benchmark, from lines as its seeds leave them."""

import pytest

from benchmarks.rlhf import clear, report


def line(seed=0, low=0.4, kl=5.0):
    start = {"gold": {"mean": 0.2, "interval": [0.1, 0.3]}, "distinct_2": 0.8}
    end = {
        "gold": {"mean": low + 0.1, "interval": [low, low + 0.2]},
        "gold_gain": {"mean": low - 0.1, "interval": [low - 0.2, low]},
        "kl": kl,
        "kl_standard_error": 0.25,
        "distinct_2": 0.6,
    }
    model = {"accuracy": 0.65, "best_accuracy": 0.9}
    rounds = [{"evaluation": end, "reward_model": model}] * 2
    return {"seed": seed, "start": start, "rounds": rounds, "cpu_seconds": 80.0}


@pytest.mark.parametrize(("changes", "passes"), [({}, True), ({"low": 0.29}, False), ({"kl": 10.5}, False)])
def test_a_gain_counts_where_intervals_are_apart_and_the_kl_is_small(changes, passes):
    assert clear(line(**changes)) == passes


def test_the_report_has_every_seed_and_says_how_many_passed():
    table = report([line(0), line(1, low=0.2), line(2)])
    rows = [row for row in table.splitlines() if row.startswith("|")]
    assert len(rows) == 2 + 3 + 1
    assert len({row.count("|") for row in rows}) == 1
    assert "0.500 [0.400, 0.600]" in rows[2]
    assert "0.650 / 0.900" in rows[2]
    assert "0.433 ± " in rows[-1]
    assert "KL ≤ 10: 2 of 3 seeds" in table
