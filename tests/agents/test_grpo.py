"""GRPO: advantages by hand, the gradient by enumerating groups, and no critic anywhere."""

import pytest
import torch
from stable_baselines3.common.logger import configure

from agents import GRPO, REINFORCE, GRPOConfig
from tests.agents.conftest import gpt2_config, gradients, largest_gap, make_env, weights
from tests.agents.tree import Tree, scaled, weighted_ascent


@pytest.fixture(scope="module")
def tree():
    return Tree()


# --- exact gradients --------------------------------------------------------------------------------------


def test_unscaled_it_is_proportional_to_the_gradient(tree):
    """A group's mean holds a G-th of the own return: 1 − 1/G of the gradient a member, here a half of two."""
    agent = tree.agent(GRPO, samples_per_prompt=2, scale_by_group_std=False)
    rollout, p = tree.pairs()
    assert largest_gap(weighted_ascent(agent, agent.prepare(rollout), p), tree.exact_gradient()) < 1e-12


def test_scaled_it_is_the_gradient_of_another_objective(tree):
    """Of a pair the better gets +c and the worse −c, however much better it is: GRPO climbs the chance to win."""
    agent = tree.agent(GRPO, samples_per_prompt=2)
    rollout, p = tree.pairs()
    ascent = weighted_ascent(agent, agent.prepare(rollout), p)
    probabilities, scores = tree.probabilities(), tree.scores
    gap = scores[:, None] - scores
    wins = gap / 2 / (gap.abs() / 2**0.5 + 1e-4)  # half the gap, over the sample's standard deviation
    against = probabilities.detach()  # the policy that acted, as an opponent
    objective = 2 * (probabilities[:, None] * against * wins).sum()
    assert largest_gap(ascent, tree.gradient(objective)) < 1e-12
    exact = tree.exact_gradient()
    flat, flat_exact = (torch.cat([g.flatten() for g in each.values()]) for each in (ascent, exact))
    assert torch.cosine_similarity(flat, flat_exact, dim=0) < 0.99  # must fail as a gradient of the mean reward


def test_its_first_step_is_that_of_rloo_less_a_factor(tree):
    rollout, _ = tree.pairs()
    grpo = tree.agent(GRPO, samples_per_prompt=2, scale_by_group_std=False)
    rloo = tree.agent(REINFORCE, samples_per_prompt=2)
    seen = []
    for agent in (grpo, rloo):
        batch = agent.prepare(rollout)
        agent.accumulate_gradients(batch, torch.arange(len(rollout)))
        seen.append((batch.advantages_BT, gradients(agent.policy)))
    torch.testing.assert_close(2 * seen[0][0], seen[1][0], rtol=0, atol=1e-12)
    assert largest_gap(scaled(seen[0][1], 2), seen[1][1]) < 1e-12


# --- the agent --------------------------------------------------------------------------------------------


def test_a_group_of_equals_leaves_the_policy(tree):
    agent = tree.agent(GRPO, samples_per_prompt=2, learning_rate=0.1, episodes_per_rollout=4)
    before = weights(agent.policy)
    agent.train(tree.rollout([3, 3, 8, 8], samples_per_prompt=2))
    assert largest_gap(weights(agent.policy), before) == 0
    agent.train(tree.rollout([3, 9, 8, 4], samples_per_prompt=2))
    assert largest_gap(weights(agent.policy), before) > 1e-3


def test_scaling_takes_the_rewards_unit_away(tree):
    agent = tree.agent(GRPO, samples_per_prompt=4)
    rollout = tree.rollout(range(28), samples_per_prompt=4)
    expected = agent.prepare(rollout).advantages_BT
    other = agent.prepare(rollout.replace(rewards_BT=100 * rollout.rewards_BT)).advantages_BT
    torch.testing.assert_close(other, expected, rtol=1e-3, atol=0)


def test_the_kl_is_a_term_of_the_loss_and_no_critic_is_trained():
    agent = GRPO(gpt2_config(), make_env(), seed=0, device="cpu", episodes_per_rollout=16, kl_coef_per_sequence=0.1)
    agent.set_logger(configure(None, []))
    head = weights(agent.policy.value_head)
    agent.learn(1, log_interval=10**9)
    values = agent.logger.name_to_value
    assert {"loss/kl", "kl/per_sequence", "policy/clipfrac"} <= set(values)
    assert not {"loss/value", "explained_variance"} & set(values)
    assert largest_gap(weights(agent.policy.value_head), head) == 0
    assert agent._n_updates == 8


def test_defaults_and_what_they_refuse():
    config = GRPOConfig()
    assert (config.kl_in, config.kl_estimator, config.whiten_advantages) == ("loss", "k3", False)
    assert not hasattr(config, "gae_lambda")
    with pytest.raises(ValueError, match="set samples_per_prompt above 1"):
        GRPOConfig(samples_per_prompt=1)
    with pytest.raises(ValueError, match="gamma has no effect"):
        GRPOConfig(gamma=0.9)
