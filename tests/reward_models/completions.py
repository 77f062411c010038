"""Completions to score, and small rewards to compose."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

from textgen_env import Completion, Prompt, TextMDP, TextTask, dense
from textgen_env.types import StopReason

EOS, A, B = 1, 2, 3
DEPTH = 4
TRAJECTORIES = [
    ids
    for length in range(1, DEPTH + 1)
    for ids in itertools.product((EOS, A, B), repeat=length)
    if EOS not in ids[:-1] and (ids[-1] == EOS or length == DEPTH)
]
"""Everything that can happen in a world of three actions, four deep: 31 texts."""


def completion(text: str, tokens: int = 3, *, stop_reason: StopReason | None = "eos", **metadata: Any) -> Completion:
    return Completion(Prompt("Say:", ("a b",), metadata), text, tuple(range(5, 5 + tokens)), stop_reason)


def fixed(name: str, *values: Any, kind: str = "terminal", bounds: Any = None) -> Callable[..., Any]:
    """A reward that answers this, whatever it is asked; ``fixed.calls`` are the texts it was asked about."""

    def function(completions: list[str]) -> list[Any]:
        calls.append(list(completions))
        return list(values)

    calls: list[list[str]] = []
    function.calls = calls  # type: ignore[attr-defined]
    function.name, function.kind, function.bounds = name, kind, bounds  # type: ignore[attr-defined]
    return function


def length(completions: list[str]) -> list[float]:
    return [float(len(text)) for text in completions]


def words(completions: list[str]) -> list[float]:
    return [float(len(text.split())) for text in completions]


def vowels(completions: list[str]) -> list[float]:
    return [float(sum(letter in "aeiou" for letter in text)) for text in completions]


def short_only(completions: list[str]) -> list[float | None]:
    """Does not apply to texts of more than two words."""
    return [float(len(text)) if len(text.split()) <= 2 else None for text in completions]


@dense
def id_tenths(completion_ids: list[list[int]]) -> list[list[float]]:
    return [[token / 10 for token in ids] for ids in completion_ids]


def make_mdp(reward: Any) -> TextMDP:
    task = TextTask(
        "tree", TextTask.from_pairs({"train": ["a", "b"]}).splits, vocabulary=("a", "b"), max_new_tokens=DEPTH
    )
    return TextMDP(task, reward)


def finished(mdp: TextMDP, ids: tuple[int, ...], prompt_index: int = 0) -> Completion:
    return mdp.complete(prompt_index, ids, "eos" if ids[-1] == EOS else "length")
