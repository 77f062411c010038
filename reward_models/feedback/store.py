"""Human feedback in one SQLite file: who was asked what, in which order it was shown, and every answer.

The store decides what an annotator sees next and in which order the texts stand, and remembers it: a client is shown
neither sources nor gold answers, and counts completions as it shows them. Every act is an event that stays; undoing and
skipping are events too.
"""

from __future__ import annotations

import dataclasses
import hashlib
import hmac
import json
import re
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from datetime import datetime, timezone
from os import PathLike
from pathlib import Path
from typing import Any

from reward_models.feedback import progress
from reward_models.feedback.answers import MAX_TEXT, Answer, FeedbackError, Skip, check_answer, check_text, read_answer
from reward_models.feedback.assignment import Settings, next_item
from reward_models.feedback.database import Database
from reward_models.feedback.items import MAX_NAME, Item
from reward_models.feedback.ledger import Ledger, answer_in, item_in
from reward_models.feedback.types import (
    Conflict,
    Event,
    Guidelines,
    Judgement,
    Progress,
    Purpose,
    Share,
    Task,
    UnknownTask,
)
from textgen_env.lookup import did_you_mean

PSEUDONYM = re.compile(r"a-[0-9a-f]{16}")
"""What annotators are called outside of a store."""


class FeedbackStore:
    """A file of items and of what annotators say about them.

    Threads may share a store; each process opens the file itself. Every call is on the disk when it returns.

    ::

        with FeedbackStore("feedback.db", create=True) as store:
            store.configure(overlap=2)
            store.add_items([Item.of("2 + 2 =", ["4", "5"], sources=["ppo", "sft"])])
            task = store.assign("ada")
            store.submit("ada", task.id, "a UUID of the client's", Prefer(0))

    Args:
        path: the file.
        create: make it where there is none.
        clock: seconds since 1970.

    Raises:
        FileNotFoundError: there is no such file, and it is not to be created.
        FeedbackError: the file is something else, or of a newer version.
    """

    def __init__(
        self, path: str | PathLike[str], *, create: bool = False, clock: Callable[[], float] = time.time
    ) -> None:
        self.path = Path(path)
        self._clock = clock
        self._db = Database(self.path, create)
        with self._db.transaction():
            if self._db.row("SELECT 1 FROM secret") is None:
                self._db.write("INSERT INTO secret VALUES (?)", secrets.token_bytes(32))
        self._secret: bytes = self._db.value("SELECT key FROM secret")
        self._ledger = Ledger(self._db, self._secret)

    def __enter__(self) -> FeedbackStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; the store cannot be used afterwards."""
        self._db.close()

    def transaction(self) -> AbstractContextManager[None]:
        """Several calls as one: all or none, and one wait for the disk. Nobody else can write meanwhile."""
        return self._db.transaction()

    # ---------------------------------------------------------------- what is asked

    @property
    def settings(self) -> Settings:
        """How items are handed out."""
        row = self._db.row("SELECT content FROM settings ORDER BY number DESC LIMIT 1")
        return Settings() if row is None else Settings(**json.loads(row[0]))

    def configure(self, **changes: Any) -> Settings:
        """Change some of the `Settings`; what they were stays in the file. What is shown already stays as it is.

        Raises:
            FeedbackError: there is no such setting, or a number is out of its range.
        """
        known = [field.name for field in dataclasses.fields(Settings)]
        for name in changes:
            if name not in known:
                raise FeedbackError(f"unknown setting '{name}'; {did_you_mean(name, known)}")
        with self._db.transaction():
            before = self.settings
            after = dataclasses.replace(before, **changes)
            if after != before:
                content = _dumped(dataclasses.asdict(after))
                self._db.write("INSERT INTO settings (content, created) VALUES (?, ?)", content, self._now())
        return after

    def guidelines(self, version: int | None = None) -> Guidelines:
        """The guidelines in force, or those of a version.

        Raises:
            FeedbackError: there is no such version.
        """
        with self._db.snapshot():
            wanted = self._guidelines_in_force() if version is None else version
            row = self._db.row("SELECT text FROM guidelines WHERE version = ?", wanted)
        if row is None and wanted != 0:
            raise FeedbackError(f"there are no guidelines of version {version}")
        return Guidelines(wanted, "" if row is None else row[0])

    def set_guidelines(self, text: str) -> int:
        """Put guidelines in force: from now on, tasks are shown under them. Returns their version.

        The text that is in force already is no new version.

        Raises:
            FeedbackError: the text is empty.
            TooLong: it has more than `MAX_TEXT` characters.
        """
        check_text(text, "the guidelines", MAX_TEXT)
        if not text.strip():
            raise FeedbackError("the guidelines are empty")
        with self._db.transaction():
            if self.guidelines().text != text:
                self._db.write("INSERT INTO guidelines (text, created) VALUES (?, ?)", text, self._now())
            return self._guidelines_in_force()

    def add_items(self, items: Iterable[Item]) -> int:
        """Add items, all or none; one that is there already is left alone. Returns how many are new.

        Raises:
            Conflict: another item has the same id.
        """
        new = 0
        with self._db.transaction():
            seed = self.settings.seed
            for item in items:
                content = _dumped(item.to_json())
                row = self._db.row("SELECT content FROM items WHERE id = ?", item.id)
                if row is None:
                    self._db.write(
                        "INSERT INTO items (id, content, texts, gold, draw) VALUES (?, ?, ?, ?, ?)",
                        *(item.id, content, len(item.completions), item.gold is not None),
                        hashlib.blake2b(f"{seed}:{item.id}".encode(), digest_size=12).hexdigest(),
                    )
                    new += 1
                elif row[0] != content:
                    raise Conflict(f"there is another item '{item.id}' already: give this one an id of its own")
        return new

    def items(self) -> dict[str, Item]:
        """All items by id, in the order in which they were added."""
        return {item.id: item for item in map(item_in, self._db.rows("SELECT content FROM items ORDER BY number"))}

    # ---------------------------------------------------------------- what an annotator does

    def assign(self, annotator: str) -> Task | None:
        """What the annotator is to do next; the same again until it is answered or skipped; None when all is done.

        A share of the tasks are gold items, a share repeats (see `Settings`). For the others, those items come first
        that have most answers but fewer than the overlap, in random order; an item that lies open with someone else
        counts as answered while their lease lasts. Texts stand in random order.

        Args:
            annotator: any name of up to 200 characters; who comes for the first time is new.

        Raises:
            FeedbackError: the name is empty, too long, or has the form of a pseudonym.
        """
        _check_annotator(annotator)
        with self._db.transaction():
            who, version = self._number_of(annotator), self._guidelines_in_force()
            # The oldest: what was undone is put right before what was open then.
            task = self._ledger.find("t.annotator = ? AND t.state = 'open' ORDER BY t.number LIMIT 1", who)
            now = self._now()
            if task is None:
                drawn = next_item(self._db, self.settings, annotator, who, now)
                if drawn is None:
                    return None
                who = self._number_of(annotator, make=True)
                task = self._ledger.open(who, *drawn, guidelines=version, now=now, opened=now)
            elif task["guidelines"] != version:
                task = self._ledger.show_under(task, version, now=now)
            return self._ledger.shown(task)

    def submit(self, annotator: str, task_id: str, submission_id: str, answer: Answer) -> bool:
        """Record an answer or a skip. It stands, on the disk, when this returns.

        Args:
            annotator: who answers.
            task_id: a task that this annotator was assigned.
            submission_id: drawn by the client once an answer (a UUID), the same when it sends that answer again.
            answer: indices count the completions as the task shows them.

        Returns:
            True; False if this very submission was recorded before.

        Raises:
            UnknownTask: the annotator has no such task.
            Conflict: the submission's id was used for something else, or the task is answered already.
            TooLong: a text over its limit.
            FeedbackError: the answer does not answer the task.
        """
        _check_annotator(annotator)
        _check_submission(submission_id)
        with self._db.transaction():
            who = self._number_of(annotator)
            task = self._ledger.find("t.id = ? AND t.annotator = ?", task_id, who)
            if task is None:
                raise UnknownTask(f"'{annotator}' has no task '{task_id}': ask for one with assign")
            said = _checked(answer, item_in(task)).relabelled(json.loads(task["shown"]))
            known = self._ledger.submission(who, submission_id)
            if known is not None:
                if known["kind"] != "undo" and known["task"] == task["number"] and answer_in(known) == said:
                    return False
                raise Conflict(f"submission '{submission_id}' was something else: draw a new id for every answer")
            if task["state"] != "open":
                raise Conflict(f"task '{task_id}' is {task['state']} already: undo that first")
            self._ledger.close(task, said, submission=submission_id, now=self._now())
        return True

    def undo(self, annotator: str, submission_id: str) -> Task | None:
        """Retract the annotator's last answer or skip; called again, the one before. None if there is none.

        The task is open again, shown as before, and next in line; the event stays. ``submission_id`` is as for
        `submit`: an undo that is sent twice retracts one answer.

        Raises:
            Conflict: the id was used for an answer.
            FeedbackError: a name or id is empty or too long.
        """
        _check_annotator(annotator)
        _check_submission(submission_id)
        with self._db.transaction():
            who = self._number_of(annotator)
            known = self._ledger.submission(who, submission_id)
            if known is not None and known["kind"] != "undo":
                raise Conflict(f"submission '{submission_id}' was no undo: draw a new id for every act")
            if known is not None:
                return self._ledger.shown(self._ledger.find("t.number = ?", known["task"]))
            task = self._ledger.find("t.annotator = ? AND t.state != 'open' ORDER BY t.latest DESC LIMIT 1", who)
            if task is None:
                return None
            version = self._guidelines_in_force()
            task = self._ledger.reopen(task, guidelines=version, submission=submission_id, now=self._now())
            return self._ledger.shown(task)

    def forget(self, annotator: str) -> int:
        """Delete a person: name, pseudonym, every answer and trace. What stays is an event without the person.

        Items that lose an answer wait for another one. In the file, what is deleted is overwritten; in its log too,
        unless another process is just reading.

        Args:
            annotator: name or pseudonym.

        Returns:
            How many answers were deleted.

        Raises:
            FeedbackError: nobody has that name, or this is inside a `transaction`.
        """
        self._db.empty_log()
        with self._db.transaction():
            found = self._db.row("SELECT number FROM annotators WHERE ? IN (name, pseudonym)", annotator)
            if found is None:
                names = [name for (name,) in self._db.rows("SELECT name FROM annotators")]
                raise FeedbackError(f"no annotator is called '{annotator}'; {did_you_mean(annotator, names)}")
            (who,) = found
            answered = self._db.rows("SELECT * FROM tasks WHERE annotator = ? AND state = 'answered'", who)
            for task in answered:
                self._ledger.count(task, -1)
            self._db.write("INSERT INTO forgetting VALUES (?)", who)
            for table, column in (("events", "annotator"), ("tasks", "annotator"), ("annotators", "number")):
                self._db.write(f"DELETE FROM {table} WHERE {column} = ?", who)
            self._db.write("DELETE FROM forgetting")
            self._ledger.log("forget", None, {"answers": len(answered)}, now=self._now())
        self._db.empty_log()
        return len(answered)

    # ---------------------------------------------------------------- what came of it

    def judgements(self) -> Iterator[Judgement]:
        """Every answer that stands, the oldest first: one state of the store, whatever is written meanwhile."""
        return self._closed("answered")

    def skipped(self) -> Iterator[Judgement]:
        """Every skip that stands, as `judgements`: the answer has the reason."""
        return self._closed("skipped")

    def events(self) -> Iterator[Event]:
        """The whole history, retracted answers included, in order."""
        rows = self._db.rows(
            "SELECT e.number, e.kind, a.pseudonym, t.id, e.content, e.created FROM events e "
            "LEFT JOIN annotators a ON a.number = e.annotator LEFT JOIN tasks t ON t.number = e.task ORDER BY e.number"
        )
        return (
            Event(number, kind, annotator, task, json.loads(content), _moment(created))
            for number, kind, annotator, task, content, created in rows
        )

    @property
    def latest(self) -> int:
        """The number of the last event; as long as it stays the same, nobody has said anything."""
        return int(self._db.value("SELECT coalesce(max(number), 0) FROM events"))

    def progress(self) -> Progress:
        """How far annotation has come."""
        return progress.whole(self._db, self.settings.overlap)

    def share(self, annotator: str) -> Share:
        """How far one annotator has come."""
        who = self._number_of(annotator)
        return progress.share(self._db, self.settings.overlap, who, self.pseudonym(annotator))

    def pseudonym(self, annotator: str) -> str:
        """What an annotator is called in judgements and exports: HMAC-SHA256 of the name under the store's secret."""
        if PSEUDONYM.fullmatch(annotator):
            return annotator
        return "a-" + hmac.new(self._secret, annotator.encode(), hashlib.sha256).hexdigest()[:16]

    def add_judgement(
        self,
        item_id: str,
        annotator: str,
        answer: Answer,
        *,
        shown: Sequence[int] | None = None,
        seconds: float | None = None,
        guidelines: int = 0,
        created: datetime | None = None,
    ) -> bool:
        """Record a judgement that was made elsewhere, about an item that is here.

        Args:
            item_id: what it is about.
            annotator: a name, or a pseudonym of another store, which is kept.
            answer: in the item's own order.
            shown: the order shown; default: the item's own.
            seconds: how long it took.
            guidelines: the version it was made under, counted where it was made.
            created: when, with a time zone; default: now.

        Returns:
            True; False if the annotator has given that answer here already.

        Raises:
            Conflict: the annotator has said something else about it, or is about to.
            FeedbackError: there is no such item, or the answer does not answer it.
        """
        if not PSEUDONYM.fullmatch(annotator):
            _check_annotator(annotator)
        with self._db.transaction():
            row = self._db.row("SELECT number, content FROM items WHERE id = ?", item_id)
            if row is None:
                raise FeedbackError(f"there is no item '{item_id}': add it first")
            item = item_in(row)
            order = list(range(len(item.completions))) if shown is None else list(shown)
            if sorted(order) != list(range(len(item.completions))):
                raise FeedbackError(f"item '{item_id}' cannot have been shown in the order {order}")
            said = _checked(answer, item)
            if isinstance(said, Skip):
                raise FeedbackError("a skip is no judgement")
            who = self._number_of(annotator, make=True)
            before = self._ledger.find("t.item = ? AND t.annotator = ? ORDER BY t.number", row["number"], who)
            if before is not None:
                if before["state"] == "answered" and self._ledger.last_answer(before) == said:
                    return False
                raise Conflict(
                    f"annotator '{annotator}' has another answer to item '{item_id}', or is about to give one"
                )
            now = self._now() if created is None else round(created.timestamp() * 1000)
            opened = None if seconds is None else now - round(seconds * 1000)
            purpose: Purpose = "fresh" if item.gold is None else "gold"
            task = self._ledger.open(who, row["number"], order, purpose, guidelines=guidelines, now=now, opened=opened)
            self._ledger.close(task, said, submission=None, now=now)
        return True

    def _closed(self, state: str) -> Iterator[Judgement]:
        with self._db.snapshot():
            items = self.items()
            rows = self._db.rows(
                "SELECT i.id, a.pseudonym, e.content, e.created, t.opened, t.guidelines, t.purpose, t.shown "
                "FROM tasks t JOIN events e ON e.number = t.latest JOIN items i ON i.number = t.item "
                "JOIN annotators a ON a.number = t.annotator WHERE t.state = ? ORDER BY e.number",
                state,
            )
        for row in rows:
            yield Judgement(
                item=items[row["id"]],
                annotator=row["pseudonym"],
                answer=answer_in(row),
                seconds=None if row["opened"] is None else (row["created"] - row["opened"]) / 1000,
                guidelines=row["guidelines"],
                created=_moment(row["created"]),
                purpose=row["purpose"],
                shown=tuple(json.loads(row["shown"])),
            )

    def _number_of(self, annotator: str, make: bool = False) -> Any:
        """An annotator's; None if unknown and not to be made."""
        pseudonym = self.pseudonym(annotator)
        row = self._db.row("SELECT number FROM annotators WHERE pseudonym = ?", pseudonym)
        if row is None and make:
            return self._db.write("INSERT INTO annotators (name, pseudonym) VALUES (?, ?)", annotator, pseudonym)
        return None if row is None else row["number"]

    def _guidelines_in_force(self) -> int:
        return int(self._db.value("SELECT coalesce(max(version), 0) FROM guidelines"))

    def _now(self) -> int:
        return round(self._clock() * 1000)


def _check_annotator(name: Any) -> None:
    check_text(name, "an annotator's name", MAX_NAME)
    if not name.strip():
        raise FeedbackError("an annotator's name is empty")
    if PSEUDONYM.fullmatch(name):
        raise FeedbackError(f"'{name}' is a pseudonym: annotators come with their names")


def _check_submission(id: Any) -> None:
    check_text(id, "a submission's id", MAX_NAME)
    if not id.strip():
        raise FeedbackError("a submission's id is empty: draw one for every act, such as str(uuid.uuid4())")


def _checked(answer: Answer, item: Item) -> Answer:
    """The answer in plain numbers, if it answers the item."""
    if not isinstance(answer, Answer):
        raise FeedbackError(f"an answer is Rate, Prefer, Rank, Write or Skip, got {type(answer).__name__}")
    plain = read_answer(answer.to_json())
    check_answer(plain, item.kind, len(item.completions), item.scale)
    return plain


def _dumped(content: dict[str, Any]) -> str:
    return json.dumps(content, ensure_ascii=False)


def _moment(milliseconds: int) -> datetime:
    return datetime.fromtimestamp(milliseconds / 1000, timezone.utc)
