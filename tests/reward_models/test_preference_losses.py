"""The likelihoods by hand: gradients, shift invariance, ties and rankings by enumeration."""

import itertools
import math

import pytest
import torch

from reward_models.preference.data import Comparison, Ranking, Rating
from reward_models.preference.losses import (
    bradley_terry_loss,
    judgement_losses,
    plackett_luce_loss,
    rating_loss,
    start_of_tie_threshold,
)


def scores(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()


def test_gradient_of_bradley_terry_is_the_probability_of_the_mistake():
    chosen, rejected = scores(7), scores(7, seed=1)
    bradley_terry_loss(chosen, rejected).sum().backward()
    mistake = torch.sigmoid(rejected - chosen).detach()
    torch.testing.assert_close(chosen.grad, -mistake, atol=1e-15, rtol=0)
    torch.testing.assert_close(rejected.grad, mistake, atol=1e-15, rtol=0)


def test_a_margin_moves_the_gradient():
    chosen, rejected, margins = scores(7), scores(7, seed=1), torch.linspace(0, 3, 7, dtype=torch.float64)
    bradley_terry_loss(chosen, rejected, margins).sum().backward()
    torch.testing.assert_close(chosen.grad, -torch.sigmoid(rejected - chosen + margins).detach(), atol=1e-15, rtol=0)


@pytest.mark.parametrize(
    "loss",
    [
        lambda s: bradley_terry_loss(s[:, 0], s[:, 1]),
        lambda s: bradley_terry_loss(s[:, 0], s[:, 1], ties_N=torch.tensor([True, False, True]), tie_threshold=0.7),
        plackett_luce_loss,
    ],
    ids=["bradley_terry", "ties", "plackett_luce"],
)
def test_only_differences_matter(loss):
    given = scores(3, 4).detach()
    torch.testing.assert_close(loss(given), loss(given + 5), atol=1e-12, rtol=0)


def test_only_differences_matter_not_for_ratings():
    """Must fail: a loss that pins the scores down sees a shift."""
    given = scores(4).detach()
    assert not torch.allclose(rating_loss(given, torch.zeros(4)), rating_loss(given + 5, torch.zeros(4)))


@pytest.mark.parametrize("threshold", [0.01, 0.5, 3.0])
def test_win_tie_and_loss_are_all_that_can_happen(threshold):
    """Rao & Kupper's three outcomes sum to 1, and are the paper's fractions."""
    first, second = scores(9).detach(), scores(9, seed=1).detach()
    tie = torch.ones(9, dtype=torch.bool)
    won = bradley_terry_loss(first, second, tie_threshold=threshold)
    lost = bradley_terry_loss(second, first, tie_threshold=threshold)
    tied = bradley_terry_loss(first, second, ties_N=tie, tie_threshold=threshold)
    total = torch.exp(-won) + torch.exp(-lost) + torch.exp(-tied)
    torch.testing.assert_close(total, torch.ones(9, dtype=torch.float64), atol=1e-12, rtol=0)
    a, b, theta = first.exp(), second.exp(), math.exp(threshold)
    torch.testing.assert_close(torch.exp(-won), a / (a + theta * b), atol=1e-12, rtol=0)
    paper = (theta**2 - 1) * a * b / ((a + theta * b) * (theta * a + b))
    torch.testing.assert_close(torch.exp(-tied), paper, atol=1e-12, rtol=0)


def test_a_tie_pulls_scores_together():
    first, second = torch.tensor([1.0], requires_grad=True), torch.tensor([0.0])
    bradley_terry_loss(first, second, ties_N=torch.tensor([True]), tie_threshold=0.5).sum().backward()
    assert float(first.grad) > 0


def test_ties_need_a_threshold():
    with pytest.raises(ValueError, match="tie_threshold 0"):
        bradley_terry_loss(torch.zeros(1), torch.zeros(1), ties_N=torch.tensor([True]))


@pytest.mark.parametrize("share", [0.05, 0.3, 0.8])
def test_start_of_tie_threshold_gives_that_share_to_equals(share):
    zero, tie = torch.zeros(1, dtype=torch.float64), torch.tensor([True])
    loss = bradley_terry_loss(zero, zero, ties_N=tie, tie_threshold=start_of_tie_threshold(share))
    assert math.exp(-float(loss)) == pytest.approx(share)


def test_plackett_luce_of_two_is_bradley_terry():
    given = scores(6, 2)
    torch.testing.assert_close(
        plackett_luce_loss(given), bradley_terry_loss(given[:, 0], given[:, 1]), atol=1e-14, rtol=0
    )


def test_plackett_luce_is_a_distribution_over_all_orders():
    given = scores(4).detach()
    orders = torch.stack([given[list(order)] for order in itertools.permutations(range(4))])
    losses = plackett_luce_loss(orders)
    assert float(torch.exp(-losses).sum()) == pytest.approx(1, abs=1e-12)
    by_hand, left = 0.0, given.tolist()
    for score in given.tolist():  # drawn one after the other, without replacement
        by_hand -= score - math.log(sum(map(math.exp, left)))
        left.pop(0)
    assert float(losses[0]) == pytest.approx(by_hand, abs=1e-12)


def test_rankings_of_different_lengths_do_not_touch():
    long, short = scores(4), scores(2, seed=1)
    judgements = [Ranking("p", ("a", "b", "c", "d")), Ranking("q", ("e", "f"))]
    losses = judgement_losses(judgements, torch.cat([long, short]))
    alone = torch.cat([plackett_luce_loss(long[None]), plackett_luce_loss(short[None])])
    torch.testing.assert_close(losses, alone, atol=1e-14, rtol=0)
    losses.sum().backward()
    assert bool(long.grad.isfinite().all() and short.grad.isfinite().all())


def test_judgements_and_logits_are_paired_in_order():
    pairs = [Comparison("p", "a", "b"), Comparison("p", "c", "d", margin=0.5), Comparison("p", "e", "f", tie=True)]
    logits = scores(6).detach()
    expected = bradley_terry_loss(
        logits[[0, 2, 4]],
        logits[[1, 3, 5]],
        torch.tensor([0, 0.5, 0], dtype=torch.float64),
        torch.tensor([False, False, True]),
        0.4,
    )
    torch.testing.assert_close(judgement_losses(pairs, logits, tie_threshold=0.4), expected)
    rated = judgement_losses([Rating("p", "a", 5.0)], logits[:1], gain=2.0, bias=1.0)
    assert float(rated) == pytest.approx(0.5 * (float(logits[0]) - 2.0) ** 2)
