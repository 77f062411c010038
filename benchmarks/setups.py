"""How a task is played in a benchmark, the same for every contender: model, budget, warm start, what is measured.

As data, in `tasks.json`: task name -> fields of `Setup`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gymnasium as gym
from gymnasium.vector import AutoresetMode
from transformers import GPT2Config

import textgen_env  # noqa: F401 (registers the tasks)
from agents import SupervisedConfig, small_gpt2
from textgen_env import TextGenVectorEnv, TextMDP
from textgen_env.lookup import did_you_mean

_FILE = Path(__file__).parent / "tasks.json"
SIZE = {"layers": 2, "width": 64, "heads": 4}
"""Of the fresh transformer that all learn with."""


@dataclass(frozen=True)
class Setup:
    """What all contenders share on a task.

    Raises:
        TypeError: ``warm_start`` or ``supervised`` name an option that `SupervisedConfig` does not have.
    """

    task: str
    """The id without package and version, such as "Reverse"."""
    total_tokens: int
    """Tokens every learner samples from the environment."""
    supervised: Mapping[str, Any]
    """`SupervisedConfig` of the supervised baseline, which starts from fresh weights."""
    warm_start: Mapping[str, Any] | None = None
    """`SupervisedConfig` of what all other learners start from; none: fresh weights. A Q-learner that is not soft gets
    the references as demonstrations, too."""
    env: Mapping[str, Any] = field(default_factory=dict)
    """Keyword arguments of ``gym.make_vec``."""
    size: Mapping[str, int] = field(default_factory=lambda: dict(SIZE))
    """Arguments of `small_gpt2`."""
    objective: str = "return"
    """What is measured: a name in `benchmarks.objectives`."""
    solved: float = 0.99
    """The normalised score from which on the task counts as solved."""
    trainer: str | None = None
    """``"module:attr"`` of a function (rules of the train split, seed) -> (rules to learn under, their callbacks):
    for a reward that learns too."""
    logged: str | None = None
    """``"module:attr"`` of a function (rules of the train split, seed) -> `Trajectories`: what offline learners get."""

    def __post_init__(self) -> None:
        for options in (self.supervised, self.warm_start):
            SupervisedConfig(**(options or {}))

    def make_env(self, num_envs: int) -> TextGenVectorEnv:
        """The task's environment, on its train split."""
        env = gym.make_vec(
            f"textgen_env/{self.task}-v0", num_envs=num_envs, autoreset_mode=AutoresetMode.DISABLED, **self.env
        )
        made = env.unwrapped
        assert isinstance(made, TextGenVectorEnv)
        return made

    def make_model(self, mdp: TextMDP) -> GPT2Config:
        """The shape of the model that all learners use; they draw its weights with their seed."""
        return small_gpt2(mdp.tokenizer, positions=mdp.max_prompt_tokens + mdp.max_new_tokens, **self.size)


def setups() -> dict[str, Setup]:
    """Every task with a setup, in the order of the file."""
    content: dict[str, dict[str, Any]] = json.loads(_FILE.read_text(encoding="utf-8"))
    return {task: Setup(task, **fields) for task, fields in content.items()}


def setup(task: str) -> Setup:
    """The setup of one task.

    Raises:
        ValueError: there is none; the message names the nearest.
    """
    known = setups()
    if task not in known:
        raise ValueError(f"no setup for task '{task}'; {did_you_mean(task, known)}")
    return known[task]
