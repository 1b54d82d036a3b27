"""Deletes single records from the embedded log, for retention and erasure; its appends and readers go on meanwhile.

Enters: which records shall go. Leaves: the file without them, in its bytes too: SQLite overwrites what it deletes
(`plaudit.store.sqlite`), and `scrub` empties the write-ahead log, which holds older pages. Other offsets stay.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from plaudit.errors import LogUnavailable
from plaudit.eventlog.protocol import Record, Topic
from plaudit.eventlog.sqlite import BUSY_SECONDS, EPOCH, MICROSECOND, PARTITION
from plaudit.store import sqlite


class EmbeddedRecords:
    """The records of an embedded log's file that are to be looked through and deleted. For one thread at a time."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self, topic: Topic, behind: int, most: int) -> list[Record]:
        """Records of a topic with greater offsets than `behind`, in order, at most so many. Raises LogUnavailable."""
        with self._open() as connection:
            if connection is None:
                return []
            rows = connection.execute(
                "SELECT offset, key, value, ts FROM records WHERE topic = ? AND offset > ? ORDER BY offset LIMIT ?",
                (topic.value, behind, most),
            )
            return [
                Record(topic, PARTITION, offset, key, value, EPOCH + ts * MICROSECOND)
                for offset, key, value, ts in rows
            ]

    def delete(self, topic: Topic, offsets: Sequence[int]) -> int:
        """Deletes these records in one transaction; returns how many were there. Raises LogUnavailable."""
        with self._open() as connection:
            if connection is None or not offsets:
                return 0
            connection.execute("BEGIN IMMEDIATE")
            done = connection.executemany(
                "DELETE FROM records WHERE topic = ? AND offset = ?", [(topic.value, offset) for offset in offsets]
            ).rowcount
            connection.execute("COMMIT")
            return done

    def scrub(self) -> bool:
        """Takes deleted records out of the write-ahead log too; False if a reader was in the way: try again later."""
        return not self._path.exists() or sqlite.scrub(self._path)

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection | None]:
        if not self._path.exists():  # nobody has appended anything
            yield None
            return
        try:
            connection = sqlite3.connect(self._path, timeout=BUSY_SECONDS, isolation_level=None)
            try:
                sqlite.prepare(connection, BUSY_SECONDS)
                yield connection
            finally:
                connection.close()
        except sqlite3.Error as error:
            raise LogUnavailable(
                f"records of {self._path} cannot be deleted now ({error}); it is tried again"
            ) from error
