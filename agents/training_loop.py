"""Fitting weights to items: AdamW, warm-up and cosine, clipping, and everything that a killed run needs to go on.

What is learned from a batch of items is the caller's. A caller that needs nothing else writes the loop itself::

    for rows in loop:
        loss_of(rows).backward()  # or several parts of it
        loop.update()

and `train` is that loop with validation, checkpoints and a clean stop.
"""

from __future__ import annotations

import itertools
import math
import pickle
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from agents.callbacks import StopOnSignal, replace_file
from agents.config import MICRO_BATCH_TOKENS, option
from agents.sharding import clip_gradients


@dataclass
class LoopConfig:
    """Options of a fit."""

    epochs: float = option(1.0, "passes over the items; may be a fraction")
    batch_size: int = option(32, "items an optimiser step")
    learning_rate: float | None = option(None, "peak of the cosine schedule; by default 0.25 / hidden width")
    warmup: float = option(0.05, "fraction of the steps over which the learning rate rises")
    weight_decay: float = option(0.01, "decoupled weight decay")
    max_grad_norm: float = option(1.0, "gradients are scaled down to this norm")
    micro_batch_tokens: int | None = option(None, MICRO_BATCH_TOKENS)

    def __post_init__(self) -> None:
        if self.epochs <= 0 or self.batch_size < 1:
            raise ValueError(f"epochs and batch_size must be above 0, got {self.epochs} and {self.batch_size}")
        if self.micro_batch_tokens is not None and self.micro_batch_tokens < 1:
            raise ValueError(f"micro_batch_tokens must be at least 1, got {self.micro_batch_tokens}")


class TrainingLoop:
    """The items of every step in turn, and the optimiser step on what the caller has learned from them.

    The order of the items is drawn from the seed alone, a permutation an epoch, so that a resumed loop goes on with
    the very items that an uninterrupted one would have come to.

    Args:
        parameters: what is fitted; those that require no gradient are left out.
        count: how many items there are.
        config: the options.
        width: the model's hidden width, which the default learning rate goes by.
        seed: the order of the items.

    Raises:
        ValueError: there are no items.

    Attributes:
        step: steps that are done.
        steps: steps in all.
    """

    def __init__(
        self, parameters: Iterable[nn.Parameter], count: int, config: LoopConfig, *, width: int, seed: int = 0
    ) -> None:
        if count < 1:
            raise ValueError("there is nothing to learn from: no items")
        self.config, self.count, self.seed = config, count, seed
        self.parameters = [parameter for parameter in parameters if parameter.requires_grad]
        self.rate = config.learning_rate or 0.25 / width
        self.optimiser = torch.optim.AdamW(
            self.parameters, lr=self.rate, weight_decay=config.weight_decay, betas=(0.9, 0.95)
        )
        self.batch = min(config.batch_size, count)
        self.steps = max(1, math.ceil(config.epochs * count / self.batch))
        self.step = 0

    def __iter__(self) -> Iterator[list[int]]:
        """The items of each step that is left; the caller calls `update` once for each."""
        order = itertools.islice(_epochs(self.count, np.random.default_rng(self.seed)), self.step * self.batch, None)
        for _ in range(self.step, self.steps):
            yield list(itertools.islice(order, self.batch))

    def update(self) -> float:
        """One step along the gradients that stand, which are cleared; returns their norm before clipping.

        Raises:
            FloatingPointError: the gradients are not finite. The weights are as they were.
        """
        norm = float(clip_gradients(self.parameters, self.config.max_grad_norm))
        if not math.isfinite(norm):
            raise FloatingPointError(
                f"the gradients of step {self.step + 1} are not finite: lower learning_rate ({self.rate:g})"
            )
        for group in self.optimiser.param_groups:
            group["lr"] = self.rate * self._factor()
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        self.step += 1
        return norm

    def _factor(self) -> float:
        """Of the learning rate, in the step that comes next: up in a line, then down half a cosine."""
        warmup = max(1, round(self.config.warmup * self.steps))
        if self.step < warmup:
            return (self.step + 1) / warmup
        return 0.5 * (1 + math.cos(math.pi * (self.step - warmup) / max(1, self.steps - warmup)))

    def state(self) -> dict[str, Any]:
        """What another loop, made alike, needs to go on from here; the weights are not part of it."""
        return {"step": self.step, "steps": self.steps, "optimiser": self.optimiser.state_dict()}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state`.

        Raises:
            ValueError: it is that of a loop of another length.
        """
        if state["steps"] != self.steps:
            raise ValueError(f"the saved fit takes {state['steps']} steps, this one {self.steps}: it cannot go on")
        self.optimiser.load_state_dict(state["optimiser"])
        self.step = state["step"]


@dataclass
class Checkpoint:
    """A fit on disk: weights, optimiser and figures, in one file that is whole at every moment.

    Raises:
        ValueError: (from `load`) the file is not a checkpoint, or that of another fit.
    """

    path: Path
    fingerprint: str
    """Of the data and whatever else must be the same for the fit to go on."""

    def save(self, module: nn.Module, loop: TrainingLoop, history: list[dict[str, float]]) -> None:
        """Replace what the file holds."""
        content = {
            "fingerprint": self.fingerprint,
            "weights": module.state_dict(),
            "loop": loop.state(),
            "history": history,
        }
        replace_file(self.path, lambda temporary: torch.save(content, temporary))

    def load(self, module: nn.Module, loop: TrainingLoop) -> list[dict[str, float]]:
        """Bring both to where they were; returns the figures. Without a file nothing changes, and there are none."""
        if not self.path.is_file():
            return []
        try:
            content = torch.load(self.path, map_location="cpu", weights_only=True)
        except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
            raise ValueError(f"'{self.path}' is no checkpoint: {str(error).splitlines()[0]}") from error
        if content["fingerprint"] != self.fingerprint:
            raise ValueError(
                f"'{self.path}' was saved of other texts or options: bring back the texts, or start anew elsewhere"
            )
        module.load_state_dict(content["weights"])
        loop.load_state(content["loop"])
        return list(content["history"])


@dataclass
class Watch:
    """What happens besides learning.

    A validation's figures and the step it stands at become a row of ``history``.
    """

    validate: Callable[[], Mapping[str, float]] | None = None
    every: int = 0
    """Steps from one validation, and checkpoint, to the next; both also come at the end. 0: at the end only."""
    checkpoint: Checkpoint | None = None
    on_step: Callable[[int, int, float], None] | None = None
    """Called with (steps done, steps in all, loss)."""
    on_validation: Callable[[Mapping[str, float]], None] | None = None
    """Called with each new row of the history."""
    enough: Callable[[list[dict[str, float]]], bool] | None = None
    """Asked about the history after each validation; True ends the fit there (see `patience`)."""
    history: list[dict[str, float]] = field(default_factory=list)


def train(loop: TrainingLoop, module: nn.Module, learn: Callable[[list[int]], float], watch: Watch) -> bool:
    """Run a loop to its end, or until Ctrl-C or SIGTERM; a checkpoint that is there already is gone on from.

    Args:
        loop: the loop.
        module: whose weights it fits; a checkpoint holds all of them.
        learn: adds the gradients of a step's items and returns their loss.
        watch: validation, checkpoints and callbacks.

    Returns:
        Whether the end was reached, be it an early one; else, and with a checkpoint, the same call goes on.

    Raises:
        FloatingPointError: the gradients are not finite.
        ValueError: the checkpoint is that of another fit.
    """
    if watch.checkpoint is not None:
        watch.history[:] = watch.checkpoint.load(module, loop)

    def save() -> None:
        if watch.checkpoint is not None:
            watch.checkpoint.save(module, loop, watch.history)

    def enough() -> bool:
        return watch.enough is not None and bool(watch.history) and watch.enough(watch.history)

    with StopOnSignal() as stop:
        for rows in loop if not enough() else ():
            loss = learn(rows)
            loop.update()
            last = loop.step == loop.steps
            if watch.on_step is not None:
                watch.on_step(loop.step, loop.steps, loss)
            if last or (watch.every and loop.step % watch.every == 0):
                if watch.validate is not None:
                    watch.history.append({"step": loop.step, "loss": loss, **watch.validate()})
                    if watch.on_validation is not None:
                        watch.on_validation(watch.history[-1])
                save()
            elif stop.requested:
                save()
            if stop.requested or enough():
                break
    return loop.step == loop.steps or enough()


def patience(count: int, figure: str) -> Callable[[list[dict[str, float]]], bool]:
    """Early stopping (Prechelt 1998): enough, once ``count`` validations in a row were no better than the best before.

    Args:
        count: how many.
        figure: of the history's rows; less is better.

    >>> enough = patience(2, "loss")
    >>> enough([{"loss": 3.0}, {"loss": 2.0}, {"loss": 2.0}]), enough([{"loss": 2.0}, {"loss": 3.0}, {"loss": 2.0}])
    (False, True)
    """

    def enough(history: list[dict[str, float]]) -> bool:
        figures = [row[figure] for row in history]
        return len(figures) - 1 - figures.index(min(figures)) >= count

    return enough


def _epochs(count: int, generator: np.random.Generator) -> Iterator[int]:
    while True:
        yield from generator.permutation(count).tolist()
