"""Sentiment from a table of words, without a network: VADER's rules over any lexicon."""

from __future__ import annotations

import math
import numbers
from collections.abc import Iterator, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import regex

from reward_models.composite import Composable
from reward_models.inputs import check_texts
from reward_models.sentiment_words import BOOSTERS, NEGATORS, VALENCES
from reward_models.words import fold, words

_CHUNK = regex.compile(r"\p{Extended_Pictographic}|[^\s\p{Extended_Pictographic}]+")
_PUNCTUATION = "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~…“”‘’«»¡¿"
_NEGATION = -0.74
_CAPITALS = 0.733
_DAMPING = (1.0, 0.95, 0.9)
"""How much a booster one, two or three words before the word counts."""
_EXCLAMATION = 0.292
_SPREAD = 15.0


class LexiconSentiment(Composable):
    """Valence of a text in [-1, 1] from a word list and the rules of VADER (Hutto & Gilbert 2014, section 3.2).

    Each word's valence ``v`` is moved away from 0 by .733 in CAPITALS (in a text that is not all capitals) and by a
    booster among the three words before (±.293, times .95 or .9 at a distance), and multiplied by -.74 if one of the
    three negates. Boosters have no valence of their own. "But" halves what stands before it and adds half to what
    follows. With ``s = Σv``, moved away from 0 by .292 for every "!" up to four, the score is ``s / √(s² + 15)``.
    Words are split at white space, and elsewhere at punctuation unless the lexicon knows the whole (":-)", "😀"); so
    in scripts without spaces only words of one character are found.

    Args:
        lexicon: a table word → valence (VADER's go from -4 to 4), a file of it with one ``word<TAB>valence`` a line
            (VADER's own; further columns are not read), or ``None`` for a small built-in one of everyday English.
        boosters: words that strengthen (above 0) or weaken the next ones; default: English ones.
        negators: words that negate the next ones; default: English ones, and all that ends in "n't".

    Raises:
        ValueError: the lexicon is empty, a valence is not a finite number, or a line of the file has no tab.
        OSError: the file cannot be read.

    >>> scores = LexiconSentiment({"good": 2.0})(completions=["good", "not good", "very good", "a stone"])
    >>> [round(score, 3) for score in scores]
    [0.459, -0.357, 0.509, 0.0]
    """

    name = "sentiment_lexicon"
    kind: Literal["terminal"] = "terminal"
    bounds = (-1.0, 1.0)

    def __init__(
        self,
        lexicon: Mapping[str, float] | str | PathLike[str] | None = None,
        boosters: Mapping[str, float] = BOOSTERS,
        negators: Sequence[str] = NEGATORS,
    ) -> None:
        if lexicon is None:
            lexicon = VALENCES
        table = lexicon if isinstance(lexicon, Mapping) else read_lexicon(lexicon)
        if not table:
            raise ValueError("the lexicon is empty: every text would be neutral")
        for word, valence in table.items():
            if not isinstance(valence, numbers.Real) or not math.isfinite(valence):
                raise ValueError(f"the valence of {word!r} in the lexicon is no finite number: {valence!r}")
        # Emoticons such as ":D" mean what they mean with their case; words are found in any.
        self._valences = {fold(word): float(valence) for word, valence in table.items()}
        self._valences.update((word, float(valence)) for word, valence in table.items())
        self._boosters = {fold(word): float(strength) for word, strength in boosters.items()}
        self._negators = frozenset(map(fold, negators))

    def __call__(self, completions: Sequence[str], **_: Any) -> list[float]:
        """Score B completions; B floats in [-1, 1], 0 for a text without a word of the lexicon.

        Raises:
            TypeError: a text is not a string.
        """
        check_texts(self.name, completions=completions)
        return [self._score(text) for text in completions]

    def _score(self, text: str) -> float:
        tokens = list(self._tokens(text.replace("’", "'")))
        total = sum(self._valences_in(tokens))
        if total:
            total = _away_from_zero(total, _EXCLAMATION * min(text.count("!"), 4))
        return total / math.hypot(total, math.sqrt(_SPREAD))  # no overflow, whatever the valences

    def _tokens(self, text: str) -> Iterator[str]:
        for chunk in _CHUNK.findall(text):
            bare = chunk.strip(_PUNCTUATION)
            if self._valence(chunk) is not None:
                yield chunk
            elif self._valence(bare) is not None:
                yield bare
            else:
                yield from words(bare)

    def _valence(self, token: str) -> float | None:
        return self._valences.get(token, self._valences.get(fold(token)))

    def _valences_in(self, tokens: list[str]) -> list[float]:
        """The valence of each token in its place, 0 for those that have none."""
        capitals_tell = not all(token.isupper() for token in tokens)
        found = []
        for at, token in enumerate(tokens):
            valence = self._valence(token)
            negates_next = self._negates(token) and at + 1 < len(tokens) and self._valence(tokens[at + 1]) is not None
            if not valence or negates_next or fold(token) in self._boosters:
                found.append(0.0)
                continue
            if capitals_tell and token.isupper() and token.isalpha():  # ":D" does not shout
                valence = _away_from_zero(valence, _CAPITALS)
            before = tokens[max(0, at - 3) : at][::-1]
            for damping, neighbour in zip(_DAMPING, before, strict=False):
                valence = _away_from_zero(valence, damping * self._boosters.get(fold(neighbour), 0.0))
            found.append(valence * _NEGATION if any(map(self._negates, before)) else valence)
        turns = [at for at, token in enumerate(tokens) if fold(token) == "but"]
        if turns:
            return [value * (0.5 if at < turns[0] else 1.5) for at, value in enumerate(found)]
        return found

    def _negates(self, token: str) -> bool:
        folded = fold(token)
        return folded in self._negators or folded.endswith("n't")


def read_lexicon(path: str | PathLike[str]) -> dict[str, float]:
    """A word list with one ``word<TAB>valence`` a line, further columns passed over: VADER's format.

    Raises:
        ValueError: a line has no tab, or its second column is no number.
        OSError: the file cannot be read.
    """
    valences: dict[str, float] = {}
    # Split at "\n" only: str.splitlines would part entries at other characters too.
    for number, line in enumerate(Path(path).read_text(encoding="utf-8").split("\n"), start=1):
        if not line.strip():
            continue
        word, _, rest = line.partition("\t")
        try:
            valences[word.strip()] = float(rest.split("\t")[0])
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: wants 'word<TAB>valence', got {line!r:.80}") from error
    return valences


def _away_from_zero(value: float, step: float) -> float:
    return value + math.copysign(1.0, value) * step
