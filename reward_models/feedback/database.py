"""The SQLite file of a feedback store: its tables, and transactions on them.

Events are the truth: appended, never changed. What has become of items and tasks could be told from them; it stands
in tables of its own, written in the same transaction, so that the next task is found without reading the history.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from reward_models.feedback.answers import FeedbackError

VERSION = 1
"""Of the tables below, in SQLite's ``user_version``."""
APPLICATION = 0x74676662
"""SQLite's ``application_id`` of such a file: "tgfb"."""
BUSY_SECONDS = 60.0
"""How long to wait while another process writes."""

TABLES = """
CREATE TABLE secret (key BLOB NOT NULL);

CREATE TABLE settings (number INTEGER PRIMARY KEY AUTOINCREMENT, content TEXT NOT NULL, created INTEGER NOT NULL);

CREATE TABLE guidelines (version INTEGER PRIMARY KEY AUTOINCREMENT, text TEXT NOT NULL, created INTEGER NOT NULL);

CREATE TABLE items (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    content TEXT NOT NULL,             -- JSON
    texts INTEGER NOT NULL,            -- how many completions
    gold INTEGER NOT NULL,             -- 1: the answer is known, the item tests annotators
    draw TEXT NOT NULL,                -- a hash: the order in which items are asked about
    answers INTEGER NOT NULL DEFAULT 0 -- that stand, repeats apart
);
CREATE INDEX items_waiting ON items (gold, answers DESC, draw);

CREATE TABLE annotators (
    number INTEGER PRIMARY KEY AUTOINCREMENT, -- never used again once forgotten
    name TEXT NOT NULL UNIQUE,
    pseudonym TEXT NOT NULL UNIQUE
);

CREATE TABLE tasks (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    annotator INTEGER NOT NULL REFERENCES annotators (number),
    item INTEGER NOT NULL REFERENCES items (number),
    shown TEXT NOT NULL,               -- JSON: the item's indices in the order shown
    purpose TEXT NOT NULL,             -- fresh, gold, repeat
    guidelines INTEGER NOT NULL,       -- the version it was last shown under
    opened INTEGER,                    -- when it was last opened, in milliseconds; NULL if not known
    state TEXT NOT NULL,               -- open, answered, skipped
    latest INTEGER                     -- the last answer or skip among the events, retracted or not
);
CREATE INDEX tasks_of_annotator ON tasks (annotator, state, number);
CREATE INDEX tasks_about_item ON tasks (item, annotator);

CREATE TABLE events (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    kind TEXT NOT NULL,                -- assign, answer, skip, undo, forget
    annotator INTEGER,                 -- NULL: forget
    task INTEGER,
    submission TEXT,                   -- the client's id
    content TEXT NOT NULL,             -- JSON
    created INTEGER NOT NULL,          -- milliseconds since 1970, UTC
    UNIQUE (annotator, submission)
);

CREATE TABLE forgetting (annotator INTEGER NOT NULL);  -- empty but in the transaction that forgets someone
CREATE TRIGGER events_stay BEFORE UPDATE ON events BEGIN SELECT RAISE(ABORT, 'events are append-only'); END;
CREATE TRIGGER events_last BEFORE DELETE ON events
WHEN OLD.annotator IS NULL OR OLD.annotator NOT IN (SELECT annotator FROM forgetting)
BEGIN SELECT RAISE(ABORT, 'events are append-only'); END;
"""


class Database:
    """One connection, which threads use in turns. What a transaction has written is on the disk when it ends.

    Raises:
        FileNotFoundError: there is no such file, and it is not to be created.
        FeedbackError: the file is something else, or of a newer version.
    """

    def __init__(self, path: Path, create: bool) -> None:
        self.path = path
        self._lock = threading.RLock()
        self._process = os.getpid()
        self._connection = _connect(path, create)

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._connection.close()

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """What is written inside is written as a whole or not at all; inside another one, as a part of that.

        Raises:
            FeedbackError: another process has been writing for `BUSY_SECONDS`, or this one was forked from the one that
                has opened the file.
        """
        with self._alone():
            inside = self._connection.in_transaction
            try:
                self._connection.execute("SAVEPOINT inner" if inside else "BEGIN IMMEDIATE")
            except sqlite3.OperationalError as error:
                raise FeedbackError(
                    f"'{self.path}': another process has been writing for {BUSY_SECONDS:g} s ({error})"
                ) from error
            try:
                yield
            except BaseException:
                if self._connection.in_transaction:  # a full disk has ended it already
                    for statement in ("ROLLBACK TO inner", "RELEASE inner") if inside else ("ROLLBACK",):
                        self._connection.execute(statement)
                raise
            self._connection.execute("RELEASE inner" if inside else "COMMIT")

    @contextlib.contextmanager
    def snapshot(self) -> Iterator[None]:
        """What is read inside is one state of the file, whatever other processes write meanwhile."""
        with self._alone():
            if self._connection.in_transaction:
                yield
                return
            self._connection.execute("BEGIN")
            try:
                yield
            finally:
                self._connection.execute("COMMIT")

    def rows(self, query: str, *values: Any) -> list[Any]:
        """All rows of a query; columns by place and by name."""
        with self._alone():
            cursor = self._connection.execute(query, values)
            cursor.row_factory = sqlite3.Row
            return cursor.fetchall()

    def row(self, query: str, *values: Any) -> Any:
        """The first row, or None."""
        return next(iter(self.rows(query, *values)), None)

    def value(self, query: str, *values: Any) -> Any:
        """The first column of the first row, which there is."""
        return self.row(query, *values)[0]

    def write(self, statement: str, *values: Any) -> int:
        """Run a statement inside a transaction. Returns the number of the row that an INSERT has made."""
        assert self._connection.in_transaction
        number = self._connection.execute(statement, values).lastrowid
        return 0 if number is None else number

    def empty_log(self) -> None:
        """Move all changes into the file itself: the log has the pages as they were before, deleted text too.

        Raises:
            FeedbackError: inside a transaction.
        """
        with self._alone():
            if self._connection.in_transaction:
                raise FeedbackError("deleted text can be overwritten only outside of a transaction")
            self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        if os.getpid() != self._process:  # SQLite's locks are the process's
            raise FeedbackError(f"'{self.path}' was opened in another process: open it in each")
        with self._lock:
            yield


def _connect(path: Path, create: bool) -> sqlite3.Connection:
    """Open a store's file; what is committed then is on the disk (``synchronous=FULL``), deleted text is overwritten.

    Raises:
        FileNotFoundError: there is none, and it is not to be created.
        FeedbackError: the file is something else, or of a newer version.
    """
    if not create and not path.is_file():
        raise FileNotFoundError(
            f"there is no feedback store '{path}'; make one with FeedbackStore(path, create=True) "
            "or 'textgen feedback add'"
        )
    try:
        connection = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
    except sqlite3.OperationalError as error:  # no such folder, no right to write there
        raise FeedbackError(f"'{path}' cannot be opened: {error}") from error
    try:
        connection.execute("BEGIN")  # both from one state of the file
        (tables,) = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
        (application,) = connection.execute("PRAGMA application_id").fetchone()
        connection.execute("COMMIT")
        if application != APPLICATION and (tables or not create):
            raise FeedbackError(f"'{path}' is a database, but no feedback store")
        for pragma in ("journal_mode = WAL", "synchronous = FULL", "secure_delete = ON", "foreign_keys = ON"):
            connection.execute(f"PRAGMA {pragma}")
        connection.execute("BEGIN IMMEDIATE")  # of several that find no tables, one makes them
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if version == 0:
            for statement in _statements(TABLES):
                connection.execute(statement)
            connection.execute(f"PRAGMA application_id = {APPLICATION}")
            connection.execute(f"PRAGMA user_version = {VERSION}")
        connection.execute("COMMIT")
        if version > VERSION:
            raise FeedbackError(
                f"'{path}' was written by a newer textgen-env (tables of version {version}, this one knows {VERSION}): "
                "update the package"
            )
    except sqlite3.DatabaseError as error:
        connection.close()
        raise FeedbackError(f"'{path}' cannot be opened as a feedback store: {error}") from error
    except BaseException:
        connection.close()
        raise
    return connection


def _statements(script: str) -> list[str]:
    """The statements of a script: ``executescript`` would commit before it begins."""
    statements, begun = [], ""
    for line in script.splitlines(keepends=True):
        begun += line
        if sqlite3.complete_statement(begun):
            statements.append(begun)
            begun = ""
    return statements
