import pytest
import torch

from agents.kl import KLController, k1, k2, k3, penalised_rewards
from agents.losses import clipped_policy_loss


@pytest.fixture
def distributions():
    """π and π_ref over six tokens, and KL(π‖π_ref) by enumeration."""
    generator = torch.Generator().manual_seed(0)
    log_p, log_q = torch.randn(2, 6, generator=generator, dtype=torch.float64).log_softmax(-1)
    return log_p, log_q, float((log_p.exp() * (log_p - log_q)).sum())


def test_k1_and_k3_are_unbiased_and_k2_is_not(distributions):
    log_p, log_q, kl = distributions
    p, log_ratio = log_p.exp(), log_p - log_q
    assert kl == pytest.approx(float(torch.distributions.kl_divergence(*map(categorical, (log_p, log_q)))), abs=1e-12)
    assert float((p * k1(log_ratio)).sum()) == pytest.approx(kl, abs=1e-12)
    assert float((p * k3(log_ratio)).sum()) == pytest.approx(kl, abs=1e-12)
    assert abs(float((p * k2(log_ratio)).sum()) - kl) > 0.01
    assert abs(float((p * k3(-log_ratio)).sum()) - kl) > 0.01  # must fail: d of the wrong sign


def categorical(log_probs):
    return torch.distributions.Categorical(logits=log_probs)


def test_k2_and_k3_are_never_negative_and_k1_may_be(distributions):
    log_p, log_q, _ = distributions
    log_ratio = log_p - log_q
    assert (k1(log_ratio) < 0).any()
    assert (k2(log_ratio) >= 0).all()
    assert (k3(log_ratio) >= 0).all()
    assert k1(torch.zeros(())) == k2(torch.zeros(())) == k3(torch.zeros(())) == 0


@pytest.mark.parametrize(("estimator", "works"), [(k1, False), (k2, True)])
def test_as_a_loss_k1_pulls_nowhere(distributions, estimator, works):
    """E[∇k1] = Σ π ∇log π = 0, so KL as a loss term on k1 does nothing; k2's expected gradient is the KL's."""
    log_p, log_q, _ = distributions
    logits = log_p.clone().requires_grad_()
    current = logits.log_softmax(-1)
    (log_p.exp() * estimator(current - log_q)).sum().backward()
    exact = torch.autograd.functional.jacobian(
        lambda x: (x.softmax(-1) * (x.log_softmax(-1) - log_q)).sum(), log_p.clone()
    )
    expected = exact if works else torch.zeros_like(exact)
    torch.testing.assert_close(logits.grad, expected, rtol=0, atol=1e-12)
    assert exact.abs().max() > 0.01


def test_as_a_reward_k1_pulls_towards_the_reference(distributions):
    """The expected policy gradient of −β d is −β ∇KL."""
    log_p, log_q, _ = distributions
    logits = log_p.clone().requires_grad_()
    current = logits.log_softmax(-1)
    every = torch.ones(6, 1, dtype=torch.bool)
    paid = penalised_rewards(torch.zeros(6, 1, dtype=torch.float64), (current - log_q)[:, None], 0.3, every)
    loss = clipped_policy_loss(
        current[:, None], log_p[:, None], paid * log_p.exp()[:, None], every, clip_range=0.2, count=1
    )
    loss.backward()
    exact = torch.autograd.functional.jacobian(
        lambda x: 0.3 * (x.softmax(-1) * (x.log_softmax(-1) - log_q)).sum(), log_p.clone()
    )
    torch.testing.assert_close(logits.grad, exact, rtol=0, atol=1e-12)


def test_the_penalty_is_beta_times_the_sequence_kl_without_gradient():
    generator = torch.Generator().manual_seed(1)
    rewards, log_ratio = torch.randn(2, 3, 5, generator=generator, dtype=torch.float64)
    log_ratio.requires_grad_()
    mask = torch.arange(5) < torch.tensor([5, 1, 3])[:, None]
    paid = penalised_rewards(rewards, log_ratio, 0.25, mask)
    assert not paid.requires_grad
    assert (paid[~mask] == 0).all()
    charge = torch.where(mask, rewards - paid, 0.0).sum(-1)
    expected = 0.25 * torch.where(mask, log_ratio, 0.0).sum(-1).detach()
    torch.testing.assert_close(charge, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("kl", "error"),
    [(6.0, 0.0), (6.6, 0.1), (5.4, -0.1), (60.0, 0.2), (0.0, -0.2), (-3.0, -0.2)],
)
def test_the_controller_follows_its_formula(kl, error):
    controller = KLController(coef=0.5, target=6.0, horizon=1000)
    controller.update(kl, episodes=100)
    assert controller.coef == pytest.approx(0.5 * (1 + error * 100 / 1000))


def test_the_controller_settles_where_the_kl_meets_the_target():
    controller = KLController(coef=0.01, target=4.0, horizon=100)
    for _ in range(600):
        controller.update(1 / controller.coef, episodes=50)  # a policy whose KL is the less, the more it costs
    assert controller.coef == pytest.approx(1 / 4, rel=1e-3)


def test_without_a_target_beta_stays():
    controller = KLController(coef=0.5)
    controller.update(100.0, episodes=10_000)
    assert controller.coef == 0.5
