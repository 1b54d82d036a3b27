"""Lets a replica forget the answers that it remembers of people who were erased, wherever the erasure was asked for.

Enters: the erasures in the store, looked at as often as the channel states. Leaves: a recorder's memory without them.
"""

from __future__ import annotations

import datetime as dt

import sqlalchemy as sa

from plaudit.evidence.tables import to_micros
from plaudit.privacy.tables import ERASURE
from plaudit.serving.recording import Recorder
from plaudit.store.database import Database

# Erasures become visible in another order than that of their times, but hardly this much later.
_OVERLAP = dt.timedelta(minutes=5)


class ErasedWatch:
    """For one thread."""

    def __init__(self, database: Database, recorder: Recorder) -> None:
        self._database = database
        self._recorder = recorder
        self._seen: set[str] = set()
        self._newest = dt.datetime.now(dt.UTC)  # the memory of a replica that starts is empty

    def look(self) -> None:
        """Forgets who was erased since the last look. Raises StoreUnavailable."""
        table, since = ERASURE.c, to_micros(self._newest - _OVERLAP)
        query = sa.select(table.erasure_id, table.tenant, table.person).where(table.requested_at > since)
        now = dt.datetime.now(dt.UTC)
        with self._database.reading() as connection:
            rows = connection.execute(query).all()
        for erasure_id, tenant, person in rows:
            if erasure_id not in self._seen:
                self._recorder.forget(tenant, person)
        self._seen, self._newest = {row[0] for row in rows}, now
