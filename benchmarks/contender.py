"""What a contender is.

It gets a `Start`, the same for all of one task and seed, learns from at most the start's tokens (whole rollouts: the
last one may run over), and hands back a policy. What it did with the weights is its own affair; how it is judged is
not (see `benchmarks.trial`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from agents.policy import TextPolicy
from benchmarks.setups import Setup
from benchmarks.warm_start import Start
from benchmarks.watch import Watch


@dataclass(frozen=True)
class Learned:
    """What a contender hands back."""

    policy: TextPolicy
    tokens: int
    """Sampled from the environment (of logged or written texts: read, once for each time)."""
    episodes: int
    best_of: int = 1
    """Completions that are drawn for each answer; the reward chooses. 1: greedy decoding, no choice."""


class CannotTakePart(ValueError):
    """A contender has nothing to say to a task; the message says why."""


class Contender:
    """Base of the contenders."""

    name: str
    on_any_device: ClassVar[bool] = False
    """Whether it learns on the start's device; if not, on the CPU alone."""

    def options(self, setup: Setup) -> dict[str, Any]:
        """The options on a task, as plain data: what the run's line holds as its preset.

        Raises:
            ValueError: there are none, or a value has no meaning.
            TypeError: one is unknown.
        """
        raise NotImplementedError

    def check(self, setup: Setup) -> None:
        """Whether it can take part, with options that have a meaning (see `options`).

        Raises:
            CannotTakePart: it cannot; with the reason.
            ImportError: a library is missing; with what to install.
        """
        self.options(setup)

    def versions(self) -> dict[str, str]:
        """Of the libraries it needs beyond those that all runs have."""
        return {}

    def learn(self, start: Start, watch: Watch) -> Learned:
        """Learn, looked at by ``watch``, which is entered around the learning."""
        raise NotImplementedError
