"""Tuned options as data: one JSON file an algorithm, ``defaults`` plus what each task changes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from agents.algorithms import find_algorithm
from agents.config import AlgorithmConfig, make_config
from textgen_env.lookup import did_you_mean

_FOLDER = Path(__file__).parent


def names() -> list[str]:
    """The algorithms that have presets."""
    return sorted(path.stem for path in _FOLDER.glob("*.json"))


def preset(algorithm: str, task: str) -> AlgorithmConfig:
    """The options for a task: the algorithm's defaults where the file says nothing of the task.

    Raises:
        ValueError: the algorithm has no presets.
        TypeError: the file names an option that the algorithm does not have.
    """
    content = _read(algorithm)
    options: dict[str, Any] = {**content["defaults"], **content["tasks"].get(task, {})}
    return make_config(find_algorithm(algorithm)[1], None, options)


def _read(algorithm: str) -> dict[str, Any]:
    path = _FOLDER / f"{algorithm}.json"
    if not path.is_file():
        raise ValueError(f"no presets for '{algorithm}'; {did_you_mean(algorithm, names())}")
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content
