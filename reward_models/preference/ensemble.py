"""Several reward models of the same judgements: what they disagree on, they do not know."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import numpy.typing as npt

from reward_models.composite import Composable
from reward_models.preference.data import Preference
from reward_models.preference.fit import FitConfig, FitResult, fit
from reward_models.preference.model import RewardModel
from textgen_env.lookup import did_you_mean

Reduction: TypeAlias = Literal["mean", "min"]
INDEX = "ensemble.json"


class RewardEnsemble(Composable):
    """k reward models as one reward: their mean, less ``pessimism`` standard deviations; or the worst of them.

    Pessimism against over-optimisation is Coste, Anwar, Kirk & Krueger (2024): ``"min"`` is their worst-case
    optimisation (equation 2); ``"mean"`` with ``pessimism`` c their uncertainty-weighted one (equation 3), with the
    standard deviation (of k, not k − 1) where they take the variance, so that c has no unit.

    Scores of different models can be compared only on one scale: `normalise` sets every member's.

    Args:
        members: the models, at least one.
        reduction: "mean" or "min".
        pessimism: c ≥ 0; 0 is the plain mean.
        name: its key in ``info["reward"]``.

    Raises:
        ValueError: no member, an unknown reduction, a negative pessimism, or one beside "min".
    """

    kind: Literal["terminal"] = "terminal"
    bounds = None

    def __init__(
        self,
        members: Sequence[RewardModel],
        *,
        reduction: Reduction = "mean",
        pessimism: float = 0.0,
        name: str = "reward_ensemble",
    ) -> None:
        if not members:
            raise ValueError("an ensemble has at least one member")
        if reduction not in get_args(Reduction):
            raise ValueError(f"unknown reduction {reduction!r}; {did_you_mean(str(reduction), get_args(Reduction))}")
        if not pessimism >= 0 or (pessimism and reduction == "min"):
            raise ValueError(f"pessimism must be at least 0, and goes with reduction='mean' only; got {pessimism}")
        self.members = list(members)
        self.reduction: Reduction = reduction
        self.pessimism = pessimism
        self.name = name

    def __call__(self, completions: Sequence[str], prompts: Sequence[str], **_: Any) -> list[float]:
        """B scores.

        Raises:
            ValueError: the lists differ in length.
            FloatingPointError: a score is not finite.
        """
        return self.reduce(self.member_scores(completions, prompts))

    def reduce(self, scores_KB: npt.NDArray[np.float64]) -> list[float]:
        """B scores from the members' (k, B)."""
        if self.reduction == "min":
            return [float(score) for score in scores_KB.min(0)]
        return [float(score) for score in scores_KB.mean(0) - self.pessimism * scores_KB.std(0)]

    def member_scores(self, completions: Sequence[str], prompts: Sequence[str]) -> npt.NDArray[np.float64]:
        """Every member's scores, shape (k, B): their ``mean(0)`` is the estimate, their ``std(0)`` its doubt."""
        return np.array([member(completions, prompts) for member in self.members])

    def normalise(self, prompts: Sequence[str], completions: Sequence[str]) -> None:
        """Give every member mean 0 and standard deviation 1 on these texts (`RewardModel.normalise`)."""
        for member in self.members:
            member.normalise(prompts, completions)

    def save(self, folder: str | Path) -> None:
        """Write a folder of folders, one Hugging Face folder a member, and ``ensemble.json``."""
        path = Path(folder)
        path.mkdir(parents=True, exist_ok=True)
        names = [f"member-{index}" for index in range(len(self.members))]
        for name, member in zip(names, self.members, strict=True):
            member.save(path / name)
        plan = {"members": names, "reduction": self.reduction, "pessimism": self.pessimism}
        (path / INDEX).write_text(json.dumps(plan, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(
        cls, folder: str | Path, *, name: str = "reward_ensemble", device: str = "auto", batch_size: int = 32
    ) -> RewardEnsemble:
        """The ensemble in a folder.

        Raises:
            FileNotFoundError: there is none.
        """
        index = Path(folder) / INDEX
        if not index.is_file():
            raise FileNotFoundError(f"'{folder}' is no ensemble of reward models: it has no {INDEX}")
        plan = json.loads(index.read_text(encoding="utf-8"))
        members = [
            RewardModel.load(Path(folder) / member, device=device, batch_size=batch_size) for member in plan["members"]
        ]
        return cls(members, reduction=plan["reduction"], pessimism=plan["pessimism"], name=name)


def fit_ensemble(
    make_member: Callable[[int], RewardModel],
    size: int,
    train: Sequence[Preference],
    validation: Sequence[Preference] = (),
    config: FitConfig | None = None,
    *,
    bootstrap: bool = True,
    seed: int = 0,
    on_step: Callable[[int, int, int, float], None] | None = None,
) -> tuple[list[RewardModel], list[FitResult]]:
    """Fit ``size`` members that differ in their seed and, with ``bootstrap``, in the prompts they learned from.

    Args:
        make_member: gives a new model for a seed; its head (or all of it) should be drawn with that seed.
        size: how many.
        train: judgements; each member's are those of as many prompts drawn with replacement (Breiman 1996).
        validation: the same for all.
        config: the options of `fit`.
        bootstrap: whether to resample; False gives every member all judgements.
        seed: member i has ``seed + i``.
        on_step: called with (member, step, number of steps, loss).

    Raises:
        ValueError: ``size`` is below 1; or as `fit` says.
    """
    if size < 1:
        raise ValueError(f"an ensemble has at least one member, got size={size}")
    members, results = [], []
    for index in range(size):
        member = make_member(seed + index)
        own = resample(train, np.random.default_rng([seed + index, 1])) if bootstrap else train
        report = None if on_step is None else _numbered(on_step, index)
        results.append(fit(member, own, validation, config, seed=seed + index, on_step=report))
        members.append(member)
    return members, results


def resample(judgements: Sequence[Preference], generator: np.random.Generator) -> list[Preference]:
    """The judgements of as many prompts as there are, drawn with replacement."""
    by_prompt: dict[str, list[Preference]] = {}
    for item in judgements:
        by_prompt.setdefault(item.prompt, []).append(item)
    groups = list(by_prompt.values())
    return [item for index in generator.integers(len(groups), size=len(groups)) for item in groups[index]]


def _numbered(on_step: Callable[[int, int, int, float], None], index: int) -> Callable[[int, int, float], None]:
    return lambda step, steps, loss: on_step(index, step, steps, loss)
