"""How far annotation has come, as a whole and by annotator."""

from __future__ import annotations

from statistics import median

from reward_models.feedback.database import Database
from reward_models.feedback.types import Progress, Share

_LEFT = """
SELECT count(*) FROM items i
WHERE i.gold = 0 AND i.answers < ?
AND NOT EXISTS (SELECT 1 FROM tasks t WHERE t.item = i.number AND t.annotator = ?)"""

_SECONDS = """
SELECT (e.created - t.opened) / 1000.0 FROM tasks t JOIN events e ON e.number = t.latest
WHERE t.annotator = ? AND t.state = 'answered' AND t.opened IS NOT NULL"""


def whole(db: Database, overlap: int) -> Progress:
    """Of all items, and of all annotators."""
    with db.snapshot():
        items, complete, answers = db.row(
            "SELECT count(*), coalesce(sum(answers >= ?1), 0), coalesce(sum(min(answers, ?1)), 0) "
            "FROM items WHERE gold = 0",
            overlap,
        )
        people = db.rows("SELECT number, name, pseudonym FROM annotators ORDER BY number")
        shares = {name: share(db, overlap, number, pseudonym) for number, name, pseudonym in people}
    return Progress(items, complete, items * overlap, answers, shares)


def share(db: Database, overlap: int, number: int | None, pseudonym: str) -> Share:
    """Of one annotator; None is one who never came."""
    with db.snapshot():
        states = dict(db.rows("SELECT state, count(*) FROM tasks WHERE annotator = ? GROUP BY state", number))
        left = db.value(_LEFT, overlap, number)
        seconds = [row[0] for row in db.rows(_SECONDS, number)]
    return Share(
        pseudonym=pseudonym,
        answered=states.get("answered", 0),
        skipped=states.get("skipped", 0),
        open=states.get("open", 0),
        left=left,
        median_seconds=median(seconds) if seconds else None,
    )
