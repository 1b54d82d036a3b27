"""What every SQLite file of Plaudit has in common: the evidence store's and the embedded log's."""

from __future__ import annotations

import sqlite3
import time

RETRY_SECONDS = 0.02

# Nothing is wrong with the file: asked again later, it answers.
_PASSING = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR)


def prepare(connection: sqlite3.Connection, busy_seconds: float) -> None:
    """Write-ahead log, and an fsync before each commit returns. Raises sqlite3.OperationalError."""
    connection.isolation_level = None  # the driver must not begin transactions of its own
    connection.execute(f"PRAGMA busy_timeout = {round(busy_seconds * 1000)}")
    deadline = time.monotonic() + busy_seconds
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL").fetchone()
            break
        except sqlite3.OperationalError as error:
            # Two processes that make the file at once: SQLite does not wait for this lock by itself.
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
            time.sleep(RETRY_SECONDS)
    # FULL: in WAL mode anything less acknowledges before the fsync.
    connection.execute("PRAGMA synchronous = FULL")


def passes(error: sqlite3.Error) -> bool:
    """Whether the same call may succeed later: the file is locked, the disk full or failing."""
    code: int | None = getattr(error, "sqlite_errorcode", None)  # None if Python itself raised
    return code is not None and code & 0xFF in _PASSING
