"""Metrics for short answers: exact match, token F1, edit similarity."""

from __future__ import annotations

import collections
import re
import string
from collections.abc import Callable, Sequence

from rapidfuzz.distance import Levenshtein

from reward_models.reference_metric import ReferenceMetric
from reward_models.words import words
from textgen_env.lookup import did_you_mean

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_UNITS = ("characters", "words")


def squad_normalise(text: str) -> str:
    """Lower case, no ASCII punctuation, no English articles, single spaces: SQuAD's evaluation script, version 2.0.

    >>> squad_normalise("The  Eiffel-Tower!")
    'eiffeltower'
    """
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


class ExactMatch(ReferenceMetric):
    """1 where a completion equals a reference after normalisation, else 0 (Rajpurkar et al. 2016).

    Args:
        normalise: applied to both sides; give ``str`` to compare the texts as they are, your own for other languages.

    >>> ExactMatch()(completions=["The cat!", "a dog"], references=[["cat"], ["cat"]])
    [1.0, 0.0]
    """

    name = "exact_match"

    def __init__(self, normalise: Callable[[str], str] = squad_normalise) -> None:
        self._normalise = normalise

    def score(self, text: str, targets: Sequence[str]) -> float:
        """1 or 0."""
        return float(self._normalise(text) in map(self._normalise, targets))


class TokenF1(ReferenceMetric):
    """F1 of the words shared with the best reference, after normalisation (Rajpurkar et al. 2016).

    Words are what spaces part. Where one side has none, it is 1 if the other has none either, else 0 (version 2.0
    of SQuAD's script).

    Args:
        normalise: applied to both sides before they are split.

    >>> TokenF1()(completions=["the black cat"], references=[["a cat", "dogs"]])
    [0.6666666666666666]
    """

    name = "token_f1"

    def __init__(self, normalise: Callable[[str], str] = squad_normalise) -> None:
        self._normalise = normalise

    def score(self, text: str, targets: Sequence[str]) -> float:
        """The best reference's F1."""
        return max(self._f1(self._normalise(text).split(), self._normalise(target).split()) for target in targets)

    @staticmethod
    def _f1(found: list[str], wanted: list[str]) -> float:
        if not found or not wanted:
            return float(found == wanted)
        shared = (collections.Counter(found) & collections.Counter(wanted)).total()
        if not shared:
            return 0.0
        precision, recall = shared / len(found), shared / len(wanted)
        return 2 * precision * recall / (precision + recall)


class EditSimilarity(ReferenceMetric):
    """``1 - edits / length of the longer text``, the best of the references: Levenshtein's distance by ``rapidfuzz``.

    Args:
        unit: ``"characters"`` or ``"words"`` (as `words` splits them).

    Raises:
        ValueError: an unknown unit.

    >>> EditSimilarity()(completions=["kitten"], references=[["kittens", "dogs"]])
    [0.8571428571428572]
    """

    def __init__(self, unit: str = "characters") -> None:
        if unit not in _UNITS:
            raise ValueError(f"unknown unit {unit!r}; {did_you_mean(str(unit), _UNITS)}")
        self.name = "edit_similarity" if unit == "characters" else "edit_similarity_words"
        self._split: Callable[[str], Sequence[str]] = words if unit == "words" else str

    def score(self, text: str, targets: Sequence[str]) -> float:
        """The nearest reference's similarity; 1 for two empty texts."""
        return max(Levenshtein.normalized_similarity(self._split(text), self._split(target)) for target in targets)
