"""Tasks, from being opened to being closed, and the event of each step. All of it happens inside a transaction."""

from __future__ import annotations

import hashlib
import hmac
import json
from typing import Any

from reward_models.feedback.answers import Answer, Skip, read_answer
from reward_models.feedback.database import Database
from reward_models.feedback.items import Item, read_item
from reward_models.feedback.types import Purpose, Task

_TASK = "SELECT t.*, i.content FROM tasks t JOIN items i ON i.number = t.item WHERE"


class Ledger:
    """The tables of tasks and events, which change together. Times are in milliseconds since 1970.

    Args:
        db: the store's.
        secret: keys the ids of tasks, which thereby tell nothing.
    """

    def __init__(self, db: Database, secret: bytes) -> None:
        self._db = db
        self._secret = secret

    def find(self, condition: str, *values: Any) -> Any:
        """The first task (a row, with its item's content) that meets a condition on ``t``, or None."""
        return self._db.row(f"{_TASK} {condition}", *values)

    def open(
        self,
        annotator: int,
        item: int,
        shown: list[int],
        purpose: Purpose,
        *,
        guidelines: int,
        now: int,
        opened: int | None,
    ) -> Any:
        """A new task. ``opened`` is ``now``, but for what was done elsewhere: then, or None if not known."""
        turn = self._db.value("SELECT count(*) FROM tasks WHERE annotator = ?", annotator)
        number = self._db.write(
            "INSERT INTO tasks (id, annotator, item, shown, purpose, guidelines, opened, state) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, 'open')",
            *(hmac.new(self._secret, f"{annotator}:{turn}".encode(), hashlib.sha256).hexdigest()[:24],),
            *(annotator, item, json.dumps(shown), purpose, guidelines, opened),
        )
        item_id = self._db.value("SELECT id FROM items WHERE number = ?", item)
        task = self.find("t.number = ?", number)
        content = {"item": item_id, "shown": shown, "purpose": purpose, "guidelines": guidelines}
        self.log("assign", task, content, now=now)
        return task

    def show_under(self, task: Any, guidelines: int, *, now: int) -> Any:
        """The open task, now shown under other guidelines."""
        self._db.write("UPDATE tasks SET guidelines = ? WHERE number = ?", guidelines, task["number"])
        self.log("assign", task, {"guidelines": guidelines}, now=now)
        return self.find("t.number = ?", task["number"])

    def close(self, task: Any, answer: Answer, *, submission: str | None, now: int) -> None:
        """Answer or skip an open task; indices are in the item's own order."""
        kind, state = ("skip", "skipped") if isinstance(answer, Skip) else ("answer", "answered")
        event = self.log(kind, task, answer.to_json(), submission=submission, now=now)
        self._db.write("UPDATE tasks SET state = ?, latest = ? WHERE number = ?", state, event, task["number"])
        self.count(self.find("t.number = ?", task["number"]), +1)

    def reopen(self, task: Any, *, guidelines: int, submission: str, now: int) -> Any:
        """The task, whose answer or skip is retracted."""
        self.count(task, -1)
        self._db.write(
            "UPDATE tasks SET state = 'open', opened = ?, guidelines = ? WHERE number = ?",
            *(now, guidelines, task["number"]),
        )
        self.log("undo", task, {"retracts": task["latest"]}, submission=submission, now=now)
        return self.find("t.number = ?", task["number"])

    def count(self, task: Any, change: int) -> None:
        """An answer more or less for the item, if the task is an answered one and no repeat."""
        if task["state"] == "answered" and task["purpose"] != "repeat":
            self._db.write("UPDATE items SET answers = answers + ? WHERE number = ?", change, task["item"])

    def log(self, kind: str, task: Any, content: dict[str, Any], *, submission: str | None = None, now: int) -> int:
        """Append an event, about a task or (None) about nobody. Returns its number."""
        about = (None, None) if task is None else (task["annotator"], task["number"])
        return self._db.write(
            "INSERT INTO events (kind, annotator, task, submission, content, created) VALUES (?, ?, ?, ?, ?, ?)",
            *(kind, *about, submission, json.dumps(content, ensure_ascii=False), now),
        )

    def submission(self, annotator: int | None, id: str) -> Any:
        """The event that a client's id has made, or None."""
        found = "SELECT kind, task, content FROM events WHERE annotator = ? AND submission = ?"
        return self._db.row(found, annotator, id)

    def last_answer(self, task: Any) -> Answer:
        """In the item's own order, retracted or not."""
        return answer_in(self._db.row("SELECT content FROM events WHERE number = ?", task["latest"]))

    def shown(self, task: Any) -> Task:
        """What the annotator sees of it."""
        item, order = item_in(task), json.loads(task["shown"])
        previous = None
        if task["state"] == "open" and task["latest"] is not None:
            previous = self.last_answer(task).relabelled([order.index(index) for index in range(len(order))])
        completions = tuple(item.completions[index] for index in order)
        return Task(task["id"], item.kind, item.prompt, completions, item.scale, task["guidelines"], previous)


def item_in(row: Any) -> Item:
    """The item in a row's content."""
    return read_item(json.loads(row["content"]), "the store")


def answer_in(row: Any) -> Answer:
    """The answer in an event's content."""
    return read_answer(json.loads(row["content"]), "the store")
