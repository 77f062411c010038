"""A world so small that its true reward can be read: hotel reviews of a dozen words, from a known source.

The source writes clauses, ``noun was [very] opinion``, joined by ``and``. The true ("gold") reward pays an opinion's
valence the first time it is mentioned, and fines repeated opinions and every pair of neighbours that the source never
writes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from textgen_env import TextTask

NOUNS = ("room", "staff", "food", "pool", "view", "bar")
VALENCES = {
    "superb": 2.0,
    "lovely": 1.5,
    "clean": 1.0,
    "kind": 1.0,
    "decent": 0.5,
    "plain": -0.5,
    "dull": -1.0,
    "noisy": -1.0,
    "dirty": -1.5,
    "awful": -2.0,
}
WORDS = (*NOUNS, *VALENCES, "was", "very", "and")
MAX_NEW_TOKENS = 12
REPEAT_FINE = 0.5
BREACH_FINE = 1.0
_VERY, _END = 0.3, 0.4
_LONGEST_CLAUSE = 5  # and noun was very opinion


def gold(completions: Sequence[str], prompts: Sequence[str], **_: Any) -> list[float]:
    """The true reward of B completions, each a function of its words and its prompt's.

    ``Σ valence(opinions mentioned for the first time) − ½ · repeated opinions − breaches``, a breach being a pair of
    neighbours, the prompt's last word and the end of the text included, that the source never writes.
    """
    return [_gold(completion.split(), prompt.split()) for completion, prompt in zip(completions, prompts, strict=True)]


def _gold(words: list[str], before: list[str]) -> float:
    total, mentioned = 0.0, set(before)
    for word in words:
        if word in VALENCES:
            total += -REPEAT_FINE if word in mentioned else VALENCES[word]
            mentioned.add(word)
    neighbours = zip([before[-1], *words], [*words, None], strict=True)
    return total - BREACH_FINE * sum(not follows(*pair) for pair in neighbours)


def follows(word: str, after: str | None) -> bool:
    """Whether the source ever writes ``after`` behind ``word``; None is the end of the text."""
    if word in NOUNS:
        return after == "was"
    if word in VALENCES:
        return after in ("and", None)
    if word == "and":
        return after in NOUNS
    return after in VALENCES or (word, after) == ("was", "very")


def review_task(references_per_prompt: int, seed: int) -> TextTask:
    """Prompts ``noun was [very] opinion and``, all there are, with references that the source wrote."""
    generator = np.random.default_rng(seed)
    pairs = [
        (f"{noun} was {very}{opinion} and", [write(generator) for _ in range(references_per_prompt)])
        for noun in NOUNS
        for very in ("", "very ")
        for opinion in VALENCES
    ]
    splits = TextTask.from_pairs(pairs, name="hotel", fractions=(0.6, 0.15, 0.25)).splits
    return TextTask("hotel", splits, vocabulary=WORDS, max_new_tokens=MAX_NEW_TOKENS, reward=gold)


def write(generator: np.random.Generator) -> str:
    """A text of the source, which goes on after ``and``: one clause, or the two that there is room for."""
    words: list[str] = []
    while True:
        very = ["very"] if generator.random() < _VERY else []
        words += [str(generator.choice(NOUNS)), "was", *very, str(generator.choice(list(VALENCES)))]
        if generator.random() < _END or len(words) + _LONGEST_CLAUSE >= MAX_NEW_TOKENS:  # a place is the EOS's
            return " ".join(words)
        words.append("and")
