"""The embedded log: one SQLite file that several processes of one machine append to and read.

Enters: encoded records. Leaves: records of partition 0 with dense offsets per topic. Concurrent appends share one
transaction and one fsync (group commit). Every consumer reads everything: groups are Kafka's way to share work between
machines, and one machine runs one join.
"""

from __future__ import annotations

import datetime as dt
import sqlite3
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from plaudit.errors import LogUnavailable, Misconfigured, PlauditError
from plaudit.eventlog.gathering import Batch, Gathering
from plaudit.eventlog.protocol import Positions, Record, Topic, check_life, check_size
from plaudit.store import sqlite
from plaudit.store.files import is_full, private_database

SCHEMA_VERSION = 3
OLDER_VERSIONS = (0, 1, 2)  # no file yet, one without the index, one without an identity
SCHEMA = (
    """CREATE TABLE IF NOT EXISTS records (
        topic TEXT NOT NULL, offset INTEGER NOT NULL, key BLOB NOT NULL, value BLOB NOT NULL, ts INTEGER NOT NULL,
        PRIMARY KEY (topic, offset))""",
    "CREATE INDEX IF NOT EXISTS records_by_key ON records (topic, key, offset)",
    # The next offset stands apart from the records, so that deleting the newest ones never gives an offset twice.
    "CREATE TABLE IF NOT EXISTS ends (topic TEXT PRIMARY KEY, next INTEGER NOT NULL) WITHOUT ROWID",
    # One row: tells this file from another of the same name. A copy is the same log, a new file is another one.
    "CREATE TABLE IF NOT EXISTS identity (id TEXT NOT NULL)",
)
BUSY_SECONDS = 10.0  # other processes hold the file for one fsync at a time; far longer means that one hangs
POLL_SECONDS = 0.02  # two index look-ups each time: 0.1% of a core
PARTITION = 0
COLUMNS = 5
INSERT, ROW = "INSERT INTO records (topic, offset, key, value, ts) VALUES ", "(?, ?, ?, ?, ?)"
TAKE_OFFSETS = """INSERT INTO ends (topic, next) VALUES (?, ?)
    ON CONFLICT (topic) DO UPDATE SET next = next + excluded.next RETURNING next"""
ROWS_AT_ONCE = 64  # of one INSERT: below the number of parameters that any SQLite takes, and of statements kept ready
MICROSECOND = dt.timedelta(microseconds=1)
EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)


class _Batch(Batch):
    """What one caller appends, or deletes below an offset, and the offset that its first record got."""

    __slots__ = ("before", "first", "items", "topic")

    def __init__(self, topic: Topic, items: Sequence[tuple[bytes, bytes]], before: int = 0) -> None:
        super().__init__()
        self.topic = topic
        self.items = items
        self.before = before
        self.first = -1


@dataclass(frozen=True, slots=True)
class Pending:
    """Records in the file, bytes of it that are in use, and when the oldest record came; None if it holds none."""

    records: int
    size: int
    oldest: dt.datetime | None


class SqliteEventLog:
    """The embedded event log in one file; the folder is made if it is missing."""

    def __init__(self, path: Path, *, busy_seconds: float = BUSY_SECONDS) -> None:
        self._path = path
        self._busy_seconds = busy_seconds
        self._gathering = Gathering(self._commit, sqlite3.Error)
        self._closed = False
        try:
            private_database(path)
        except OSError as error:
            if is_full(path.parent):
                raise LogUnavailable(f"the disk of the event log {path} is full; free space") from error
            raise Misconfigured(
                f"the event log {path} cannot be made ({error}); set data_dir to a folder where this user may write",
                setting="data_dir",
            ) from error
        self._connection = _open(path, busy_seconds)
        self._lookup = threading.Lock()
        self._reader = _open(path, busy_seconds)  # of its own: a look-up does not wait for an fsync

    def append(self, topic: Topic, key: str, value: bytes) -> tuple[int, int]:
        """Partition 0 and the offset of the record, once it is on disk."""
        return self.append_many(topic, [(key, value)])[0]

    def append_many(self, topic: Topic, items: Sequence[tuple[str, bytes]]) -> list[tuple[int, int]]:
        """As `append`, for several records in one transaction: all of them or none."""
        for _, value in items:
            check_size(topic, value)
        if not items:
            return []
        batch = _Batch(topic, [(key.encode(), value) for key, value in items])
        self._through(batch)
        if batch.error is not None:
            full = "its disk is full" if is_full(self._path.parent) else "check free space and permissions"
            raise LogUnavailable(
                f"the event log {self._path} did not take the record ({batch.error}): {full}; then send it again",
                topic=topic,
            ) from batch.error
        return [(PARTITION, batch.first + index) for index in range(len(items))]

    def find(self, topic: Topic, key: str, most: int) -> list[bytes]:
        """The first `most` records under a key, oldest first. Raises LogUnavailable."""
        with self._looking() as connection:
            rows = connection.execute(
                "SELECT value FROM records WHERE topic = ? AND key = ? ORDER BY offset LIMIT ?",
                (topic.value, key.encode(), most),
            ).fetchall()
        return [value for (value,) in rows]

    def pending(self) -> Pending:
        """What the file holds; a few index look-ups. Raises LogUnavailable."""
        with self._looking() as connection:
            ends = dict(connection.execute("SELECT topic, next FROM ends").fetchall())
            firsts = [
                (ends[topic] - offset, ts)
                for topic in ends
                for offset, ts in connection.execute(
                    "SELECT offset, ts FROM records WHERE topic = ? ORDER BY offset LIMIT 1", (topic,)
                )
            ]
            pages, free, size = (
                int(connection.execute(f"PRAGMA {name}").fetchone()[0])
                for name in ("page_count", "freelist_count", "page_size")
            )
        oldest = min((ts for _, ts in firsts), default=None)
        return Pending(
            sum(count for count, _ in firsts),
            (pages - free) * size,
            None if oldest is None else EPOCH + oldest * MICROSECOND,
        )

    def oldest(self, topic: Topic, most: int, most_bytes: int, start: int = 0) -> list[Record]:
        """The first records of a topic from `start` on, one if there is any, up to so many and so many bytes."""
        found: list[Record] = []
        with self._looking() as connection:
            rows = connection.execute(
                "SELECT offset, key, value, ts FROM records WHERE topic = ? AND offset >= ? ORDER BY offset LIMIT ?",
                (topic.value, start, most),
            )
            left = most_bytes
            for offset, key, value, ts in rows:
                left -= len(value)
                if found and left < 0:
                    break
                found.append(Record(topic, PARTITION, offset, key, value, EPOCH + ts * MICROSECOND))
            rows.close()
        return found

    def span(self, topic: Topic) -> tuple[int, int]:
        """Offset of the first record of a topic, and the one that its next record gets; equal if it holds none."""
        with self._looking() as connection:
            end = connection.execute("SELECT next FROM ends WHERE topic = ?", (topic.value,)).fetchone()
            first = connection.execute("SELECT min(offset) FROM records WHERE topic = ?", (topic.value,)).fetchone()[0]
        following = int(end[0]) if end else 0
        return (following if first is None else int(first)), following

    def trim(self, topic: Topic, before: int) -> None:
        """Deletes the records of a topic below an offset. Raises LogUnavailable."""
        batch = _Batch(topic, (), before)
        self._through(batch)
        if batch.error is not None:
            raise LogUnavailable(
                f"the event log {self._path} cannot be written ({batch.error}); retry", topic=topic
            ) from batch.error

    def consumer(self, topics: Sequence[Topic], group: str, positions: Callable[[], Positions]) -> SqliteConsumer:
        """A reader of all records of these topics, whatever its group."""
        return SqliteConsumer(self._path, topics, positions, busy_seconds=self._busy_seconds)

    def close(self) -> None:
        """Waits for the write under way, refuses later ones and closes the file."""
        self._closed = True
        self._gathering.close(self._busy_seconds)
        self._connection.close()
        with self._lookup:
            self._reader.close()

    @contextmanager
    def _looking(self) -> Iterator[sqlite3.Connection]:
        """The connection of look-ups. Raises LogUnavailable."""
        with self._lookup:
            if self._closed:
                raise LogUnavailable(f"the event log {self._path} is closed")
            try:
                yield self._reader
            except sqlite3.Error as error:
                raise LogUnavailable(f"the event log {self._path} cannot be read ({error}); retry") from error

    def _through(self, batch: _Batch) -> None:
        """Returns once the batch is on disk or has its error."""
        if not self._gathering.through(batch):
            raise LogUnavailable(f"the event log {self._path} is closed", topic=batch.topic)

    def _commit(self, group: Sequence[_Batch]) -> None:
        """One transaction, one fsync, for every batch of the group.

        Few statements: each lets go of the interpreter's lock, and waits for it among all threads that compute.
        """
        connection = self._connection
        now = (dt.datetime.now(dt.UTC) - EPOCH) // MICROSECOND
        # IMMEDIATE takes the write lock at once: a read that later wants to write would be refused, not queued.
        connection.execute("BEGIN IMMEDIATE")
        try:
            counts = Counter[Topic]()
            for batch in group:
                counts[batch.topic] += len(batch.items)
            free: dict[Topic, int] = {}
            for topic, count in counts.items():
                ((end,),) = connection.execute(TAKE_OFFSETS, (topic.value, count)).fetchall()
                free[topic] = end - count
            values: list[object] = []
            for batch in group:
                topic = batch.topic
                batch.first = free[topic]
                for index, (key, value) in enumerate(batch.items):
                    values += (topic.value, batch.first + index, key, value, now)
                free[topic] += len(batch.items)
                if batch.before:
                    delete = "DELETE FROM records WHERE topic = ? AND offset < ?"
                    connection.execute(delete, (topic.value, batch.before))
            for start in range(0, len(values), ROWS_AT_ONCE * COLUMNS):
                some = values[start : start + ROWS_AT_ONCE * COLUMNS]
                connection.execute(INSERT + ", ".join([ROW] * (len(some) // COLUMNS)), some)
            connection.execute("COMMIT")
        except BaseException:
            # SQLite has already rolled back by itself after some errors (a full disk among them).
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise


class SqliteConsumer:
    """Reads the file by polling; it has a connection of its own and never writes."""

    def __init__(
        self,
        path: Path,
        topics: Sequence[Topic],
        positions: Callable[[], Positions],
        *,
        busy_seconds: float = BUSY_SECONDS,
    ) -> None:
        self._path = path
        self._topics = list(dict.fromkeys(topics))
        self._closed = threading.Event()
        self._lock = threading.Lock()
        self._connection = _open(path, busy_seconds)
        try:
            with self._reading():
                self._identity = str(self._connection.execute("SELECT id FROM identity").fetchone()[0])
            places = positions()
            ends = self.end_positions()
            self._next = dict.fromkeys(self._topics, 0)
            for (topic, partition), place in places.items():
                if topic in self._next and partition == PARTITION:
                    check_life(f"{topic} in {path}", place, self._identity, ends[topic, PARTITION])
                    self._next[topic] = place.next - 1 if place.before and place.next else place.next
        except BaseException:
            self.close()
            raise

    def poll(self, timeout_seconds: float, max_records: int) -> list[Record]:
        """Records in order per topic; waits at most the time if there is none."""
        deadline = time.monotonic() + timeout_seconds
        while True:
            records = self._read(max_records)
            left = deadline - time.monotonic()
            if records or left <= 0 or self._closed.wait(min(POLL_SECONDS, left)):
                return records

    def assigned(self) -> frozenset[tuple[Topic, int]]:
        """Partition 0 of every topic."""
        return frozenset((topic, PARTITION) for topic in self._topics)

    def topic_ids(self) -> dict[Topic, str]:
        """The file's identity, for every topic."""
        return dict.fromkeys(self._topics, self._identity)

    def end_positions(self) -> dict[tuple[Topic, int], int]:
        """Offset that the next record of each topic will get."""
        with self._reading():
            ends = dict(self._connection.execute("SELECT topic, next FROM ends").fetchall())
        return {(topic, PARTITION): ends.get(topic.value, 0) for topic in self._topics}

    def first_positions(self) -> dict[tuple[Topic, int], int]:
        """Offset of the first record of each topic; of its next one if there is none."""
        with self._reading():
            found = {
                topic: self._connection.execute(
                    "SELECT min(offset) FROM records WHERE topic = ?", (topic.value,)
                ).fetchone()[0]
                for topic in self._topics
            }
        return {at: end if found[at[0]] is None else found[at[0]] for at, end in self.end_positions().items()}

    def at_end(self) -> bool:
        """Whether no record lies behind those that were handed out."""
        behind = "SELECT 1 FROM records WHERE topic = ? AND offset >= ? LIMIT 1"
        with self._reading():
            places = [(topic.value, self._next[topic]) for topic in self._topics]
            return not any(self._connection.execute(behind, place).fetchone() for place in places)

    def acknowledge(self, offsets: Mapping[tuple[Topic, int], int]) -> None:
        """Does nothing: no tool beside the evidence store looks at an embedded log's lag."""

    def close(self) -> None:
        """Ends a poll under way and closes the file."""
        self._closed.set()
        with self._lock:
            self._connection.close()

    def _read(self, max_records: int) -> list[Record]:
        records: list[Record] = []
        with self._reading():
            for topic in self._topics:
                rows = self._connection.execute(
                    "SELECT offset, key, value, ts FROM records WHERE topic = ? AND offset >= ?"
                    " ORDER BY offset LIMIT ?",
                    (topic.value, self._next[topic], max_records - len(records)),
                ).fetchall()
                records += [
                    Record(topic, PARTITION, offset, key, value, EPOCH + ts * MICROSECOND)
                    for offset, key, value, ts in rows
                ]
                if rows:
                    self._next[topic] = rows[-1][0] + 1
        # Another topic comes first next time: one with a long backlog must not starve the others.
        self._topics.append(self._topics.pop(0))
        return records

    @contextmanager
    def _reading(self) -> Iterator[None]:
        with self._lock:
            if self._closed.is_set():
                raise LogUnavailable(f"the consumer of {self._path} is closed")
            try:
                yield
            except sqlite3.Error as error:
                raise LogUnavailable(f"the event log {self._path} cannot be read ({error}); check the disk") from error


def _open(path: Path, busy_seconds: float) -> sqlite3.Connection:
    """A connection in WAL mode to a file of this schema; makes the file if it is missing."""
    try:
        # Calls are serialised by the callers' own locks, so the connection may wander between threads.
        connection = sqlite3.connect(path, timeout=busy_seconds, isolation_level=None, check_same_thread=False)
        try:
            _prepare(connection, path, busy_seconds)
        except BaseException:
            connection.close()
            raise
    except sqlite3.OperationalError as error:
        raise _unusable(path, error) from error
    except sqlite3.DatabaseError as error:
        raise Misconfigured(
            f"{path} is not an event log ({error}); move it away or set data_dir to another folder", setting="data_dir"
        ) from error
    return connection


def _prepare(connection: sqlite3.Connection, path: Path, busy_seconds: float) -> None:
    sqlite.prepare(connection, busy_seconds)
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if version == SCHEMA_VERSION:
        return
    connection.execute("BEGIN IMMEDIATE")
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    tables = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
    if version not in (*OLDER_VERSIONS, SCHEMA_VERSION) or (version == 0 and tables):
        raise Misconfigured(
            f"{path} has version {version} and {tables} tables, not an event log of version {SCHEMA_VERSION}; "
            "open it with the release of plaudit that wrote it, or set data_dir to another folder",
            setting="data_dir",
        )
    for statement in SCHEMA:
        connection.execute(statement)
    if connection.execute("SELECT count(*) FROM identity").fetchone()[0] == 0:
        connection.execute("INSERT INTO identity (id) VALUES (?)", (str(uuid.uuid4()),))
    connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
    connection.execute("COMMIT")


def _unusable(path: Path, error: sqlite3.OperationalError) -> PlauditError:
    if is_full(path.parent):
        return LogUnavailable(f"the event log {path} cannot grow: its disk is full ({error}); free space")
    if sqlite.passes(error):
        return LogUnavailable(f"the event log {path} cannot be opened now ({error}); retry")
    return Misconfigured(
        f"the event log {path} cannot be opened ({error}); check that this user may write there", setting="data_dir"
    )
