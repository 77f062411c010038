"""What every algorithm owes: a seed that repeats, a save that goes on, one set of metric names, own generators."""

import csv
import dataclasses
import random

import numpy as np
import pytest
import torch
from stable_baselines3.common.logger import configure

from agents.algorithms import ALGORITHMS, find_algorithm
from agents.logged import logged_episodes
from tests.agents.conftest import PROMPTS, gpt2_config, largest_gap, letters, make_env, make_mdp, weights
from tests.agents.test_ppo import documented_metrics

QUICK = {
    "episodes_per_rollout": 8,
    "samples_per_prompt": 2,
    "learning_rate": 3e-3,
    "learning_rate_schedule": "constant",
    "kl_coef_per_sequence": 0.1,
    "entropy_coef": 0.01,
    "epochs": 2,
    "minibatches": 2,
    "mask_refresh_rollouts": 2,
    "learning_starts": 8,
    "batch_episodes": 6,
    "updates_per_rollout": 2,
}
"""Where an algorithm has the option."""
LEARNS_NOTHING = {"random"}
VARIANTS = [
    *((name, {}) for name in ALGORITHMS),
    ("reinforce", {"baseline": "moving_average"}),
    ("reinforce", {"baseline": "self_critical", "credit": "sequence"}),
    ("reinforce", {"baseline": "value"}),
    ("grpo", {"kl_in": "reward", "kl_estimator": "k1", "kl_target_per_sequence": 1.0, "kl_horizon_episodes": 40}),
]


def equip(agent, mdp):
    """Logged episodes, for those who learn from them."""
    if hasattr(agent, "set_data"):
        agent.set_data(logged_episodes(mdp, PROMPTS, ["a b", "c", "a b a", "d e f", "b", "e a"]))
    return agent


def make(name, seed=3, **options):
    kind, config = find_algorithm(name)
    known = {field.name for field in dataclasses.fields(config)}
    quick = {option: value for option, value in QUICK.items() if option in known}
    mdp = make_mdp()
    return equip(kind(gpt2_config(), make_env(mdp=mdp), seed=seed, device="cpu", **{**quick, **options}), mdp)


@pytest.fixture(params=VARIANTS, ids=lambda variant: " ".join(map(str, [variant[0], *variant[1].values()])))
def variant(request):
    name, options = request.param
    return name, options


def test_a_seeded_run_repeats_bit_for_bit(variant):
    name, options = variant
    torch_before, python_before = torch.random.get_rng_state(), random.getstate()
    first, again, other = (make(name, seed, **options).learn(40) for seed in (1, 1, 2))
    assert largest_gap(weights(first.policy), weights(again.policy)) == 0
    assert first.num_timesteps == again.num_timesteps
    assert largest_gap(weights(first.policy), weights(other.policy)) > 0
    assert torch.equal(torch.random.get_rng_state(), torch_before)
    assert random.getstate() == python_before


def test_a_loaded_agent_makes_the_same_next_update(variant, tmp_path):
    name, options = variant
    agent = make(name, **options)
    start = weights(agent.policy)
    agent.learn(40)
    moved = largest_gap(weights(agent.policy), start) > 0
    assert moved is (name not in LEARNS_NOTHING)
    agent.save(tmp_path / "agent.zip")
    mdp = make_mdp()
    loaded = equip(type(agent).load(tmp_path / "agent.zip", env=make_env(mdp=mdp), device="cpu"), mdp)
    assert largest_gap(weights(loaded.policy), weights(agent.policy)) == 0
    for one in (agent, loaded):
        one.learn(40, reset_num_timesteps=False)
    assert largest_gap(weights(loaded.policy), weights(agent.policy)) == 0
    assert loaded._n_updates == agent._n_updates
    assert loaded.num_timesteps == agent.num_timesteps


@pytest.mark.parametrize(
    ("name", "options", "forget"),
    [
        ("reinforce", {"baseline": "moving_average"}, lambda agent: setattr(agent, "moving_average", None)),
        ("grpo", {"kl_target_per_sequence": 1.0}, lambda agent: setattr(agent.kl_controller, "coef", 9.0)),
        ("nlpo", {}, lambda agent: agent.refresh_mask()),
        ("a2c", {}, lambda agent: agent.policy.optimizer.state.clear()),
        ("ppo", {}, lambda agent: agent.refresh_reference()),
    ],
)
def test_state_that_is_forgotten_is_seen(name, options, forget, tmp_path):
    """Must fail: what an algorithm carries from rollout to rollout, lost on the way."""
    agent = make(name, **options, whiten_advantages=False)
    while agent._iteration < 3:
        agent.learn(1, reset_num_timesteps=False)
    agent.save(tmp_path / "agent.zip")
    loaded = type(agent).load(tmp_path / "agent.zip", env=make_env(), device="cpu")
    forget(loaded)
    for one in (agent, loaded):
        one.learn(40, reset_num_timesteps=False)
    assert largest_gap(weights(loaded.policy), weights(agent.policy)) > 1e-6


def test_every_metric_is_documented(variant, tmp_path):
    name, options = variant
    agent = make(name, **options)
    agent.set_logger(configure(str(tmp_path), ["csv"]))
    agent.learn(60)
    agent.logger.close()
    with (tmp_path / "progress.csv").open() as file:
        rows = list(csv.DictReader(file))
    found = {metric for metric in rows[-1] if metric}
    documented = {metric.replace("<name>", letters.__name__) for metric in documented_metrics()}
    assert found - documented == set()
    assert {"reward", "completions/mean_length", "num_tokens", "train/learning_rate"} <= found
    values = [float(value) for row in rows for value in row.values() if value]
    assert np.isfinite(values).all()
    if name not in LEARNS_NOTHING:
        assert {"policy/grad_norm", "policy/optimiser_steps"} <= found


def test_unknown_algorithms_are_refused_with_the_nearest():
    with pytest.raises(ValueError, match="unknown algorithm 'grppo'; did you mean 'grpo'"):
        find_algorithm("grppo")
