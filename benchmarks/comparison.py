"""What the runs of a benchmark say: of one contender on one task, of one over all tasks, and of one against another."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from benchmarks.records import OFF_THE_ENVIRONMENT, Records, Run, kind
from benchmarks.statistics import (
    Array,
    Estimate,
    interquartile_mean,
    performance_profile,
    pooled_iqm,
    probability_of_improvement,
)

PROFILE_THRESHOLDS = np.linspace(0.0, 1.0, 101)


@dataclass(frozen=True)
class Spread:
    """Of a cost over seeds: the median and the most; ∞ for seeds that never got there, NaN where nothing is known."""

    median: float
    most: float

    @classmethod
    def of(cls, costs: Sequence[float]) -> Spread:
        """The spread of some costs."""
        if not costs:
            return cls(math.nan, math.nan)
        middle = sorted(costs)[(len(costs) - 1) // 2 : len(costs) // 2 + 1]  # np.median warns of ∞ − ∞
        return cls(sum(middle) / len(middle), max(costs))


@dataclass(frozen=True)
class Cell:
    """One contender on one task."""

    task: str
    contender: str
    runs: Sequence[Run]
    """By seed; empty if all of them failed."""
    seeds: int
    """How many runs there should be."""

    @functools.cached_property
    def score(self) -> Estimate | None:
        """Interquartile mean of the objective at the end, in the task's units."""
        return self._iqm(lambda run: run["score"])

    @functools.cached_property
    def normalised(self) -> Estimate | None:
        """The same on the scale on which random play is 0 and the optimum 1; None where the task has no optimum."""
        return self._iqm(lambda run: run["normalised"])

    @functools.cached_property
    def on_the_way(self) -> Estimate | None:
        """Interquartile mean of the area under the learning curve by its length: the mean score over the tokens.

        Normalised where the task has an optimum. None for those that do not learn from the environment.
        """
        if self.contender in OFF_THE_ENVIRONMENT:
            return None
        return self._iqm(_mean_over_tokens)

    @property
    def regret(self) -> float | None:
        """Interquartile mean of optimum − score, in the task's units."""
        found = self._iqm(lambda run: None if run["optimum"] is None else run["optimum"] - run["score"])
        return None if found is None else found.value

    def middle(self, field: str) -> float | None:
        """Interquartile mean over the runs that have a figure there; None where none has."""
        values = [run[field] for run in self.runs if run.get(field) is not None]
        return float(interquartile_mean(values)) if values else None

    @property
    def solved(self) -> int | None:
        """Runs whose final normalised score reached what counts as solved; None where the task has no optimum."""
        if not self.runs or any(run["normalised"] is None for run in self.runs):
            return None
        return sum(map(_solved, self.runs))

    def to_solve(self, field: str) -> Spread:
        """Tokens, episodes or CPU seconds until the task was solved.

        That is until the first look at the validation split that was good enough, and the whole run where only the
        end was. A seed that ended unsolved never got there.
        """
        return Spread.of([(run.get("solved_at") or run)[field] if _solved(run) else math.inf for run in self.runs])

    def spread(self, field: str) -> Spread:
        """Of a figure over the runs that have it."""
        return Spread.of([run[field] for run in self.runs if run.get(field) is not None])

    def _iqm(self, read: Callable[[Run], float | None]) -> Estimate | None:
        values = [value for run in self.runs if (value := read(run)) is not None]
        return pooled_iqm([values]) if values else None


def _mean_over_tokens(run: Run) -> float | None:
    points = [
        (point["tokens"], point["score"] if point["normalised"] is None else point["normalised"])
        for point in run["curve"]
    ]
    length = points[-1][0] - points[0][0] if points else 0
    pieces = ((right - left) * (low + high) / 2 for (left, low), (right, high) in itertools.pairwise(points))
    return sum(pieces) / length if length > 0 else None


def _solved(run: Run) -> bool:
    return run["normalised"] is not None and run["normalised"] >= run["setup"]["solved"]


Measure: TypeAlias = Callable[[Cell], Estimate | None]
"""Such as ``lambda cell: cell.score``."""


class Comparison:
    """Everything that the report says, computed from the runs. Pooled figures leave out tasks without an optimum."""

    def __init__(self, records: Records) -> None:
        self.records = records
        self.cells = {
            (task, contender): Cell(task, contender, runs, len(records.seeds))
            for (task, contender), runs in records.runs.items()
        }
        self.scale = {task: self._is_normalised(task) for task in records.tasks}
        """Task -> whether its scores are normalised."""
        self.overall = {
            name: pooled_iqm(self.scores(name, tasks)) for name in records.contenders if (tasks := self.tasks_of(name))
        }
        """Contender -> the interquartile mean of the normalised scores of all its runs on all tasks."""
        ranks = {name: -found.value for name, found in self.overall.items()}
        played = {name: len(self.tasks_of(name)) for name in records.contenders}
        self.contenders = sorted(records.contenders, key=lambda name: (-played[name], ranks.get(name, math.inf)))
        """The best over all tasks first, then those of fewer: a mean over easy tasks alone is no better one."""

    def _is_normalised(self, task: str) -> bool:
        runs = [run for (name, _), runs in self.records.runs.items() if name == task for run in runs]
        return bool(runs) and all(run["normalised"] is not None for run in runs)

    @property
    def normalised_tasks(self) -> list[str]:
        """Those that figures over all tasks are pooled from."""
        return [task for task, normalised in self.scale.items() if normalised]

    def of_task(self, task: str) -> list[Cell]:
        """The cells of a task, best first."""
        cells = [self.cells[task, name] for name in self.contenders if (task, name) in self.cells]
        return sorted(cells, key=lambda cell: -math.inf if cell.score is None else cell.score.value, reverse=True)

    def tasks_of(self, *contenders: str) -> list[str]:
        """The normalised tasks on which all of some contenders have runs."""
        return [
            task for task in self.normalised_tasks if all(self.records.runs.get((task, name)) for name in contenders)
        ]

    def scores(self, contender: str, tasks: Iterable[str]) -> list[Array]:
        """The normalised scores of a contender, one stratum a task."""
        return [np.array([run["normalised"] for run in self.records.runs[task, contender]]) for task in tasks]

    def solved_tasks(self, contender: str) -> int:
        """The tasks that it solved with every seed there should be."""
        cells = [self.cells[task, contender] for task in self.tasks_of(contender)]
        return sum(cell.solved == cell.seeds for cell in cells)

    def improvement(self, ours: str, theirs: str) -> Estimate | None:
        """P(a run of ``ours`` scores higher than one of ``theirs``), over the tasks of both; None if there are none."""
        tasks = self.tasks_of(ours, theirs)
        return probability_of_improvement(self.scores(ours, tasks), self.scores(theirs, tasks)) if tasks else None

    def profile(self, contender: str) -> tuple[Array, Array, Array]:
        """Shares of its runs above `PROFILE_THRESHOLDS`, with the ends of their intervals."""
        return performance_profile(self.scores(contender, self.tasks_of(contender)), PROFILE_THRESHOLDS)

    @property
    def rivals(self) -> list[str]:
        """The contenders that tasks should tell apart: all but the baselines."""
        return [name for name in self.contenders if kind(name) != "baseline"]

    def pairs(self, task: str) -> list[tuple[str, str]]:
        """Pairs of rivals that both have runs on a task, the better one of each first."""
        names = [cell.contender for cell in self.of_task(task) if cell.runs and cell.contender in self.rivals]
        return list(itertools.combinations(names, 2))

    def separated(self, task: str, measure: Measure) -> list[tuple[str, str]]:
        """Those `pairs`, the better one first, of which the whole interval of one lies above the other's."""
        found = []
        for pair in self.pairs(task):
            for better, worse in (pair, pair[::-1]):
                one, other = (measure(self.cells[task, name]) for name in (better, worse))
                if one is not None and other is not None and one.above(other):
                    found.append((better, worse))
        return found


def circumstances(runs: Iterable[Run]) -> Mapping[str, Mapping[str, int]]:
    """Under which circumstances the runs were made: name -> value -> how many runs. Of dates the first and last."""
    found: dict[str, dict[str, int]] = {}
    for run in runs:
        for name, value in _flat(run.get("circumstances") or {}):
            counts = found.setdefault(name, {})
            counts[value] = counts.get(value, 0) + 1
    if dates := found.pop("date", None):
        span = " to ".join(dict.fromkeys((min(dates), max(dates))))
        found = {"dates": {span: sum(dates.values())}, **found}
    return found


def _flat(values: Mapping[str, object]) -> Iterable[tuple[str, str]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from ((f"{name}: {inner}", shown) for inner, shown in _flat(value))
        else:
            yield name, " ".join(map(str, value)) if isinstance(value, list) else str(value)
