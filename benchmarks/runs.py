"""Contenders on tasks, several seeds each, processes side by side; a JSON line a run.

    python -m benchmarks run --tasks Reverse DelayedBit --algos ppo dqn sb3_ppo --seeds 5 --output runs.jsonl
    python -m benchmarks run --quick
    python -m benchmarks run --tasks Reverse --algos ppo ppo@mine.json

Runs that the output holds already are not made again, so an interrupted command goes on where it stopped. A run that
failed is a line too, with its traceback, and is made again by the next command.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from benchmarks import records
from benchmarks.contender import CannotTakePart
from benchmarks.contenders import contenders, find_contender
from benchmarks.costs import Costs
from benchmarks.lines import append, read
from benchmarks.setups import setup, setups
from benchmarks.trial import Job, run
from benchmarks.workers import ProcessDied, cores, side_by_side
from textgen_env.tasks.ladder import LADDER, RECOGNISABLE

RESULTS = Path(__file__).parent / "results"
"""Where the runs of record are, ``ladder*.jsonl`` or packed: they say what a run costs."""
QUICK: Mapping[str, Any] = {
    "tasks": ["Reverse", "DelayedBit", "SteerKL"],
    "algos": ["ppo", "dqn"],
    "seeds": 3,
    "budget": 0.5,
}
"""A ladder for a coffee break: at most 10 minutes on two cores."""
_DEFAULTS: Mapping[str, Any] = {"tasks": ["ladder"], "algos": ["all"], "seeds": 5, "budget": 1.0}

Runner = Callable[[Callable[[Job], dict[str, Any]], Iterable[Job], int], Iterator[tuple[Job, Any]]]


def chosen_tasks(asked: Sequence[str]) -> list[str]:
    """The tasks of a selection: names, or "ladder", "recognisable", "quick".

    Raises:
        ValueError: a task has no setup; the message names the nearest.
    """
    known = setups()
    groups = {
        "ladder": [task for task in known if task in LADDER],
        "recognisable": [task for task in known if task in RECOGNISABLE],
        "quick": QUICK["tasks"],
    }
    tasks = dict.fromkeys(task for name in asked for task in groups.get(name, [name]))
    for task in tasks:
        setup(task)
    if not tasks:
        raise ValueError(f"no tasks: {' '.join(asked)} holds none yet; there are {', '.join(known)}")
    return list(tasks)


def chosen_cells(tasks: Sequence[str], asked: Sequence[str]) -> tuple[list[tuple[str, str]], list[str]]:
    """Every (task, contender) of a selection, and why some are left out.

    Raises:
        ValueError: a contender is unknown or its options are wrong, or it was named and cannot take part in any task.
        ImportError: it was named, and a library is missing.
    """
    cells: list[tuple[str, str]] = []
    left_out: list[str] = []
    for name in dict.fromkeys(name for word in asked for name in (contenders() if word == "all" else [word])):
        contender = find_contender(name)
        reasons: list[CannotTakePart] = []
        for task in tasks:
            try:
                contender.check(setup(task))
                cells.append((task, name))
            except CannotTakePart as reason:
                reasons.append(reason)
            except ImportError as missing:
                if name in asked:
                    raise
                left_out.append(str(missing))
        if name in asked and len(reasons) == len(tasks):
            raise reasons[0]
        left_out += map(str, reasons)
    order = {task: place for place, task in enumerate(tasks)}
    return sorted(cells, key=lambda cell: order[cell[0]]), list(dict.fromkeys(left_out))


def is_done(job: Job, lines: Iterable[Mapping[str, Any]]) -> bool:
    """Whether the last line of a run is a result, made with the options of today.

    Raises:
        ValueError: it was made with another budget: one file, one budget.
    """
    last = None
    for line in lines:
        if (line["task"], line["contender"], line["seed"]) == (job.task, job.contender, job.seed):
            last = line
    if last is None or "error" in last:
        return False
    if last["budget"] != job.budget:
        raise ValueError(
            f"the output holds {job.task} {job.contender} seed {job.seed} at --budget {last['budget']}: choose another "
            "--output, or the same budget"
        )
    shared = setup(job.task)
    today = {"setup": dataclasses.asdict(shared), "preset": find_contender(job.contender).options(shared)}
    return all(last[name] == json.loads(json.dumps(options)) for name, options in today.items())


def make_runs(
    jobs: Sequence[Job], output: Path, workers: int, costs: Costs, runner: Runner
) -> Iterator[tuple[dict[str, Any], str]]:
    """Make the runs, each line written as it comes; yields it with how far that is ("3/10, about 4 min left")."""
    with tempfile.TemporaryDirectory() as cache:
        began = time.perf_counter()
        left = [dataclasses.replace(job, cache=Path(cache)) for job in jobs]
        done: list[Job] = []
        for job, found in runner(run, list(left), workers):
            line = found
            if isinstance(found, ProcessDied):
                line = {"task": job.task, "contender": job.contender, "seed": job.seed, "error": str(found)}
            append(output, line)
            costs.add(line)
            left.remove(job)
            done.append(job)
            seconds = (time.perf_counter() - began) * costs.total(left) / costs.total(done)
            yield line, f"{len(done)}/{len(jobs)}" + (f", about {_duration(seconds)} left" if left else "")


def in_words(line: Mapping[str, Any]) -> str:
    """A run in one line; one that failed with its traceback."""
    name = f"{line['task']} {line['contender']} seed {line['seed']}"
    if "error" in line:
        return f"{name}: FAILED\n{line['error']}"
    scale = "" if line["normalised"] is None else f" (normalised {line['normalised']:.3f})"
    solved = "" if line["solved_at"] is None else f", solved at {line['solved_at']['tokens']:,} tokens"
    return (
        f"{name}: {line['score']:.3f}{scale} after {line['tokens']:,} tokens{solved}, {line['cpu_seconds']:.0f} CPU s"
    )


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 60 else f"{seconds / 60:.0f} min"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks run", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument(
        "--tasks", nargs="+", help="names, or 'ladder', 'recognisable', 'quick' (default: ladder)", metavar="TASK"
    )
    parser.add_argument(
        "--algos",
        nargs="+",
        metavar="CONTENDER",
        help=f"'all' (the default), or of {', '.join(contenders())}; NAME@FILE is one with the options of a JSON file, "
        "as in benchmarks/presets: what it leaves out stays",
    )
    parser.add_argument("--seeds", type=int, help="number of seeds, 0 to n - 1 (default: 5)")
    parser.add_argument("--budget", type=float, help="scales every task's tokens, a factor (default: 1)")
    parser.add_argument(
        "--quick",
        action="store_true",
        help=f"{', '.join(QUICK['tasks'])}; {', '.join(QUICK['algos'])}; {QUICK['seeds']} seeds; "
        f"budget {QUICK['budget']}: at most 10 minutes on two cores. What else is given, holds",
    )
    available = cores()
    parser.add_argument(
        "--workers",
        type=int,
        default=min(2, available),
        help=f"runs side by side (default: %(default)s of {available} cores)",
    )
    parser.add_argument("--output", type=Path, default=Path("runs.jsonl"), help="default: %(default)s")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run what the output lacks. 0: every run is there; 1: some failed; 130: interrupted."""
    parser = _parser()
    args = parser.parse_args(argv)
    for name, value in (QUICK if args.quick else _DEFAULTS).items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    if not 1 <= args.workers <= cores():
        parser.error(f"--workers {args.workers}: this machine lends {cores()} cores, and each run takes one")
    if args.seeds < 1 or args.budget <= 0:
        parser.error("--seeds must be at least 1, --budget above 0")
    try:  # a misspelled name now, not an hour from now
        cells, left_out = chosen_cells(chosen_tasks(args.tasks), args.algos)
        jobs = [Job(task, name, seed, args.budget) for task, name in cells for seed in range(args.seeds)]
        lines = read(args.output)
        missing = [job for job in jobs if not is_done(job, lines)]
    except (ValueError, TypeError, ImportError, OSError) as error:
        parser.error(str(error))
    for reason in left_out:
        print(f"left out: {reason}", file=sys.stderr)
    costs = Costs([*records.read(sorted(RESULTS.glob("ladder*.jsonl*"))), *lines])
    print(f"{len(jobs)} runs, {len(jobs) - len(missing)} of them in {args.output} already", flush=True)
    if missing:
        print(f"{costs.stated(missing)}; {args.workers} at a time", flush=True)
    failed = 0
    bar = tqdm(total=len(missing), disable=not sys.stderr.isatty(), unit="run", bar_format="{l_bar}{bar}| {desc}")
    try:
        with bar:
            for line, progress in make_runs(missing, args.output, args.workers, costs, side_by_side):
                failed += "error" in line
                bar.set_description_str(progress, refresh=False)
                bar.update()
                bar.write(f"[{progress}] {in_words(line)}")
                sys.stdout.flush()
    except KeyboardInterrupt:
        print(f"stopped; what is done is in {args.output}, and the same command goes on", file=sys.stderr)
        return 130
    if failed:
        print(f"{failed} runs FAILED; the same command makes them again", file=sys.stderr)
    print(f"python -m benchmarks report {args.output}")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
