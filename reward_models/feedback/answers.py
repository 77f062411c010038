"""What an annotator can say about an item: rate, prefer (or call a tie), rank, write; or skip it.

Indices count completions from 0. As an annotator gives them they count the texts in the order *shown*; the store keeps
them in the item's own order. ``relabelled`` goes from one to the other.
"""

from __future__ import annotations

import math
import numbers
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from textgen_env.lookup import did_you_mean

Kind: TypeAlias = Literal["rating", "comparison", "ranking", "demonstration"]
"""What is asked about an item."""

MAX_TEXT = 100_000
"""Characters in a prompt, a completion, a demonstration or guidelines."""
MAX_NOTE = 2_000
"""Characters in the reason of a skip."""


class FeedbackError(ValueError):
    """Something about feedback that cannot be: a bad answer or item, a file that is no store. The message says what."""


class TooLong(FeedbackError):
    """A text over its limit."""


@dataclass(frozen=True, slots=True)
class Rate:
    """A number on the item's scale; more is better."""

    rating: float

    def relabelled(self, indices: Sequence[int]) -> Rate:
        """The same: there is one text."""
        return self

    def to_json(self) -> dict[str, Any]:
        """``{"rating": 4}``."""
        return {"rating": self.rating}


@dataclass(frozen=True, slots=True)
class Prefer:
    """The better of two texts, and by how much (``margin`` ≥ 0, in the annotators' unit); None for a tie."""

    preferred: int | None
    margin: float = 0.0

    def relabelled(self, indices: Sequence[int]) -> Prefer:
        """Index i becomes ``indices[i]``."""
        return self if self.preferred is None else Prefer(indices[self.preferred], self.margin)

    def to_json(self) -> dict[str, Any]:
        """``{"preferred": 0, "margin": 0.0}``, or ``{"tie": true}``."""
        return {"tie": True} if self.preferred is None else {"preferred": self.preferred, "margin": self.margin}


@dataclass(frozen=True, slots=True)
class Rank:
    """All texts' indices, the best one's first; no ties."""

    ranking: tuple[int, ...]

    def relabelled(self, indices: Sequence[int]) -> Rank:
        """Index i becomes ``indices[i]``."""
        return Rank(tuple(indices[index] for index in self.ranking))

    def to_json(self) -> dict[str, Any]:
        """``{"ranking": [2, 0, 1]}``."""
        return {"ranking": list(self.ranking)}


@dataclass(frozen=True, slots=True)
class Write:
    """A completion of the annotator's own: a demonstration."""

    text: str

    def relabelled(self, indices: Sequence[int]) -> Write:
        """The same: nothing was shown."""
        return self

    def to_json(self) -> dict[str, Any]:
        """``{"text": "..."}``."""
        return {"text": self.text}


@dataclass(frozen=True, slots=True)
class Skip:
    """No judgement, and perhaps why: the item goes to someone else."""

    reason: str = ""

    def relabelled(self, indices: Sequence[int]) -> Skip:
        """The same."""
        return self

    def to_json(self) -> dict[str, Any]:
        """``{"skip": "the text is cut off"}``."""
        return {"skip": self.reason}


Answer: TypeAlias = Rate | Prefer | Rank | Write | Skip

_KIND_OF: dict[type[Any], Kind] = {Rate: "rating", Prefer: "comparison", Rank: "ranking", Write: "demonstration"}
_FIELDS = {
    "rating": ("rating",),
    "preferred": ("preferred", "margin"),
    "tie": ("tie",),
    "ranking": ("ranking",),
    "text": ("text",),
    "skip": ("skip",),
}
"""The field that tells an answer's kind -> all that its JSON may have."""


def read_answer(record: Any, where: str = "the answer") -> Answer:
    """An answer from its JSON, as ``to_json`` writes it; what it is about is `check_answer`'s to see.

    >>> read_answer({"preferred": 1})
    Prefer(preferred=1, margin=0.0)
    >>> read_answer({"tie": True})
    Prefer(preferred=None, margin=0.0)

    Raises:
        FeedbackError: it is no object, has not just the fields of one answer, or one has the wrong type.
    """
    if not isinstance(record, Mapping):
        raise FeedbackError(f"{where}: expected an object, got {type(record).__name__}")
    told = [field for field in _FIELDS if field in record]
    if len(told) != 1:
        got = " and ".join(told) or ", ".join(map(str, record)) or "nothing"
        raise FeedbackError(f"{where}: one of {', '.join(_FIELDS)} is wanted, got {got}")
    for field in record:
        if field not in _FIELDS[told[0]]:
            raise FeedbackError(f"{where}: unknown field '{field}'; {did_you_mean(str(field), _FIELDS[told[0]])}")
    value = record[told[0]]
    if told[0] == "rating":
        return Rate(_number(value, f"{where}, field 'rating'"))
    if told[0] == "preferred":
        return Prefer(
            _index(value, f"{where}, field 'preferred'"), _number(record.get("margin", 0.0), f"{where}, field 'margin'")
        )
    if told[0] == "tie":
        if value is not True:
            raise FeedbackError(f"{where}, field 'tie': it can only be true; else name the 'preferred' one")
        return Prefer(None)
    if told[0] == "ranking":
        if not isinstance(value, Sequence) or isinstance(value, str):
            raise FeedbackError(f"{where}, field 'ranking': expected a list of indices, best first, got {value!r:.80}")
        return Rank(tuple(_index(index, f"{where}, field 'ranking'") for index in value))
    if not isinstance(value, str):
        raise FeedbackError(f"{where}, field '{told[0]}': expected a string, got {type(value).__name__}")
    return Write(value) if told[0] == "text" else Skip(value)


def check_answer(
    answer: Answer, kind: Kind, count: int, scale: tuple[float, float] | None = None, where: str = "the answer"
) -> None:
    """Whether an answer can be given to an item of this kind with so many completions.

    Args:
        answer: any.
        kind: what was asked.
        count: how many completions there are.
        scale: lowest and highest rating.
        where: starts the messages.

    Raises:
        FeedbackError: it answers another question, names a text that is not there, leaves the scale, or is empty.
        TooLong: a text over `MAX_TEXT` characters, a reason over `MAX_NOTE`.
    """
    if isinstance(answer, Skip):
        check_text(answer.reason, f"{where}, the reason", MAX_NOTE)
        return
    if _KIND_OF.get(type(answer)) != kind:
        wanted = next(shape.__name__ for shape, of in _KIND_OF.items() if of == kind)
        raise FeedbackError(f"{where}: a {kind} is answered by {wanted} or Skip, not by {type(answer).__name__}")
    if isinstance(answer, Rate):
        _number(answer.rating, f"{where}, the rating")
        if scale is not None and not scale[0] <= answer.rating <= scale[1]:
            raise FeedbackError(f"{where}: {answer.rating:g} is not on the scale from {scale[0]:g} to {scale[1]:g}")
    elif isinstance(answer, Prefer):
        if answer.preferred not in (None, 0, 1):
            raise FeedbackError(f"{where}: preferred is 0, 1 or None for a tie, got {answer.preferred!r}")
        if _number(answer.margin, f"{where}, the margin") < 0 or (answer.preferred is None and answer.margin):
            raise FeedbackError(f"{where}: a margin is 0 or more, and 0 for a tie, got {answer.margin}")
    elif isinstance(answer, Rank):
        if sorted(answer.ranking) != list(range(count)):
            raise FeedbackError(
                f"{where}: a ranking names each of 0 … {count - 1} once, best first, got {list(answer.ranking)}"
            )
    elif not answer.text.strip():
        raise FeedbackError(f"{where}: the text is empty; to write nothing is to skip")
    else:
        check_text(answer.text, f"{where}, the text", MAX_TEXT)


def same_answer(first: Answer, second: Answer, tolerance: float = 0.0) -> bool:
    """Whether two answers to one item say the same; margins do not count, ratings may differ by the tolerance.

    >>> same_answer(Rate(4), Rate(5)), same_answer(Rate(4), Rate(5), tolerance=1)
    (False, True)
    """
    if isinstance(first, Rate) and isinstance(second, Rate):
        return abs(first.rating - second.rating) <= tolerance
    if isinstance(first, Prefer) and isinstance(second, Prefer):
        return first.preferred == second.preferred
    return first == second


def check_text(text: Any, where: str, limit: int) -> None:
    """Refuse what is no text, or one over the limit.

    Raises:
        FeedbackError: no string, or one with half a character (a lone surrogate).
        TooLong: it has more than ``limit`` characters.
    """
    if not isinstance(text, str):
        raise FeedbackError(f"{where}: expected a string, got {type(text).__name__}")
    if len(text) > limit:
        raise TooLong(f"{where}: {len(text)} characters, the limit is {limit}")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise FeedbackError(f"{where}: lone surrogate {text[error.start]!r}, not valid Unicode") from error


def _number(value: Any, where: str) -> float:
    try:
        number = math.nan if isinstance(value, bool) or not isinstance(value, numbers.Real) else float(value)
    except OverflowError:  # a whole number beyond all floats
        number = math.inf
    if not math.isfinite(number):
        raise FeedbackError(f"{where}: expected a finite number, got {value!r:.80}")
    return number


def _index(value: Any, where: str) -> int:
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise FeedbackError(f"{where}: expected an index, got {value!r:.80}")
    return operator.index(value)
