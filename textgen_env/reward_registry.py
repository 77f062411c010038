"""Rewards by name. A name is a string that points at code (``"reward_models:Rouge"``), as Gymnasium's ids are.

So this package knows of ready rewards without importing them.
"""

from __future__ import annotations

import functools
import inspect
from pathlib import Path
from typing import Any

from textgen_env.lookup import did_you_mean, load_entry_point
from textgen_env.reward import Reward
from textgen_env.types import RewardFunction

_registry: dict[str, tuple[str, dict[str, Any]]] = {}


def register_reward(name: str, entry_point: str, /, **kwargs: Any) -> None:
    """Make ``reward=name`` mean the function or class at ``entry_point``, a string ``"module:attr"``.

    A class is instantiated with ``kwargs``; a function gets them with every call. Nothing is imported until
    the name is used. Registering the same thing twice is harmless.

    Raises:
        ValueError: the name is empty, contains a colon or is taken by something else; or the entry point is
            not of the form ``"module:attr"``.
    """
    if not isinstance(entry_point, str) or ":" not in entry_point:
        raise ValueError(
            f"the entry point of reward '{name}' must be a string 'package.module:attribute', got "
            f"{entry_point!r}; a function needs no registration: pass it as reward=function"
        )
    if not name or ":" in name:
        raise ValueError(f"'{name}' cannot name a reward: use a non-empty name without ':'")
    entry = (entry_point, kwargs)
    if _registry.setdefault(name, entry) != entry:
        taken_by, taken_kwargs = _registry[name]
        raise ValueError(
            f"reward '{name}' is already registered as '{taken_by}' with {taken_kwargs}; choose another name"
        )


def reward_names() -> list[str]:
    """All registered reward names, sorted."""
    return sorted(_registry)


for _variant in ("1", "2", "L", "Lsum"):
    register_reward(f"rouge_{_variant.lower()}", "reward_models:Rouge", variant=_variant)
for _measure in ("precision", "recall"):
    register_reward(f"rouge_1_{_measure}", "reward_models:Rouge", variant="1", measure=_measure)
register_reward("rouge_2_l", "reward_models:RougeMean", variants=("2", "L"))
register_reward("bleu", "reward_models:Bleu")
register_reward("chrf", "reward_models:Chrf")
register_reward("ter", "reward_models:Ter")
register_reward("meteor", "reward_models:Meteor")
register_reward("exact_match", "reward_models:ExactMatch")
register_reward("token_f1", "reward_models:TokenF1")
register_reward("edit_similarity", "reward_models:EditSimilarity")
register_reward("distinct_2", "reward_models:Distinct")
register_reward("json_format", "reward_models:JsonFormat")
register_reward("instructions", "reward_models:Instructions")
register_reward("sentiment_lexicon", "reward_models:LexiconSentiment")
register_reward("coherence", "reward_models.coherence:Coherence")
register_reward("factual", "reward_models.factual:Factual")
for _measure in ("precision", "recall", "contradiction"):
    register_reward(f"factual_{_measure}", "reward_models.factual:Factual", measure=_measure)


def resolve_reward(reward: str | RewardFunction | type[Any] | Reward, name: str | None = None) -> Reward:
    """Find the reward a user means.

    Args:
        reward: a registered name, a string ``"module:attr"``, the folder of a learned reward model, a function, an
            object with ``__call__``, or a class (instantiated without arguments). A ``Reward`` is returned as it is.
        name: what to call it in ``info["reward"]``, instead of its own name.

    Raises:
        ValueError: the string is no registered name, no folder and not of the form ``"module:attr"``; or the model in
            the folder was never fitted.
        OSError: the folder holds no model.
        ImportError, AttributeError: the string's module or attribute does not exist.
        TypeError: not callable, or a class that needs arguments.
        RewardError: the function cannot be called by keyword.
    """
    function: Any = reward
    if isinstance(reward, str):
        if reward in _registry:
            entry_point, kwargs = _registry[reward]
            function, name = _instantiate(load_entry_point(entry_point), kwargs), name or reward
        elif ":" in reward:
            function = load_entry_point(reward)
        elif Path(reward).is_dir():
            function = load_entry_point("reward_models.preference:load")(reward)
        else:
            raise ValueError(
                f"unknown reward '{reward}'; {did_you_mean(reward, _registry)}. Your own code is named as "
                "'module:attr', or passed as a function; a learned reward model by its folder"
            )
    function = _instantiate(function, {})
    if not isinstance(function, Reward):
        return Reward(function, name=name)
    return function if name is None else function.renamed(name)


def _instantiate(target: Any, kwargs: dict[str, Any]) -> Any:
    """An instance of a class; a function with its settings bound; any other object as it is."""
    if not inspect.isclass(target):
        return functools.partial(target, **kwargs) if kwargs else target
    try:
        return target(**kwargs)
    except TypeError as error:
        raise TypeError(
            f"cannot make a reward from class {target.__name__} with arguments {kwargs}: {error}. Pass an "
            "instance, or register_reward(name, 'module:attr', **arguments)"
        ) from error
