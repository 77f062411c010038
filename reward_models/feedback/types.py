"""What goes in and out of a feedback store, besides items and answers."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, TypeAlias

from reward_models.feedback.answers import Answer, FeedbackError, Kind
from reward_models.feedback.items import Item

Purpose: TypeAlias = Literal["fresh", "gold", "repeat"]
"""Why an item is shown: to be judged, to test the annotator, or to the same annotator once more."""


class UnknownTask(FeedbackError):
    """No such task was given to this annotator."""


class Conflict(FeedbackError):
    """It contradicts what the store already holds."""


@dataclass(frozen=True)
class Guidelines:
    """What annotators are told to go by. Version 0: nothing was said yet."""

    version: int
    text: str


@dataclass(frozen=True)
class Task:
    """What one annotator is shown: all that may be known about the item, and no more."""

    id: str
    kind: Kind
    prompt: str
    completions: tuple[str, ...]
    """In the order to show; answers count them in this order."""
    scale: tuple[float, float] | None
    """Of a rating: lowest and highest."""
    guidelines: int
    """The version that the answer will bear."""
    previous: Answer | None = None
    """What the annotator had said before undoing it, in the order shown."""

    def to_json(self) -> dict[str, Any]:
        """The same as plain data."""
        previous = None if self.previous is None else self.previous.to_json()
        return {**dataclasses.asdict(self), "completions": list(self.completions), "previous": previous}


@dataclass(frozen=True)
class Judgement:
    """An answer that stands (or a skip)."""

    item: Item
    annotator: str
    """A pseudonym."""
    answer: Answer
    """Indices in the item's own order."""
    seconds: float | None
    """From opening the task to the answer; None if not known."""
    guidelines: int
    """The version it was made under."""
    created: datetime
    purpose: Purpose = "fresh"
    shown: tuple[int, ...] = ()
    """The item's indices in the order in which the texts stood."""


@dataclass(frozen=True)
class Event:
    """One entry of a store's history."""

    number: int
    kind: Literal["assign", "answer", "skip", "undo", "forget"]
    annotator: str | None
    """A pseudonym; None for "forget"."""
    task: str | None
    """The task's id."""
    content: dict[str, Any]
    created: datetime


@dataclass(frozen=True)
class Share:
    """How far one annotator has come."""

    pseudonym: str
    answered: int
    """Gold items and repeats too."""
    skipped: int
    open: int
    left: int
    """Items that the annotator could still be asked about."""
    median_seconds: float | None
    """Of an answer."""


@dataclass(frozen=True)
class Progress:
    """How far annotation has come; of gold items and repeats only the annotators' shares know."""

    items: int
    complete: int
    """Items with as many answers as wanted."""
    wanted: int
    """Answers: items times overlap."""
    answers: int
    """Of those wanted."""
    annotators: dict[str, Share]
    """By name."""
