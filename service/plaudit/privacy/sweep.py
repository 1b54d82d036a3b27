"""The join's regular work on people's data that has to end.

Enters: settings and the log. Leaves: erasures brought to their end, releases taken back whose time is over, and what
retention ends deleted in bounded steps, counted and said. Of several joins one works at a time (a lease). What cannot
be reached now is tried again: nothing here ends the join.
"""

from __future__ import annotations

import datetime as dt
import sqlite3
import time
from collections.abc import Callable

import sqlalchemy as sa
import structlog

from plaudit.errors import LogUnavailable, StoreUnavailable
from plaudit.eventlog import EventLog
from plaudit.evidence.tables import to_micros
from plaudit.metrics import Metrics
from plaudit.privacy import erasure, models
from plaudit.privacy.erasure import Eraser, Erasure
from plaudit.privacy.files import scrub
from plaudit.privacy.retention import Retention
from plaudit.privacy.tables import ERASURE
from plaudit.release.registry import Registry
from plaudit.settings import Settings
from plaudit.store.leases import LeaseHeld, Leases

LEASE = "privacy"
ERASE_SECONDS = 2.0  # between looks for erasures: one question to the store

_log = structlog.get_logger(__name__)


class Sweep:
    """A look for erasures every ERASE_SECONDS, and for what is too old every `privacy.sweep_seconds`.

    At once again while there is more to delete. For one thread.
    """

    def __init__(
        self,
        settings: Settings,
        metrics: Metrics,
        log: EventLog | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._metrics = metrics
        self._log = log
        self._clock = clock
        self._next = self._next_retention = clock()
        self._scrubbed = not settings.shortest_retention_days  # else an earlier process may not have got to it
        self._registry: Registry | None = None
        self._retention: Retention | None = None

    def look(self) -> None:
        """Works if it is time to. Never raises what will pass."""
        now = self._clock()
        if now < self._next:
            return
        self._next = now + ERASE_SECONDS
        try:
            if self._registry is None:
                self._registry = Registry(self._settings.store_url, self._settings.registry_root)
                self._retention = Retention(self._settings, self._registry)
            finish(self._settings, self._registry, self._log, self._metrics)
            if now >= self._next_retention:
                more = self._retain(self._registry)
                self._next_retention = now if more else now + self._settings.privacy.sweep_seconds
        except LeaseHeld:
            return
        except (StoreUnavailable, LogUnavailable, sqlite3.OperationalError) as error:
            _log.warning("privacy.waits", why=str(error))

    def close(self) -> None:
        """Closes what it opened."""
        if self._registry is not None:
            self._registry.close()

    def _retain(self, registry: Registry) -> bool:
        """One step of retention; whether there is more to do at once."""
        if not self._settings.shortest_retention_days:
            return False
        assert self._retention is not None, "made with the registry"
        with Leases(registry.database).take(LEASE):
            step = self._retention.step()
        for what, count in step.found.items():
            self._metrics.privacy_deleted.labels(what).inc(count)
        self._scrubbed = self._scrubbed and not step.found
        if not step.more and not self._scrubbed:
            self._scrubbed = scrub(self._settings, registry.database)
        return step.more


def finish(
    settings: Settings, registry: Registry, log: EventLog | None, metrics: Metrics | None = None
) -> list[Erasure]:
    """Brings every erasure as far as it can come now; those that were not at their end, as they are afterwards.

    Raises LeaseHeld if another process is at it, StoreUnavailable, LogUnavailable.
    """
    waiting = erasure.unfinished(registry.database)
    if metrics is not None:
        metrics.erasures_waiting.set(len(waiting))
        days, now = settings.privacy.retrain_days, dt.datetime.now(dt.UTC)
        metrics.erasures_overdue.set(sum(each.is_overdue(days, now) for each in waiting))
    if not waiting:
        return []
    with Leases(registry.database).take(LEASE):
        eraser = Eraser(settings, registry)
        worked = []
        for each in waiting:
            after = eraser.work(each)
            if metrics is not None:
                for what, count in (after.found.counts - each.found.counts).items():
                    metrics.privacy_deleted.labels(what).inc(count)
            worked.append(after)
        models.retire_overdue(registry, log, dt.datetime.now(dt.UTC))
        for after in worked:
            if after.erased_at is not None and not models.any_live(registry.database, after.found.releases):
                _models_are_retired(registry, after)
    return [erasure.read(registry.database, each.erasure_id) for each in worked]


def _models_are_retired(registry: Registry, done: Erasure) -> None:
    with registry.database.writing() as connection:
        mine = (ERASURE.c.erasure_id == done.erasure_id) & ERASURE.c.models_retired_at.is_(None)
        values = {"models_retired_at": to_micros(registry.database.now(connection))}
        connection.execute(sa.update(ERASURE).where(mine).values(values))
    _log.info("erasure.models_retired", erasure=done.erasure_id, releases=len(done.found.releases))
