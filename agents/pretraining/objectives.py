"""Objectives of pretraining that know what people prefer: pure functions.

Korbak et al. 2023, *Pretraining Language Models with Human Preferences*, section 2. A document x is a sequence of
segments x¹, x², … (the whole document, or its sentences), each with a reward R(xⁱ); π is the language model. The paper
maximises; these are losses, the negatives, each a mean over the N tokens that the model predicts. Every token bears the
reward of its segment. Two of the six are about what is read rather than how it is weighted: filtering
(`keep_document`) and conditional training (`with_control_tokens`); the loss there is `likelihood_loss`.

"Good" is a reward of at least the threshold, in all of them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

MAX_WEIGHT = 1000.0
"""Where the exponential weights are cut (as in the paper's code)."""


def likelihood_loss(log_probs_N: Tensor, *, count: int | None = None) -> Tensor:
    """Maximum likelihood (equation 1): ``−(1/N) Σ log π(token)``.

    >>> likelihood_loss(torch.tensor([-1.0, -3.0]))
    tensor(2.)

    Args:
        log_probs_N: log π of each token given those before it, with gradients.
        count: what to divide by instead of N: of the whole batch, where these are a part of it.
    """
    return -log_probs_N.sum() / (count or len(log_probs_N))


def keep_document(rewards: Sequence[float], threshold: float) -> bool:
    """Filtering (equation 2): ``log π(x)`` where the document's reward reaches the threshold, else 0.

    The document's reward is the mean over its segments. A document whose term is 0 need not be read, so filtering
    is maximum likelihood on those kept.

    >>> keep_document([1.0, 0.0, 0.5], threshold=0.5), keep_document([0.2], threshold=0.5)
    (True, False)

    Raises:
        ValueError: a document without segments.
    """
    if not rewards:
        raise ValueError("a document without segments has no reward")
    return sum(rewards) / len(rewards) >= threshold


def with_control_tokens(
    segments: Sequence[Sequence[int]], rewards: Sequence[float], *, threshold: float, good: int, bad: int
) -> list[int]:
    """Conditional training (equation 3): ``log π(c₁, x¹, c₂, x², …)``, cᵢ being good where R(xⁱ) ≥ t, else bad.

    The control tokens are predicted too. To sample, begin with ``good`` and forbid both from there on.

    >>> with_control_tokens([[5, 6], [7]], [0.9, 0.1], threshold=0.5, good=1, bad=2)
    [1, 5, 6, 2, 7]

    Args:
        segments: the token ids of each.
        rewards: the reward of each.
        threshold: t.
        good: id of the control token of good segments.
        bad: id of the other one.
    """
    tokens: list[int] = []
    for segment, reward in zip(segments, rewards, strict=True):
        tokens += [good if reward >= threshold else bad, *segment]
    return tokens


def unlikelihood_loss(
    log_probs_N: Tensor, rewards_N: Tensor, *, threshold: float, alpha: float, count: int | None = None
) -> Tensor:
    """Unlikelihood (equation 4): ``log π(token)`` in good segments, ``α log(1 − π(token))`` in bad ones.

    Welleck et al. 2020, at the level of tokens. In bad segments the gradient of the loss by a log-probability is
    ``α π / (1 − π)``: what is unlikely already is left alone.

    Args:
        log_probs_N: log π of each token, with gradients.
        rewards_N: the reward of each token's segment.
        threshold: t.
        alpha: α, the weight of bad segments.
        count: see `likelihood_loss`.
    """
    # log(1 − p) = log(−expm1(log p)) keeps its digits for small p; for p → 1 it is cut at p = 1 − 1e-6.
    log_complement_N = torch.log(-torch.expm1(log_probs_N.clamp(max=-1e-6)))
    good_N = rewards_N >= threshold
    return likelihood_loss(torch.where(good_N, log_probs_N, alpha * log_complement_N), count=count)


def reward_weighted_loss(
    log_probs_N: Tensor,
    rewards_N: Tensor,
    *,
    beta: float,
    max_weight: float = MAX_WEIGHT,
    count: int | None = None,
) -> Tensor:
    """Reward-weighted regression (equation 5): ``−(1/N) Σ exp(R(xⁱ)/β) log π(token)`` (Peters & Schaal 2007).

    Its optimum over all distributions is the data's, tilted: ``p(x) exp(R(x)/β) / Z``.

    Args:
        log_probs_N: log π of each token, with gradients.
        rewards_N: the reward of each token's segment.
        beta: β; small values trust the reward more.
        max_weight: weights are cut to it.
        count: see `likelihood_loss`.
    """
    weights_N = (rewards_N / beta).exp().clamp(max=max_weight)
    return likelihood_loss(weights_N * log_probs_N, count=count)


def advantage_weighted_loss(
    log_probs_N: Tensor,
    values_N: Tensor,
    rewards_N: Tensor,
    *,
    beta: float,
    alpha: float,
    max_weight: float = MAX_WEIGHT,
    count: int | None = None,
) -> Tensor:
    """Advantage-weighted regression (equation 6): ``−(1/N) Σ [α exp(A/β) log π(token) − (1 − α) A²]``.

    ``A = R(xⁱ) − V(the tokens before)``, of each token (Peng et al. 2019). The weight is not differentiated: V learns
    from A² alone.

    Args:
        log_probs_N: log π of each token, with gradients.
        values_N: V before each token, with gradients.
        rewards_N: the reward of each token's segment.
        beta: β; small values trust the advantage more.
        alpha: α, the policy's share of the loss.
        max_weight: weights are cut to it.
        count: see `likelihood_loss`.
    """
    advantages_N = rewards_N - values_N
    weights_N = (advantages_N.detach() / beta).exp().clamp(max=max_weight)
    return likelihood_loss(alpha * weights_N * log_probs_N - (1 - alpha) * advantages_N**2, count=count)
