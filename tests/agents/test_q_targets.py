"""Q(λ) targets against a sum written by hand, and against value iteration on an enumerated tree."""

import itertools

import numpy as np
import pytest
import torch

from agents.q_targets import expectile_loss, next_values, peng_q_lambda, soft_q_lambda, td_loss
from tests.agents.test_losses import COMPLETIONS, DEPTH, EOS

GAMMA = 0.9
BETA = 0.7
"""The price of a nat."""


def ragged(seed=0, lengths=(4, 1, 6, 3)):
    generator = torch.Generator().manual_seed(seed)
    shape = (len(lengths), max(lengths))
    rewards, values = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    bootstrap = torch.randn(len(lengths), generator=generator, dtype=torch.float64)
    mask = torch.arange(shape[1]) < torch.tensor(lengths)[:, None]
    return rewards, values, bootstrap, mask


def hand_rolled(rewards, values, bootstrap, lam):
    """The λ-average of all n-step returns of one episode's first action: Σ (1−λ)λ^(n−1) G^n, the rest on the last."""
    steps = len(rewards)
    after = [*values[1:], bootstrap]
    returns = [sum(GAMMA**i * rewards[i] for i in range(n)) + GAMMA**n * after[n - 1] for n in range(1, steps + 1)]
    weights = [(1 - lam) * lam ** (n - 1) for n in range(1, steps)] + [lam ** (steps - 1)]
    assert sum(weights) == pytest.approx(1)
    return sum(weight * total for weight, total in zip(weights, returns, strict=True))


@pytest.mark.parametrize("truncated", [False, True])
@pytest.mark.parametrize("lam", [0.0, 0.3, 0.8, 1.0])
def test_targets_are_the_average_of_all_n_step_returns(lam, truncated):
    rewards, values, bootstrap, mask = ragged()
    bootstrap = bootstrap if truncated else torch.zeros_like(bootstrap)
    after = next_values(values, mask, bootstrap if truncated else None)
    targets = peng_q_lambda(rewards, after, mask, gamma=GAMMA, lam=lam)
    for row, length in enumerate(mask.sum(-1).tolist()):
        for t in range(length):
            episode = rewards[row, t:length].tolist(), values[row, t:length].tolist()
            expected = hand_rolled(*episode, float(bootstrap[row]), lam)
            assert float(targets[row, t]) == pytest.approx(expected, abs=1e-12)
    assert not targets[~mask].any()
    assert not after[~mask].any()


def test_what_lies_beyond_the_end_does_not_matter():
    rewards, values, bootstrap, mask = ragged()
    expected = peng_q_lambda(rewards, next_values(values, mask, bootstrap), mask, gamma=GAMMA, lam=0.7)
    rewards[~mask], values[~mask] = 100.0, -100.0
    disturbed = peng_q_lambda(rewards, next_values(values, mask, bootstrap), mask, gamma=GAMMA, lam=0.7)
    assert torch.equal(disturbed, expected)


@pytest.mark.parametrize("lam", [0.0, 0.3, 1.0])
def test_soft_targets_by_recursion(lam):
    rewards, values, bootstrap, mask = ragged()
    ratios = torch.randn(mask.shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    ratios[~mask] = torch.nan
    after = next_values(values, mask, bootstrap)
    targets = soft_q_lambda(rewards, ratios, after, mask, kl_coef=BETA, gamma=GAMMA, lam=lam)
    for row, length in enumerate(mask.sum(-1).tolist()):
        expected = float(rewards[row, length - 1] + GAMMA * bootstrap[row])
        assert float(targets[row, length - 1]) == pytest.approx(expected, abs=1e-12)
        for t in reversed(range(length - 1)):
            later = expected - BETA * float(ratios[row, t + 1])
            expected = float(rewards[row, t]) + GAMMA * ((1 - lam) * float(values[row, t + 1]) + lam * later)
            assert float(targets[row, t]) == pytest.approx(expected, abs=1e-12)
    assert not targets[~mask].any()


# --- value iteration --------------------------------------------------------------------------------------

STATES = sorted({tokens[:t] for tokens in COMPLETIONS for t in range(len(tokens))})


class Tree:
    """31 trajectories with a reward on every action, and tables of Q over the 15 prefixes and 3 actions."""

    def __init__(self, trajectories=COMPLETIONS):
        generator = np.random.default_rng(0)
        pay = {(*state, action): generator.normal() for state in STATES for action in range(3)}
        self.lengths = torch.tensor([len(tokens) for tokens in trajectories])
        self.mask = torch.arange(DEPTH) < self.lengths[:, None]
        self.rewards = torch.zeros(self.mask.shape, dtype=torch.float64)
        self.places = torch.zeros(2, *self.mask.shape, dtype=torch.long)  # row and column of the table
        for row, tokens in enumerate(trajectories):
            for t, token in enumerate(tokens):
                self.rewards[row, t] = pay[tokens[: t + 1]]
                self.places[:, row, t] = torch.tensor([STATES.index(tokens[:t]), token])
        self.pay = pay

    def best(self, state, gamma=GAMMA):
        """Exact Q* of a prefix, by recursion."""
        values = []
        for action in range(3):
            child = (*state, action)
            over = action == EOS or len(child) == DEPTH
            values.append(self.pay[child] + (0.0 if over else gamma * max(self.best(child))))
        return values

    def exact(self):
        return torch.tensor([self.best(state) for state in STATES], dtype=torch.float64)

    def iterate(self, lam, sweeps, start=None):
        """Sweeps of the library's target operator over every transition, each entry the mean of its targets."""
        table = torch.zeros(len(STATES), 3, dtype=torch.float64) if start is None else start
        for _ in range(sweeps):
            after = next_values(table.max(-1).values[self.places[0]], self.mask)
            targets = peng_q_lambda(self.rewards, after, self.mask, gamma=GAMMA, lam=lam)
            flat = (self.places[0] * 3 + self.places[1])[self.mask]
            sums = torch.zeros(table.numel(), dtype=torch.float64).index_add(0, flat, targets[self.mask])
            counts = torch.zeros_like(sums).index_add(0, flat, torch.ones_like(targets[self.mask]))
            table = torch.where(counts > 0, sums / counts.clamp(min=1), table.flatten()).reshape(table.shape)
        return table


def test_one_step_targets_reach_the_optimal_q():
    tree = Tree()
    assert float((tree.iterate(0.0, DEPTH) - tree.exact()).abs().max()) < 1e-6
    assert float((tree.iterate(0.0, DEPTH - 1) - tree.exact()).abs().max()) > 1e-2  # not before the end is reached


@pytest.mark.parametrize("lam", [0.5, 0.8, 1.0])
def test_exploring_data_bias_the_traces(lam):
    """Must fail: with λ > 0 every random continuation is averaged in, and no sweep takes it out again."""
    tree = Tree()
    assert float((tree.iterate(lam, 50) - tree.exact()).abs().max()) > 1e-2


@pytest.mark.parametrize("lam", [0.0, 0.5, 0.8, 1.0])
def test_greedy_data_give_the_optimal_q_at_any_lambda(lam):
    """Any state, any action in it, and greedily on: then the traces tell the truth."""
    full = Tree()
    exact = full.exact()

    def greedily(tokens):
        while len(tokens) < DEPTH and tokens[-1] != EOS:
            tokens = (*tokens, int(exact[STATES.index(tokens)].argmax()))
        return tokens

    for state, action in itertools.product(STATES, range(3)):
        tree = Tree([greedily((*state, action))])
        after = next_values(exact.max(-1).values[tree.places[0]], tree.mask)
        targets = peng_q_lambda(tree.rewards, after, tree.mask, gamma=GAMMA, lam=lam)
        target = float(targets[0, len(state)])
        assert target == pytest.approx(float(exact[STATES.index(state), action]), abs=1e-6)


# --- the same, KL-regularised -----------------------------------------------------------------------------

PRIOR = torch.randn(len(STATES), 3, generator=torch.Generator().manual_seed(5), dtype=torch.float64).log_softmax(-1)
"""log π_0."""


def soft_value(q, log_prior):
    """``β log Σ_a π_0(a|s) exp(Q(s, a) / β)``."""
    return BETA * (log_prior + q / BETA).logsumexp(-1)


def soft_best(tree, log_prior):
    """Exact soft Q* of every prefix, by recursion."""

    def q(state):
        values = []
        for action in range(3):
            child = (*state, action)
            over = action == EOS or len(child) == DEPTH
            after = 0.0 if over else GAMMA * float(soft_value(q(child), log_prior[STATES.index(child)]))
            values.append(tree.pay[child] + after)
        return torch.tensor(values, dtype=torch.float64)

    return torch.stack([q(state) for state in STATES])


def soft_iteration(tree, lam, sweeps, charge=1.0, value=soft_value):
    """Sweeps of the library's targets over every transition, π and V those of the table before the sweep."""
    table = torch.zeros(len(STATES), 3, dtype=torch.float64)
    for _ in range(sweeps):
        values = value(table, PRIOR)
        ratios = (table - values[:, None]) / BETA
        after = next_values(values[tree.places[0]], tree.mask)
        taken = charge * ratios[tree.places[0], tree.places[1]]
        targets = soft_q_lambda(tree.rewards, taken, after, tree.mask, kl_coef=BETA, gamma=GAMMA, lam=lam)
        table[tree.places[0][tree.mask], tree.places[1][tree.mask]] = targets[tree.mask]
    return table


def test_the_soft_optimum_is_that_of_whole_completions():
    """At γ = 1: ``V*(prompt) = β log Σ_y π_0(y) exp(r(y) / β)``, over all 31 of them."""
    tree = Tree()
    log_prior = torch.where(tree.mask, PRIOR[tree.places[0], tree.places[1]], 0.0).sum(-1)
    gamma_one = torch.zeros(len(STATES), 3, dtype=torch.float64)
    for _ in range(DEPTH):
        after = next_values(soft_value(gamma_one, PRIOR)[tree.places[0]], tree.mask)
        none = torch.zeros_like(after)
        targets = soft_q_lambda(tree.rewards, none, after, tree.mask, kl_coef=BETA, gamma=1.0, lam=0.0)
        gamma_one[tree.places[0][tree.mask], tree.places[1][tree.mask]] = targets[tree.mask]
    expected = BETA * (log_prior + tree.rewards.sum(-1) / BETA).logsumexp(-1)
    assert float(soft_value(gamma_one, PRIOR)[STATES.index(())]) == pytest.approx(float(expected), abs=1e-12)


@pytest.mark.parametrize("lam", [0.0, 0.5, 1.0])
def test_soft_targets_reach_the_optimum_at_any_lambda_from_exploring_data(lam):
    """Unlike Peng's: what follows an action is corrected by what its policy would have paid for it."""
    tree = Tree()
    exact = soft_best(tree, PRIOR)
    assert float((soft_iteration(tree, lam, DEPTH) - exact).abs().max()) < 1e-6
    assert float((soft_iteration(tree, lam, DEPTH - 1) - exact).abs().max()) > 1e-2


@pytest.mark.parametrize(
    ("lam", "broken"),
    [
        (0.5, {"charge": 0.0}),
        (1.0, {"charge": 0.0}),
        (0.5, {"charge": -1.0}),
        (0.0, {"value": lambda q, log_prior: q.max(-1).values}),
        (0.0, {"value": lambda q, log_prior: soft_value(q, torch.zeros(()))}),
    ],
    ids=["no KL", "no KL, Monte Carlo", "KL paid out", "greedy value", "no prior"],
)
def test_without_the_kl_they_do_not(lam, broken):
    """Must fail, however many the sweeps."""
    tree = Tree()
    assert float((soft_iteration(tree, lam, 50, **broken) - soft_best(tree, PRIOR)).abs().max()) > 1e-2


# --- losses by hand ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "delta", "loss"), [(0.5, 1.0, 0.125), (3.0, 1.0, 2.5), (-3.0, 1.0, 2.5), (3.0, None, 4.5)]
)
def test_the_td_loss_by_hand(error, delta, loss):
    mask = torch.tensor([[True, False]])
    targets = torch.tensor([[2.0, 9.0]])
    q = torch.stack([targets + error, targets]) + torch.tensor([0.0, 7.0])  # one head errs, the other does not
    assert float(td_loss(q, targets, mask, huber_delta=delta)) == pytest.approx(loss)
    assert float(td_loss(q, targets, mask, huber_delta=delta, count=4)) == pytest.approx(loss / 4)


@pytest.mark.parametrize("expectile", [0.5, 0.7, 0.9])
def test_the_value_that_minimises_is_the_expectile(expectile):
    """The fixed point of ``v = Σ w q / Σ w``, w the weight of each side; at τ = ½ that is the mean."""
    q = torch.randn(1, 50, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    mask = torch.ones(1, 50, dtype=torch.bool)
    level = q.mean()
    for _ in range(100):
        weights = (expectile - (q < level).double()).abs()
        level = (weights * q).sum() / weights.sum()
    value = level.clone().requires_grad_()
    expectile_loss(q - value, mask, expectile=expectile).backward()
    assert abs(float(value.grad)) < 1e-12
    assert (abs(float(level - q.mean())) < 1e-12) == (expectile == 0.5)
    assert float(level) >= float(q.mean()) - 1e-12
