"""The join's regular work on people's data that has to end.

Enters: settings. Leaves: what retention ends, deleted in bounded steps, counted and said. Of several joins one works at
a time (a lease). What cannot be reached now is tried again: nothing here ends the join.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable
from pathlib import Path

import sqlalchemy as sa
import structlog

from plaudit.errors import LogUnavailable, StoreUnavailable
from plaudit.eventlog import LOG_FILE
from plaudit.evidence.removal import TABLES
from plaudit.metrics import Metrics
from plaudit.privacy.retention import Retention
from plaudit.release.registry import Registry
from plaudit.settings import Settings
from plaudit.store import sqlite
from plaudit.store.database import Database
from plaudit.store.leases import LeaseHeld, Leases

LEASE = "privacy"

_log = structlog.get_logger(__name__)


class Sweep:
    """One look every `privacy.sweep_seconds`; at once again while there is more to delete. For one thread."""

    def __init__(self, settings: Settings, metrics: Metrics, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._settings = settings
        self._metrics = metrics
        self._clock = clock
        self._next = clock()
        self._scrubbed = False  # an earlier process may have been ended before it was done
        self._registry: Registry | None = None
        self._retention: Retention | None = None

    def look(self) -> None:
        """Works if it is time to. Never raises what will pass."""
        if self._clock() < self._next:
            return
        self._next = self._clock() + self._settings.privacy.sweep_seconds
        try:
            if self._work():
                self._next = self._clock()
        except (StoreUnavailable, LogUnavailable, sqlite3.OperationalError) as error:
            _log.warning("privacy.waits", why=str(error))

    def close(self) -> None:
        """Closes what it opened."""
        if self._registry is not None:
            self._registry.close()

    def _work(self) -> bool:
        """One step; whether there is more to do at once."""
        if not self._settings.shortest_retention_days:
            return False
        if self._registry is None:
            self._registry = Registry(self._settings.store_url, self._settings.registry_root)
            self._retention = Retention(self._settings, self._registry)
        assert self._retention is not None
        try:
            with Leases(self._registry.database).take(LEASE):
                step = self._retention.step()
        except LeaseHeld:
            return False
        for what, count in step.found.items():
            self._metrics.privacy_deleted.labels(what).inc(count)
        self._scrubbed = self._scrubbed and not step.found
        if not step.more and not self._scrubbed:
            self._scrubbed = scrub(self._settings, self._registry.database)
        return step.more


def scrub(settings: Settings, database: Database, *, compact: bool = False) -> bool:
    """Takes what was deleted out of the files' bytes; False if a reader was in the way: try again later.

    PostgreSQL: the space of deleted rows is freed for use; its server overwrites it as it uses it. compact: writes
    SQLite files anew, without pages that an earlier version left behind. Raises sqlite3.OperationalError.
    """
    files = [] if settings.log.kind == "kafka" else [settings.data_dir / LOG_FILE]
    if database.engine.dialect.name == "sqlite":
        files.append(Path(str(database.engine.url.database)))
    else:
        with database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            for table in TABLES:
                connection.execute(sa.text(f"VACUUM {table}"))
    done = True
    for file in files:
        if file.exists():
            if compact:
                sqlite.compact(file)
            done = sqlite.scrub(file) and done
    return done
