"""Keep a review in an SQLite file: what was decided of each image, and every action in the order in which it came.

An action is on the disk before it is answered (WAL, synchronous=FULL), so that neither a killed process nor a power cut
takes it back. Each image has a version number: an action names the one that its person saw, and one that comes too late
changes nothing, but stays in the log. The log is append-only; an undo is an action of its own.
"""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from mvtec_lab.errors import DiskFullError, LabError

VERSION = 1  # of the tables
PATIENCE = 10  # seconds that a writer waits for another process
_TABLES = """
CREATE TABLE IF NOT EXISTS items (
    id INTEGER PRIMARY KEY, path TEXT NOT NULL UNIQUE, version INTEGER NOT NULL, state TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS actions (
    id INTEGER PRIMARY KEY AUTOINCREMENT, item INTEGER NOT NULL REFERENCES items (id), version INTEGER NOT NULL,
    kind TEXT NOT NULL, accepted INTEGER NOT NULL, person TEXT NOT NULL, request TEXT NOT NULL UNIQUE, at TEXT NOT NULL,
    before TEXT NOT NULL, after TEXT NOT NULL, undoes INTEGER REFERENCES actions (id)
);
CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE INDEX IF NOT EXISTS undone ON actions (undoes);
CREATE TRIGGER IF NOT EXISTS unchanged BEFORE UPDATE ON actions
    BEGIN SELECT RAISE(ABORT, 'the log is append-only'); END;
CREATE TRIGGER IF NOT EXISTS kept BEFORE DELETE ON actions
    BEGIN SELECT RAISE(ABORT, 'the log is append-only'); END;
"""

# What holds of an action that changed its image and is not undone; a refused undo undoes nothing.
_STANDS = (
    "accepted = 1 AND kind != 'undo' AND NOT EXISTS "
    "(SELECT 1 FROM actions AS later WHERE later.undoes = actions.id AND later.accepted = 1)"
)


@dataclass(frozen=True)
class State:
    """Say what is decided of an image.

    Args:
        verdict: open, confirmed, relabelled or dropped.
        label: its class.
        boxes: x0, y0, x1, y1 of each in pixels of the image.
        mask: its drawn mask as COCO's run lengths, ``{"size": [H, W], "counts": text}``; None: that of the data set.
        at: when it was decided, ISO 8601, UTC.
    """

    verdict: str = "open"
    label: str = ""
    boxes: tuple[tuple[float, float, float, float], ...] = field(default_factory=tuple)
    mask: Mapping[str, Any] | None = None
    at: str = ""

    @classmethod
    def of(cls, text: str) -> State:
        """Return the state that was written as a text."""
        values = json.loads(text)
        return cls(**{**values, "boxes": tuple(tuple(box) for box in values["boxes"])})

    def text(self) -> str:
        """Return it as a text."""
        return json.dumps(asdict(self), ensure_ascii=False)

    @property
    def decided(self) -> bool:
        """Return whether somebody has judged the image."""
        return self.verdict != "open"


@dataclass(frozen=True)
class Kept:
    """Hold an image's number, path, version and state."""

    id: int
    path: str
    version: int
    state: State


@dataclass(frozen=True)
class Outcome:
    """Say what became of an action: the image as it is now, and whether the action changed it."""

    item: Kept
    accepted: bool


class NothingToUndoError(LabError):
    """Report that this person has done nothing that could be undone."""


class Store:
    """Open a review's file, and create it where there is none. Threads may share it, and processes the file.

    Raises:
        LabError: it is no review, a later version's, or cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path, self._lock = path, threading.RLock()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(path, timeout=PATIENCE, isolation_level=None, check_same_thread=False)
        except (OSError, sqlite3.Error) as error:
            reason = getattr(error, "strerror", None) or error
            raise LabError(f"{path} cannot be written ({reason}): make its folder writable") from error
        try:
            with self._told():
                version = self._db.execute("PRAGMA user_version").fetchone()[0]
                if version > VERSION:
                    raise LabError(f"{path} is of a later version of the lab: update it")
                self._db.execute("PRAGMA journal_mode=WAL")
                self._db.execute("PRAGMA synchronous=FULL")
                self._db.executescript(f"BEGIN IMMEDIATE; {_TABLES} PRAGMA user_version={VERSION}; COMMIT;")
        except BaseException:
            self._db.close()
            raise

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._db.close()

    def add(self, labels: Mapping[str, str]) -> dict[str, int]:
        """Add the images that are not known yet, path -> label, and return the number of each of them.

        Numbers stay: a page that was left open finds its images again.
        """
        with self._written() as db:
            db.executemany(
                "INSERT OR IGNORE INTO items (path, version, state) VALUES (?, 0, ?)",
                [(path, State(label=label).text()) for path, label in labels.items()],
            )
            known = dict(db.execute("SELECT path, id FROM items"))
        return {path: known[path] for path in labels}

    def item(self, number: int) -> Kept:
        """Return an image.

        Raises:
            KeyError: there is none of this number.
        """
        with self._lock, self._told():
            row = self._db.execute("SELECT id, path, version, state FROM items WHERE id = ?", [number]).fetchone()
        if row is None:
            raise KeyError(number)
        return _kept(row)

    def items(self) -> list[Kept]:
        """Return all images."""
        with self._lock, self._told():
            return [_kept(row) for row in self._db.execute("SELECT id, path, version, state FROM items ORDER BY id")]

    def last(self) -> int:
        """Return the number of the last action, 0 before the first."""
        with self._lock, self._told():
            return self._db.execute("SELECT coalesce(max(id), 0) FROM actions").fetchone()[0]

    def changed(self, since: int) -> tuple[list[Kept], int]:
        """Return the images that actions after the number ``since`` have changed, and the last action's number."""
        with self._lock, self._told():
            self._db.execute("BEGIN")
            try:
                rows = self._db.execute(
                    "SELECT id, path, version, state FROM items WHERE id IN "
                    "(SELECT item FROM actions WHERE id > ? AND accepted = 1)",
                    [since],
                ).fetchall()
                return [_kept(row) for row in rows], self.last()
            finally:
                self._db.execute("COMMIT")

    def log(self) -> list[dict[str, Any]]:
        """Return every action in its order, also those that came too late."""
        with self._lock, self._told():
            cursor = self._db.execute("SELECT * FROM actions ORDER BY id")
            names = [column[0] for column in cursor.description]
            return [dict(zip(names, row, strict=True)) for row in cursor]

    def act(
        self, number: int, version: int, kind: str, changes: Mapping[str, Any], person: str, request: str
    ) -> Outcome:
        """Change an image's state, and return it as it then is; the action is on the disk when this returns.

        Args:
            number: the image's.
            version: the image's as the person saw it; of another one the action changes nothing.
            kind: what was done, in a word.
            changes: fields of its State.
            person: who did it, a random name of a browser's tab.
            request: a random name of this action: sent again, it is not done again.

        Raises:
            KeyError: there is no such image.
            DiskFullError: there is no room for it.
        """
        with self._written() as db:
            if (done := self._done(db, request)) is not None:
                return done
            now = self.item(number)
            after = State(**{**vars(now.state), **changes, "at": _time()})
            return self._write(db, now, version, kind, after, person, request, None)

    def undo(self, person: str, request: str) -> Outcome:
        """Take back the last action of a person that is not undone, where nobody has changed the image since.

        Raises:
            NothingToUndoError: there is none.
            DiskFullError: there is no room for it.
        """
        with self._written() as db:
            if (done := self._done(db, request)) is not None:
                return done
            row = db.execute(
                f"SELECT id, item, before FROM actions WHERE person = ? AND {_STANDS} ORDER BY id DESC LIMIT 1",
                [person],
            ).fetchone()
            if row is None:
                raise NothingToUndoError("there is nothing of yours to undo")
            undone, number, before = row
            meanwhile = db.execute(
                f"SELECT count(*) FROM actions WHERE item = ? AND id > ? AND person != ? AND {_STANDS}",
                [number, undone, person],
            ).fetchone()[0]
            now = self.item(number)
            version = now.version - bool(meanwhile)
            return self._write(db, now, version, "undo", State.of(before), person, request, undone)

    def fact(self, name: str, value: str | None = None) -> str | None:
        """Return a text that is kept beside the images; a ``value`` is written where there is none yet."""
        with self._written() as db:
            if value is not None:
                db.execute("INSERT OR IGNORE INTO facts VALUES (?, ?)", [name, value])
            row = db.execute("SELECT value FROM facts WHERE name = ?", [name]).fetchone()
        return None if row is None else row[0]

    def _done(self, db: sqlite3.Connection, request: str) -> Outcome | None:
        row = db.execute("SELECT item, accepted FROM actions WHERE request = ?", [request]).fetchone()
        return None if row is None else Outcome(self.item(row[0]), bool(row[1]))

    def _write(
        self,
        db: sqlite3.Connection,
        now: Kept,
        version: int,
        kind: str,
        after: State,
        person: str,
        request: str,
        undoes: int | None,
    ) -> Outcome:
        accepted = version == now.version
        item = Kept(now.id, now.path, now.version + 1, after) if accepted else now
        row = (
            *(now.id, item.version if accepted else version, kind, accepted, person, request, _time()),
            *(now.state.text(), after.text(), undoes),
        )
        db.execute(
            "INSERT INTO actions (item, version, kind, accepted, person, request, at, before, after, undoes) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            row,
        )
        if accepted:
            db.execute("UPDATE items SET version = ?, state = ? WHERE id = ?", [item.version, after.text(), item.id])
        return Outcome(item, accepted)

    @contextmanager
    def _written(self) -> Iterator[sqlite3.Connection]:
        """Write as a whole: committed when this ends well, nothing of it otherwise."""
        with self._lock, self._told():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
                self._db.execute("COMMIT")
            except BaseException:
                with suppress(sqlite3.Error):  # a full disk may have ended it already
                    self._db.execute("ROLLBACK")
                raise

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Turn SQLite's errors into the lab's."""
        try:
            yield
        except sqlite3.OperationalError as error:
            text = str(error)
            if "full" in text or "disk I/O" in text:
                raise DiskFullError(
                    f"{self.path} cannot be written ({text}): make room; what was answered before is kept"
                ) from error
            if "locked" in text:
                raise LabError(f"{self.path} is in use by another process for {PATIENCE} s: try again") from error
            raise LabError(f"{self.path} cannot be used ({text}): make it readable and writable") from error
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.IntegrityError):
                raise
            raise LabError(f"{self.path} is damaged ({error}): restore it, or move it away to begin again") from error


def _kept(row: Iterable[Any]) -> Kept:
    number, path, version, state = row
    return Kept(number, path, version, State.of(state))


def _time() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds")
