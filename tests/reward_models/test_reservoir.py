"""The reservoir: whatever came is as likely to be in it, however long ago it came."""

import numpy as np

from reward_models.reservoir import Reservoir


def test_it_keeps_a_uniform_draw():
    counts = np.zeros(40)
    for seed in range(400):
        reservoir = Reservoir(10, seed)
        for start in range(0, 40, 8):
            reservoir.extend(range(start, start + 8))
        assert len(reservoir) == 10
        for number in reservoir.items:
            counts[number] += 1
    assert np.abs(counts - 100).max() < 4.5 * np.sqrt(400 * 0.25 * 0.75)


def test_it_goes_on_from_a_state():
    first = Reservoir(3, 0)
    first.extend(range(10))
    twin = Reservoir(3, 1)
    twin.load_state(first.state())
    for reservoir in (first, twin):
        reservoir.extend(range(10, 60))
    assert twin.items == first.items
    assert twin.state() == first.state()
