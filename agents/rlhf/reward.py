"""The reward model of a loop: fitted to all judgements so far, measured on prompts whose judgements it never saw."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from agents.reward_cli import RewardSettings, train_reward
from agents.rlhf.folder import Stage, write_lines
from agents.rlhf.settings import RLHFSettings
from reward_models.preference import FitConfig, RewardEnsemble, RewardModel, load, read_preferences
from reward_models.preference.data import Comparison, Preference, Rating
from reward_models.preference.report import mean_interval, rank_correlation

Scorer: TypeAlias = RewardModel | RewardEnsemble

_DRAWS = 1000


def fit_reward(
    settings: RLHFSettings,
    fit: FitConfig,
    parts: Mapping[str, Sequence[Mapping[str, Any]]],
    stage: Stage,
    *,
    normalise_to: Path,
    seed: int,
) -> dict[str, Any]:
    """Fit a reward model and leave it in the stage's ``model``; how it agrees with judgements of held-out prompts.

    Args:
        settings: what it starts from, how many members, what the judgements are.
        fit: options of the fit.
        parts: records of judgements to learn from, to stop by and to measure on (`split_judgements`).
        stage: whose folder is empty.
        normalise_to: a file of texts whose scores get mean 0 and standard deviation 1: the same in all rounds, so that
            a nat of KL costs the same.
        seed: of heads, order and bootstrap.
    """
    for name, records in parts.items():
        write_lines(stage.path / f"{name}.jsonl", records)
    model = train_reward(
        RewardSettings(
            data=str(stage.path / "train.jsonl"),
            validation_data=str(stage.path / "validation.jsonl"),
            kind=settings.feedback_kind,
            output=str(stage.path / "model"),
            normalise_to=str(normalise_to),
            model=settings.reward_model or settings.model,
            members=settings.members,
            pessimism=settings.pessimism,
            seed=seed,
            device=settings.device,
            threads=settings.threads,
        ),
        fit,
        say=lambda line: None,
    )
    value, interval = agreement_of(model, held_out_judgements(stage))
    counts = {name: len(records) for name, records in parts.items()}
    measure = settings.measure
    return {f"{settings.feedback_kind}s": counts, measure: value, f"{measure}_interval": interval}


def load_reward(stage: Stage, device: str) -> Scorer:
    """The model that `fit_reward` left."""
    model = load(stage.path / "model", device=device)
    model.name = "reward_model"
    return model


def held_out_judgements(stage: Stage) -> list[Preference]:
    """Those that measure the reward model: it neither learned from them nor stopped by them."""
    return read_preferences(stage.path / "test.jsonl")


def agreement_of(model: Scorer, judgements: Sequence[Preference]) -> tuple[float, tuple[float, float]]:
    """How far a model agrees with judgements of one kind: `accuracy_of` comparisons, `correlation_of` ratings."""
    pairs = [one for one in judgements if isinstance(one, Comparison)]
    return (
        accuracy_of(model, pairs) if pairs else correlation_of(model, [o for o in judgements if isinstance(o, Rating)])
    )


def accuracy_of(model: Scorer, comparisons: Sequence[Comparison]) -> tuple[float, tuple[float, float]]:
    """Share of the pairs whose preferred text has the higher score, and its 95 % interval, by bootstrap over prompts.

    Equal scores count half; ties are left out.
    """
    pairs = [pair for pair in comparisons if not pair.tie]
    prompts = [pair.prompt for pair in pairs for _ in pair.completions]
    scores_N2 = np.array(model([text for pair in pairs for text in pair.completions], prompts)).reshape(-1, 2)
    hits_N = np.where(scores_N2[:, 0] == scores_N2[:, 1], 0.5, scores_N2[:, 0] > scores_N2[:, 1])
    return float(hits_N.mean()), mean_interval(hits_N, [pair.prompt for pair in pairs])


def correlation_of(model: Scorer, ratings: Sequence[Rating]) -> tuple[float, tuple[float, float]]:
    """Spearman's ρ of score and rating over all texts, and its 95 % interval, by bootstrap over prompts."""
    prompts = [one.prompt for one in ratings]
    scores_N = np.array(model([one.completion for one in ratings], prompts))
    ratings_N = np.array([one.rating for one in ratings])
    _, owner_N = np.unique(np.array(prompts, dtype=object).astype(str), return_inverse=True)
    rows = [np.flatnonzero(owner_N == owner) for owner in range(owner_N.max() + 1)]
    drawn = np.random.default_rng(0).integers(len(rows), size=(_DRAWS, len(rows)))
    resamples = (np.concatenate([rows[owner] for owner in draw]) for draw in drawn)
    low, high = np.quantile([spearman(scores_N[at], ratings_N[at]) for at in resamples], [0.025, 0.975])
    return spearman(scores_N, ratings_N), (float(low), float(high))


def spearman(x_N: npt.ArrayLike, y_N: npt.ArrayLike) -> float:
    """Spearman's ρ; 0 where one side does not vary, which ranks nothing."""
    return rank_correlation(x_N, y_N) or 0.0
