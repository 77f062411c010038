"""What every task with a known optimum declares of itself, recomputed."""

import pytest
import torch

from agents.evaluation import on_split
from benchmarks.baselines import hack_scores, optimum_score, random_score, supervised_score
from benchmarks.setups import setup, setups
from textgen_env.tasks.ladder import LADDER, RECOGNISABLE

RUNGS = {**LADDER, **RECOGNISABLE}


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_every_rung_has_a_setup():
    assert set(RUNGS) <= set(setups())


@pytest.mark.parametrize("task", RUNGS)
def test_declared_optimum(task):
    assert optimum_score(setup(task)) == pytest.approx(RUNGS[task].optimum, rel=1e-6)


@pytest.mark.parametrize("task", RUNGS)
def test_declared_random_score(task):
    rung = RUNGS[task]
    assert random_score(setup(task)) == pytest.approx(rung.random, abs=0.02 * abs(rung.optimum - rung.random))


@pytest.mark.parametrize("task", RUNGS)
def test_declared_supervised_score(task):
    """Within 5 % of the scale: threads and versions round differently."""
    rung = RUNGS[task]
    assert supervised_score(setup(task)) == pytest.approx(rung.supervised, abs=0.05 * abs(rung.optimum - rung.random))


@pytest.mark.parametrize("task", RUNGS)
def test_the_hack_fools_the_naive_reward_alone(task):
    rung, held_out = RUNGS[task], on_split(setup(task).make_env(1).mdp, "test")
    naive, robust = hack_scores(held_out, rung.hack)
    assert naive == pytest.approx(rung.hack.naive_score, abs=1e-3)
    assert robust == pytest.approx(rung.hack.robust_score, abs=1e-3)
    assert rung.normalised(robust) < 0.7
