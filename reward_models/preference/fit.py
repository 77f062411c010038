"""Fitting a reward model to judgements: ratings, comparisons or rankings."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from reward_models.preference.data import Comparison, Kind, Preference, Rating, kind_of
from reward_models.preference.encoding import Row, in_batches
from reward_models.preference.losses import judgement_losses, start_of_tie_threshold
from reward_models.preference.model import RewardModel
from reward_models.preference.report import PreferenceReport, assess
from textgen_env.lookup import did_you_mean

Schedule = Literal["constant", "linear", "cosine"]
Precision = Literal["float32", "bf16"]


@dataclass
class FitConfig:
    """Options of the fit."""

    epochs: float = field(default=3.0, metadata={"help": "passes over the judgements, at most; may be a fraction"})
    batch_size: int = field(default=32, metadata={"help": "judgements an optimiser step"})
    learning_rate: float | None = field(
        default=None, metadata={"help": "AdamW's step size; by default 0.04 / hidden width (6e-4 at 64, 5e-5 at 768)"}
    )
    learning_rate_schedule: Schedule = field(
        default="cosine", metadata={"help": "after the warm-up; linear and cosine fall to 0"}
    )
    warmup: float = field(default=0.05, metadata={"help": "fraction of the steps over which the learning rate rises"})
    weight_decay: float = field(default=0.01, metadata={"help": "decoupled weight decay"})
    max_grad_norm: float = field(default=1.0, metadata={"help": "gradients are scaled down to this norm"})
    micro_batch_tokens: int = field(
        default=16_384, metadata={"help": "most tokens (padding included) in one forward; the result does not change"}
    )
    precision: Precision = field(default="float32", metadata={"help": "bf16 is autocast with float32 losses"})
    evaluations: int = field(default=10, metadata={"help": "looks at the validation judgements during the fit"})
    patience: int | None = field(
        default=3, metadata={"help": "stop after so many looks without a lower validation loss; none never stops"}
    )

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "micro_batch_tokens", "max_grad_norm", "evaluations", "patience"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name} must be above 0, got {value}")
        for name, choices in (("learning_rate_schedule", Schedule), ("precision", Precision)):
            value, known = getattr(self, name), get_args(choices)
            if value not in known:
                raise ValueError(f"{name}: unknown {value!r}; {did_you_mean(str(value), known)}")


@dataclass(frozen=True)
class FitResult:
    """How a fit went."""

    steps: int
    """Optimiser steps taken."""
    best_step: int
    """The step whose weights the model has: that of the lowest validation loss, or the last."""
    train_losses: list[float]
    """Of every step, in nats a judgement (ratings: half the squared error, in standard deviations)."""
    validation: list[tuple[int, PreferenceReport]]
    """(step, report) of every look at the validation judgements."""

    @property
    def best(self) -> PreferenceReport | None:
        """The validation report of the weights that were kept; None without validation judgements."""
        return next((report for step, report in self.validation if step == self.best_step), None)


def fit(
    model: RewardModel,
    train: Sequence[Preference],
    validation: Sequence[Preference] = (),
    config: FitConfig | None = None,
    *,
    seed: int = 0,
    on_step: Callable[[int, int, float], None] | None = None,
) -> FitResult:
    """Fit ``model`` to judgements of one kind, in place, and keep the weights of the lowest validation loss.

    Ratings: squared error on standardised ratings; the model's gain and bias then give scores in the raters' unit.
    Comparisons: Bradley–Terry with margins, and with Rao & Kupper's ties where there are some (the threshold is
    learned). Rankings: Plackett–Luce. See `losses`. The loss of a step is the mean over its judgements,
    whatever the micro-batches. A weight that does not require a gradient stays as it is.

    Args:
        model: trained in place; left in evaluation mode.
        train: judgements to learn from.
        validation: held-out judgements of the same kind, on other prompts (`split_preferences`).
        config: the options.
        seed: the order of the judgements, and dropout. The global generators are left as they were.
        on_step: called with (step, number of steps, loss).

    Raises:
        ValueError: no judgements, mixed kinds, a prompt on both sides, or ratings that are all equal.
        FloatingPointError: the loss is not finite.
    """
    config = config or FitConfig()
    kind = kind_of(train)
    _check_apart(train, validation, kind)
    cuda = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda):
        torch.random.manual_seed(seed)  # of dropout, where the architecture has it
        try:
            model.model.train()
            return _Fit(model, kind, train, config).run(validation, seed, on_step)
        finally:
            model.model.eval()


class _Fit:
    """One fit: the encoded judgements, the optimiser, and the learned threshold of ties."""

    def __init__(self, model: RewardModel, kind: Kind, train: Sequence[Preference], config: FitConfig) -> None:
        self.model, self.kind, self.train, self.config = model, kind, train, config
        self.rows = [[model.encoder.encode(item.prompt, text) for text in item.completions] for item in train]
        if kind == "rating":
            ratings = np.array([item.rating for item in train if isinstance(item, Rating)])
            model.gain, model.bias = float(ratings.std()), float(ratings.mean())
            if not model.gain > 0:
                raise ValueError(f"all {len(ratings)} ratings are {ratings[0]}: there is nothing to learn")
        tied = float(np.mean([isinstance(item, Comparison) and item.tie for item in train]))
        start = model.tie_threshold or start_of_tie_threshold(min(max(tied, 0.01), 0.9))
        # η = exp(·) stays above 0; without ties there is nothing to learn it from.
        self.log_threshold = (
            nn.Parameter(torch.tensor(math.log(start), device=model.device)) if tied or model.tie_threshold else None
        )
        weights = [weight for weight in model.model.parameters() if weight.requires_grad]
        self.parameters = weights + ([] if self.log_threshold is None else [self.log_threshold])
        self.rate = config.learning_rate or 0.04 / model.width
        groups: list[dict[str, Any]] = [{"params": weights, "weight_decay": config.weight_decay}]
        if self.log_threshold is not None:
            groups.append({"params": [self.log_threshold], "weight_decay": 0.0})
        self.optimiser = torch.optim.AdamW(groups, lr=self.rate, betas=(0.9, 0.95))
        self.batch = min(config.batch_size, len(train))
        self.steps = max(1, math.ceil(config.epochs * len(train) / self.batch))

    def run(
        self, validation: Sequence[Preference], seed: int, on_step: Callable[[int, int, float], None] | None
    ) -> FitResult:
        losses: list[float] = []
        reports: list[tuple[int, PreferenceReport]] = []
        best: tuple[float, int, Any] = (math.inf, 0, None)
        looks = {math.ceil(self.steps * (i + 1) / self.config.evaluations) for i in range(self.config.evaluations)}
        order = _epochs(len(self.train), np.random.default_rng(seed))
        for step in range(1, self.steps + 1):
            losses.append(self.step(step, [next(order) for _ in range(self.batch)]))
            if on_step is not None:
                on_step(step, self.steps, losses[-1])
            if not validation or step not in looks:
                continue
            report = assess(self.model, validation)
            reports.append((step, report))
            if report.loss < best[0]:
                best = (report.loss, step, self.state())
            elif self.config.patience is not None and _looks_since(reports, best[1]) >= self.config.patience:
                break
        if best[2] is not None:
            self.restore(best[2])
        return FitResult(len(losses), best[1] or len(losses), losses, reports)

    def step(self, step: int, chosen: list[int]) -> float:
        for group in self.optimiser.param_groups:
            group["lr"] = self.rate * _factor(self.config, step, self.steps)
        total = 0.0
        # A judgement's completions stay in one forward, for its loss needs them all.
        longest = [max(len(row.input_ids) for row in self.rows[i]) * len(self.rows[i]) for i in chosen]
        for part in in_batches(longest, self.batch, self.config.micro_batch_tokens):
            items = [chosen[index] for index in part]
            loss = self.loss(items) / len(chosen)
            if not bool(loss.isfinite()):
                raise FloatingPointError(
                    f"the loss of step {step} is {loss.item()}: lower learning_rate ({self.rate:g}), or use float32"
                )
            loss.backward()
            total += loss.item()
        nn.utils.clip_grad_norm_(self.parameters, self.config.max_grad_norm)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        if self.log_threshold is not None:
            self.model.tie_threshold = self.log_threshold.detach().exp().item()
        return total

    def loss(self, items: Sequence[int]) -> Tensor:
        """The summed loss of some judgements."""
        rows: list[Row] = [row for index in items for row in self.rows[index]]
        with torch.autocast(self.model.device.type, torch.bfloat16, enabled=self.config.precision == "bf16"):
            logits = self.model.forward(rows)
        threshold = 0.0 if self.log_threshold is None else self.log_threshold.exp()
        judgements = [self.train[index] for index in items]
        return judgement_losses(
            judgements, logits, tie_threshold=threshold, gain=self.model.gain, bias=self.model.bias
        ).sum()

    def state(self) -> Any:
        return copy.deepcopy(self.model.model.state_dict()), self.model.tie_threshold

    def restore(self, state: Any) -> None:
        self.model.model.load_state_dict(state[0])
        self.model.tie_threshold = state[1]


def _check_apart(train: Sequence[Preference], validation: Sequence[Preference], kind: Kind) -> None:
    if not validation:
        return
    if kind_of(validation) != kind:
        raise ValueError(f"the training judgements are of kind '{kind}', the validation's of '{kind_of(validation)}'")
    shared = {item.prompt for item in train} & {item.prompt for item in validation}
    if shared:
        raise ValueError(
            f"{len(shared)} prompts are on both sides, for training and validation ({min(shared)[:60]!r}, for one): "
            "what is learned by heart would count as learned. split_preferences keeps prompts apart"
        )


def _factor(config: FitConfig, step: int, steps: int) -> float:
    """The factor of the learning rate in a step, counted from 1."""
    warmup = max(1, round(config.warmup * steps))
    if step <= warmup:
        return step / warmup
    remaining = (steps - step + 1) / (steps - warmup + 1)
    if config.learning_rate_schedule == "cosine":
        return 0.5 * (1 - math.cos(math.pi * remaining))
    return remaining if config.learning_rate_schedule == "linear" else 1.0


def _epochs(count: int, generator: np.random.Generator) -> Iterator[int]:
    while True:
        yield from generator.permutation(count).tolist()


def _looks_since(reports: Sequence[tuple[int, PreferenceReport]], best_step: int) -> int:
    return sum(step > best_step for step, _ in reports)
