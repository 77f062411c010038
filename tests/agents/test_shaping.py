"""From the environment's rewards to the learner's; what is logged stays the environment's."""

import pytest
import torch
from stable_baselines3.common.logger import configure

from agents.config import AlgorithmConfig
from agents.shaping import shaped_rewards, to_unit_variance
from tests.agents.conftest import largest_gap, letters, make_agent, make_env, weights
from tests.agents.tree import COMPLETIONS, EOS, Tree


@pytest.fixture(scope="module")
def rollout():
    """All completions of the tree, every action paid something."""
    tree = Tree()
    generator = torch.Generator().manual_seed(0)
    rewards = torch.randn(tree.mask.shape, generator=generator, dtype=torch.float64)
    return tree.rollout().replace(rewards_BT=rewards * tree.mask)


def shaped(rollout, **options):
    return shaped_rewards(rollout, AlgorithmConfig(**options))


def test_by_default_nothing_is_shaped(rollout):
    assert torch.equal(shaped(rollout), rollout.rewards_BT)


def test_scale_comes_before_the_clip(rollout):
    rewards = rollout.rewards_BT
    assert torch.equal(shaped(rollout, reward_scale=3.0), 3 * rewards)
    clipped = shaped(rollout, reward_scale=3.0, reward_clip=0.5)
    assert torch.equal(clipped, (3 * rewards).clamp(-0.5, 0.5))
    assert not torch.equal(clipped, 3 * rewards.clamp(-0.5, 0.5))  # must fail: the other way round
    assert clipped.abs().max() == 0.5


def test_a_text_without_its_end_pays_on_its_last_token(rollout):
    """The "EOS trick", on what the length cap cut and nothing else; neither scaled nor clipped."""
    charge = shaped(rollout, reward_scale=2.0, reward_clip=0.1) - shaped(
        rollout, reward_scale=2.0, reward_clip=0.1, missing_eos_penalty=3.0
    )
    expected = torch.zeros_like(charge)
    for row, tokens in enumerate(COMPLETIONS):
        if tokens[-1] != EOS:
            expected[row, len(tokens) - 1] = 3.0
    torch.testing.assert_close(charge, expected, rtol=0, atol=1e-12)
    assert (expected.sum(-1) > 0).sum() == 16
    by_length = torch.tensor([3.0 if len(tokens) == 4 else 0.0 for tokens in COMPLETIONS])
    assert not torch.equal(charge.sum(-1), by_length.double())  # must fail: a text may end on its last token


def test_a_text_that_a_wrapper_cut_is_not_charged(rollout):
    """Its infos name no length cap: nobody knows how it would have ended."""
    other = type(rollout)(**{**vars(rollout), "infos": ({},) * len(rollout)})
    assert torch.equal(shaped(other, missing_eos_penalty=3.0), rollout.rewards_BT)


def test_unit_variance_scales_and_does_not_shift(rollout):
    mask = rollout.action_mask_BT
    rewards = torch.where(mask, 7 * rollout.rewards_BT + 3, 1e6)  # what stands outside must not matter
    scaled = to_unit_variance(rewards, mask)[mask]
    assert float(scaled.var(correction=0)) == pytest.approx(1, abs=1e-9)
    ratio = scaled / rewards[mask]
    torch.testing.assert_close(ratio, ratio[0].expand_as(ratio), rtol=1e-12, atol=0)


@pytest.mark.parametrize("value", [0.0, -2.5, 0.1, 1 / 3])
def test_a_constant_reward_cannot_be_scaled(value):
    """Nor its rounding: in float32 the mean of seven tenths is no tenth."""
    mask = torch.arange(4) < torch.tensor([4, 3])[:, None]
    rewards = torch.where(mask, value, 0.0)
    assert torch.equal(to_unit_variance(rewards, mask), rewards)
    noisy = rewards + 1e-7 * torch.randn(mask.shape, generator=torch.Generator().manual_seed(0)) * mask
    assert (to_unit_variance(noisy, mask) - rewards).abs().max() < 0.01


def test_scaled_up_rounding_is_seen():
    """Must fail: a tenth a token, divided by the standard deviation of its rounding."""
    rewards = torch.full((7,), 0.1)
    assert rewards.max() / (rewards - rewards.sum() / 7).pow(2).mean().sqrt() > 1e6


SHAPES = {"reward_scale": 5.0, "reward_clip": 0.5, "missing_eos_penalty": 2.0, "whiten_rewards": True}


def trained(**options):
    """The weights and the log after one update."""
    agent = make_agent(make_env(), kl_coef_per_sequence=0.1, whiten_advantages=False, **options)
    agent.set_logger(configure(None, []))
    agent.learn(1, log_interval=10**9)
    return weights(agent.policy), agent.logger.name_to_value


@pytest.mark.parametrize("option", SHAPES)
def test_learning_sees_it_and_the_log_does_not(option):
    plain, expected = trained()
    found, logged = trained(**{option: SHAPES[option]})
    assert largest_gap(found, plain) > 1e-6
    for name in ("reward", "reward_std", "rewards/letters/mean", "rollout/ep_rew_mean", "kl/per_sequence"):
        assert logged[name] == expected[name]


def test_rewards_are_whitened_with_their_penalty():
    """The KL is charged first, as lm-human-preferences does: the sum of both has variance 1."""
    agent = make_agent(
        kl_coef_per_sequence=0.5, whiten_rewards=True, whiten_advantages=False, gae_lambda=0.0, gamma=0.0
    )
    agent.set_logger(configure(None, []))
    with torch.no_grad():
        agent.policy.model.get_output_embeddings().weight *= 1.5
    rollout = agent.collector.collect(12)
    rewards = agent.prepare(rollout).advantages_BT + rollout.values_BT  # with γ = 0 what the action itself earns
    paid = rewards[rollout.action_mask_BT]
    assert float(paid.var(correction=0)) == pytest.approx(1, abs=1e-3)
    assert len(set(paid.tolist())) > 20  # not the ends alone
    assert letters.__name__ in rollout.infos[0]["reward"]
