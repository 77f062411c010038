"""How well a reward model agrees with judgements it did not learn from: accuracy, calibration, correlation."""

from __future__ import annotations

import dataclasses
import itertools
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from reward_models.preference.calibration import Calibration, calibration
from reward_models.preference.data import Comparison, Preference, Rating, kind_of
from reward_models.preference.losses import judgement_losses
from reward_models.preference.model import RewardModel


@dataclass(frozen=True)
class PreferenceReport:
    """Figures of one set of judgements."""

    loss: float
    """Mean loss of a judgement, in nats (ratings: half the squared error, in standard deviations)."""
    accuracy: float | None
    """Share of the pairs of one prompt whose better completion has the higher score (equal scores count half); ties
    are left out. None where there is no pair."""
    accuracy_interval: tuple[float, float] | None
    """95 %, from a bootstrap over prompts."""
    pairs: int
    prompts: int
    calibration: Calibration | None
    """Of the stated probability ``σ(|Δ logit|)`` of the likelier side; None for ratings, which state none."""
    spearman: float | None
    """Ratings only: rank correlation of score and rating over all texts."""

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return dataclasses.asdict(self)


def assess(model: RewardModel, judgements: Sequence[Preference]) -> PreferenceReport:
    """Score the completions of N judgements of one kind, and compare.

    Raises:
        ValueError: there are none, or of several kinds.
    """
    kind = kind_of(judgements)
    prompts = [item.prompt for item in judgements for _ in item.completions]
    logits = model.logits(prompts, [text for item in judgements for text in item.completions])
    losses_N = judgement_losses(judgements, logits, tie_threshold=model.tie_threshold, gain=model.gain, bias=model.bias)
    scores = logits.double().numpy()
    differences, owners = _differences(judgements, scores)
    hits = np.where(differences == 0, 0.5, differences > 0)
    stated = torch.sigmoid(torch.from_numpy(np.abs(differences))).numpy()
    return PreferenceReport(
        loss=float(losses_N.double().mean()),
        accuracy=float(hits.mean()) if len(hits) else None,
        accuracy_interval=mean_interval(hits, owners) if len(hits) else None,
        pairs=len(hits),
        prompts=len(set(prompts)),
        calibration=calibration(stated, hits, low=0.5) if len(hits) and kind != "rating" else None,
        spearman=(
            rank_correlation(scores, [item.rating for item in judgements if isinstance(item, Rating)])
            if kind == "rating"
            else None
        ),
    )


def rank_correlation(x_N: npt.ArrayLike, y_N: npt.ArrayLike) -> float | None:
    """Spearman's ρ: Pearson's correlation of the ranks, equal values sharing their mean rank.

    None where one side does not vary, or there are fewer than two values.

    >>> rank_correlation([1, 2, 3], [10, 20, 15])
    0.5
    """
    x_ranks, y_ranks = _ranks(np.asarray(x_N, dtype=np.float64)), _ranks(np.asarray(y_N, dtype=np.float64))
    if len(x_ranks) < 2 or np.ptp(x_ranks) == 0 or np.ptp(y_ranks) == 0:
        return None
    return round(float(np.corrcoef(x_ranks, y_ranks)[0, 1]), 15)


def mean_interval(
    values_N: npt.ArrayLike, owners_N: Sequence[Any], *, draws: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """A 95 % interval of the mean of values that come in clusters: percentile bootstrap over whole clusters.

    Args:
        values_N: the values.
        owners_N: the cluster of each (its prompt): values of one prompt are not independent.
        draws: resamples.
        seed: of the resampling.
    """
    _, cluster_N = np.unique(np.asarray(owners_N, dtype=object).astype(str), return_inverse=True)
    sums = np.bincount(cluster_N, weights=np.asarray(values_N, dtype=np.float64))
    counts = np.bincount(cluster_N)
    drawn = np.random.default_rng(seed).integers(len(sums), size=(draws, len(sums)))
    low, high = np.quantile(sums[drawn].sum(1) / counts[drawn].sum(1), [0.025, 0.975])
    return float(low), float(high)


def _differences(
    judgements: Sequence[Preference], scores: npt.NDArray[np.float64]
) -> tuple[npt.NDArray[np.float64], list[str]]:
    """Better minus worse of every pair, ties left out, and the prompt of each."""
    differences: list[float] = []
    owners: list[str] = []
    rated: defaultdict[str, list[tuple[float, float]]] = defaultdict(list)
    start = 0
    for item in judgements:
        own = scores[start : start + len(item.completions)].tolist()
        start += len(own)
        if isinstance(item, Rating):
            rated[item.prompt].append((item.rating, own[0]))
        elif not (isinstance(item, Comparison) and item.tie):
            pairs = [better - worse for better, worse in itertools.combinations(own, 2)]
            differences += pairs
            owners += [item.prompt] * len(pairs)
    for prompt, texts in rated.items():
        for (first, a), (second, b) in itertools.combinations(texts, 2):
            if first != second:
                differences.append(a - b if first > second else b - a)
                owners.append(prompt)
    return np.array(differences), owners


def _ranks(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    mean_rank: npt.NDArray[np.float64] = (last - (counts - 1) / 2)[inverse]
    return mean_rank
