"""Counterfactual swaps: the same text with "he" for "she", or one name for another, and what that does to its score.

A scorer that judges what is said should not mind who it is said of (Kusner et al. 2017; Huang et al. 2020, "Reducing
sentiment bias in language models via counterfactual evaluation").
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from reward_models.feedback.agreement import RESAMPLES, Figure, bootstrapped
from textgen_env.tasks.records import read_csv

Array: TypeAlias = npt.NDArray[np.float64]

GENDER: tuple[tuple[str, str], ...] = (
    ("he", "she"),
    ("his", "her"),
    ("him", "her"),
    ("himself", "herself"),
    ("man", "woman"),
    ("men", "women"),
    ("boy", "girl"),
    ("boys", "girls"),
    ("father", "mother"),
    ("son", "daughter"),
    ("brother", "sister"),
    ("husband", "wife"),
    ("uncle", "aunt"),
    ("king", "queen"),
    ("actor", "actress"),
    ("sir", "madam"),
    ("mr", "mrs"),
    ("john", "mary"),
    ("james", "emily"),
    ("tom", "anna"),
)
"""Pairs of English words, the male one first: a start, not a definition. Use your own for your texts."""


@dataclass(frozen=True)
class Swapped:
    """A text after the swap."""

    text: str
    forward: int
    """Words of the pairs' first sides that became second ones."""
    backward: int
    """And the other way round."""


class Swaps:
    """A table of words that change places, both ways at once.

    Words are matched whole and whatever their case, which is kept: he, He, HE become she, She, SHE. An entry may have
    several words ("New York"). A word that stands in several pairs takes the first one's partner: with ("his", "her")
    before ("him", "her"), "her" becomes "his", and the swap is not quite its own inverse.

    Args:
        pairs: the words; the second sides are what `swap_gap` counts as positive.
        name: what the table is called in a report.

    Raises:
        ValueError: there is no pair, a word is empty, or a pair's sides are the same.

    >>> Swaps([("he", "she")]).swap("He said she did.").text
    'She said he did.'
    """

    def __init__(self, pairs: Iterable[Sequence[str]], name: str = "swaps") -> None:
        self.name = name
        self.pairs = tuple((str(first).strip(), str(second).strip()) for first, second in pairs)
        if not self.pairs:
            raise ValueError(f"the table '{name}' has no pair of words")
        self._partner: dict[str, tuple[str, bool]] = {}
        for first, second in self.pairs:
            if not (first and second) or first.lower() == second.lower():
                raise ValueError(f"the table '{name}': ({first!r}, {second!r}) is no pair of two different words")
            self._partner.setdefault(first.lower(), (second, True))
            self._partner.setdefault(second.lower(), (first, False))
        longest_first = sorted(self._partner, key=len, reverse=True)
        self._pattern = re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, longest_first))})(?!\w)", re.IGNORECASE)

    @classmethod
    def read(cls, path: str | Path) -> Swaps:
        """A table from a file: JSON, a list of pairs, or CSV, two columns under any header.

        Raises:
            ValueError: it is neither, or a row is no pair; the message names the file.
            OSError: it cannot be read.
        """
        path = Path(path)
        rows: Any
        if path.suffix == ".csv":
            rows = [list(record.values()) for _, record in read_csv(path)]
        else:
            try:
                rows = json.loads(path.read_text(encoding="utf-8"))
            except ValueError as error:
                raise ValueError(f"{path}: neither a .csv file nor JSON: {error}") from error
        if not isinstance(rows, list):
            raise ValueError(f'{path}: a list of pairs is wanted, such as [["he", "she"]], got {type(rows).__name__}')
        for row in rows:
            if not (isinstance(row, list) and len(row) == 2 and all(isinstance(word, str) for word in row)):
                raise ValueError(f'{path}: a pair is two words, such as ["he", "she"], got {row!r:.80}')
        return cls(rows, path.stem)

    def swap(self, text: str) -> Swapped:
        """The text with every word of the table exchanged for its partner."""
        counts = {True: 0, False: 0}

        def exchange(match: re.Match[str]) -> str:
            partner, forward = self._partner[match[0].lower()]
            counts[forward] += 1
            return _cased_as(match[0], partner)

        return Swapped(self._pattern.sub(exchange, text), counts[True], counts[False])


def _cased_as(model: str, word: str) -> str:
    if len(model) > 1 and model.isupper():
        return word.upper()
    return word[:1].upper() + word[1:] if model[:1].isupper() else word


@dataclass(frozen=True)
class SwapGap:
    """What swaps do to scores; 95 % intervals, by the bootstrap over prompts."""

    table: str
    gap: Figure | None
    """Mean score with the pairs' second sides less that with their first: below 0, the first sides are favoured. Of the
    texts that have more words of one side than of the other; None where there is none."""
    absolute: Figure
    """Mean size of the difference, whichever way it goes: 0 for a scorer that does not mind."""
    texts: int
    """Texts with a word of the table; the others do not count."""
    of: int
    """Texts in all."""


def swap_gap(
    table: str,
    before_N: npt.ArrayLike,
    after_N: npt.ArrayLike,
    swapped_N: Sequence[Swapped],
    prompts_N: Sequence[str],
    *,
    of: int,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> SwapGap:
    """The figures, from the scores of N ≥ 1 texts with words of the table before and after the swap.

    Args:
        table: its name.
        before_N, after_N: the scores.
        swapped_N: what the swap did to each text (to a prompt and its completion together, say).
        prompts_N: whose texts are drawn together in the bootstrap.
        of: texts in all, those without such words too.
    """
    changes_N = np.asarray(after_N, np.float64) - np.asarray(before_N, np.float64)
    towards_N = np.sign([swapped.forward - swapped.backward for swapped in swapped_N])
    one_way = towards_N != 0

    def mean(values: Array, prompts: Sequence[str]) -> Figure:
        _, owner = np.unique(np.asarray(prompts, dtype=object).astype(str), return_inverse=True)
        sums_P, counts_P = np.bincount(owner, values), np.bincount(owner)
        return bootstrapped(
            lambda rows: float(sums_P[rows].sum() / counts_P[rows].sum()), len(sums_P), resamples=resamples, seed=seed
        )

    own = [prompt for prompt, counts in zip(prompts_N, one_way, strict=True) if counts]
    return SwapGap(
        table,
        gap=mean((changes_N * towards_N)[one_way], own) if own else None,
        absolute=mean(np.abs(changes_N), prompts_N),
        texts=len(changes_N),
        of=of,
    )
