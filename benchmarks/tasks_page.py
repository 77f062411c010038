"""The tables of `docs/tasks.md`, from what the tasks declare.

python -m benchmarks.tasks_page            # renews them
"""

from __future__ import annotations

import argparse
import inspect
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from agents.document import Paragraph, Table, to_markdown
from benchmarks.readme_table import between_markers
from benchmarks.setups import setups
from textgen_env.lookup import load_entry_point
from textgen_env.registry import BUILT_IN
from textgen_env.tasks.ladder import LADDER, RECOGNISABLE
from textgen_env.tasks.rung import Hack, Rung

PAGE = Path(__file__).parents[1] / "docs" / "tasks.md"


def arguments(task: str) -> dict[str, Any]:
    """The keywords of a built-in task and their defaults, those of one's own data left aside."""
    function = inspect.unwrap(load_entry_point(BUILT_IN[f"textgen_env/{task}-v0"]["task"]))
    return {name: each.default for name, each in inspect.signature(function).parameters.items()}


def tables() -> str:
    """Scores and hacks of every task with a setup, and their keywords, as Markdown."""
    known = setups()
    rungs = {task: rung for task, rung in {**LADDER, **RECOGNISABLE}.items() if task in known}
    scores = [
        [
            task,
            *map(_number, (rung.random, rung.supervised, rung.optimum, _solved(rung, known[task].solved))),
            f"{known[task].total_tokens // 1000}k",
        ]
        for task, rung in rungs.items()
    ]
    hacks = [
        [task, _sentence(rung.hack), _number(rung.hack.naive_score), _number(rung.hack.robust_score)]
        for task, rung in rungs.items()
    ]
    keywords = [[task, ", ".join(f"{name}={value!r}" for name, value in arguments(task).items())] for task in rungs]
    return to_markdown(
        [
            Table(["task", "random", "supervised", "optimum", "solved from", "tokens"], scores),
            Paragraph("How each is hacked, and what the cheater earns:"),
            Table(["task", "the cheater", "fooled reward", "the task's own"], hacks, numeric=False),
            Paragraph("What makes them harder or easier, with the defaults (task_kwargs={...}):"),
            Table(["task", "keywords"], keywords, numeric=False),
        ]
    )


def _solved(rung: Rung, normalised: float) -> float:
    """The score from which a task counts as solved."""
    return rung.random + normalised * (rung.optimum - rung.random)


def _sentence(hack: Hack) -> str:
    text = hack.description.rstrip(".")
    return text[:1].upper() + text[1:] + "."


def _number(value: float) -> str:
    return f"{value:.3f}".rstrip("0").rstrip(".") or "0"


def main(argv: Sequence[str] | None = None) -> int:
    """Write the tables between the page's markers."""
    parser = argparse.ArgumentParser(prog="benchmarks.tasks_page", description=(__doc__ or "").split("\n\n")[0])
    parser.parse_args(argv)
    PAGE.write_text(between_markers(PAGE.read_text(encoding="utf-8"), tables()), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
