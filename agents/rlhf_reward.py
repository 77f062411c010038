"""The reward model of a loop: fitted to all comparisons so far, measured on prompts whose judgements it never saw."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from agents.reward_cli import RewardSettings, train_reward
from agents.rlhf_folder import Stage, write_lines
from agents.rlhf_settings import RLHFSettings
from reward_models.preference import Comparison, FitConfig, RewardEnsemble, RewardModel, load, read_preferences
from reward_models.preference.report import mean_interval
from textgen_env.tasks.dataset import split_of

Scorer: TypeAlias = RewardModel | RewardEnsemble

_PARTS = ("train", "validation", "test")


def fit_reward(
    settings: RLHFSettings,
    fit: FitConfig,
    judgements: Sequence[Mapping[str, Any]],
    stage: Stage,
    *,
    normalise_to: Path,
    seed: int,
) -> dict[str, Any]:
    """Fit a reward model and leave it in the stage's ``model``; its accuracy on held-out prompts.

    Args:
        settings: what it starts from, how many members, how much is held out.
        fit: options of the fit.
        judgements: records of comparisons.
        stage: whose folder is empty.
        normalise_to: a file of texts whose scores get mean 0 and standard deviation 1: the same in all rounds, so that
            a nat of KL costs the same.
        seed: of heads, order and bootstrap.

    Raises:
        ValueError: too few judgements to learn from some and measure on others.
    """
    counts = _write_parts(stage.path, judgements, settings.held_out_share)
    model = train_reward(
        RewardSettings(
            data=str(stage.path / "train.jsonl"),
            validation_data=str(stage.path / "validation.jsonl"),
            kind="comparison",
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
    accuracy, interval = accuracy_of(model, held_out_comparisons(stage))
    return {"comparisons": counts, "accuracy": accuracy, "accuracy_interval": interval}


def load_reward(stage: Stage, device: str) -> Scorer:
    """The model that `fit_reward` left."""
    model = load(stage.path / "model", device=device)
    model.name = "reward_model"
    return model


def held_out_comparisons(stage: Stage) -> list[Comparison]:
    """Those that measure the reward model: it neither learned from them nor stopped by them."""
    found = read_preferences(stage.path / "test.jsonl", "comparison")
    return [pair for pair in found if isinstance(pair, Comparison)]


def accuracy_of(model: Scorer, comparisons: Sequence[Comparison]) -> tuple[float, tuple[float, float]]:
    """Share of the pairs whose preferred text has the higher score, and its 95 % interval, by bootstrap over prompts.

    Equal scores count half; ties are left out.
    """
    pairs = [pair for pair in comparisons if not pair.tie]
    prompts = [pair.prompt for pair in pairs for _ in pair.completions]
    scores_N2 = np.array(model([text for pair in pairs for text in pair.completions], prompts)).reshape(-1, 2)
    hits_N = np.where(scores_N2[:, 0] == scores_N2[:, 1], 0.5, scores_N2[:, 0] > scores_N2[:, 1])
    return float(hits_N.mean()), mean_interval(hits_N, [pair.prompt for pair in pairs])


def _write_parts(folder: Path, judgements: Sequence[Mapping[str, Any]], held_out: float) -> dict[str, int]:
    """Judgements to learn from, to stop by, and to measure on; a prompt stays on its side in all rounds."""
    parts: dict[str, list[Mapping[str, Any]]] = {name: [] for name in _PARTS}
    for record in judgements:
        # Salted: the plain hash of a training prompt lies in the training share, all of them.
        parts[split_of(f"judged: {record['prompt']}", (1 - held_out, held_out / 2, held_out / 2))].append(record)
    for name, records in parts.items():
        if not any(not record["tie"] for record in records):
            raise ValueError(
                f"of {len(judgements)} judgements on {len({record['prompt'] for record in judgements})} prompts, none "
                f"that prefers a text falls into the {name} part: give more comparisons, or another held_out_share"
            )
        write_lines(folder / f"{name}.jsonl", records)
    return {name: len(records) for name, records in parts.items()}
