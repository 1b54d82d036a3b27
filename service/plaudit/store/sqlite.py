"""What every SQLite file of Plaudit has in common: the evidence store's and the embedded log's."""

from __future__ import annotations

import sqlite3
import time
from pathlib import Path

RETRY_SECONDS = 0.02
SCRUB_SECONDS = 1.0
COMPACT_SECONDS = 30.0

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
    # What is deleted is overwritten: retention and erasure end people's data in the file's bytes too.
    connection.execute("PRAGMA secure_delete = ON")


def passes(error: sqlite3.Error) -> bool:
    """Whether the same call may succeed later: the file is locked, the disk full or failing."""
    code: int | None = getattr(error, "sqlite_errorcode", None)  # None if Python itself raised
    return code is not None and code & 0xFF in _PASSING


def scrub(path: Path) -> bool:
    """Moves all pages of the write-ahead log into the file and empties it, so that what was deleted since is gone.

    False if a reader or writer was in the way. Raises sqlite3.Error.
    """
    connection = sqlite3.connect(path, timeout=SCRUB_SECONDS, isolation_level=None)
    try:
        blocked: int = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
    finally:
        connection.close()
    return blocked == 0


def compact(path: Path) -> None:
    """Writes the file anew without its free pages; others wait meanwhile. Raises sqlite3.Error."""
    connection = sqlite3.connect(path, timeout=COMPACT_SECONDS, isolation_level=None)
    try:
        connection.execute("VACUUM")
    finally:
        connection.close()
