"""Looking at a learner from time to time, with a stopwatch that stands still meanwhile."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

from agents.policy import TextPolicy

LOOKS = 20
"""Of a run, about; one at the start and one at the end among them."""


@dataclass
class Watch:
    """The learning curve and the time it took. Entered around the learning, and nothing else.

    Args:
        judge: a policy's score on the validation split.
        tokens: the budget, in tokens.
        normalised: scores to the task's scale; None where there is none.
    """

    judge: Callable[[TextPolicy], float]
    tokens: int
    normalised: Callable[[float], float] | None = None
    curve: list[dict[str, Any]] = field(default_factory=list)
    cpu_seconds: float = 0.0
    """Of learning, so far: the looks are not in it."""
    wall_seconds: float = 0.0

    def __enter__(self) -> Watch:
        self._cpu, self._wall = time.process_time(), time.perf_counter()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cpu_seconds += time.process_time() - self._cpu
        self.wall_seconds += time.perf_counter() - self._wall

    def due(self, tokens: int) -> bool:
        """Whether it is time for a look."""
        return tokens >= len(self.curve) * self.tokens / LOOKS

    def look(self, policy: TextPolicy, tokens: int, episodes: int) -> None:
        """Judge the learner as it is now, after so many tokens and episodes."""
        self.__exit__(None, None, None)
        score = self.judge(policy)
        self.curve.append(
            {
                "tokens": tokens,
                "episodes": episodes,
                "cpu_seconds": self.cpu_seconds,
                "score": score,
                "normalised": None if self.normalised is None else self.normalised(score),
            }
        )
        self.__enter__()

    def solved_at(self, solved: float) -> dict[str, Any] | None:
        """Where the curve first reached a normalised score."""
        for point in self.curve:
            if point["normalised"] is not None and point["normalised"] >= solved:
                return {name: point[name] for name in ("tokens", "episodes", "cpu_seconds")}
        return None
