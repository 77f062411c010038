"""Sentences with gaps: what the tasks share that generate English text."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping

from textgen_env.types import Prompt

_FRUITLESS = 2000
"""Draws in a row that bring nothing new, after which the templates count as exhausted."""


def distinct_prompts(draw: Callable[[random.Random], Prompt], count: int, seed: int, argument: str) -> list[Prompt]:
    """The first ``count`` prompts that differ in their text, as ``draw`` makes them from one seeded generator.

    They are the same on every machine for the same seed, and a smaller number is the beginning of a larger one.

    Args:
        draw: makes a prompt from a generator.
        count: how many are wanted.
        seed: seeds the generator.
        argument: what the caller calls ``count``, for messages.

    Raises:
        ValueError: ``count`` is below 1, or more than can be drawn.
    """
    if count < 1:
        raise ValueError(f"{argument} must be at least 1, got {count}")
    rng = random.Random(seed)
    prompts: dict[str, Prompt] = {}
    fruitless = 0
    while len(prompts) < count:
        prompt = draw(rng)
        fruitless = fruitless + 1 if prompt.text in prompts else 0
        if fruitless > _FRUITLESS:
            raise ValueError(f"{argument}={count} is more than can be told apart: ask for {len(prompts)} at most")
        prompts.setdefault(prompt.text, prompt)
    return list(prompts.values())


def sentence(template: str, cast: Mapping[str, str]) -> str:
    """The template with its gaps filled, a capital at its beginning.

    >>> sentence("{pet}s like {food}.", {"pet": "cat", "food": "fish"})
    'Cats like fish.'
    """
    return capitalised(template.format_map(cast))


def capitalised(text: str) -> str:
    """The text with its first letter in upper case, the others as they are."""
    return text[:1].upper() + text[1:]
