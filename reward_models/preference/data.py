"""Human judgements of completions: ratings, comparisons and rankings, from JSON lines, split by prompt."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from typing import Any, Literal, TypeAlias

from textgen_env.lookup import did_you_mean
from textgen_env.tasks.dataset import split_of
from textgen_env.tasks.records import read_jsonl

Kind: TypeAlias = Literal["rating", "comparison", "ranking"]


@dataclass(frozen=True, slots=True)
class Rating:
    """A number given to one completion; more is better. The unit is the raters'."""

    prompt: str
    completion: str
    rating: float

    @property
    def completions(self) -> tuple[str, ...]:
        """The one completion."""
        return (self.completion,)


@dataclass(frozen=True, slots=True)
class Comparison:
    """One completion preferred to another, by how much (``margin`` ≥ 0, in logits), or a tie."""

    prompt: str
    chosen: str
    rejected: str
    margin: float = 0.0
    tie: bool = False

    @property
    def completions(self) -> tuple[str, ...]:
        """Chosen, rejected."""
        return self.chosen, self.rejected


@dataclass(frozen=True, slots=True)
class Ranking:
    """Two or more completions, best first, no ties."""

    prompt: str
    completions: tuple[str, ...]


Preference: TypeAlias = Rating | Comparison | Ranking

KINDS: dict[Kind, type[Rating] | type[Comparison] | type[Ranking]] = {
    "rating": Rating,
    "comparison": Comparison,
    "ranking": Ranking,
}

FIELDS: dict[Kind, tuple[str, ...]] = {
    "rating": ("prompt", "completion", "rating"),
    "comparison": ("prompt", "chosen", "rejected"),
    "ranking": ("prompt", "ranking"),
}
"""The fields that a record of each kind must have; a comparison may also have ``margin`` and ``tie``."""


def kind_of(preferences: Sequence[Preference]) -> Kind:
    """Which kind these are.

    Raises:
        ValueError: there are none, or they are of different kinds.
    """
    if not preferences:
        raise ValueError("there are no preferences to learn from")
    kinds: list[Kind] = [kind for kind, shape in KINDS.items() if any(isinstance(item, shape) for item in preferences)]
    if len(kinds) != 1:
        raise ValueError(f"preferences of one kind are wanted, got {' and '.join(kinds) or type(preferences[0])}")
    return kinds[0]


def read_preferences(path: str | PathLike[str], kind: Kind | Literal["auto"] = "auto") -> list[Preference]:
    """The judgements in a JSON-lines file, all of one kind; other fields are ignored.

    A rating is ``{"prompt", "completion", "rating"}``; a comparison ``{"prompt", "chosen", "rejected"}``, perhaps with
    ``"margin"`` (a number ≥ 0) and ``"tie"`` (true or false); a ranking ``{"prompt", "ranking": [best, ..., worst]}``.

    Args:
        path: the file, UTF-8.
        kind: ``"auto"`` finds it in the fields of the first record.

    Raises:
        ValueError: an unknown kind, or a record that is none of that kind; the message names file, line and field.
        OSError: the file cannot be read.
    """
    if kind != "auto" and kind not in KINDS:
        raise ValueError(f"unknown kind {kind!r}; {did_you_mean(str(kind), ['auto', *KINDS])}")
    preferences: list[Preference] = []
    for where, record in read_jsonl(path):
        if kind == "auto":
            kind = _kind_in(record, where)
        preferences.append(_READERS[kind](record, where))
    return preferences


def split_preferences(
    preferences: Sequence[Preference], validation: float = 0.1
) -> tuple[list[Preference], list[Preference]]:
    """Train and validation part. A prompt's hash decides where its judgements go: no prompt is on both sides.

    Args:
        preferences: judgements of any kind.
        validation: the share of the prompts to hold out, 0 ≤ share < 1; 0 holds out none.

    Raises:
        ValueError: the share is out of range, or one side would be empty.
    """
    if not 0 <= validation < 1:
        raise ValueError(f"the validation share must lie in [0, 1), got {validation}")
    if validation == 0:
        return list(preferences), []
    sides: dict[str, list[Preference]] = {"train": [], "validation": []}
    for item in preferences:
        sides[split_of(item.prompt, (1 - validation, validation, 0.0))].append(item)
    if not (sides["train"] and sides["validation"]):
        count = len({item.prompt for item in preferences})
        raise ValueError(
            f"of {count} prompts, a validation share of {validation} leaves none for "
            f"{'validation' if sides['train'] else 'training'}: change the share, or give validation data of its own"
        )
    return sides["train"], sides["validation"]


def text_field(record: Mapping[str, Any], field: str, where: str) -> str:
    """The string in a field of a record.

    Raises:
        ValueError: there is no such field, or it is no string; the message names the place and the field.
    """
    value = _field(record, field, where)
    if not isinstance(value, str):
        raise ValueError(f"{where}, field '{field}': expected a string, got {type(value).__name__}")
    return value


def _kind_in(record: Mapping[str, Any], where: str) -> Kind:
    for kind, fields in FIELDS.items():
        if fields[-1] in record:
            return kind
    wanted = "; ".join(f"{kind}: {', '.join(fields)}" for kind, fields in FIELDS.items())
    raise ValueError(f"{where}: fields {', '.join(record) or 'none'} are no judgement. Wanted are {wanted}")


def _field(record: Mapping[str, Any], field: str, where: str) -> Any:
    if field not in record:
        raise ValueError(f"{where}: no field '{field}'; {did_you_mean(field, record)}")
    return record[field]


def _number(record: Mapping[str, Any], field: str, where: str) -> float:
    value = _field(record, field, where)
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not math.isfinite(value):
        raise ValueError(f"{where}, field '{field}': expected a finite number, got {value!r}")
    return float(value)


def _rating(record: Mapping[str, Any], where: str) -> Rating:
    return Rating(
        text_field(record, "prompt", where), text_field(record, "completion", where), _number(record, "rating", where)
    )


def _comparison(record: Mapping[str, Any], where: str) -> Comparison:
    margin = _number(record, "margin", where) if record.get("margin") is not None else 0.0
    tie = record.get("tie", False)
    if not isinstance(tie, bool):
        raise ValueError(f"{where}, field 'tie': expected true or false, got {tie!r}")
    if margin < 0:
        raise ValueError(f"{where}, field 'margin': expected 0 or more, got {margin}; exchange chosen and rejected")
    if tie and margin:
        raise ValueError(f"{where}, field 'margin': a tie has no margin, got {margin}")
    chosen, rejected = text_field(record, "chosen", where), text_field(record, "rejected", where)
    return Comparison(text_field(record, "prompt", where), chosen, rejected, margin, tie)


def _ranking(record: Mapping[str, Any], where: str) -> Ranking:
    ranked = _field(record, "ranking", where)
    if not isinstance(ranked, list) or len(ranked) < 2 or not all(isinstance(text, str) for text in ranked):
        raise ValueError(f"{where}, field 'ranking': expected a list of two or more strings, best first")
    return Ranking(text_field(record, "prompt", where), tuple(ranked))


_READERS: dict[str, Callable[[Mapping[str, Any], str], Preference]] = {
    "rating": _rating,
    "comparison": _comparison,
    "ranking": _ranking,
}
