"""Which item an annotator is shown next, and in which order its texts stand."""

from __future__ import annotations

import random
from dataclasses import dataclass, fields

from reward_models.feedback.answers import FeedbackError
from reward_models.feedback.database import Database
from reward_models.feedback.types import Purpose


@dataclass(frozen=True)
class Settings:
    """How a store hands out its items.

    Raises:
        FeedbackError: a number is out of its range.
    """

    overlap: int = 1
    """Annotators who judge an item."""
    gold_share: float = 0.0
    """Of an annotator's tasks, how many have a known answer, as long as there are any new to the annotator."""
    repeat_share: float = 0.0
    """Of an annotator's tasks, how many show one of the annotator's own items again, each at most once."""
    repeat_gap: int = 10
    """At least so many tasks later."""
    lease_minutes: float = 30.0
    """An open task counts as an answer to come for so long; the annotator may answer it later all the same."""
    seed: int = 0
    """Draws the order of items and of texts, and where gold items and repeats stand."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, bool) or not isinstance(
                value, int if isinstance(field.default, int) else (int, float)
            ):
                raise FeedbackError(f"setting '{field.name}': expected a {type(field.default).__name__}, got {value!r}")
        if self.overlap < 1 or self.repeat_gap < 1:
            raise FeedbackError(f"overlap and repeat_gap are 1 or more, got {self.overlap} and {self.repeat_gap}")
        if not (self.gold_share >= 0 and self.repeat_share >= 0 and self.gold_share + self.repeat_share <= 1):
            raise FeedbackError(
                f"gold_share and repeat_share are shares of all tasks, got {self.gold_share} and {self.repeat_share}"
            )
        if not self.lease_minutes > 0:
            raise FeedbackError(f"lease_minutes must be above 0, got {self.lease_minutes}")


def next_item(
    db: Database, settings: Settings, annotator: str, number: int | None, now: int
) -> tuple[int, list[int], Purpose] | None:
    """The next item's number, the order to show its texts in, and why it is shown; None if nothing is left.

    The draws depend on seed, annotator and turn alone. An item of the annotator's is never shown twice but as a repeat.

    Args:
        db: the store's.
        settings: the store's.
        annotator: the name.
        number: of the annotator, None for a new one.
        now: in milliseconds.
    """
    turn = db.value("SELECT count(*) FROM tasks WHERE annotator = ?", number)
    draw = random.Random(f"{settings.seed}:{annotator}:{turn}")
    share = draw.random()
    purpose: Purpose = "fresh"
    row = None
    if share < settings.gold_share:
        purpose, row = "gold", db.row(_GOLD, number)
    elif share < settings.gold_share + settings.repeat_share:
        purpose, row = "repeat", db.row(_REPEAT, number, turn - settings.repeat_gap)
    if row is None:
        since = now - round(settings.lease_minutes * 60_000)
        purpose, row = "fresh", db.row(_FRESH, settings.overlap, number, since)
    if row is None:
        return None
    shown = list(range(row["texts"]))
    draw.shuffle(shown)
    return row["number"], shown, purpose


_ITEM = "SELECT i.number, i.texts"

_GOLD = f"""
{_ITEM} FROM items i
WHERE i.gold = 1 AND NOT EXISTS (SELECT 1 FROM tasks t WHERE t.item = i.number AND t.annotator = ?1)
ORDER BY i.draw LIMIT 1"""

# Turns are counted from 0: what was shown at one is due from `gap` turns later on.
_REPEAT = f"""
{_ITEM}
FROM (SELECT *, row_number() OVER (ORDER BY number) - 1 AS turn FROM tasks WHERE annotator = ?1) t
JOIN items i ON i.number = t.item
WHERE t.state = 'answered' AND t.purpose = 'fresh' AND t.turn <= ?2
AND NOT EXISTS (SELECT 1 FROM tasks r WHERE r.item = t.item AND r.annotator = ?1 AND r.purpose = 'repeat')
ORDER BY t.number LIMIT 1"""

# First those with most answers: items are finished one after the other, and agreement is known early.
_FRESH = f"""
{_ITEM} FROM items i
WHERE i.gold = 0 AND i.answers < ?1
AND NOT EXISTS (SELECT 1 FROM tasks t WHERE t.item = i.number AND t.annotator = ?2)
AND i.answers + (
    SELECT count(*) FROM tasks o WHERE o.item = i.number AND o.state = 'open' AND o.purpose = 'fresh' AND o.opened > ?3
) < ?1
ORDER BY i.answers DESC, i.draw LIMIT 1"""
