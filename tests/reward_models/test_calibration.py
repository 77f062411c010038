import numpy as np
import pytest

from reward_models.preference.calibration import calibration
from reward_models.preference.report import mean_interval, rank_correlation


def test_ece_by_hand():
    found = calibration([0.55, 0.58, 0.9, 1.0], [1, 0, 1, 1], bins=5, low=0.5)
    assert [one.count for one in found.bins] == [2, 0, 0, 1, 1]
    assert found.bins[0].confidence == pytest.approx(0.565)
    assert found.bins[0].frequency == 0.5
    assert found.bins[1].frequency is None
    assert found.ece == pytest.approx(0.5 * 0.065 + 0.25 * 0.1 + 0.25 * 0.0)


def test_honest_probabilities_are_calibrated_and_boasts_are_not():
    generator = np.random.default_rng(0)
    stated = generator.uniform(0.5, 1, 20_000)
    came_true = generator.uniform(size=20_000) < stated
    assert calibration(stated, came_true, low=0.5).ece < 0.02
    assert calibration(np.sqrt(stated), came_true, low=0.5).ece > 0.08  # must fail: overconfident


@pytest.mark.parametrize(
    ("stated", "true", "bins"), [([], [], 10), ([0.5], [1, 0], 10), ([0.4], [1], 10), ([float("nan")], [1], 10)]
)
def test_bad_input_is_refused(stated, true, bins):
    with pytest.raises(ValueError, match=r"calibration wants|probabilities must"):
        calibration(stated, true, bins=bins, low=0.5)


def test_rank_correlation():
    assert rank_correlation([1, 2, 3, 4], [1, 4, 9, 16]) == 1
    assert rank_correlation([1, 2, 3, 4], [4, 3, 2, 1]) == -1
    # Ranks 1, 2.5, 2.5, 4 against 1, 2, 3, 4: covariance 4.5 / sqrt(4.5 * 5).
    assert rank_correlation([1, 2, 2, 3], [1, 2, 3, 4]) == pytest.approx(4.5 / np.sqrt(4.5 * 5))
    assert rank_correlation([1, 1], [1, 2]) is None


def test_the_interval_draws_whole_clusters():
    """Ten copies of each value tell no more than one."""
    values = np.random.default_rng(0).normal(size=40)
    alone = mean_interval(values, list(range(40)))
    copied = mean_interval(np.repeat(values, 10), list(np.repeat(np.arange(40), 10)))
    assert copied == pytest.approx(alone, abs=0.05)
    naive = mean_interval(np.repeat(values, 10), list(range(400)))  # must fail: as if all were independent
    assert naive[1] - naive[0] < 0.5 * (alone[1] - alone[0])
