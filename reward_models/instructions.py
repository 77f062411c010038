"""Instructions that a program can check, in a small language: LEN, START, END, CONTAINS, FORBID.

One instruction reads ``KIND value``; several are parted by ``;``, by a new line, or by the next kind (in capitals).
A value in double quotes may contain all of these::

    LEN 5-10; START "Dear Ada,"; CONTAINS thank you; FORBID money

``LEN`` counts words: ``5``, ``5-10``, ``>=5`` or ``<=10``; ``LEN 20-40 characters`` counts those. Case does not count
anywhere, and phrases are found as `phrase_source` says: standing alone, or anywhere in scripts without spaces.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import regex

from reward_models.composite import Composable
from reward_models.inputs import check_texts
from reward_models.keywords import column_of
from reward_models.words import fold, phrase_pattern, phrase_source, words
from textgen_env.lookup import did_you_mean

KINDS = ("LEN", "START", "END", "CONTAINS", "FORBID")
_MODES = ("fraction", "all")
_MARK = regex.compile(rf'"[^"\n]*"|[;\n]|(?<!\w)(?:{"|".join(KINDS)})(?!\w)')
_RANGE = regex.compile(
    r"(?:(?P<exact>\d+)|(?P<low>\d+)-(?P<high>\d+)|>=(?P<least>\d+)|<=(?P<most>\d+))(?P<unit>\s\D+)?"
)


@dataclass(frozen=True, slots=True)
class Instruction:
    """One checkable demand on a text.

    Raises:
        ValueError: an unknown kind, a blank value, or a LEN that is no range.

    >>> Instruction("LEN", "2-3").holds("one two three"), Instruction("FORBID", "two").holds("one two three")
    (True, False)
    """

    kind: str
    value: str

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"unknown instruction {self.kind!r}; {did_you_mean(str(self.kind).upper(), KINDS)}")
        if not isinstance(self.value, str) or not self.value.strip():
            raise ValueError(f"instruction {self.kind} needs a value, such as {self.kind} 5, got {self.value!r}")
        if self.kind == "LEN":
            _length_range(self.value)

    def __str__(self) -> str:
        return f"{self.kind} {self.value}"

    def holds(self, text: str) -> bool:
        """Whether the text does as told; white space around it does not count."""
        text = text.strip()
        if self.kind == "LEN":
            low, high, unit = _length_range(self.value)
            return low <= (len(text) if unit == "characters" else len(words(text))) <= high
        if self.kind == "START":
            return phrase_pattern(self.value).match(fold(text)) is not None
        if self.kind == "END":
            return _pattern_at_end(self.value).search(fold(text)) is not None
        return (phrase_pattern(self.value).search(fold(text)) is not None) == (self.kind == "CONTAINS")


def read_instructions(text: str) -> list[Instruction]:
    """The instructions in a prompt, or in a text of instructions alone; anything else in it is passed over.

    Raises:
        ValueError: an instruction has no value, or a LEN is no range.

    >>> [str(found) for found in read_instructions('Write. LEN 3 START the; END "the END"')]
    ['LEN 3', 'START the', 'END the END']
    """
    return list(_read(text))


def _read(text: str) -> Iterator[Instruction]:
    kind, start = "", 0
    for mark in _MARK.finditer(text):
        if mark[0].startswith('"'):  # what is quoted parts nothing
            continue
        if kind:
            yield Instruction(kind, _value(text[start : mark.start()]))
        kind, start = mark[0] if mark[0] in KINDS else "", mark.end()
    if kind:
        yield Instruction(kind, _value(text[start:]))


def parse_instruction(given: Any) -> Instruction:
    """One instruction of a metadata column: an `Instruction`, a string ``"LEN 5"`` or a pair ``["LEN", "5"]``.

    Raises:
        ValueError: it is not exactly one instruction.
        TypeError: it is something else.
    """
    if isinstance(given, Instruction):
        return given
    if isinstance(given, str):
        kind, _, value = given.strip().partition(" ")
        return Instruction(kind.rstrip(":="), _value(value))
    if isinstance(given, Sequence) and len(given) == 2:
        return Instruction(str(given[0]), str(given[1]))
    raise TypeError(f"an instruction is a string 'LEN 5' or a pair ['LEN', '5'], got {given!r:.80}")


class Instructions(Composable):
    """How many of its prompt's instructions a text follows.

    Args:
        column: the metadata column that has each prompt's instructions, a list or one text of them; ``None`` to read
            them in the prompt itself.
        mode: ``"fraction"``, or ``"all"``: 1 where every instruction is followed, else 0.

    Raises:
        ValueError: an unknown mode.

    >>> follows = Instructions(column=None)
    >>> follows(completions=["red and blue"], prompts=["LEN 3 START red FORBID green END green"])
    [0.75]
    """

    name = "instructions"
    kind: Literal["terminal"] = "terminal"
    bounds = (0.0, 1.0)

    def __init__(self, column: str | None = "constraints", mode: str = "fraction") -> None:
        if mode not in _MODES:
            raise ValueError(f"unknown mode {mode!r}; {did_you_mean(str(mode), _MODES)}")
        self._column = "prompts" if column is None else column
        self._mode = mode

    def __call__(self, completions: Sequence[str], **columns: Any) -> list[float | None]:
        """Score B completions; B floats in [0, 1], ``None`` for a prompt without instructions.

        Raises:
            ValueError: there is no such column, or an instruction cannot be read.
            TypeError: a text is not a string, or a prompt's instructions are no list.
        """
        check_texts(self.name, completions=completions)
        column = column_of(self.name, self._column, len(completions), columns)
        return [self._score(text, self._instructions(given)) for text, given in zip(completions, column, strict=True)]

    def _instructions(self, given: Any) -> list[Instruction]:
        if given is None:
            return []
        if isinstance(given, str):
            return read_instructions(given)
        if not isinstance(given, Sequence):
            raise TypeError(f"{self.name} wants a list of instructions, got {type(given).__name__} {given!r:.80}")
        return [parse_instruction(one) for one in given]

    def _score(self, text: str, wanted: list[Instruction]) -> float | None:
        if not wanted:
            return None
        followed = [instruction.holds(text) for instruction in wanted]
        return float(all(followed)) if self._mode == "all" else sum(followed) / len(followed)


def _value(written: str) -> str:
    value = written.lstrip(" \t:=").rstrip()
    return value[1:-1] if len(value) > 1 and value[0] == value[-1] == '"' else value


@functools.lru_cache(maxsize=10_000)
def _length_range(value: str) -> tuple[int, float, str]:
    found = _RANGE.fullmatch(value.strip())
    unit = (found["unit"] or "words").strip() if found else ""
    if not found or unit not in ("words", "characters"):
        raise ValueError(f"LEN wants 5, 5-10, >=5 or <=10, and perhaps 'characters', got {value!r}")
    low = int(found["exact"] or found["low"] or found["least"] or 0)
    high = float(found["exact"] or found["high"] or found["most"] or "inf")
    if low > high:
        raise ValueError(f"LEN {value} is an empty range: the lower end comes first")
    return low, high, unit


@functools.lru_cache(maxsize=10_000)
def _pattern_at_end(phrase: str) -> regex.Pattern[str]:
    return regex.compile(rf"{phrase_source(phrase)}\Z", regex.V1)
