"""The objectives on a vocabulary of four, whose losses, gradients and optima are known in closed form."""

import math

import pytest
import torch

from agents.pretraining.objectives import (
    advantage_weighted_loss,
    keep_document,
    likelihood_loss,
    reward_weighted_loss,
    unlikelihood_loss,
    with_control_tokens,
)

LOGITS_V = torch.tensor([0.3, -1.2, 0.8, 0.1], dtype=torch.float64)
TOKENS_N = torch.tensor([0, 1, 2, 2, 3, 0])
REWARDS_N = torch.tensor([1.0, 1.0, -0.5, -0.5, 0.2, 0.2], dtype=torch.float64)
VALUES_N = torch.tensor([0.4, 0.9, -0.1, 0.0, 0.3, -0.2], dtype=torch.float64)
P_V = LOGITS_V.softmax(-1)
ONE_HOT_NV = torch.nn.functional.one_hot(TOKENS_N, 4).double()
SCORES_NV = ONE_HOT_NV - P_V
"""∂ log π(token) / ∂ logits."""


def gradient(objective):
    """Loss and its gradient by the logits, and by the values where it has some."""
    logits_V, values_N = LOGITS_V.clone().requires_grad_(), VALUES_N.clone().requires_grad_()
    loss = objective(logits_V.log_softmax(-1)[TOKENS_N], values_N)
    loss.backward()
    return loss.detach(), logits_V.grad, values_N.grad


def close(left, right):
    return torch.allclose(left, right, rtol=0, atol=1e-12)


def weighted(weights_N):
    """The gradient of a likelihood whose tokens are weighted."""
    return -(weights_N[:, None] * SCORES_NV).mean(0)


def test_likelihood_is_cross_entropy():
    loss, by_logits, _ = gradient(lambda log_probs_N, _: likelihood_loss(log_probs_N))
    expected = torch.nn.functional.cross_entropy(LOGITS_V.expand(6, -1), TOKENS_N)
    assert close(loss, expected)
    assert close(by_logits, weighted(torch.ones(6, dtype=torch.float64)))


def test_filtering_is_likelihood_with_zeros():
    """Equation 2 as it stands, over the documents (0, 1), (2, 2, 3) and (0,), against the likelihood of those kept."""
    documents = [(slice(0, 2), [1.0]), (slice(2, 5), [-0.5, 0.2]), (slice(5, 6), [0.2])]
    kept = [where for where, rewards in documents if keep_document(rewards, 0.0)]
    assert kept == [slice(0, 2), slice(5, 6)]  # (−0.5 + 0.2) / 2 < 0
    zeroed = weighted(torch.tensor([1.0, 1, 0, 0, 0, 1]).double())
    _, by_logits, _ = gradient(
        lambda log_probs_N, _: likelihood_loss(torch.cat([log_probs_N[where] for where in kept]), count=6)
    )
    assert close(by_logits, zeroed)
    _, unfiltered, _ = gradient(lambda log_probs_N, _: likelihood_loss(log_probs_N))
    assert not close(unfiltered, zeroed)  # must fail: nothing filtered


def test_a_document_without_segments_is_an_error():
    with pytest.raises(ValueError, match="without segments"):
        keep_document([], 0.0)


def test_control_tokens_stand_before_their_segments():
    segments = [[5, 6], [7], [8, 9, 5]]
    assert with_control_tokens(segments, [0.5, 0.49, 2.0], threshold=0.5, good=1, bad=2) == [1, 5, 6, 2, 7, 1, 8, 9, 5]
    with pytest.raises(ValueError, match="zip"):
        with_control_tokens(segments, [0.5], threshold=0.5, good=1, bad=2)


def test_conditional_training_learns_both_conditionals():
    """Counts are the maximum-likelihood estimate: after "good" only what followed good, after "bad" the rest."""
    texts, rewards = [[3], [3], [4], [4], [4], [3]], [1.0, 1.0, 1.0, 0.0, 0.0, 0.0]
    pairs = torch.tensor(
        [with_control_tokens([t], [r], threshold=0.5, good=1, bad=2) for t, r in zip(texts, rewards, strict=True)]
    )
    table_VV = torch.zeros(5, 5, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([table_VV], max_iter=100, line_search_fn="strong_wolfe")

    def closure():
        optimiser.zero_grad()
        loss = likelihood_loss(table_VV.log_softmax(-1)[pairs[:, 0], pairs[:, 1]])
        loss.backward()
        return loss

    optimiser.step(closure)
    probs_VV = table_VV.detach().softmax(-1)
    assert probs_VV[1, 3] == pytest.approx(2 / 3, abs=1e-3)
    assert probs_VV[2, 3] == pytest.approx(1 / 3, abs=1e-3)  # must fail where the condition is ignored: both 1/2


@pytest.mark.parametrize("alpha", [1.0, 0.25])
def test_unlikelihood_by_hand(alpha):
    loss, by_logits, _ = gradient(
        lambda log_probs_N, _: unlikelihood_loss(log_probs_N, REWARDS_N, threshold=0.2, alpha=alpha)
    )
    p_N, good_N = P_V[TOKENS_N], torch.tensor([1, 1, 0, 0, 1, 1], dtype=torch.bool)  # 0.2 reaches 0.2
    assert close(loss, -torch.where(good_N, p_N.log(), alpha * (1 - p_N).log()).mean())
    weights_N = torch.where(good_N, 1.0, -alpha * p_N / (1 - p_N))
    assert close(by_logits, weighted(weights_N))
    ignored = weighted(torch.ones(6, dtype=torch.float64))
    assert not close(by_logits, ignored)  # must fail: the rewards ignored


def test_unlikelihood_is_finite_where_the_token_is_certain():
    log_probs_N = torch.zeros(1, requires_grad=True)
    loss = unlikelihood_loss(log_probs_N, torch.zeros(1), threshold=1.0, alpha=1.0)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(-math.log(1e-6), rel=1e-2)
    assert log_probs_N.grad.isfinite().all()


@pytest.mark.parametrize("beta", [1.0, 0.3])
def test_reward_weighted_regression_by_hand(beta):
    _, by_logits, _ = gradient(lambda log_probs_N, _: reward_weighted_loss(log_probs_N, REWARDS_N, beta=beta))
    assert close(by_logits, weighted((REWARDS_N / beta).exp()))
    assert not close(by_logits, weighted(torch.ones(6, dtype=torch.float64)))  # must fail: the weights ignored


def test_reward_weights_are_cut():
    _, by_logits, _ = gradient(
        lambda log_probs_N, _: reward_weighted_loss(log_probs_N, REWARDS_N, beta=0.1, max_weight=5.0)
    )
    assert close(by_logits, weighted((REWARDS_N / 0.1).exp().clamp(max=5.0)))
    assert not close(by_logits, weighted((REWARDS_N / 0.1).exp()))


def test_the_optimum_of_reward_weighting_is_the_tilted_distribution():
    """p(x) exp(R(x)/β) / Z: the gradient there is 0 over the whole distribution, and at p itself it is not."""
    p_V = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
    rewards_V = torch.tensor([1.0, 0.0, -1.0, 0.5], dtype=torch.float64)

    def slope(at_V):
        logits_V = at_V.log().requires_grad_()
        # Four "tokens", each as often as p says: the mean over a corpus.
        losses = [
            p_V[x] * reward_weighted_loss(logits_V.log_softmax(-1)[x : x + 1], rewards_V[x : x + 1], beta=0.7)
            for x in range(4)
        ]
        torch.stack(losses).sum().backward()
        return float(logits_V.grad.abs().max())

    tilted_V = p_V * (rewards_V / 0.7).exp()
    assert slope(tilted_V / tilted_V.sum()) < 1e-12
    assert slope(p_V) > 1e-2


def test_advantage_weighted_regression_by_hand():
    beta, alpha = 0.5, 0.3
    loss, by_logits, by_values = gradient(
        lambda log_probs_N, values_N: advantage_weighted_loss(log_probs_N, values_N, REWARDS_N, beta=beta, alpha=alpha)
    )
    advantages_N = REWARDS_N - VALUES_N
    weights_N = (advantages_N / beta).exp()
    assert close(loss, (-alpha * weights_N * P_V[TOKENS_N].log() + (1 - alpha) * advantages_N**2).mean())
    assert close(by_logits, weighted(alpha * weights_N))
    assert close(by_values, -2 * (1 - alpha) * advantages_N / 6)  # from A² alone
    assert not close(by_logits, weighted(alpha * (REWARDS_N / beta).exp()))  # must fail: V ignored


def test_the_weight_is_not_differentiated():
    """Must fail: with gradients through exp(A/β), V would also learn from the policy's term."""

    def differentiated(log_probs_N, values_N):
        advantages_N = REWARDS_N - values_N
        return -(0.3 * (advantages_N / 0.5).exp() * log_probs_N - 0.7 * advantages_N**2).mean()

    _, _, by_values = gradient(differentiated)
    assert not close(by_values, -2 * 0.7 * (REWARDS_N - VALUES_N) / 6)


def test_with_a_value_of_zero_and_no_value_loss_it_is_reward_weighting():
    none_N = torch.zeros(6, dtype=torch.float64)
    _, advantage, _ = gradient(
        lambda log_probs_N, _: advantage_weighted_loss(log_probs_N, none_N, REWARDS_N, beta=0.5, alpha=1.0)
    )
    _, reward, _ = gradient(lambda log_probs_N, _: reward_weighted_loss(log_probs_N, REWARDS_N, beta=0.5))
    assert close(advantage, reward)


@pytest.mark.parametrize(
    "objective",
    [
        lambda log_probs_N, at, **count: likelihood_loss(log_probs_N[at], **count),
        lambda log_probs_N, at, **count: unlikelihood_loss(
            log_probs_N[at], REWARDS_N[at], threshold=0.0, alpha=0.5, **count
        ),
        lambda log_probs_N, at, **count: reward_weighted_loss(log_probs_N[at], REWARDS_N[at], beta=0.5, **count),
        lambda log_probs_N, at, **count: advantage_weighted_loss(
            log_probs_N[at], VALUES_N[at], REWARDS_N[at], beta=0.5, alpha=0.5, **count
        ),
    ],
    ids=["likelihood", "unlikelihood", "reward_weighted", "advantage_weighted"],
)
def test_parts_of_a_batch_add_up(objective):
    _, whole, _ = gradient(lambda log_probs_N, _: objective(log_probs_N, slice(0, 6)))
    parts = [
        gradient(lambda log_probs_N, _, at=at: objective(log_probs_N, at, count=6))[1]
        for at in (slice(0, 2), slice(2, 6))
    ]
    assert close(whole, sum(parts))
    wrong = [gradient(lambda log_probs_N, _, at=at: objective(log_probs_N, at))[1] for at in (slice(0, 2), slice(2, 6))]
    assert not close(whole, sum(wrong) / 2)  # must fail: a mean of means of unequal parts
