"""Annotators whose truth is known: a gold reward, seen through noise, bias and laziness."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Literal, TypeAlias

import numpy as np

from reward_models.feedback.answers import Answer, FeedbackError, Prefer, Rank, Rate, Write
from reward_models.feedback.store import FeedbackStore
from reward_models.feedback.types import Task
from textgen_env.reward import Reward, RewardError
from textgen_env.reward_registry import resolve_reward
from textgen_env.types import Completion, Prompt

Gold: TypeAlias = Callable[[str, str], float]
"""How good a completion is: called with prompt and completion."""

_EULER = 0.5772156649015329
"""The mean of a standard Gumbel variable."""


def gold_reward(reward: str | Reward, prompts: Iterable[Prompt] = ()) -> Gold:
    """A reward about finished text, asked about one prompt and completion.

    Args:
        reward: a `Reward`, or what ``reward=`` takes in an environment as a string.
        prompts: those with references or metadata, for rewards that want them; found by their text.

    Raises:
        RewardError: the reward is dense; when it is asked, what the reward raises.
    """
    judge = resolve_reward(reward)
    if judge.kind == "dense":
        raise RewardError(f"annotators see finished texts, and reward '{judge.name}' is dense (asked at every step)")
    known = {prompt.text: prompt for prompt in prompts}

    def gold(prompt: str, completion: str) -> float:
        # Tokens are what a policy has sampled; for a text from anywhere there are none, and one is the least there is.
        finished = Completion(known.get(prompt, Prompt(prompt)), completion, (0,), "eos")
        return float(judge.score([finished]).totals[0])

    return gold


class SimulatedAnnotator:
    """Answers tasks as a person with these habits would; whoever asks learns answers, never the gold.

    Every text has a worth in nats, ``gold / noise + length_bias · words - position_bias · place``, and each answer
    draws standard Gumbel noise on top. So of two texts, at places 0 and 1 as shown, the first is preferred with the
    probability

    ``σ((g_0 - g_1) / noise + length_bias (w_0 - w_1) + position_bias)``

    (Bradley & Terry, 1952), and of more, the order is Plackett and Luce's. A rating is the gold plus ``noise`` times
    all else (the Gumbel less its mean), taken from ``gold_range`` to the scale and rounded to a whole number.

    Args:
        gold: a function of prompt and completion; or a `Reward`, or the name of one, about the text alone.
        noise: the temperature, in the gold's unit. 0: always the best by gold; bias decides among equals.
        length_bias: nats a word.
        position_bias: nats a place earlier.
        laziness: share of the answers given without reading.
        lazy: what those are: drawn evenly, or ties (of comparisons; others are drawn evenly).
        gold_range: the gold of the lowest and the highest rating; default: the bounds of the reward.
        write: the demonstration for a prompt.
        seed: of all that is drawn.

    Raises:
        FeedbackError: a number is out of its range.
        RewardError: the reward is dense.
    """

    def __init__(
        self,
        gold: Gold | Reward | str,
        *,
        noise: float = 1.0,
        length_bias: float = 0.0,
        position_bias: float = 0.0,
        laziness: float = 0.0,
        lazy: Literal["random", "tie"] = "random",
        gold_range: tuple[float, float] | None = None,
        write: Callable[[str], str] | None = None,
        seed: int = 0,
    ) -> None:
        if not (noise >= 0 and 0 <= laziness <= 1):
            raise FeedbackError(f"noise is 0 or more and laziness a share, got {noise} and {laziness}")
        if lazy not in ("random", "tie"):
            raise FeedbackError(f"lazy answers are 'random' or 'tie', got {lazy!r}")
        if isinstance(gold, (str, Reward)):
            gold_range = gold_range or resolve_reward(gold).bounds
            gold = gold_reward(gold)
        if gold_range is not None and not gold_range[0] < gold_range[1]:
            raise FeedbackError(f"gold_range is the gold of the lowest and of the highest rating, got {gold_range}")
        self._gold = gold
        self._noise = noise
        self._length_bias, self._position_bias = length_bias, position_bias
        self._laziness, self._lazy = laziness, lazy
        self._gold_range = gold_range
        self._write = write
        self._draw = np.random.default_rng(seed)

    def answer(self, task: Task) -> Answer:
        """What the annotator says; indices count the texts as shown.

        Raises:
            FeedbackError: a rating is asked for without ``gold_range``, a demonstration without ``write``.
        """
        if task.kind == "demonstration":
            if self._write is None:
                raise FeedbackError("a demonstration is asked for: give the annotator write=, a function of the prompt")
            return Write(self._write(task.prompt))
        lazy = self._draw.random() < self._laziness
        if task.kind == "rating":
            return Rate(self._rating(task, lazy))
        if lazy and self._lazy == "tie" and task.kind == "comparison":
            return Prefer(None)
        ranking = self._ranking(task, lazy)
        return Prefer(ranking[0]) if task.kind == "comparison" else Rank(ranking)

    def _ranking(self, task: Task, lazy: bool) -> tuple[int, ...]:
        places = range(len(task.completions))
        if lazy:
            return tuple(int(place) for place in self._draw.permutation(len(places)))
        golds = [self._gold(task.prompt, text) for text in task.completions]
        rest = [self._bias(text, place) + self._draw.gumbel() for place, text in enumerate(task.completions)]
        if self._noise == 0:  # the limit: gold first, and all else among equals
            return tuple(sorted(places, key=lambda place: (golds[place], rest[place]), reverse=True))
        return tuple(sorted(places, key=lambda place: golds[place] / self._noise + rest[place], reverse=True))

    def _rating(self, task: Task, lazy: bool) -> float:
        assert task.scale is not None
        low, high = task.scale
        if lazy:
            return float(self._draw.integers(math.ceil(low), math.floor(high) + 1))
        if self._gold_range is None:
            raise FeedbackError(
                "a rating is asked for: give the annotator gold_range=(gold of the lowest, of the highest)"
            )
        (text,) = task.completions
        seen = self._gold(task.prompt, text) + self._noise * (self._bias(text, 0) + self._draw.gumbel() - _EULER)
        worst, best = self._gold_range
        return float(min(max(round(low + (seen - worst) / (best - worst) * (high - low)), low), high))

    def _bias(self, text: str, place: int) -> float:
        return self._length_bias * len(text.split()) - self._position_bias * place


def answer_all(store: FeedbackStore, annotators: Mapping[str, SimulatedAnnotator], *, limit: int | None = None) -> int:
    """Let annotators, by name, answer in turns until the store has nothing left for any of them.

    Each round of one answer an annotator is a transaction, so that simulating is not waiting for the disk.

    Args:
        store: hands out the tasks and takes the answers, as for people.
        annotators: who answers, by name.
        limit: stop after so many answers.

    Returns:
        How many answers were given.
    """
    given, busy = 0, dict(annotators)
    while busy and (limit is None or given < limit):
        with store.transaction():
            for name, annotator in list(busy.items()):
                task = None if given == limit else store.assign(name)
                if task is None:
                    del busy[name]
                else:
                    # No other answer has this id: each is an event, and moves the latest.
                    given += store.submit(name, task.id, f"{task.id}:{store.latest}", annotator.answer(task))
    return given
