"""What the policy-gradient algorithms share, against exact enumeration: rewards, KL, entropy, one pass of gradients."""

import pytest
import torch

import agents.policy_gradient
from agents import A2C, GRPO, PPO, REINFORCE
from agents.kl import k3
from tests.agents.conftest import gradients, largest_gap
from tests.agents.tree import COMPLETIONS, EOS, Tree, expected_ascent, weighted_ascent

SINGLE = {
    "a2c": (A2C, {"value_coef": 0.0}),
    "ppo": (PPO, {"value_coef": 0.0, "gae_lambda": 1.0}),
    "reinforce by token": (REINFORCE, {"baseline": "none", "credit": "token", "samples_per_prompt": 1}),
    "reinforce by sequence": (REINFORCE, {"baseline": "none", "credit": "sequence", "samples_per_prompt": 1}),
    "reinforce with a critic": (REINFORCE, {"baseline": "value", "samples_per_prompt": 1, "value_coef": 0.0}),
}
"""Algorithms whose episodes do not mix, without the options that bias."""
BETA = 0.3


@pytest.fixture(scope="module")
def tree():
    return Tree()


@pytest.fixture(params=SINGLE)
def single(request, tree):
    kind, options = SINGLE[request.param]
    return lambda **more: tree.agent(kind, **options, **more)


@pytest.fixture(scope="module")
def p(tree):
    return tree.probabilities().detach()


def test_the_tree_is_what_the_collector_plays(tree, p):
    agent = tree.agent(PPO)
    played = agent.collector.collect(400)
    known = tree.rollout()
    rows = [COMPLETIONS.index(completion.token_ids) for completion in played.completions]
    for name in ("log_probs_BT", "values_BT", "rewards_BT"):
        torch.testing.assert_close(getattr(played, name), getattr(known, name)[rows], rtol=0, atol=1e-10)
    assert len(set(rows)) > 25
    mean, spread = float((p * tree.scores).sum()), float(tree.scores.std())
    assert float(played.returns_B.mean()) == pytest.approx(mean, abs=4 * spread / 20)


# --- the gradient -----------------------------------------------------------------------------------------


def test_the_expected_update_is_the_exact_gradient(tree, p, single):
    agent, exact = single(), tree.exact_gradient()
    batch = agent.prepare(tree.rollout())
    assert max(float(g.abs().max()) for g in exact.values()) > 0.01
    assert largest_gap(expected_ascent(agent, batch, p), exact) < 1e-12
    assert largest_gap(weighted_ascent(agent, batch, p), exact) < 1e-12  # so this may stand for the other


def wrong_sign(agent, rollout):
    loss = agent.policy_loss
    agent.policy_loss = lambda *args: -loss(*args)
    return rollout


def without_eos(agent, rollout):
    mask = rollout.action_mask_BT.clone()
    for row, tokens in enumerate(COMPLETIONS):
        if tokens[-1] == EOS and len(tokens) > 1:
            mask[row, len(tokens) - 1] = False
    returns = rollout.returns_B
    rewards = torch.zeros_like(rollout.rewards_BT)
    rewards[range(len(rollout)), mask.sum(-1) - 1] = returns
    return rollout.replace(action_mask_BT=mask, rewards_BT=rewards)


def with_padding(agent, rollout):
    """The text went on for as long as the longest: rewards as they were, every row four actions."""
    rewards = torch.zeros_like(rollout.rewards_BT)
    rewards[:, -1] = rollout.returns_B
    return rollout.replace(action_mask_BT=torch.ones_like(rollout.action_mask_BT), rewards_BT=rewards)


def a_baseline_that_saw_the_action(agent, rollout):
    after = torch.cat([rollout.values_BT[:, 1:], torch.zeros_like(rollout.values_BT[:, :1])], dim=-1)
    return rollout.replace(values_BT=after)


def without_reward_to_go(agent, rollout):
    agent.estimate_advantages = lambda trajectories, rewards: (rewards, None)
    return rollout


@pytest.mark.parametrize(
    "spoil", [wrong_sign, without_eos, with_padding, a_baseline_that_saw_the_action, without_reward_to_go]
)
def test_a_wrong_update_is_seen(tree, p, spoil):
    """Must fail: each is a known way to train towards something else."""
    agent = tree.agent(A2C, value_coef=0.0)
    rollout = spoil(agent, tree.rollout())
    assert largest_gap(weighted_ascent(agent, agent.prepare(rollout), p), tree.exact_gradient()) > 1e-3


@pytest.mark.parametrize("options", [{"gae_lambda": 0.9}, {"whiten_advantages": True}, {"gamma": 0.9}])
def test_options_that_trade_bias_are_seen(tree, p, options):
    """Must fail: each of them buys something (less variance, a common scale) with another gradient."""
    agent = tree.agent(A2C, value_coef=0.0, **options)
    assert largest_gap(weighted_ascent(agent, agent.prepare(tree.rollout()), p), tree.exact_gradient()) > 1e-3


# --- the KL -----------------------------------------------------------------------------------------------


def penalised_gradient(tree, penalty):
    return tree.gradient((tree.probabilities() * tree.scores).sum() - BETA * penalty)


def kl(log_p, log_q):
    return log_p.exp() * (log_p - log_q)


def reverse_kl(log_p, log_q):
    return log_q.exp() * (log_q - log_p)


def test_the_kl_of_completions_is_that_of_their_tokens(tree):
    """The chain rule, as a check of the two ways in which the tree computes it."""
    assert float(tree.kl().detach()) == pytest.approx(float(tree.over_prefixes(kl).detach()), abs=1e-12)
    assert float(tree.kl().detach()) > 0.05


def test_k1_in_the_reward_is_the_gradient_of_the_kl(tree, p, single):
    agent = single(kl_coef_per_sequence=BETA, kl_estimator="k1")
    ascent = weighted_ascent(agent, agent.prepare(tree.rollout()), p)
    assert largest_gap(ascent, penalised_gradient(tree, tree.kl())) < 1e-12
    assert largest_gap(ascent, tree.exact_gradient()) > 1e-3


@pytest.mark.parametrize("estimator", ["k2", "k3"])
def test_other_estimators_in_the_reward_are_not(tree, p, estimator):
    """k3 has the KL's value, yet its score-function gradient is KL(π‖π_ref)'s less the token's KL(π_ref‖π)'s."""
    agent = tree.agent(A2C, value_coef=0.0, kl_coef_per_sequence=BETA, kl_estimator=estimator)
    ascent = weighted_ascent(agent, agent.prepare(tree.rollout()), p)
    assert largest_gap(ascent, penalised_gradient(tree, tree.kl())) > 1e-3
    if estimator == "k3":
        both = tree.kl() - tree.over_prefixes(reverse_kl)
        assert largest_gap(ascent, penalised_gradient(tree, both)) < 1e-12


@pytest.mark.parametrize("spoil", ["sign", "reference"])
def test_a_wrong_penalty_is_seen(tree, p, spoil):
    """Must fail: paid for leaving the reference, or measured against the policy itself."""
    agent = tree.agent(A2C, value_coef=0.0, kl_coef_per_sequence=BETA)
    if spoil == "sign":
        agent.kl_controller.coef *= -1
    else:
        agent.reference.load_state_dict(agent.policy.state_dict())
    ascent = weighted_ascent(agent, agent.prepare(tree.rollout()), p)
    assert largest_gap(ascent, penalised_gradient(tree, tree.kl())) > 1e-3


@pytest.mark.parametrize(("estimator", "divergence"), [("k2", kl), ("k3", reverse_kl)])
def test_in_the_loss_it_is_the_gradient_of_each_tokens_kl(tree, p, single, estimator, divergence):
    """Each token's, in the prefix where it was chosen: that earlier tokens led there is not charged to them."""
    agent = single(kl_coef_per_sequence=BETA, kl_estimator=estimator, kl_in="loss")
    ascent = expected_ascent(agent, agent.prepare(tree.rollout()), p)
    assert largest_gap(ascent, penalised_gradient(tree, tree.over_prefixes(divergence))) < 1e-12
    assert largest_gap(ascent, penalised_gradient(tree, tree.kl())) > 1e-3  # so not the whole sequence's


def test_k1_in_the_loss_would_pull_nowhere(tree, p):
    agent = tree.agent(A2C, value_coef=0.0, kl_coef_per_sequence=BETA, kl_estimator="k2", kl_in="loss")
    agent.config.kl_estimator = "k1"  # the configuration refuses it
    assert largest_gap(expected_ascent(agent, agent.prepare(tree.rollout()), p), tree.exact_gradient()) < 1e-12


def test_the_kl_is_logged_where_it_is_charged(tree, p):
    rollout = tree.rollout()
    agent = tree.agent(A2C, kl_coef_per_sequence=BETA, kl_estimator="k3", kl_in="loss")
    batch = agent.prepare(rollout)
    stats = agent.accumulate_gradients(batch, torch.arange(len(rollout)))
    log_ratio = rollout.log_probs_BT - tree.log_probs(tree.reference).detach()
    assert stats["loss/kl"] == pytest.approx(float(k3(log_ratio)[tree.mask].mean()), abs=1e-6)
    assert agent.logger.name_to_value["kl/per_sequence"] == pytest.approx(float(log_ratio.sum(-1).mean()), abs=1e-12)
    agent.config.kl_in = "reward"
    assert "loss/kl" not in agent.accumulate_gradients(agent.prepare(rollout), torch.arange(len(rollout)))


def test_every_episode_counts_towards_the_coefficient(tree):
    agent = tree.agent(A2C, kl_coef_per_sequence=BETA, kl_target_per_sequence=9.0, kl_horizon_episodes=310)
    agent.prepare(tree.rollout())
    assert agent.kl_controller.coef == pytest.approx(BETA * (1 - 0.2 * 31 / 310))  # far below the target
    assert agent.logger.name_to_value["kl/coef_per_sequence"] == BETA  # the one that was charged


# --- entropy ----------------------------------------------------------------------------------------------


def test_the_entropy_bonus_is_the_gradient_of_each_tokens_entropy(tree, p, single):
    agent = single(entropy_coef=0.2)
    bonus = 0.2 * tree.over_prefixes(lambda log_p, _: -log_p.exp() * log_p)
    exact = tree.gradient((tree.probabilities() * tree.scores).sum() + bonus)
    assert largest_gap(expected_ascent(agent, agent.prepare(tree.rollout()), p), exact) < 1e-12
    assert largest_gap(tree.exact_gradient(), exact) > 1e-3


# --- gradient accumulation --------------------------------------------------------------------------------


SMALL = {"episodes_per_rollout": 12, "samples_per_prompt": 3, "kl_coef_per_sequence": 0.3}
IN_LOSS = {"kl_in": "loss", "kl_estimator": "k2"}


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (A2C, {"entropy_coef": 0.1}),
        (A2C, IN_LOSS),
        (REINFORCE, {}),
        (REINFORCE, {"baseline": "value", **IN_LOSS}),
        (GRPO, {}),
        (GRPO, {"kl_in": "reward", "kl_estimator": "k1"}),
    ],
    ids=str,
)
def test_micro_batches_do_not_change_the_gradient(tree, kind, options):
    agent = tree.agent(kind, **{**SMALL, **options})
    rollout = agent.collector.collect(12, samples_per_prompt=3)
    if agent.config.kl_in == "reward":
        agent.reference.load_state_dict(agent.policy.state_dict())
    batch, seen = agent.prepare(rollout), {}
    for tokens in (1, 40, 10**6):
        agent.config.micro_batch_tokens = tokens
        agent.policy.zero_grad(set_to_none=True)
        seen[tokens] = agent.accumulate_gradients(batch, torch.arange(12)), gradients(agent.policy)
    for stats, found in seen.values():
        assert largest_gap(found, seen[10**6][1]) < 1e-12
        assert stats == pytest.approx(seen[10**6][0], abs=1e-6)


def test_a_kl_of_micro_batch_means_is_seen(tree, monkeypatch):
    """Must fail: the KL of each micro-batch divided by its own number of tokens."""
    agent = tree.agent(GRPO, **SMALL)
    rollout = agent.collector.collect(12, samples_per_prompt=3)
    batch, seen = agent.prepare(rollout), []
    ours = agents.policy_gradient.masked_mean
    monkeypatch.setattr(agents.policy_gradient, "masked_mean", lambda values, mask, *, count=None: ours(values, mask))
    for tokens in (40, 10**6):
        agent.config.micro_batch_tokens = tokens
        agent.policy.zero_grad(set_to_none=True)
        agent.accumulate_gradients(batch, torch.arange(12))
        seen.append(gradients(agent.policy))
    assert largest_gap(*seen) > 1e-4
