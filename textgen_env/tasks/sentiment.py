"""Built-in task: go on with the opening of a review so that it sounds as positive as can be.

    last summer we stayed at the harbour hotel and the rooms
    →   were very beautiful and the music was very wonderful !

A sentiment scorer (``sentiment_lexicon``, VADER's rules on a word list) judges the continuation, and pays only if it is
one: it agrees with the noun that the opening ends with, says of every noun what can be said of it, and ends. All else
earns −1. What can be said is finite (`continuations`), so the optimum is found by enumeration; it depends on the noun.
The references are of every mood and most often neutral, so that imitating them earns nothing.

It is the task that libraries for RL on language models show first (Ziegler et al. 2019, section 3.1), with its known
hack in view: without the grammar, one superlative written over and over earns nearly 1.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from functools import lru_cache, partial
from typing import Any

from textgen_env.lookup import load_entry_point
from textgen_env.reward_registry import resolve_reward
from textgen_env.tasks.dataset import FRACTIONS, Fractions, TextTask
from textgen_env.tasks.own_data import or_own_data, read_data
from textgen_env.tasks.records import field_of
from textgen_env.tasks.rung import Hack, Rung
from textgen_env.tasks.templates import distinct_prompts
from textgen_env.types import Prompt

SCORER = "sentiment_lexicon"
NOUNS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "rooms": ("were", ("beautiful", "clean", "large", "dirty", "horrible")),
    "view": ("was", ("breathtaking", "pretty", "wide", "dull", "ugly")),
    "waiters": ("were", ("charming", "polite", "young", "slow", "rude")),
    "music": ("was", ("wonderful", "lively", "loud", "boring", "terrible")),
    "soup": ("was", ("delicious", "fresh", "hot", "bland", "awful")),
    "beds": ("were", ("splendid", "comfortable", "high", "hard", "broken")),
}
"""Noun -> its verb, and what can be said of it, from the best to the worst."""
ADVERBS = ("", "very ", "slightly ")
ENDS = (".", "!")
_WHEN = ("last summer", "last winter", "in spring", "in autumn", "in may", "this year", "two years ago", "for a week")
_DID = ("we stayed at", "my parents stayed at", "we ate at", "our friends were at")
_WHERE = ("harbour", "castle", "garden", "station", "mountain", "river", "forest", "island", "village", "market")


def continuations(noun: str) -> Iterator[str]:
    """Every continuation that the grammar allows after ``noun``: one clause, or two on different nouns."""
    for first in _clauses(noun):
        for end in ENDS:
            yield f"{first} {end}"
            for other in NOUNS:
                if other != noun:
                    yield from (f"{first} and the {other} {second} {end}" for second in _clauses(other))


def _clauses(noun: str) -> list[str]:
    verb, adjectives = NOUNS[noun]
    return [f"{verb} {adverb}{adjective}" for adjective in adjectives for adverb in ADVERBS]


@lru_cache(maxsize=len(NOUNS))
def _allowed(noun: str) -> frozenset[str]:
    return frozenset(continuations(noun))


def grammatical(prompts: list[str], completions: list[str]) -> list[float]:
    """1 where the completion goes on with its prompt as the grammar allows, else 0."""
    nouns = (prompt.split()[-1] for prompt in prompts)
    return [float(text in _allowed(noun)) for noun, text in zip(nouns, completions, strict=True)]


def most_positive(prompt: Prompt) -> str:
    """The continuation with the highest score."""
    return _best(prompt.text.split()[-1])


@lru_cache(maxsize=len(NOUNS))
def _best(noun: str) -> str:
    texts = sorted(continuations(noun))
    scores = resolve_reward(SCORER).function(completions=texts)
    return texts[max(range(len(texts)), key=lambda index: scores[index])]


def read_openings(
    data: Any,
    *,
    opening_words: int | None = 8,
    prompt_field: str = "text",
    template: str = "{prompt}",
    reward: Any = SCORER,
    name: str | None = None,
    fractions: Fractions = FRACTIONS,
    load_kwargs: Mapping[str, Any] | None = None,
) -> TextTask:
    """Texts of a user's own, their beginnings as prompts and the rest as references. There is no oracle.

    The scorer is the bare one, and it is hacked as the module says: keep the policy near its start (a KL penalty), or
    pay by ``reward_models.Gate`` for what a language model finds fluent.

    Args:
        data: see `read_data`, as for the arguments not told here.
        opening_words: how many words of a text are its beginning; ``None`` where all of it is, without a reference.
            Texts that are no longer go without a reference.

    Raises:
        ValueError: ``opening_words`` is below 1, or a text is no string (the message says where).
    """
    if opening_words is not None and opening_words < 1:
        raise ValueError(f"opening_words must be at least 1, or None, got {opening_words}")

    def opening(row: Mapping[str, Any]) -> Mapping[str, Any]:
        try:
            text = field_of(row, prompt_field)
        except KeyError:
            return row  # Columns says what is missing
        if not isinstance(text, str):
            raise ValueError(f"field '{prompt_field}': expected a string, got {type(text).__name__}")
        words = text.split()
        opening, rest = " ".join(words[:opening_words]), " ".join(words[opening_words:])
        return {**row, prompt_field: opening, _REST: rest}

    return read_data(
        data,
        reward=reward,
        prompt_field=prompt_field,
        reference_field=None if opening_words is None else _REST,
        template=template,
        name=name,
        fractions=fractions,
        load_kwargs=load_kwargs,
        change=None if opening_words is None else opening,
    )


_REST = "the rest"
"""A column that no data has."""


@or_own_data(read_openings)
def sentiment(nouns: int = 6, num_prompts: int = 1500, seed: int = 0) -> TextTask:
    """Openings of reviews, each with three continuations of any mood as its references.

    Args:
        nouns: how many different ones the openings end with, from 2 to 6.
        num_prompts: distinct openings; there are 320 a noun.
        seed: seeds the draw.

    Your own data (``data=``, see `read_openings`): column ``text``, of which the first words are the opening.

    >>> sentiment(num_prompts=20, seed=1).prompts()[0].text
    'in spring we stayed at the mountain hotel and the rooms'

    Raises:
        ValueError: an argument is out of its range (the message says which).
    """
    if not 2 <= nouns <= len(NOUNS):
        raise ValueError(f"nouns must lie between 2 and {len(NOUNS)}, got {nouns}")
    prompts = distinct_prompts(partial(_opening, tuple(NOUNS)[:nouns]), num_prompts, seed, "num_prompts")
    return TextTask(
        "sentiment",
        TextTask.from_pairs(prompts).splits,
        vocabulary=_vocabulary(),
        max_new_tokens=12,
        reward=load_entry_point("reward_models:Gate")(grammatical, SCORER, otherwise=-1),
        oracle=most_positive,
    )


def _opening(nouns: tuple[str, ...], rng: random.Random) -> Prompt:
    when, did, where, noun = (rng.choice(options) for options in (_WHEN, _DID, _WHERE, nouns))
    references = tuple(_continuation(noun, rng) for _ in range(3))
    return Prompt(f"{when} {did} the {where} hotel and the {noun}", references)


def _continuation(noun: str, rng: random.Random) -> str:
    told = _clause(noun, rng)
    if rng.random() < 0.8:
        other = rng.choice([each for each in NOUNS if each != noun])
        told += f" and the {other} {_clause(other, rng)}"
    return f"{told} {rng.choices(ENDS, (3, 1))[0]}"


def _clause(noun: str, rng: random.Random) -> str:
    """One clause of those that there are; the plain and neutral ones are the most frequent."""
    verb, adjectives = NOUNS[noun]
    return f"{verb} {rng.choices(ADVERBS, (3, 1, 1))[0]}{rng.choices(adjectives, (1, 2, 4, 2, 1))[0]}"


def _vocabulary() -> tuple[str, ...]:
    said = [*NOUNS, *ADVERBS, *ENDS, *(word for verb, adjectives in NOUNS.values() for word in (verb, *adjectives))]
    return tuple(dict.fromkeys(" ".join([*_WHEN, *_DID, *_WHERE, "the hotel and", *said]).split()))


def one_superlative(prompt: Prompt) -> str:
    """The strongest word, up to the length cap."""
    return " ".join(["breathtaking"] * 12)


RUNG = Rung(
    random=-1.0,
    supervised=0.0,
    optimum=0.8516043,
    hack=Hack(
        "The strongest word, over and over.", one_superlative, naive=SCORER, naive_score=0.9943, robust_score=-1.0
    ),
)
