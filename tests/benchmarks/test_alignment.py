import itertools
import json

import numpy as np
import pytest

from agents.alignment.human import rating_consistency
from benchmarks.alignment import alike, different, learned, matrix
from tests.snippets import ROOT


@pytest.mark.parametrize("total", range(3, 16))
def test_the_extremes_are_those_of_all_ratings(total):
    """Of all three ratings with this sum, these have the smallest and the largest sum of squares."""
    squares = {sum(r * r for r in some) for some in itertools.product(range(1, 6), repeat=3) if sum(some) == total}
    assert sum(r * r for r in alike(total)) == min(squares)
    assert sum(r * r for r in different(total)) == max(squares)
    assert sum(alike(total)) == sum(different(total)) == total


def test_the_true_ceiling_lies_between():
    draw = np.random.default_rng(0)
    quality = draw.normal(3, 1, size=(400, 1))
    ratings = np.clip(np.rint(quality + draw.normal(0, 0.7, size=(400, 3))), 1, 5)
    prompts = [str(row) for row in range(400)]

    def ceiling(table_IA):
        return rating_consistency(table_IA, quality[:, 0], prompts, resamples=0).ceiling.value

    means = ratings.mean(1)
    assert ceiling(matrix(means, different)) < ceiling(ratings) < ceiling(matrix(means, alike))


def test_a_mean_of_other_than_three_whole_ratings_is_refused():
    with pytest.raises(ValueError, match="multiple of 1/3"):
        matrix(np.array([2.5]), alike)


def test_the_figures_of_record_hold_together():
    """What the README says is in the file, and the ceiling is above every scorer."""
    written = json.loads((ROOT / "benchmarks/results/alignment.json").read_text(encoding="utf-8"))
    assert written["learned"] == learned(ROOT / "benchmarks/results/preferences.json")
    for by_scorer in written["figures"].values():
        for by_extreme in by_scorer.values():
            low, high = (
                by_extreme[name]["ceiling"]["value"] for name in ("as different as can be", "as alike as can be")
            )
            assert low < high
