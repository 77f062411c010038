"""A2C: exact in expectation, PPO's first step under its settings, and SB3's A2C on the same rollout."""

import gymnasium as gym
import numpy as np
import pytest
import stable_baselines3
import torch

from agents import A2C, PPO, A2CConfig
from agents.advantages import masked_mean, whiten
from agents.losses import policy_gradient_loss, value_loss
from tests.agents.conftest import gradients, largest_gap, weights
from tests.agents.tree import Tree, scaled, weighted_ascent


@pytest.fixture(scope="module")
def tree():
    return Tree()


# --- exact gradients --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [A2C, PPO])
def test_the_prompts_other_samples_leave_the_gradient(tree, kind):
    """Both of a pair, each against the other and the critic: twice the gradient."""
    agent = tree.agent(kind, samples_per_prompt=2, prompt_baseline=True, value_coef=0.0, gae_lambda=1.0)
    rollout, p = tree.pairs()
    assert largest_gap(weighted_ascent(agent, agent.prepare(rollout), p), scaled(tree.exact_gradient(), 2)) < 1e-12


def test_a_perfect_critic_leaves_the_gradient_at_any_lambda(tree):
    """With V = V^π the one-step error is enough: λ trades nothing then."""
    p = tree.probabilities().detach()
    values = torch.zeros_like(tree.rewards)
    for row in range(31):
        for t in range(int(tree.lengths[row])):
            alike = (tree.input_ids[:, : 2 + t] == tree.input_ids[row, : 2 + t]).all(-1) & (tree.lengths > t)
            values[row, t] = (p * tree.scores)[alike].sum() / p[alike].sum()
    rollout = tree.rollout().replace(values_BT=values)
    for lam in (0.0, 0.9):
        agent = tree.agent(A2C, gae_lambda=lam, value_coef=0.0)
        assert largest_gap(weighted_ascent(agent, agent.prepare(rollout), p), tree.exact_gradient()) < 1e-12


# --- PPO --------------------------------------------------------------------------------------------------

SHARED = {
    "episodes_per_rollout": 31,
    "learning_rate": 1e-2,
    "kl_coef_per_sequence": 0.2,
    "entropy_coef": 0.03,
    "value_coef": 0.6,
}
ONE_STEP = {
    "epochs": 1,
    "minibatches": 1,
    "gae_lambda": 1.0,
    "whiten_advantages": False,
    "value_clip_range": None,
}


def after_training(agent, rollout, updates=1):
    """Gradients of the first update, and the weights after so many."""
    step, seen = agent.optimiser_step, []

    def keep():
        seen.append(gradients(agent.policy))
        return step()

    agent.optimiser_step = keep
    for _ in range(updates):
        agent.train(rollout)
    return seen[0], weights(agent.policy)


@pytest.mark.parametrize("options", [{}, {"whiten_advantages": True}, {"gae_lambda": 0.9, "gamma": 0.97}])
def test_a2c_is_ppo_with_one_step(tree, options):
    rollout = tree.rollout()
    first, trained = after_training(tree.agent(A2C, **SHARED, **options), rollout)
    expected, weights_after = after_training(tree.agent(PPO, **SHARED, **{**ONE_STEP, **options}), rollout)
    assert max(float(g.abs().max()) for g in expected.values()) > 1e-3
    assert largest_gap(first, expected) < 1e-14
    assert largest_gap(trained, weights_after) < 1e-12
    assert largest_gap(trained, weights(tree.agent(A2C, **SHARED).policy)) > 1e-3


@pytest.mark.parametrize("option", ONE_STEP)
def test_each_of_those_settings_is_needed(tree, option):
    """Must fail: PPO with one of its own defaults back, on a second visit to the rollout, where it has moved."""
    other = {"epochs": 2, "minibatches": 2, "gae_lambda": 0.95, "whiten_advantages": True, "value_clip_range": 0.02}
    rollout = tree.rollout()
    ppo = tree.agent(PPO, **SHARED, **{**ONE_STEP, option: other[option]})
    _, expected = after_training(ppo, rollout, updates=2)
    _, trained = after_training(tree.agent(A2C, **SHARED), rollout, updates=2)
    assert largest_gap(trained, expected) > 1e-4


def test_whole_runs_agree(tree):
    """Sampling, updates and all: three rollouts of the same texts, and the same weights after them."""
    options = {**SHARED, "learning_rate_schedule": "constant"}
    runs = [tree.agent(A2C, **options), tree.agent(PPO, **options, **ONE_STEP)]
    for agent in runs:
        agent.refresh_reference()
        agent.learn(200)
    assert runs[0]._n_updates == runs[1]._n_updates >= 3
    assert runs[0].num_timesteps == runs[1].num_timesteps
    assert largest_gap(weights(runs[0].policy), weights(runs[1].policy)) < 1e-10


# --- SB3 --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("normalise", [False, True])
def test_loss_and_gradients_are_those_of_sb3(normalise):
    """SB3's own `train` on one injected rollout; its gradients against those of our losses on the same tensors."""
    size, ent_coef, vf_coef = 32, 0.03, 0.7
    agent = stable_baselines3.A2C(
        "MlpPolicy",
        gym.make("CartPole-v1"),
        n_steps=size,
        ent_coef=ent_coef,
        vf_coef=vf_coef,
        normalize_advantage=normalise,
        max_grad_norm=1e9,
        use_rms_prop=False,
        policy_kwargs={"net_arch": [8], "optimizer_class": torch.optim.SGD},
        learning_rate=0.0,
        device="cpu",
        seed=0,
    )
    agent.learn(size)
    buffer, generator = agent.rollout_buffer, np.random.default_rng(0)
    for name in ("advantages", "returns"):
        setattr(buffer, name, generator.standard_normal((size, 1)).astype(np.float32))
    observations = torch.from_numpy(buffer.observations).reshape(size, 4)
    actions, advantages, returns = (
        torch.from_numpy(array).reshape(size) for array in (buffer.actions, buffer.advantages, buffer.returns)
    )
    agent.train()  # with a learning rate of 0: the gradients stay in place, the weights as they are
    expected = gradients(agent.policy)

    agent.policy.zero_grad(set_to_none=True)
    values, log_probs, entropies = agent.policy.evaluate_actions(observations, actions)
    mask = torch.ones(size, 1, dtype=torch.bool)
    advantages = advantages[:, None]
    if normalise:  # SB3 divides by the sample's standard deviation
        advantages = whiten(advantages, mask) * ((size - 1) / size) ** 0.5
    policy_loss = policy_gradient_loss(log_probs[:, None], advantages, mask)
    critic_loss = value_loss(values, returns[:, None], mask)
    # ½ stands in ours and not in SB3's
    (policy_loss + 2 * vf_coef * critic_loss - ent_coef * masked_mean(entropies[:, None], mask)).backward()
    assert largest_gap(gradients(agent.policy), expected) < 1e-6
    logged = agent.logger.name_to_value
    assert float(policy_loss.detach()) == pytest.approx(logged["train/policy_loss"], abs=1e-6)
    assert float(2 * critic_loss.detach()) == pytest.approx(logged["train/value_loss"], abs=1e-6)
    assert max(float(g.abs().max()) for g in expected.values()) > 1e-2


def test_the_papers_settings_are_the_defaults():
    config = A2CConfig()
    assert (config.gae_lambda, config.whiten_advantages) == (1.0, False)
    assert not hasattr(config, "clip_range")
