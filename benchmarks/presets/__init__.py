"""Tuned options as data: one JSON file a contender, ``defaults`` plus what each task changes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from agents.algorithms import find_algorithm
from agents.config import AlgorithmConfig, make_config
from textgen_env.lookup import did_you_mean

_FOLDER = Path(__file__).parent


def names() -> list[str]:
    """The contenders that have presets: our algorithms, and other libraries' by names of their own."""
    return sorted(path.stem for path in _FOLDER.glob("*.json"))


def options(name: str, task: str) -> dict[str, Any]:
    """A contender's options for a task: its defaults where the file says nothing of the task.

    Raises:
        ValueError: it has no presets.
    """
    content = _read(name)
    return {**content["defaults"], **content["tasks"].get(task, {})}


def preset(algorithm: str, task: str) -> AlgorithmConfig:
    """The same of one of our algorithms, checked.

    Raises:
        ValueError: the algorithm has no presets.
        TypeError: the file names an option that the algorithm does not have.
    """
    return make_config(find_algorithm(algorithm)[1], None, options(algorithm, task))


def _read(algorithm: str) -> dict[str, Any]:
    path = _FOLDER / f"{algorithm}.json"
    if not path.is_file():
        raise ValueError(f"no presets for '{algorithm}'; {did_you_mean(algorithm, names())}")
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content
