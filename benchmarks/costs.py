"""What runs will cost, from what the same ones have cost."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from benchmarks.trial import Job


class Costs:
    """CPU seconds of runs, evaluation included: medians over earlier ones of the same task and contender.

    Args:
        lines: earlier runs; those that failed say nothing.
    """

    def __init__(self, lines: Iterable[Mapping[str, Any]]) -> None:
        self._cells: dict[tuple[str, str], list[tuple[float, float]]] = defaultdict(list)
        for line in lines:
            self.add(line)

    def add(self, line: Mapping[str, Any]) -> None:
        """Learn from a run."""
        if "error" not in line:
            learning = line["cpu_seconds"]
            fixed = line["process_cpu_seconds"] - learning
            self._cells[line["task"], line["contender"]].append((fixed, learning / line["budget"]))

    def of(self, job: Job) -> float | None:
        """CPU seconds of a run; None where none like it is known."""
        if (job.task, job.contender) not in self._cells:
            return None
        fixed, learning = zip(*self._cells[job.task, job.contender], strict=True)
        return statistics.median(fixed) + job.budget * statistics.median(learning)

    def total(self, jobs: Sequence[Job]) -> float:
        """CPU seconds of several; an unknown one counts as the mean of all that is known, or as 1."""
        return sum(self._typical(job) if (cost := self.of(job)) is None else cost for job in jobs)

    def _typical(self, job: Job) -> float:
        known = [self.of(replace(job, task=task, contender=contender)) for task, contender in self._cells]
        return statistics.fmean(cost for cost in known if cost is not None) if known else 1.0

    def stated(self, jobs: Sequence[Job]) -> str:
        """The estimate in words, with what is not in it."""
        known = [cost for cost in map(self.of, jobs) if cost is not None]
        unknown = dict.fromkeys(f"{job.task} {job.contender}" for job in jobs if self.of(job) is None)
        if not known:
            return "estimated cost: unknown (none of these was run before)"
        minutes = sum(known) / 60
        said = f"estimated cost: {minutes:.0f} CPU minutes" if minutes >= 1 else "estimated cost: under a CPU minute"
        if not unknown:
            return said
        return f"{said} for {len(known)} of {len(jobs)} runs; unknown: {', '.join(unknown)}"
