import pytest
import torch

from agents.kl import ESTIMATORS, KLController, k1, k2, k3, penalised_rewards
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


def exact_gradient(log_p, divergence):
    return torch.autograd.functional.jacobian(lambda x: divergence(x.log_softmax(-1)), log_p.clone())


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_sampled_values_are_their_expectations(distributions, estimator):
    """Within four standard errors of the sum over all tokens; k3 spreads less than k1."""
    log_p, log_q, kl = distributions
    actions = torch.multinomial(log_p.exp(), 20_000, replacement=True, generator=torch.Generator().manual_seed(2))
    values = ESTIMATORS[estimator]((log_p - log_q)[actions])
    error = float(values.std()) / len(values) ** 0.5
    assert float(values.mean()) == pytest.approx(
        float((log_p.exp() * ESTIMATORS[estimator](log_p - log_q)).sum()), abs=4 * error
    )
    assert (abs(float(values.mean()) - kl) < 4 * error) is (estimator != "k2")


@pytest.mark.parametrize("estimator", [k2, k3])
def test_near_the_reference_all_estimators_agree(distributions, estimator):
    """k2 and k3 are k1's mean to second order: half of the squared distance."""
    log_p, log_q, _ = distributions
    log_near = (log_q + 1e-3 * (log_p - log_q)).log_softmax(-1)
    near = float((log_near.exp() * (log_near - log_q)).sum())
    assert 0 < near < 1e-5
    assert float((log_near.exp() * estimator(log_near - log_q)).sum()) == pytest.approx(near, rel=1e-2)


def test_in_the_reward_k3_hardly_pulls_near_the_reference(distributions):
    """Its score-function gradient is KL(π‖π_ref)'s less KL(π_ref‖π)'s, and there the two are alike."""
    log_p, log_q, _ = distributions

    def pulls(current):
        p = current.exp()
        return {name: p * (k(current - log_q) - (p * k(current - log_q)).sum()) for name, k in ESTIMATORS.items()}

    far = pulls(log_p)  # with respect to the logits
    forward = exact_gradient(log_p, lambda x: (x.exp() * (x - log_q)).sum())
    reverse = exact_gradient(log_p, lambda x: (log_q.exp() * (log_q - x)).sum())
    torch.testing.assert_close(far["k1"], forward, rtol=0, atol=1e-12)
    torch.testing.assert_close(far["k3"], forward - reverse, rtol=0, atol=1e-12)
    near = pulls((log_q + 0.01 * (log_p - log_q)).log_softmax(-1))
    assert near["k3"].norm() < 0.02 * near["k1"].norm()


@pytest.mark.parametrize("estimator", [k1, k2, k3])
def test_as_a_loss_k1_pulls_nowhere(distributions, estimator):
    """E[∇k1] = Σ π ∇log π = 0; k2's expected gradient is that of KL(π‖π_ref), k3's that of KL(π_ref‖π)."""
    log_p, log_q, _ = distributions
    logits = log_p.clone().requires_grad_()
    current = logits.log_softmax(-1)
    (log_p.exp() * estimator(current - log_q)).sum().backward()
    exact = {
        k1: torch.zeros_like(log_p),
        k2: exact_gradient(log_p, lambda x: (x.exp() * (x - log_q)).sum()),
        k3: exact_gradient(log_p, lambda x: (log_q.exp() * (log_q - x)).sum()),
    }
    torch.testing.assert_close(logits.grad, exact[estimator], rtol=0, atol=1e-12)
    assert min(exact[k2].abs().max(), exact[k3].abs().max(), (exact[k2] - exact[k3]).abs().max()) > 0.01


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
    exact = exact_gradient(log_p, lambda x: 0.3 * (x.exp() * (x - log_q)).sum())
    torch.testing.assert_close(logits.grad, exact, rtol=0, atol=1e-12)


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_the_penalty_is_beta_times_the_sequence_kl_without_gradient(estimator):
    generator = torch.Generator().manual_seed(1)
    rewards, log_ratio = torch.randn(2, 3, 5, generator=generator, dtype=torch.float64)
    log_ratio.requires_grad_()
    mask = torch.arange(5) < torch.tensor([5, 1, 3])[:, None]
    paid = penalised_rewards(rewards, log_ratio, 0.25, mask, estimator)
    assert not paid.requires_grad
    assert (paid[~mask] == 0).all()
    charge = torch.where(mask, rewards - paid, 0.0).sum(-1)
    expected = 0.25 * torch.where(mask, ESTIMATORS[estimator](log_ratio), 0.0).sum(-1).detach()
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
