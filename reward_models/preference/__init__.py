"""Learned rewards: fit a transformer to human judgements, and use it as a reward.

::

    train, validation = split_preferences(read_preferences("pairs.jsonl"))
    model = RewardModel("my-language-model")  # a hub name, a folder, a config, an object; or RewardModel.small(texts)
    print(fit(model, train, validation).best)
    model.save("my-reward")
    env = gym.make("textgen_env/NewsSummary-v0", reward=load("my-reward"))
"""

from __future__ import annotations

from pathlib import Path

from reward_models.preference.data import Comparison, Ranking, Rating, read_preferences, split_preferences
from reward_models.preference.ensemble import INDEX, RewardEnsemble, fit_ensemble
from reward_models.preference.fit import FitConfig, FitResult, fit
from reward_models.preference.model import RewardModel
from reward_models.preference.report import PreferenceReport, assess

__all__ = [
    "Comparison",
    "FitConfig",
    "FitResult",
    "PreferenceReport",
    "Ranking",
    "Rating",
    "RewardEnsemble",
    "RewardModel",
    "assess",
    "fit",
    "fit_ensemble",
    "load",
    "read_preferences",
    "split_preferences",
]


def load(folder: str | Path, *, device: str = "auto", batch_size: int = 32) -> RewardModel | RewardEnsemble:
    """The fitted reward model, or the ensemble of them, in a folder; its name is the folder's.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: the model in the folder was never fitted.
    """
    path = Path(folder)
    if not path.is_dir():
        raise FileNotFoundError(f"there is no reward model's folder '{folder}'")
    if (path / INDEX).is_file():
        return RewardEnsemble.load(path, name=path.resolve().name, device=device, batch_size=batch_size)
    return RewardModel.load(path, name=path.resolve().name, device=device, batch_size=batch_size)
