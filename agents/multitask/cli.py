"""``textgen multitask``: train one agent on several tasks."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from agents.algorithms import find_algorithm
from agents.config import make_config
from agents.document import aligned
from agents.multitask.run import MultiTaskSettings, parse_tasks, resumed_settings, run_multitask
from agents.options import add_options
from agents.report import measures_table
from agents.run_folder import find_run
from agents.settings import ENVIRONMENT_FIELDS

_MULTITASK = """Train one agent on several tasks at once: every step goes along the sum of the tasks' gradients, each by
its weight. Stages, folder and report are those of 'textgen train'; metrics stand behind the tasks' names, and
tasks/cosine/A-B says whether two tasks pull against each other (below 0)."""

_EPILOG = """examples:
  two built-in tasks, a small model from scratch that speaks the words of both:
    textgen multitask Reverse=1 Add=0.5 --algo a2c
  tasks that ask the same prompts, told apart by a word before them:
    textgen multitask Reverse Copy --mark-tasks
  your own, in a file; a task with the loss "likelihood" learns its references beside the other's reward:
    textgen multitask tasks.json --model ./my-model --algo ppo
    {"headlines": {"data": "news.jsonl", "reward": "rouge_l", "weight": 1},
     "language": {"data": "texts.jsonl", "reward": "rouge_l", "weight": 0.5, "loss": "likelihood"}}
  going on with an interrupted run:
    textgen multitask --resume runs/Reverse+Add-a2c-20250101-120000
"""
_CHANGEABLE_ON_RESUME = {"total_tokens", "device", "threads"}


def add_multitask_command(commands: Any, algorithm: str) -> None:
    """Add ``multitask`` to the parser's sub-commands, with the options of an algorithm."""
    parser = commands.add_parser(
        "multitask",
        help="train one agent on several tasks",
        usage="textgen multitask (TASK[=WEIGHT] ... | TASKS.json | --resume FOLDER) [OPTION ...]",
        description=_MULTITASK,
        epilog=_EPILOG,
    )
    parser.add_argument("names", nargs="*", metavar="TASK", help="ids of 'textgen list' with weights, or a .json file")
    parser.add_argument("--resume", metavar="FOLDER", help="go on with the run in this folder")
    parser.add_argument("--quiet", action="store_true", help="no progress, only the result")
    parser.add_argument("--verbose", action="store_true", help="also a table of metrics after every update")
    add_options(parser, "run", MultiTaskSettings, skip={*ENVIRONMENT_FIELDS, "tasks", "logged"})
    add_options(parser, f"options of {algorithm}", find_algorithm(algorithm)[1])
    parser.set_defaults(command=_multitask, parser=parser)


def _multitask(arguments: argparse.Namespace) -> int:
    given = {key: value for key, value in vars(arguments).items() if key not in ("command", "parser")}
    quiet, verbose = given.pop("quiet"), given.pop("verbose")
    resume, names = given.pop("resume"), given.pop("names")
    settings, options = _settings(names, given) if resume is None else _resumed(resume, names, given)
    result = run_multitask(
        settings,
        make_config(find_algorithm(settings.algo)[1], None, options),
        resume=resume is not None,
        verbose=0 if quiet else 2 if verbose else 1,
        on_stage=None if quiet else lambda stage, detail: print(f"{stage:<12} {detail}", flush=True),
    )
    if result.before:
        print(f"\n{aligned(measures_table({'before': result.before, 'after': result.after}))}\n")
    if result.interrupted:
        print(f"interrupted; go on with: textgen multitask --resume {result.folder}")
        return 130
    print(f"report: {result.folder / 'report.html'}")
    return 0


def _settings(names: Sequence[str], given: dict[str, Any]) -> tuple[MultiTaskSettings, dict[str, Any]]:
    known = {field.name for field in dataclasses.fields(MultiTaskSettings)}
    settings = MultiTaskSettings(
        tasks=parse_tasks(names), **{key: value for key, value in given.items() if key in known}
    )
    return settings, {key: value for key, value in given.items() if key not in known}


def _resumed(path: str, names: Sequence[str], given: dict[str, Any]) -> tuple[MultiTaskSettings, dict[str, Any]]:
    fixed = [*names, *(f"--{name.replace('_', '-')}" for name in sorted(set(given) - _CHANGEABLE_ON_RESUME))]
    if fixed:
        raise ValueError(
            f"--resume keeps the run's own settings, so {fixed[0]} cannot be given; "
            "--total-tokens, --device, --threads, --quiet and --verbose can"
        )
    written, options = find_run(Path(path)).read_config()
    return resumed_settings(written, **given, output=path), options
