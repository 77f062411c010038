"""The lines of a benchmark's runs, gathered by task and contender, and whatever is wrong with them."""

from __future__ import annotations

import gzip
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from benchmarks import lines

Run: TypeAlias = Mapping[str, Any]
"""A line: one contender's run on one task with one seed."""

BASELINES = ("random", "supervised", "best_of_n", "expert_iteration")
OFF_THE_ENVIRONMENT = ("random", "supervised", "best_of_n")
"""Those of them that sample nothing to learn from: tokens and learning curves say nothing of them."""
PEERS = ("sb3_", "trl_")
"""How the names of other libraries' contenders begin."""
_NEEDED = ("score", "normalised", "optimum", "tokens", "cpu_seconds", "curve", "setup")
_DIGITS = 5


def kind(contender: str) -> str:
    """Whose a contender is: "ours", "peer" (of another library) or "baseline" (what all have to beat)."""
    if contender.startswith(PEERS):
        return "peer"
    return "baseline" if contender in BASELINES else "ours"


@dataclass(frozen=True)
class Fault:
    """Something that forbids to take the report at its word."""

    where: str
    what: str
    details: str = ""
    """A traceback."""

    def __str__(self) -> str:
        return f"{self.where}: {self.what}"


@dataclass(frozen=True)
class Records:
    """All runs. Tasks and contenders come in the order of the file."""

    runs: Mapping[tuple[str, str], Sequence[Run]]
    """(task, contender) -> its finished runs by seed; there is an entry wherever there is any line."""
    seeds: Sequence[int]
    """What every entry should have."""
    faults: Sequence[Fault]

    @property
    def tasks(self) -> list[str]:
        """The tasks that occur."""
        return list(dict.fromkeys(task for task, _ in self.runs))

    @property
    def contenders(self) -> list[str]:
        """The contenders that occur."""
        return list(dict.fromkeys(contender for _, contender in self.runs))

    def all_runs(self) -> list[Run]:
        """Every finished run."""
        return [run for runs in self.runs.values() for run in runs]


def read(paths: Iterable[Path]) -> list[Run]:
    """The last line of every run in some files of JSON lines, plain or ending in ``.gz``.

    Raises:
        OSError: a file cannot be read.
        ValueError: a file holds no runs, or a line is none; the message names it.
    """
    last: dict[tuple[str, str, int], Run] = {}
    for path in paths:
        if not path.exists():
            raise FileNotFoundError(f"there is no {path}: make runs with 'python -m benchmarks run --output {path}'")
        found = lines.read(path)
        if not found:
            raise ValueError(f"{path} holds no runs: make some with 'python -m benchmarks run --output {path}'")
        for number, line in enumerate(found, 1):
            names = ("task", "contender", "seed", *(() if "error" in line else _NEEDED))
            if absent := [name for name in names if name not in line]:
                raise ValueError(f"{path}, run {number}: no {' and no '.join(absent)}; is it a file of benchmark runs?")
            last[line["task"], line["contender"], line["seed"]] = line
    return list(last.values())


def write_compact(path: Path, runs: Iterable[Run]) -> None:
    """Write runs small enough to be kept beside the code: numbers to five digits, packed if the name ends in ``.gz``.

    The same runs give the same bytes.
    """
    content = "".join(json.dumps(_rounded(run), separators=(",", ":")) + "\n" for run in runs).encode()
    if path.suffix == ".gz":
        packed = io.BytesIO()
        with gzip.GzipFile("", "wb", compresslevel=9, fileobj=packed, mtime=0) as file:
            file.write(content)
        content = packed.getvalue()
    path.write_bytes(content)


def gather(found: Iterable[Run], num_seeds: int | None = None) -> Records:
    """Sort runs by task and contender, and look for what is wrong with them.

    A task's contender is expected to have every seed that occurs anywhere, and 0 to ``num_seeds`` - 1 if that is given.
    That a contender did not play a task at all is no fault: some cannot. Numbers are as `write_compact` keeps them, so
    that new runs go with kept ones, and a difference in a float's last digit is none.
    """
    by_cell: dict[tuple[str, str], dict[int, Run]] = {}
    for run in found:
        by_cell.setdefault((run["task"], run["contender"]), {})[run["seed"]] = _rounded(run)
    order = [list(dict.fromkeys(names)) for names in zip(*by_cell, strict=True)]
    cells = sorted(by_cell, key=lambda cell: (order[0].index(cell[0]), order[1].index(cell[1])))
    seeds = sorted({seed for runs in by_cell.values() for seed in runs} | set(range(num_seeds or 0)))
    faults: list[Fault] = []
    runs: dict[tuple[str, str], list[Run]] = {}
    for cell in cells:
        runs[cell] = []
        for seed in seeds:
            fault = _fault(" · ".join([*cell, f"seed {seed}"]), by_cell[cell].get(seed))
            if fault is None:
                runs[cell].append(by_cell[cell][seed])
            else:
                faults.append(fault)
    return Records(runs, seeds, [*faults, *_mixed(runs)])


def _fault(where: str, run: Run | None) -> Fault | None:
    if run is None:
        return Fault(where, "missing")
    if "error" in run:
        last = (run["error"].strip().splitlines() or ["no message"])[-1]
        return Fault(where, f"failed: {last}", run["error"])
    if not all(math.isfinite(run[name]) for name in ("score", "normalised") if run[name] is not None):
        return Fault(where, f"failed: its score is {run['score']}")
    return None


def _mixed(runs: Mapping[tuple[str, str], Sequence[Run]]) -> list[Fault]:
    """What must be equal for runs to be comparable: a task's setup, budget and scale, a contender's options on it."""
    faults = []
    for field, per in (("setup", 1), ("budget", 1), ("optimum", 1), ("random", 1), ("preset", 2)):
        values: dict[str, set[str]] = {}
        for cell, mine in runs.items():
            values.setdefault(" · ".join(cell[:per]), set()).update(
                json.dumps(run.get(field), sort_keys=True) for run in mine
            )
        faults += [
            Fault(where, f"its runs differ in their {field}, so they cannot be compared")
            for where, found in values.items()
            if len(found) > 1
        ]
    return faults


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.{_DIGITS}g}")
    if isinstance(value, Mapping):
        return {name: _rounded(part) for name, part in value.items()}
    return [_rounded(part) for part in value] if isinstance(value, list) else value
