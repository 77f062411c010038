"""Words that a text must have, and words it must not have: given once, or per prompt in a metadata column."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from reward_models.composite import Composable
from reward_models.inputs import check_texts
from reward_models.words import contains, fold, words
from textgen_env.lookup import did_you_mean

_MATCHES = ("word", "stem", "anywhere")
_MODES = ("fraction", "all")


class KeywordCoverage(Composable):
    """The share of its keywords (or slots) that a text has; case does not count.

    A list of keywords alone satisfies it, so put it behind a check of the whole text where that matters:
    ``Gate(is_a_sentence, KeywordCoverage("concepts"))``.

    Args:
        keywords: a list of words or phrases for every prompt, or the name of the metadata column (or argument, such
            as ``"references"``) that has each prompt's list.
        match: ``"word"`` (stands alone, see `phrase_source`), ``"stem"`` (the same of Porter stems, so that "dancing"
            covers "dance") or ``"anywhere"`` (inside other words too).
        mode: ``"fraction"``, or ``"all"``: 1 where every keyword is there, else 0.

    Raises:
        ValueError: an unknown match or mode, no keywords or a blank one.
        TypeError: a keyword is not a string.

    >>> KeywordCoverage(["dog", "ball"])(completions=["A DOG!", "dogma"])
    [0.5, 0.0]
    >>> KeywordCoverage("concepts", match="stem")(completions=["She dances."], concepts=[["dance"]])
    [1.0]
    """

    name = "keyword_coverage"
    kind: Literal["terminal"] = "terminal"
    bounds = (0.0, 1.0)

    def __init__(self, keywords: str | Sequence[str], match: str = "word", mode: str = "fraction") -> None:
        if match not in _MATCHES:
            raise ValueError(f"unknown match {match!r}; {did_you_mean(str(match), _MATCHES)}")
        if mode not in _MODES:
            raise ValueError(f"unknown mode {mode!r}; {did_you_mean(str(mode), _MODES)}")
        self._keywords = keywords if isinstance(keywords, str) else checked_words(self.name, keywords)
        self._match = match
        self._mode = mode
        self._stemmer: Any = None
        if match == "stem":
            from nltk.stem.porter import PorterStemmer

            self._stemmer = PorterStemmer()

    def __call__(self, completions: Sequence[str], **columns: Any) -> list[float | None]:
        """Score B completions; B floats in [0, 1], ``None`` for a prompt without keywords.

        Raises:
            ValueError: there is no such column, or a keyword is blank.
            TypeError: a text is not a string, or a prompt's keywords are no list of strings.
        """
        check_texts(self.name, completions=completions)
        wanted = words_by_text(self.name, self._keywords, len(completions), columns)
        return [self._score(text, own) if own else None for text, own in zip(completions, wanted, strict=True)]

    def _score(self, text: str, wanted: Sequence[str]) -> float:
        if self._match == "anywhere":
            found = [fold(word) in fold(text) for word in wanted]
        elif self._match == "stem":
            stems = self._stems(text)
            found = [contains(stems, self._stems(word)) for word in wanted]
        else:
            found = [contains(text, word) for word in wanted]
        return float(all(found)) if self._mode == "all" else sum(found) / len(found)

    def _stems(self, text: str) -> str:
        return " ".join(self._stemmer.stem(word) for word in words(fold(text)))


class BannedWords(Composable):
    """1 for a text that has none of the words or phrases, 0 for one that has; case does not count.

    Args:
        words: a list for every prompt, or the name of the metadata column that has each prompt's list. They are
            found as `phrase_source` says: standing alone, or anywhere in scripts without spaces.

    Raises:
        ValueError: no words, or a blank one.
        TypeError: a word is not a string.

    >>> BannedWords(["cat", "no way"])(completions=["Cat's eyes", "concatenate", "No\\nway"])
    [0.0, 1.0, 0.0]
    """

    name = "banned_words"
    kind: Literal["terminal"] = "terminal"
    bounds = (0.0, 1.0)

    def __init__(self, words: str | Sequence[str]) -> None:
        self._words = words if isinstance(words, str) else checked_words(self.name, words)

    def __call__(self, completions: Sequence[str], **columns: Any) -> list[float | None]:
        """Score B completions; B floats, 0 or 1, ``None`` for a prompt without a list.

        Raises:
            ValueError: there is no such column, or a word is blank.
            TypeError: a text is not a string, or a prompt's words are no list of strings.
        """
        check_texts(self.name, completions=completions)
        banned = words_by_text(self.name, self._words, len(completions), columns)
        return [
            float(not any(contains(text, word) for word in own)) if own else None
            for text, own in zip(completions, banned, strict=True)
        ]


def checked_words(name: str, given: Any) -> list[str]:
    """A list of words or phrases, as it is.

    Raises:
        TypeError: not a list, or something in it is no string.
        ValueError: it is empty, or a word is blank.
    """
    if not isinstance(given, Sequence) or isinstance(given, str | bytes):
        raise TypeError(f"{name} wants a list of words, got {type(given).__name__} {given!r:.80}")
    if not given:
        raise ValueError(f"{name} needs at least one word")
    for word in given:
        if not isinstance(word, str):
            raise TypeError(f"{name} wants words, got {type(word).__name__} {word!r:.80}")
        if not word.strip():
            raise ValueError(f"{name} has a blank word in {list(given)!r:.80}: it would be in every text")
    return list(given)


def column_of(name: str, column: str, count: int, columns: Mapping[str, Any]) -> Sequence[Any]:
    """A metadata column with one entry for each of ``count`` texts.

    Raises:
        ValueError: there is no such column, or its length differs.
    """
    if columns.get(column) is None:
        raise ValueError(f"{name} reads the column '{column}', which is not there; {did_you_mean(column, columns)}")
    values: Sequence[Any] = columns[column]
    if len(values) != count:
        raise ValueError(f"{name} wants one entry of '{column}' a completion, got {len(values)} for {count}")
    return values


def words_by_text(
    name: str, given: str | Sequence[str], count: int, columns: Mapping[str, Any]
) -> list[Sequence[str] | None]:
    """Each text's list of words: a fixed one, or that of a column; None where the column has no words for it.

    Raises:
        ValueError, TypeError: as `column_of` and `checked_words`.
    """
    if not isinstance(given, str):
        return [given] * count
    return [
        None if own is None or (isinstance(own, Sequence) and not own) else checked_words(name, own)
        for own in column_of(name, given, count, columns)
    ]
