"""Rules that a program can check: length, pattern, repetition, JSON. Words to have or avoid are in ``keywords``."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any, Literal

import regex

from reward_models.composite import Composable
from reward_models.inputs import check_texts
from reward_models.words import words
from textgen_env.lookup import did_you_mean

UNITS = ("words", "tokens", "characters")
_MODES = ("all", "fraction")


class Length(Composable):
    """1 within a range of lengths, falling linearly to 0 outside it.

    A text ``distance`` away from the range scores ``max(0, 1 - distance / falloff)``. Unless it is given, the falloff
    is the end that was missed: below ``low`` the score is ``length / low``, above ``high`` it is 0 from ``2 · high``.

    Args:
        target: the one length to hit; or give a range:
        low: the shortest length of the range.
        high: the longest; ``None`` for no limit.
        unit: ``"words"`` (see `words`), ``"tokens"`` (the sampled ones, without the EOS) or ``"characters"``.
        falloff: how far from the range the score reaches 0; 0 for a sharp edge.

    Raises:
        ValueError: both a target and a range or neither, an empty or negative range, or an unknown unit.

    >>> Length(4)(completions=["one two three four", "one two", ""])
    [1.0, 0.5, 0.0]
    >>> Length(low=2, high=3, falloff=0)(completions=["one", "one two"])
    [0.0, 1.0]
    """

    kind: Literal["terminal"] = "terminal"
    bounds = (0.0, 1.0)

    def __init__(
        self,
        target: int | None = None,
        *,
        low: int = 0,
        high: int | None = None,
        unit: str = "words",
        falloff: float | None = None,
    ) -> None:
        if (target is None) == (not low and high is None):
            raise ValueError("Length wants a target, or a range by low= and high=")
        if target is not None:
            low = high = target
        if low < 0 or (high is not None and (high < low or high < 1)):
            raise ValueError(f"Length wants 0 <= low <= high and high >= 1, got low={low}, high={high}")
        if unit not in UNITS:
            raise ValueError(f"unknown unit {unit!r}; {did_you_mean(str(unit), UNITS)}")
        if falloff is not None and not falloff >= 0:
            raise ValueError(f"the falloff of Length is a distance, got {falloff}")
        self.name = f"length_{unit}"
        self._low, self._high, self._unit, self._falloff = low, high, unit, falloff

    def __call__(
        self,
        completions: Sequence[str],
        completion_ids: Sequence[Sequence[int]] | None = None,
        stop_reasons: Sequence[str | None] | None = None,
        **_: Any,
    ) -> list[float]:
        """Score B completions; B floats in [0, 1].

        Raises:
            ValueError: the unit is tokens, and ``completion_ids`` or ``stop_reasons`` (is there an EOS?) are missing.
            TypeError: a text is not a string.
        """
        check_texts(self.name, completions=completions)
        if self._unit == "tokens":
            return [self._score(length) for length in token_counts(self.name, completion_ids, stop_reasons)]
        size: Callable[[str], int] = len if self._unit == "characters" else lambda text: len(words(text))
        return [self._score(size(text)) for text in completions]

    def _score(self, length: int) -> float:
        if length < self._low:
            distance, end = self._low - length, self._low
        elif self._high is not None and length > self._high:
            distance, end = length - self._high, self._high
        else:
            return 1.0
        falloff = end if self._falloff is None else self._falloff
        return max(0.0, 1.0 - distance / falloff) if falloff else 0.0


class RegexMatch(Composable):
    """1 where a pattern matches, else 0. Patterns are those of the ``regex`` package, which reads ``re``'s as well.

    Args:
        pattern: a string, or a compiled ``regex`` pattern.
        whole: the whole text must match, instead of some part of it.
        timeout: seconds one text may take: a pattern such as ``(a+)+$`` can take years.

    Raises:
        ValueError: the pattern is none.

    >>> RegexMatch(r"\\d+ apples")(completions=["I have 3 apples", "none"])
    [1.0, 0.0]
    """

    name = "regex_match"
    kind: Literal["terminal"] = "terminal"
    bounds = (0.0, 1.0)

    def __init__(self, pattern: str | regex.Pattern[str], whole: bool = False, timeout: float = 1.0) -> None:
        try:
            self._pattern = regex.compile(pattern)
        except regex.error as error:
            raise ValueError(f"{pattern!r} is no regular expression: {error}") from error
        self._whole = whole
        self._timeout = timeout

    def __call__(self, completions: Sequence[str], **_: Any) -> list[float]:
        """Score B completions; B floats, 0 or 1.

        Raises:
            TimeoutError: a text took longer than ``timeout`` seconds.
            TypeError: a text is not a string.
        """
        check_texts(self.name, completions=completions)
        match = self._pattern.fullmatch if self._whole else self._pattern.search
        scores = []
        for text in completions:
            try:
                scores.append(float(match(text, timeout=self._timeout) is not None))
            except TimeoutError as error:
                raise TimeoutError(
                    f"the pattern {self._pattern.pattern!r} took more than {self._timeout:g} s on a text of "
                    f"{len(text)} characters: look for nested repetitions, or raise timeout"
                ) from error
        return scores


class Distinct(Composable):
    """The share of a text's n-grams that are different ones (Li et al. 2016): 1 where nothing is said twice.

    It is ``1 - seq-rep-n`` of Welleck et al. (2020). A text with fewer than n words repeats nothing and scores 1, an
    empty one too: add a reward that minds the length.

    Args:
        n: the n-grams' length.
        unit: ``"words"`` (see `words`; case does not count), ``"tokens"`` or ``"characters"``.

    Raises:
        ValueError: ``n < 1``, or an unknown unit.

    >>> Distinct(1)(completions=["the cat the cat", "a b c", ""])
    [0.5, 1.0, 1.0]
    """

    kind: Literal["terminal"] = "terminal"
    bounds = (0.0, 1.0)

    def __init__(self, n: int = 2, unit: str = "words") -> None:
        if n < 1:
            raise ValueError(f"n-grams have n >= 1, got {n}")
        if unit not in UNITS:
            raise ValueError(f"unknown unit {unit!r}; {did_you_mean(str(unit), UNITS)}")
        self.name = f"distinct_{n}" if unit == "words" else f"distinct_{n}_{unit}"
        self._n = n
        self._unit = unit

    def __call__(
        self, completions: Sequence[str], completion_ids: Sequence[Sequence[int]] | None = None, **_: Any
    ) -> list[float]:
        """Score B completions; B floats in (0, 1].

        Raises:
            ValueError: the unit is tokens, and there are no ``completion_ids``.
            TypeError: a text is not a string.
        """
        check_texts(self.name, completions=completions)
        if self._unit == "tokens":
            if completion_ids is None:
                raise ValueError(f"{self.name} counts tokens: call it with completion_ids=, or count words")
            return [self._share(ids) for ids in completion_ids]
        split: Callable[[str], list[str]] = list if self._unit == "characters" else words
        return [self._share(split(text.casefold())) for text in completions]

    def _share(self, items: Sequence[Any]) -> float:
        grams = [tuple(items[at : at + self._n]) for at in range(len(items) - self._n + 1)]
        return len(set(grams)) / len(grams) if grams else 1.0


class JsonFormat(Composable):
    """Whether the whole text is JSON (RFC 8259: no NaN, nothing around it), with the keys it should have.

    Args:
        required: keys that the object must have; an empty list takes any JSON value.
        mode: ``"all"``: 1 for JSON with all keys, else 0; ``"fraction"``: the share of the keys that are there, 0 for
            what is no JSON object.

    Raises:
        ValueError: an unknown mode.

    >>> JsonFormat(["name"])(completions=['{"name": "Ada"}', '{"age": 36}', "Ada"])
    [1.0, 0.0, 0.0]
    """

    name = "json_format"
    kind: Literal["terminal"] = "terminal"
    bounds = (0.0, 1.0)

    def __init__(self, required: Sequence[str] = (), mode: str = "all") -> None:
        if isinstance(required, str):
            raise TypeError(f"JsonFormat wants a list of keys, got the string {required!r}")
        if mode not in _MODES:
            raise ValueError(f"unknown mode {mode!r}; {did_you_mean(str(mode), _MODES)}")
        self._required = tuple(required)
        self._mode = mode

    def __call__(self, completions: Sequence[str], **_: Any) -> list[float]:
        """Score B completions; B floats in [0, 1].

        Raises:
            TypeError: a text is not a string.
        """
        check_texts(self.name, completions=completions)
        return [self._score(text) for text in completions]

    def _score(self, text: str) -> float:
        try:
            # Whole numbers as floats: Python refuses to read those of more than 4,300 digits, JSON does not.
            value = json.loads(text, parse_int=float, parse_constant=_refuse)
        except (ValueError, RecursionError):
            return 0.0
        if not self._required:
            return 1.0
        if not isinstance(value, dict):
            return 0.0
        present = sum(key in value for key in self._required)
        return float(present == len(self._required)) if self._mode == "all" else present / len(self._required)


def token_counts(
    name: str, completion_ids: Sequence[Sequence[int]] | None, stop_reasons: Sequence[str | None] | None
) -> list[int]:
    """How many tokens each completion has, without the EOS.

    Raises:
        ValueError: one of the two is missing.
    """
    if completion_ids is None or stop_reasons is None:
        raise ValueError(f"{name} counts tokens: call it with completion_ids= and stop_reasons=, or count words")
    return [len(ids) - (reason == "eos") for ids, reason in zip(completion_ids, stop_reasons, strict=True)]


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is not JSON")
