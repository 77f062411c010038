"""Fitting answers to instructions, and how good a model's own answers are."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from agents.callbacks import replace_file
from agents.config import option
from agents.evaluation import Interval, bootstrap_interval
from agents.micro_batches import MicroBatches
from agents.policy import TextPolicy
from agents.rollout import Collector
from agents.supervised import Pairs, SupervisedConfig, accumulate_pairs, pair_losses, reference_pairs
from agents.training_loop import Checkpoint, TrainingLoop, Watch, patience, train
from textgen_env import TextGenVectorEnv, TextMDP
from textgen_env.reward_registry import resolve_reward

MEASURES = ("exact_match", "rouge_l", "token_f1")
"""Of a greedy answer against the references: SQuAD's exact match and token F1, and ROUGE-L (see `reward_models`)."""
_ROWS = 64
_FIGURE = "validation_loss"


@dataclass
class InstructConfig(SupervisedConfig):
    """Options of the fit."""

    epochs: float = option(3.0, "passes over the records of a round; may be a fraction")
    validate_every: int | None = option(
        None, "steps from one validation, and checkpoint, to the next; by default 20 a round"
    )
    patience: int | None = option(
        3, "end once so many validations in a row were no better than the best; none goes to the end"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("validate_every", "patience"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")


@dataclass(frozen=True)
class Fit:
    """How a fit went."""

    finished: bool
    """False where Ctrl-C or SIGTERM ended it: the same call goes on."""
    steps: int
    best_step: int
    """Whose weights were kept: of the least validation loss, the last without validation."""
    history: list[dict[str, float]]
    """A row a validation: step, loss of that step's batch, validation_loss; in nats an answer's token."""


def fit(
    policy: TextPolicy,
    train_mdp: TextMDP,
    validation_mdp: TextMDP | None,
    config: InstructConfig,
    *,
    folder: Path,
    fingerprint: str,
    seed: int = 0,
    on_step: Callable[[int, int, float], None] | None = None,
    on_validation: Callable[[Mapping[str, float]], None] | None = None,
) -> Fit:
    """Fit the answers of ``train_mdp``'s split, and keep the weights that do best on ``validation_mdp``'s.

    Only answers count, their EOS included. A killed fit goes on from its checkpoint to the same weights.

    Args:
        policy: trained in place.
        train_mdp: gives the pairs to learn.
        validation_mdp: gives those held out; None keeps the last weights.
        config: the options.
        folder: holds checkpoint and best weights until `clear`.
        fingerprint: of whatever must not change while the fit is interrupted.
        seed: the order of the pairs.
        on_step: called with (steps done, steps in all, loss in nats a token).
        on_validation: called with each row of the history.

    Raises:
        ValueError: a split has no answers, or the checkpoint is that of another fit.
        FloatingPointError: the gradients are not finite.
    """
    pairs = reference_pairs(train_mdp)
    held_out = None if validation_mdp is None else reference_pairs(validation_mdp)
    loop = TrainingLoop(policy.model.parameters(), len(pairs), config, width=policy.value_head.in_features, seed=seed)
    micro_batches = MicroBatches(policy, config)
    best = folder / "best.pt"

    def learn(rows: list[int]) -> float:
        return accumulate_pairs(policy, pairs.select(rows), micro_batches, config.prompt_loss_weight)

    def validate() -> dict[str, float]:
        return {} if held_out is None else {_FIGURE: mean_loss(policy, held_out, micro_batches)}

    def keep(row: Mapping[str, float]) -> None:
        if held_out is not None and _best(watch.history)["step"] == row["step"]:
            replace_file(best, lambda path: torch.save(policy.model.state_dict(), path))
        if on_validation is not None:
            on_validation(row)

    watch = Watch(
        validate=validate,
        every=config.validate_every or max(1, loop.steps // 20),
        checkpoint=Checkpoint(folder / "checkpoint.pt", fingerprint),
        on_step=on_step,
        on_validation=keep,
        enough=None if held_out is None or config.patience is None else patience(config.patience, _FIGURE),
    )
    finished = train(loop, policy.model, learn, watch)
    best_step = loop.step
    if held_out is not None and finished:
        best_step = int(_best(watch.history)["step"])
        policy.model.load_state_dict(torch.load(best, map_location=policy.device, weights_only=True))
    return Fit(finished, loop.step, best_step, watch.history)


def clear(folder: Path) -> None:
    """Delete what `fit` keeps for going on."""
    for name in ("checkpoint.pt", "best.pt"):
        (folder / name).unlink(missing_ok=True)


def _best(history: Sequence[dict[str, float]]) -> dict[str, float]:
    return min(history, key=lambda row: row[_FIGURE])  # the first of equals


@torch.no_grad()
def mean_loss(policy: TextPolicy, pairs: Pairs, micro_batches: MicroBatches) -> float:
    """Negative log-likelihood of the answers, in nats a token, whatever the micro-batches."""
    parts: list[float] = []

    def measure(_rows: Tensor, part: Pairs) -> None:
        parts.append(float(pair_losses(policy, part)[1]))

    micro_batches.each(pairs, measure, begin=parts.clear)
    return sum(parts) / int(pairs.answers_NS.sum())


def evaluate_answers(
    policy: TextPolicy, mdp: TextMDP, *, num_prompts: int = 200, seed: int = 0
) -> dict[str, dict[str, Any]]:
    """Greedy answers to the prompts of ``mdp``'s split, measured; by the file they are from, as plain data.

    Args:
        policy: answers.
        mdp: the rules, on a held-out split (see `agents.instruct.data.rules`).
        num_prompts: at most so many of each file, drawn without replacement.
        seed: seeds the draw and the bootstrap: models that are asked with the same seed answer the same prompts.

    Returns:
        File -> ``prompts`` (their number), every one of `MEASURES` as ``mean`` and 95 % ``interval`` (None for one
        prompt), and three ``samples``.
    """
    by_source: dict[str, list[int]] = {}
    for index, prompt in enumerate(mdp.prompts):
        by_source.setdefault(prompt.metadata["source"], []).append(index)
    rewards = {name: resolve_reward(name) for name in MEASURES}
    found: dict[str, dict[str, Any]] = {}
    for source, indices in by_source.items():
        generator = np.random.default_rng(seed)
        chosen = sorted(generator.permutation(indices)[:num_prompts].tolist())
        env = TextGenVectorEnv(min(len(chosen), _ROWS), mdp=mdp, autoreset_mode="Disabled", defer_scoring=True)
        played = Collector(env, policy, seed=seed).collect(len(chosen), prompt_indices=chosen, greedy=True)
        assert played is not None  # nobody abandons it
        scores = {name: reward.score(played.completions).totals for name, reward in rewards.items()}
        found[source] = {
            "prompts": len(chosen),
            **{
                name: {"mean": float(values.mean()), "interval": _plain(bootstrap_interval(values, generator))}
                for name, values in scores.items()
            },
            "samples": [
                {"prompt": done.prompt.text, "answer": done.text, "reference": done.prompt.references[0]}
                for done in played.completions[:3]
            ],
        }
    return found


def _plain(interval: Interval | None) -> list[float] | None:
    return None if interval is None else list(interval)  # as JSON gives it back
