"""Answers kept by content: an expensive scorer is asked once about the same text."""

from __future__ import annotations

import pickle
from collections import OrderedDict
from collections.abc import Hashable, Sequence
from typing import Any

from reward_models.composite import Composable
from textgen_env.reward import Judgement, Reward, RewardError
from textgen_env.reward_registry import resolve_reward
from textgen_env.types import Completion


class Cached(Composable, Reward):
    """A reward whose answers are kept, for functions that always say the same about the same text.

    What counts as the same is everything the function is given of a completion: the arguments that it names, or all
    of them (token ids too) where it takes ``**kwargs``. Texts that stand twice in a batch are asked about once.
    Failures are never kept.

    Args:
        reward: anything `resolve_reward` takes but a composition: those report parts and may adapt, so cache the part.
        size: answers kept; the least recently used goes first.
        name: what to call it; default: the reward's name.

    Attributes:
        hits, misses: completions answered from memory, and asked about.

    Raises:
        RewardError: a composition, or ``size`` < 1; when scoring, a metadata value that cannot be pickled.

    >>> 0.5 * Cached("rouge_l", size=1000)
    0.5 * rouge_l
    """

    def __init__(self, reward: Any, size: int = 10_000, *, name: str | None = None) -> None:
        inner = resolve_reward(reward, name)
        if type(inner) is not Reward:
            raise RewardError(f"{inner!r} is a composition: cache its expensive part, as in 0.5 * Cached(function) + …")
        if size < 1:
            raise RewardError(f"size must be at least 1, got {size}")
        super().__init__(inner.function, name=inner.name)
        self.size = size
        self.hits = self.misses = 0
        self._answers: OrderedDict[Hashable, Any] = OrderedDict()

    def judge(self, completions: Sequence[Completion]) -> Judgement:
        """Ask about the texts that are new, in one call."""
        known: dict[Hashable, Any] = {}
        new: dict[Hashable, Completion] = {}
        keys = self._keys(completions)
        for key, completion in zip(keys, completions, strict=True):
            if key in self._answers:
                known[key] = self._answers[key]
                self._answers.move_to_end(key)
            elif key not in new:
                new[key] = completion
        self.misses += len(new)
        self.hits += len(keys) - len(new)
        if new:
            asked = list(new.values())
            values = self._values(self._call(asked, like=completions), asked)
            self._judgement(values, asked)  # raises before anything wrong is kept
            known.update(zip(new, values, strict=True))
            self._answers.update(zip(new, values, strict=True))
            while len(self._answers) > self.size:
                self._answers.popitem(last=False)
        return self._judgement([known[key] for key in keys], completions)

    def _keys(self, completions: Sequence[Completion]) -> list[Hashable]:
        if not completions:
            return []
        columns = self._arguments(completions)
        names = tuple(columns)
        return [(names, *map(self._content, row)) for row in zip(*columns.values(), strict=True)]

    def _content(self, value: Any) -> Hashable:
        """A value as something hashable that equals no other content: ``1``, ``True`` and ``1.0`` differ."""
        kind = type(value)
        if kind is str or value is None:
            return str.__name__, value
        if kind in (int, float, bool):
            return kind.__name__, value
        if kind in (list, tuple):
            members = set(map(type, value))
            if members in ({int}, {str}):  # token ids and references, the quick way
                return f"{kind.__name__} of {members.pop().__name__}", tuple(value)
            return kind.__name__, *map(self._content, value)
        if kind is dict:
            return "dict", *((self._content(key), self._content(one)) for key, one in value.items())
        try:
            return "pickle", pickle.dumps(value)
        except Exception as error:
            raise RewardError(
                f"cannot cache reward '{self.name}': it is given a {kind.__name__}, which cannot be pickled ({error})"
            ) from error
