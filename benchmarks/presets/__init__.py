"""Tuned options as data: one JSON file a contender, ``defaults`` plus what each task changes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from agents.algorithms import find_algorithm
from agents.config import AlgorithmConfig, make_config
from benchmarks.setups import setup
from textgen_env.lookup import did_you_mean

_FOLDER = Path(__file__).parent
_PARTS = ("defaults", "tasks")


def names() -> list[str]:
    """The contenders that have presets: our algorithms, and other libraries' by names of their own."""
    return sorted(path.stem for path in _FOLDER.glob("*.json"))


def base(name: str) -> str:
    """Whose options a contender's are: the name before the "@" of "ppo@mine.json"."""
    return name.partition("@")[0]


def options(name: str, task: str) -> dict[str, Any]:
    """A contender's options for a task: its defaults where the file says nothing of the task.

    "ppo@mine.json" has PPO's, but for what ``mine.json``, of the same form, says otherwise.

    Raises:
        ValueError: it has no presets, or the file is none of presets.
        OSError: the file cannot be read.
    """
    name, _, file = name.partition("@")
    path = _FOLDER / f"{name}.json"
    if not path.is_file():
        raise ValueError(f"no presets for '{name}'; {did_you_mean(name, names())}")
    contents = [_read(path), *([_read(Path(file))] if file else [])]
    parts = [part for content in contents for part in (content["defaults"], content["tasks"].get(task, {}))]
    return {option: value for part in parts for option, value in part.items()}


def preset(name: str, task: str) -> AlgorithmConfig:
    """The same of one of our algorithms, checked.

    Raises:
        ValueError: see `options`.
        OSError: see `options`.
        TypeError: a file names an option that the algorithm does not have.
    """
    config_class = find_algorithm(base(name))[1]
    try:
        return make_config(config_class, None, options(name, task))
    except TypeError as error:
        raise TypeError(f"presets of '{name}': {error}") from None


def _read(path: Path) -> dict[str, dict[str, Any]]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"'{path}' is no JSON: {error}") from None
    form = 'presets look like {"defaults": {"learning_rate": 0.001}, "tasks": {"Reverse": {"gamma": 1.0}}}'
    if not isinstance(content, dict):
        raise ValueError(f"'{path}' holds no mapping: {form}")
    for part, within in content.items():
        if part not in _PARTS:
            raise ValueError(f"'{path}' has a part '{part}'; {did_you_mean(part, _PARTS)}: {form}")
        if not isinstance(within, dict):
            raise ValueError(f"'{path}': '{part}' is no mapping: {form}")
    for task in content.get("tasks", {}):
        setup(task)  # a misspelled one would change nothing, silently
    return {part: content.get(part, {}) for part in _PARTS}
