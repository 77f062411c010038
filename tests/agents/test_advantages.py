import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete
from stable_baselines3.common.buffers import RolloutBuffer

from agents.advantages import explained_variance, gae, group_relative, leave_one_out, masked_mean, whiten


def rollout(lengths=(5, 1, 8, 3), seed=0, junk=True):
    """Rewards, values and mask of ragged episodes; outside the mask stands junk that must not matter."""
    generator = torch.Generator().manual_seed(seed)
    shape = (len(lengths), max(lengths))
    rewards, values = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    if junk:
        rewards, values = (torch.where(mask, x, 1e6 * torch.ones_like(x)) for x in (rewards, values))
    return rewards, values, mask


def slow_gae(rewards, values, lengths, gamma, lam, bootstrap):
    """The definition, as a double sum over each episode: A_t = Σ_l (γλ)^l (r_{t+l} + γ V_{t+l+1} − V_{t+l})."""
    advantages = torch.zeros_like(values)
    for row, length in enumerate(lengths):
        v = [*values[row, :length].tolist(), float(bootstrap[row])]
        for t in range(length):
            advantages[row, t] = sum(
                (gamma * lam) ** (s - t) * (float(rewards[row, s]) + gamma * v[s + 1] - v[s]) for s in range(t, length)
            )
    return advantages


LENGTHS = (5, 1, 8, 3)


@pytest.mark.parametrize("gamma", [1.0, 0.93])
@pytest.mark.parametrize("lam", [0.0, 0.95, 1.0])
@pytest.mark.parametrize("bootstrap", [None, (0.7, -1.3, 0.0, 2.0)])
def test_gae_is_its_definition(gamma, lam, bootstrap):
    rewards, values, mask = rollout(LENGTHS)
    after = torch.tensor(bootstrap or (0.0,) * 4, dtype=torch.float64)
    given = None if bootstrap is None else after
    advantages, returns = gae(rewards, values, mask, gamma=gamma, lam=lam, bootstrap_values_B=given)
    expected = slow_gae(rewards, values, LENGTHS, gamma, lam, after)
    torch.testing.assert_close(advantages, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(returns, torch.where(mask, expected + values, 0.0), rtol=0, atol=1e-12)


def test_lambda_one_is_the_monte_carlo_return():
    rewards, values, mask = rollout(LENGTHS)
    _, returns = gae(rewards, values, mask, gamma=1.0, lam=1.0)
    to_go = torch.where(mask, rewards, 0.0).flip(-1).cumsum(-1).flip(-1)
    torch.testing.assert_close(returns, to_go * mask, rtol=0, atol=1e-12)


@pytest.mark.parametrize("lam", [0.0, 0.5, 1.0])
def test_constant_reward_has_value_one_over_one_minus_gamma(lam):
    """The exact critic of an endless stream of 1s has advantage 0 at the cut; forgetting the bootstrap is seen."""
    gamma = 0.99
    rewards, mask = torch.ones(1, 30, dtype=torch.float64), torch.ones(1, 30, dtype=torch.bool)
    value = torch.full_like(rewards, 1 / (1 - gamma))
    advantages, returns = gae(rewards, value, mask, gamma=gamma, lam=lam, bootstrap_values_B=value[:, 0])
    torch.testing.assert_close(advantages, torch.zeros_like(value), rtol=0, atol=1e-10)
    torch.testing.assert_close(returns, value, rtol=0, atol=1e-10)
    forgotten, _ = gae(rewards, value, mask, gamma=gamma, lam=lam)
    assert forgotten[0, -1] == pytest.approx(-gamma / (1 - gamma))


@pytest.mark.parametrize("truncated", [False, True])
def test_gae_is_that_of_sb3(truncated):
    """SB3's buffer plays the episodes one after the other; a truncated one has γV paid into its last reward."""
    gamma, lam = 0.97, 0.9
    rewards, values, mask = rollout(LENGTHS)
    after = torch.tensor([0.4, -0.2, 1.5, 0.9], dtype=torch.float64) * truncated
    buffer = RolloutBuffer(
        sum(LENGTHS), Box(-1, 1, (1,)), Discrete(2), device="cpu", gae_lambda=lam, gamma=gamma, n_envs=1
    )
    for row, length in enumerate(LENGTHS):
        for t in range(length):
            paid = float(rewards[row, t]) + (gamma * float(after[row]) if t == length - 1 else 0.0)
            buffer.add(
                np.zeros((1, 1)),
                np.zeros((1, 1)),
                np.array([paid]),
                np.array([t == 0]),
                values[row, t : t + 1].float(),
                torch.zeros(1),
            )
    buffer.compute_returns_and_advantage(torch.zeros(1), dones=np.array([True]))
    advantages, returns = gae(rewards, values, mask, gamma=gamma, lam=lam, bootstrap_values_B=after)
    np.testing.assert_allclose(advantages[mask].numpy(), buffer.advantages[:, 0], atol=2e-6)
    np.testing.assert_allclose(returns[mask].numpy(), buffer.returns[:, 0], atol=2e-6)


def test_whitened_advantages_have_mean_0_and_variance_1():
    values, _, mask = rollout(LENGTHS, junk=False)
    white = whiten(values * 30 + 4, mask)
    assert white[mask].mean() == pytest.approx(0, abs=1e-12)
    assert white[mask].var(correction=0) == pytest.approx(1, abs=1e-6)
    assert (white[~mask] == 0).all()


def test_whitening_ignores_what_stands_outside():
    values, _, mask = rollout(LENGTHS, junk=False)
    other = torch.where(mask, values, 1e9)
    assert torch.equal(whiten(values, mask), whiten(other, mask))
    unmasked = whiten(other, torch.ones_like(mask))  # must fail: a mask that keeps everything
    assert (unmasked - whiten(values, mask))[mask].abs().max() > 0.1


@pytest.mark.parametrize("lengths", [(1,), (3, 2)])
def test_whitening_equal_values_gives_zeros(lengths):
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    assert (whiten(torch.full(mask.shape, 2.5), mask) == 0).all()


def test_masked_mean_by_hand():
    values = torch.tensor([[1.0, 2.0, float("nan")], [6.0, float("inf"), 9.0]])
    mask = torch.tensor([[True, True, False], [True, False, False]])
    assert masked_mean(values, mask) == 3
    assert masked_mean(values, mask, count=9) == 1


def test_micro_batches_sum_to_the_whole_mean():
    values, _, mask = rollout(LENGTHS)
    count = int(mask.sum())
    parts = [masked_mean(values[rows], mask[rows], count=count) for rows in (slice(0, 1), slice(1, 4))]
    torch.testing.assert_close(sum(parts), masked_mean(values, mask), rtol=0, atol=1e-12)
    means_of_means = (masked_mean(values[:1], mask[:1]) + masked_mean(values[1:], mask[1:])) / 2
    assert (means_of_means - masked_mean(values, mask)).abs() > 0.01


def test_explained_variance():
    returns, noise, mask = rollout(LENGTHS)
    assert explained_variance(returns, returns, mask) == 1
    assert explained_variance(torch.full_like(returns, 3.0), returns, mask) == pytest.approx(0)
    assert explained_variance(-returns, returns, mask) == pytest.approx(-3)
    expected = 1 - np.var((returns - noise)[mask].numpy()) / np.var(returns[mask].numpy())
    assert explained_variance(noise, returns, mask) == pytest.approx(expected)
    assert np.isnan(explained_variance(noise, torch.ones_like(returns), mask))


def test_leave_one_out_by_hand():
    returns = torch.tensor([1.0, 10.0, 2.0, 6.0, 30.0])
    groups = torch.tensor([4, 7, 4, 4, 7])
    assert leave_one_out(returns, groups).tolist() == [4.0, 30.0, 3.5, 1.5, 10.0]


def test_leave_one_out_is_the_scaled_distance_from_the_mean():
    """A_i = r_i − mean of the others = G / (G − 1) · (r_i − mean)."""
    returns = torch.randn(4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    groups = torch.arange(4)[:, None].expand(4, 5)
    advantages = returns.flatten() - leave_one_out(returns.flatten(), groups.flatten())
    expected = 5 / 4 * (returns - returns.mean(-1, keepdim=True))
    torch.testing.assert_close(advantages.view(4, 5), expected, rtol=0, atol=1e-12)


def test_leave_one_out_needs_others():
    with pytest.raises(ValueError, match="at least two episodes of every prompt"):
        leave_one_out(torch.ones(3), torch.tensor([0, 0, 1]))


def test_group_relative_advantages_by_hand():
    returns, groups = torch.tensor([1.0, 10.0, 2.0, 6.0, 30.0]), torch.tensor([4, 7, 4, 4, 7])
    centred = group_relative(returns, groups, scale=False)
    assert centred.tolist() == [-2.0, -10.0, -1.0, 3.0, 10.0]
    stds = torch.tensor([7.0, 200.0, 7.0, 7.0, 200.0]).sqrt()  # (4 + 1 + 9) / 2 and (100 + 100) / 1
    torch.testing.assert_close(group_relative(returns, groups, eps=0.0), centred / stds)
    torch.testing.assert_close(group_relative(returns, groups, eps=0.5), centred / (stds + 0.5))


@pytest.mark.parametrize("size", [2, 5])
def test_unscaled_advantages_are_leave_one_outs_less_a_factor(size):
    returns = torch.randn(4 * size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    groups = torch.arange(4).repeat(size)
    expected = (returns - leave_one_out(returns, groups)) * (size - 1) / size
    torch.testing.assert_close(group_relative(returns, groups, scale=False), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("value", [0.0, 0.1, -3.7, 1000.1])
@pytest.mark.parametrize("size", [1, 3, 8])
def test_a_group_of_equals_teaches_nothing(value, size):
    returns = torch.full((size,), value)
    assert group_relative(returns, torch.zeros(size, dtype=torch.long)).tolist() == [0.0] * size


def test_scaled_up_rounding_is_seen():
    """Must fail: the textbook's formula on equal returns, with a mean that is off in its last digit, or without ε."""
    returns = torch.full((8,), -3.7)
    centred = returns - torch.zeros(1).index_add(0, torch.zeros(8, dtype=torch.long), returns) / 8
    assert (centred / (centred.std() + 1e-4)).abs().max() > 1e-3
    assert (torch.zeros(8) / torch.zeros(8).std()).isnan().all()
