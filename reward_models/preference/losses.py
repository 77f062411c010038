"""What human judgements say about scores: the likelihoods that a learned reward model is fitted by.

Shapes: N judgements, K completions each. A score is the model's raw output (a logit, a real number without unit).
Each function returns the negative log-likelihood of every judgement, in nats; for ratings, half the squared error.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from reward_models.preference.data import Comparison, Preference, Ranking, Rating


def rating_loss(scores_N: Tensor, ratings_N: Tensor) -> Tensor:
    """``(score − rating)² / 2`` of each rating, shape (N,): −log of a unit Gaussian, less its constant."""
    return 0.5 * (scores_N - ratings_N) ** 2


def bradley_terry_loss(
    chosen_N: Tensor,
    rejected_N: Tensor,
    margins_N: Tensor | None = None,
    ties_N: Tensor | None = None,
    tie_threshold: Tensor | float = 0.0,
) -> Tensor:
    """−log probability of each comparison, shape (N,).

    Bradley & Terry (1952): ``P(chosen ≻ rejected) = σ(Δ)``, Δ = chosen − rejected. A margin m asks for a distance:
    ``−log σ(Δ − m)`` (Llama 2, Touvron et al. 2023, equation 2). Ties are those of Rao & Kupper (1967, equation 2.1),
    with π = exp(score) and θ = exp(η) ≥ 1::

        P(i ≻ j)  = π_i / (π_i + θ π_j)                                          = σ(Δ − η)
        P(i = j)  = (θ² − 1) π_i π_j / ((π_i + θ π_j) (θ π_i + π_j))             = (θ² − 1) σ(Δ − η) σ(−Δ − η)

    At η = 0 there are no ties, and this is Bradley–Terry.

    Args:
        chosen_N: scores of the preferred completions (of either one, where it is a tie).
        rejected_N: scores of the others.
        margins_N: m ≥ 0 of each comparison; none is 0. A tie's is not read.
        ties_N: True where both were judged equal.
        tie_threshold: η ≥ 0, above 0 where there are ties.

    Raises:
        ValueError: a tie under ``tie_threshold`` 0, where it has no probability.
    """
    threshold = torch.as_tensor(tie_threshold, dtype=chosen_N.dtype, device=chosen_N.device)
    difference_N = chosen_N - rejected_N
    margin_N = difference_N.new_zeros(()) if margins_N is None else margins_N
    won_N = logsigmoid(difference_N - margin_N - threshold)
    if ties_N is None or not bool(ties_N.any()):
        return -won_N
    if not bool(threshold > 0):
        raise ValueError("a tie has probability 0 under tie_threshold 0: give a threshold above 0")
    tied_N = logsigmoid(difference_N - threshold) + logsigmoid(-difference_N - threshold)
    return -torch.where(ties_N, tied_N + torch.expm1(2 * threshold).log(), won_N)


def plackett_luce_loss(scores_NK: Tensor, present_NK: Tensor | None = None) -> Tensor:
    """−log probability of each ranking, best completion first, shape (N,).

    Plackett (1975), Luce (1959): the best is drawn among all with probability softmax(scores), the second among
    the rest, and so on: ``P = Π_i exp(s_i) / Σ_{j ≥ i} exp(s_j)``. With K = 2 this is Bradley–Terry.

    Args:
        scores_NK: scores in the order of the ranking.
        present_NK: False behind the end of a ranking that is shorter than K; all present if not given.
    """
    if present_NK is None:
        present_NK = torch.ones_like(scores_NK, dtype=torch.bool)
    # A finite floor: logcumsumexp over −inf alone has a gradient of NaN.
    masked_NK = scores_NK.masked_fill(~present_NK, torch.finfo(scores_NK.dtype).min / 4)
    rest_NK = masked_NK.flip(-1).logcumsumexp(-1).flip(-1)
    return (rest_NK - masked_NK).masked_fill(~present_NK, 0.0).sum(-1)


def start_of_tie_threshold(share_of_ties: float) -> float:
    """The η under which two equal scores tie with probability ``share_of_ties``, 0 ≤ share < 1.

    At Δ = 0 Rao & Kupper's win is σ(−η) for either side: ``1 − 2 σ(−η) = share``, so η = log((1 + share)/(1 − share)).
    """
    return math.log((1 + share_of_ties) / (1 - share_of_ties))


def judgement_losses(
    judgements: Sequence[Preference],
    logits: Tensor,
    *,
    tie_threshold: Tensor | float = 0.0,
    gain: float = 1.0,
    bias: float = 0.0,
) -> Tensor:
    """The loss of N judgements of one kind, shape (N,).

    Args:
        judgements: what people said.
        logits: the scores of all their completions in order, one judgement after the other.
        tie_threshold: η of `bradley_terry_loss`.
        gain: a rating is compared with a logit as ``(rating − bias) / gain``.
        bias: see ``gain``.
    """
    if isinstance(judgements[0], Rating):
        ratings = [(item.rating - bias) / gain for item in judgements if isinstance(item, Rating)]
        return rating_loss(logits, logits.new_tensor(ratings))
    if isinstance(judgements[0], Comparison):
        pairs = [item for item in judgements if isinstance(item, Comparison)]
        margins_N = logits.new_tensor([item.margin for item in pairs])
        ties_N = torch.tensor([item.tie for item in pairs], device=logits.device)
        return bradley_terry_loss(logits[0::2], logits[1::2], margins_N, ties_N, tie_threshold)
    sizes = [len(item.completions) for item in judgements if isinstance(item, Ranking)]
    scores_NK = nn.utils.rnn.pad_sequence(list(logits.split(sizes)), batch_first=True)
    present_NK = torch.arange(max(sizes), device=logits.device) < torch.tensor(sizes, device=logits.device)[:, None]
    return plackett_luce_loss(scores_NK, present_NK)
