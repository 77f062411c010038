"""Tuned options as data: one JSON file an algorithm, ``defaults`` plus what each task changes.

``total_tokens`` is the run's length; every other key is an option of the algorithm.
"""

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


def tasks(algorithm: str) -> list[str]:
    """The tasks that an algorithm's presets know."""
    return list(_read(algorithm)["tasks"])


def preset(algorithm: str, task: str) -> tuple[AlgorithmConfig, int]:
    """The options for a task, and how many tokens to train.

    Args:
        algorithm: a name of `agents.algorithms`.
        task: a built-in task without package and version, such as "Reverse".

    Raises:
        ValueError: there is no such preset.
        TypeError: the file names an option that the algorithm does not have.
    """
    content = _read(algorithm)
    if task not in content["tasks"]:
        raise ValueError(f"no preset of {algorithm} for task '{task}'; {did_you_mean(task, content['tasks'])}")
    options: dict[str, Any] = {**content["defaults"], **content["tasks"][task]}
    total_tokens = int(options.pop("total_tokens"))
    return make_config(find_algorithm(algorithm)[1], None, options), total_tokens


def _read(algorithm: str) -> dict[str, Any]:
    path = _FOLDER / f"{algorithm}.json"
    if not path.is_file():
        raise ValueError(f"no presets for '{algorithm}'; {did_you_mean(algorithm, names())}")
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content
