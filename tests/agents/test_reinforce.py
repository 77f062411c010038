"""REINFORCE: every baseline leaves the gradient as it is, or changes it in the way that is known."""

import dataclasses

import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from stable_baselines3.common.logger import configure

from agents import REINFORCE, REINFORCEConfig
from agents.policy_gradient import Batch
from tests.agents.conftest import gpt2_config, largest_gap, letters, make_env, make_mdp
from tests.agents.tree import PAIRS, Tree, scaled, weighted_ascent
from textgen_env import TextGenEnv


@pytest.fixture(scope="module")
def tree():
    return Tree()


@pytest.fixture(scope="module")
def p(tree):
    return tree.probabilities().detach()


CREDIT = pytest.mark.parametrize("credit", ["token", "sequence"])


# --- exact gradients --------------------------------------------------------------------------------------


@CREDIT
@pytest.mark.parametrize("baseline", ["none", "moving_average", "self_critical", "value"])
def test_a_baseline_of_ones_own_leaves_the_gradient(tree, p, baseline, credit):
    agent = tree.agent(REINFORCE, baseline=baseline, credit=credit, samples_per_prompt=1, value_coef=0.0)
    agent.moving_average = 0.7
    batch = agent.prepare(tree.rollout())
    assert largest_gap(weighted_ascent(agent, batch, p), tree.exact_gradient()) < 1e-12
    raw = tree.agent(REINFORCE, baseline="none", credit=credit, samples_per_prompt=1).prepare(tree.rollout())
    assert torch.equal(batch.advantages_BT, raw.advantages_BT) is (baseline == "none")  # it does measure


@CREDIT
def test_leave_one_out_leaves_the_gradient(tree, credit):
    """Both of a pair, each against the other: twice the gradient."""
    agent = tree.agent(REINFORCE, baseline="leave_one_out", credit=credit, samples_per_prompt=2)
    rollout, p = tree.pairs()
    assert largest_gap(weighted_ascent(agent, agent.prepare(rollout), p), scaled(tree.exact_gradient(), 2)) < 1e-12


@CREDIT
def test_the_batch_mean_shrinks_the_gradient(tree, credit):
    """An episode's own return is a B-th of the mean: what is left is 1 − 1/B of the gradient. Exact for the sum over
    actions, and so up to the random number of actions that the library divides by."""
    agent = tree.agent(REINFORCE, baseline="batch_mean", credit=credit, samples_per_prompt=1)
    rollout, p = tree.pairs()
    advantages = torch.zeros_like(rollout.rewards_BT)
    for pair in range(len(PAIRS)):
        both = [2 * pair, 2 * pair + 1]
        one = dataclasses.replace(
            rollout,
            rewards_BT=rollout.rewards_BT[both],
            values_BT=rollout.values_BT[both],
            action_mask_BT=rollout.action_mask_BT[both],
        )
        advantages[both], _ = agent.estimate_advantages(one, one.rewards_BT)
    ascent = weighted_ascent(agent, Batch(rollout, advantages, None, None), p)
    assert largest_gap(ascent, scaled(tree.exact_gradient(), 2 * (1 - 1 / 2))) < 1e-12
    assert largest_gap(ascent, scaled(tree.exact_gradient(), 2)) > 1e-3


def test_a_baseline_of_the_whole_group_is_seen(tree, monkeypatch):
    """Must fail: the group's mean, the own return included, where the others' belongs."""
    agent = tree.agent(REINFORCE, samples_per_prompt=2)
    rollout, p = tree.pairs()
    mean = rollout.returns_B.view(-1, 2).mean(-1).repeat_interleave(2)
    monkeypatch.setattr(agent, "_baseline", lambda trajectories, returns: mean)
    assert largest_gap(weighted_ascent(agent, agent.prepare(rollout), p), scaled(tree.exact_gradient(), 2)) > 1e-3


def test_sequence_credit_pays_every_token_the_whole_return(tree):
    """The same gradient in the mean, with more variance: an action is paid for what came before it."""
    mask = tree.mask
    rewards = torch.where(mask, torch.linspace(1, 2, mask.numel(), dtype=torch.float64).view(mask.shape), 0.0)
    rollout = tree.rollout().replace(rewards_BT=rewards)
    for credit in ("token", "sequence"):
        agent = tree.agent(REINFORCE, baseline="none", credit=credit, samples_per_prompt=1)
        advantages = agent.prepare(rollout).advantages_BT
        to_go = rewards.flip(-1).cumsum(-1).flip(-1)
        expected = to_go if credit == "token" else rewards.sum(-1, keepdim=True).expand_as(rewards)
        torch.testing.assert_close(advantages, expected * mask, rtol=0, atol=1e-12)


# --- the baselines, one by one ----------------------------------------------------------------------------


def test_the_defaults_are_rloo(tree):
    """A_i = r_i − mean of the others = G/(G − 1) (r_i − mean), on every token of completion i."""
    agent = tree.agent(REINFORCE)
    assert agent.config.samples_per_prompt == 4
    rollout = tree.rollout(range(28), samples_per_prompt=4)
    returns = rollout.returns_B.view(7, 4)
    expected = 4 / 3 * (returns - returns.mean(-1, keepdim=True))
    expected = expected.flatten()[:, None] * rollout.action_mask_BT
    torch.testing.assert_close(agent.prepare(rollout).advantages_BT, expected, rtol=0, atol=1e-12)


def test_the_moving_average_is_of_earlier_rollouts(tree):
    agent = tree.agent(REINFORCE, baseline="moving_average", moving_average_decay=0.75, samples_per_prompt=1)
    levels = []
    for shift in (0.0, 10.0, -4.0):
        rollout = tree.rollout(range(5))
        rollout = rollout.replace(rewards_BT=rollout.rewards_BT + shift * (rollout.rewards_BT != 0))
        advantages, _ = agent.estimate_advantages(rollout, rollout.rewards_BT)
        levels.append(rollout.returns_B[0] - advantages[0, 0])
    mean = float(tree.scores[:5].mean())
    expected = [mean, mean, 0.75 * mean + 0.25 * (mean + 10)]  # the first rollout has only itself
    assert [float(level) for level in levels] == pytest.approx(expected, abs=1e-12)
    assert agent.moving_average == pytest.approx(0.75 * expected[2] + 0.25 * (mean - 4), abs=1e-12)


def letters_agent(**options):
    defaults = {"seed": 3, "device": "cpu", "episodes_per_rollout": 12, "learning_rate": 1e-3}
    agent = REINFORCE(gpt2_config(), make_env(), **{**defaults, **options})
    agent.set_logger(configure(None, []))
    return agent


@pytest.mark.parametrize("samples", [1, 3])
def test_self_critical_measures_against_the_prompts_greedy_text(samples):
    agent = letters_agent(
        baseline="self_critical", samples_per_prompt=samples, kl_coef_per_sequence=0.0, reward_scale=2.0
    )
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():  # greedy choices that differ from prompt to prompt
        for parameter in agent.policy.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    rollout = agent.collector.collect(12, samples_per_prompt=samples)
    before = agent.num_timesteps
    baseline = 2 * rollout.returns_B - agent.prepare(rollout).advantages_BT[:, 0]
    for info, level in zip(rollout.infos, baseline.tolist(), strict=True):
        text = agent.generate([info["prompt"]], greedy=True, max_new_tokens=6)
        assert level == pytest.approx(2 * letters(text, None)[0], abs=1e-5)
    assert len(set(baseline[::samples].tolist())) > 2
    assert agent.num_timesteps > before  # its tokens were played too


def test_a_learned_baseline_learns_the_returns():
    agent = letters_agent(baseline="value", samples_per_prompt=1, value_coef=1.0, learning_rate=3e-3)
    assert agent.config_class is REINFORCEConfig
    rollout = agent.collector.collect(12)
    batch = agent.prepare(rollout)
    torch.testing.assert_close(batch.returns_BT[:, 0], rollout.returns_B, rtol=0, atol=1e-5)
    losses = [agent.accumulate_gradients(batch, torch.arange(12))["loss/value"]]
    for _ in range(40):
        agent.optimiser_step()
        losses.append(agent.accumulate_gradients(batch, torch.arange(12))["loss/value"])
    assert losses[-1] < 0.5 * losses[0]


@CREDIT
def test_a_truncated_text_goes_on_in_the_critics_eyes(tree, credit):
    """Where a wrapper cut an episode, the value after its last token is part of the return; else it is not known."""
    rollout = tree.rollout().replace(bootstrap_values_B=torch.full((31,), 5.0, dtype=torch.float64))
    for baseline, after in (("value", 5.0), ("none", 0.0)):
        agent = tree.agent(REINFORCE, baseline=baseline, credit=credit, samples_per_prompt=1)
        advantages, returns = agent.estimate_advantages(rollout, rollout.rewards_BT)
        value = rollout.values_BT[:, 0] if baseline == "value" else 0.0
        torch.testing.assert_close(advantages[:, 0], tree.scores + after - value, rtol=0, atol=1e-12)
        assert (returns is None) is (baseline == "none")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"samples_per_prompt": 1}, "set samples_per_prompt above 1"),
        ({"baseline": "greedy"}, r"baseline must be one of 'none', .*'value'"),
        ({"baseline": "self-critical"}, "did you mean 'self_critical'"),
        ({"credit": "tokens"}, "did you mean 'token'"),
        ({"moving_average_decay": 1.0}, r"must lie in \[0, 1\)"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        REINFORCEConfig(**options)


def test_self_critical_needs_prompts_that_can_be_chosen():
    mdp = make_mdp()
    single = TextGenEnv(task=mdp.task, reward=letters, tokenizer=mdp.tokenizer, max_new_tokens=6)
    env = SyncVectorEnv([lambda: single], autoreset_mode=AutoresetMode.DISABLED)
    agent = REINFORCE(gpt2_config(), env, device="cpu", baseline="self_critical", samples_per_prompt=1)
    with pytest.raises(ValueError, match="choosing prompts needs an environment that honours"):
        agent.learn(1)
