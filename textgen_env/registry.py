"""Gymnasium ids: the built-in tasks, and one call for a user's own."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from typing import Any

import gymnasium as gym

from textgen_env.env import TextGenEnv
from textgen_env.vector_env import TextGenVectorEnv

BUILT_IN: dict[str, dict[str, Any]] = {
    "textgen_env/NewsSummary-v0": {"task": "textgen_env.tasks:news_summary"},
    "textgen_env/StoryEnding-v0": {"task": "textgen_env.tasks:story_ending"},
    "textgen_env/Sentiment-v0": {"task": "textgen_env.tasks:sentiment"},
    "textgen_env/Translation-v0": {"task": "textgen_env.tasks:translation"},
    "textgen_env/QuestionAnswering-v0": {"task": "textgen_env.tasks:question_answering"},
    "textgen_env/Dialogue-v0": {"task": "textgen_env.tasks:dialogue"},
    "textgen_env/Classification-v0": {"task": "textgen_env.tasks:classification"},
    "textgen_env/Reverse-v0": {"task": "textgen_env.tasks:reverse"},
    "textgen_env/ReverseDense-v0": {"task": "textgen_env.tasks.reverse:reverse_dense"},
    "textgen_env/Copy-v0": {"task": "textgen_env.tasks.reverse:copy"},
    "textgen_env/Sort-v0": {"task": "textgen_env.tasks.reverse:sort"},
    "textgen_env/DelayedBit-v0": {"task": "textgen_env.tasks:delayed_bit"},
    "textgen_env/Add-v0": {"task": "textgen_env.tasks:add"},
    "textgen_env/ShortestPath-v0": {"task": "textgen_env.tasks:shortest_path"},
    "textgen_env/KeywordSent-v0": {"task": "textgen_env.tasks:keyword_sent"},
    "textgen_env/Constraints-v0": {"task": "textgen_env.tasks:constraints"},
    "textgen_env/FactSumm-v0": {"task": "textgen_env.tasks:fact_summ"},
    "textgen_env/ToyMT-v0": {"task": "textgen_env.tasks:toy_mt"},
    "textgen_env/SteerKL-v0": {"task": "textgen_env.tasks:steer_kl"},
    "textgen_env/MatchCorpus-v0": {"task": "textgen_env.tasks:match_corpus"},
}
"""Id -> keyword arguments. Strings and numbers only, so that ``spec.to_json()`` works and ``make`` copies nothing."""


def register(id: str, *, task: Any, reward: Any = None, **kwargs: Any) -> None:
    """Register a text environment under a Gymnasium id, for ``gym.make`` and ``gym.make_vec`` alike.

    Args:
        id: a Gymnasium id such as "my/Jokes-v0".
        task: a `TextTask`, a .jsonl/.csv file, ``"module:attr"`` or a function that makes one.
        reward: a registered name, ``"module:attr"``, a function or an object. Default: the task's own.
        **kwargs: any other argument of `TextMDP`, as the default of this id; ``make`` can override each.

    Raises:
        gymnasium.error.Error: the id is malformed.
        ValueError: the id is taken.
    """
    if id in gym.registry:
        raise ValueError(f"'{id}' is registered already: choose another id or the next version")
    kwargs = {"task": task, **({} if reward is None else {"reward": reward}), **kwargs}
    if _is_plain(kwargs):
        gym.register(
            id,
            entry_point="textgen_env.env:TextGenEnv",
            vector_entry_point="textgen_env.vector_env:TextGenVectorEnv",
            kwargs=copy.deepcopy(kwargs),
        )
    else:
        gym.register(
            id,
            entry_point=_EntryPoint(TextGenEnv, kwargs),
            vector_entry_point=_EntryPoint(TextGenVectorEnv, kwargs),
        )


@dataclass(frozen=True, eq=False)
class _EntryPoint:
    """An environment class with its defaults bound.

    Gymnasium deep-copies registered kwargs at every ``make``: a reward model would be doubled, a task with a
    million prompts copied. This is copied by reference, so the objects ride in it; and it pickles.
    """

    env_class: type[Any]
    defaults: dict[str, Any]

    def __call__(self, **kwargs: Any) -> Any:
        return self.env_class(**{**self.defaults, **kwargs})

    def __deepcopy__(self, memo: dict[int, Any]) -> _EntryPoint:
        return self

    @property
    def metadata(self) -> dict[str, Any]:
        """What ``gym.make`` looks at for the render modes."""
        return self.env_class.metadata


def _is_plain(kwargs: dict[str, Any]) -> bool:
    try:
        return bool(json.loads(json.dumps(kwargs)) == kwargs)
    except TypeError:
        return False


def register_built_in() -> None:
    """Register the tasks that come with the package. Importing ``textgen_env`` does it."""
    for id, kwargs in BUILT_IN.items():
        if id not in gym.registry:
            register(id, **kwargs)
