"""Two processes learn as one: the same gradient as one process gets from all of the episodes."""

from pathlib import Path

import pytest
import torch
from stable_baselines3.common.logger import configure

from agents import A2C, GRPO, PPO, REINFORCE
from tests.agents.conftest import gpt2_config, gradients, largest_gap, make_env, weights
from tests.agents.ranks import on_ranks

EPISODES, SAMPLES = 16, 4
SHARED = {
    "episodes_per_rollout": EPISODES,
    "samples_per_prompt": SAMPLES,
    "num_envs": 4,
    "learning_rate": 1e-3,
    "learning_rate_schedule": "constant",
    "max_grad_norm": 1e9,  # gradients as they are
}
PLAIN = {"whiten_advantages": True, "kl_coef_per_sequence": 0.1, "entropy_coef": 0.01, "whiten_rewards": True}
ALGORITHMS = {
    "reinforce": (REINFORCE, {**SHARED, **PLAIN, "baseline": "batch_mean", "kl_target_per_sequence": 0.5}),
    "a2c": (A2C, {**SHARED, **PLAIN}),
    "ppo": (PPO, {**SHARED, **PLAIN, "epochs": 1, "minibatches": 1}),
    "grpo": (GRPO, {**SHARED, **PLAIN, "epochs": 1, "minibatches": 1}),
}


def an_agent(name, episodes=EPISODES):
    kind, options = ALGORITHMS[name]
    agent = kind(gpt2_config(), make_env(), seed=5, device="cpu", **{**options, "episodes_per_rollout": episodes})
    generator = torch.Generator().manual_seed(1)  # a reference that differs, so that there is a KL
    with torch.no_grad():
        for parameter in agent.policy.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    agent.set_logger(configure(None, []))
    return agent


def halves(rollout):
    """A rollout as two ranks would have it: few tokens on one, many on the other; a prompt's episodes together."""
    totals = torch.zeros(int(rollout.prompt_groups_B.max()) + 1).index_add(
        0, rollout.prompt_groups_B, rollout.lengths_B.float()
    )
    order = totals.argsort()
    return [torch.isin(rollout.prompt_groups_B, part).nonzero().squeeze(-1) for part in order.tensor_split(2)]


def update(agent, rollout):
    """One update, and the gradient that it stepped along."""
    kept = {}

    def keep(optimiser, args, kwargs):
        kept.update(gradients(agent.policy))

    agent.policy.optimizer.register_step_pre_hook(keep)
    agent.train(rollout)
    return {
        "gradients": kept,
        "weights": weights(agent.policy),
        "metrics": {k: v for k, v in agent.logger.name_to_value.items()},
        "kl_coef": agent.kl_controller.coef,
    }


def update_a_half(folder: Path, means_of_means: bool):
    found = {}
    for name in ALGORITHMS:
        agent = an_agent(name, EPISODES // 2)
        agent._begin_together()
        agent.set_logger(configure(None, []))
        rollout = torch.load(folder / f"{name}.pt", weights_only=False)
        own = rollout.select(halves(rollout)[agent.world.rank])
        if means_of_means:
            total = agent.world.sum

            def own_count(value, total=total):
                return value * 2 if isinstance(value, int) else total(value)

            agent.world.sum = own_count  # must fail: each rank's own mean, then the mean of the two
        found[name] = update(agent, own)
    return found


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """One process with all of the episodes."""
    folder = tmp_path_factory.mktemp("ranks")
    found = {}
    for name in ALGORITHMS:
        agent = an_agent(name)
        rollout = agent.collector.collect(EPISODES, samples_per_prompt=SAMPLES)
        torch.save(rollout, folder / f"{name}.pt")
        few, many = (rollout.select(rows).num_tokens for rows in halves(rollout))
        assert many > 1.2 * few
        found[name] = update(agent, rollout)
    return folder, found


def test_two_ranks_have_the_gradient_of_one_with_all_episodes(whole):
    folder, expected = whole
    for found in on_ranks(2, update_a_half, folder, False):
        for name in ALGORITHMS:
            size = max(float(value.abs().max()) for value in expected[name]["gradients"].values())
            assert size > 1e-3
            assert largest_gap(found[name]["gradients"], expected[name]["gradients"]) < 1e-6 * max(1, size), name
            assert found[name]["kl_coef"] == pytest.approx(expected[name]["kl_coef"], rel=1e-6)
            for metric, value in expected[name]["metrics"].items():
                assert found[name]["metrics"][metric] == pytest.approx(value, rel=2e-4, abs=1e-6, nan_ok=True), metric


def test_must_fail_the_mean_of_two_means_is_another_gradient(whole):
    folder, expected = whole
    first, second = on_ranks(2, update_a_half, folder, True)
    for name in ALGORITHMS:
        assert largest_gap(first[name]["gradients"], expected[name]["gradients"]) > 1e-3, name
        assert largest_gap(first[name]["weights"], second[name]["weights"]) == 0  # the ranks agree all the same
