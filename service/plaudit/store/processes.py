"""Which processes run: each writes a row every few seconds, with what it does in a few facts.

A row is `(name, kind, owner, started_at, seen_at, facts)` by the database's clock, so that `plaudit status` and
`plaudit doctor` see every machine. It is a statement and no lock: nothing is decided by it. A store that is away costs
the row alone.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa

from plaudit.errors import PlauditError
from plaudit.store.database import METADATA, Database, UtcTime

PROCESS = sa.Table(
    "process",
    METADATA,
    sa.Column("name", sa.String(200), primary_key=True),
    sa.Column("kind", sa.String(16), nullable=False),
    sa.Column("owner", sa.String(200), nullable=False),
    sa.Column("started_at", UtcTime, nullable=False),
    sa.Column("seen_at", UtcTime, nullable=False),
    sa.Column("facts", sa.Text, nullable=False),
)

BEAT_SECONDS = 5.0
# A process that was not seen for so long is stopped, or cut off from the store: six beats.
LOST_SECONDS = 30.0
# Rows of processes that died are kept for so long, so that it can be said that there was one.
KEPT = dt.timedelta(days=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    """One process as it was last seen. `silent`: seconds since then."""

    kind: str
    owner: str
    started_at: dt.datetime
    silent: float
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def quiet(self) -> float:
        """Seconds that it had told no news of its work when it was seen last: it is at one long step, or hangs."""
        return float(self.facts.get("quiet", 0.0))

    @property
    def lost(self) -> bool:
        """Whether it must be taken for stopped."""
        return self.silent > LOST_SECONDS


class Beat:
    """The row of this process. A thread of its own keeps it fresh, whatever long step the others are at."""

    def __init__(self, database: Database, kind: str) -> None:
        self._database = database
        self._kind = kind
        self._owner = f"{socket.gethostname()[:100]}:{os.getpid()}"
        self._name = f"{kind} {self._owner}:{secrets.token_hex(4)}"
        self._facts: dict[str, Any] = {}
        self._said = time.monotonic()
        self._next = 0.0
        self._row = threading.Lock()
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def beat(self, facts: Mapping[str, Any], *, now: bool = False) -> None:
        """Say what the process does, at once or with the next beat; never raises what a store's trouble is."""
        self._facts, self._said = dict(facts), time.monotonic()
        if self._thread is None:
            self._thread = threading.Thread(target=self._keep, name=f"beat {self._kind}", daemon=True)
            self._thread.start()
        if now or time.monotonic() >= self._next:
            self._tell()

    def end(self) -> None:
        """Take the row away: the process ends as it was told to."""
        self._ended.set()
        with self._row, contextlib.suppress(PlauditError), self._database.writing() as connection:
            connection.execute(sa.delete(PROCESS).where(PROCESS.c.name == self._name))

    def _keep(self) -> None:
        while not self._ended.wait(BEAT_SECONDS):
            if time.monotonic() >= self._next:
                self._tell()

    def _tell(self) -> None:
        with self._row:
            if self._ended.is_set():
                return
            self._next = time.monotonic() + BEAT_SECONDS
            with contextlib.suppress(PlauditError, sa.exc.IntegrityError), self._database.writing() as connection:
                quiet = round(time.monotonic() - self._said, 1)
                self._write(connection, json.dumps({**self._facts, "quiet": quiet}))

    def _write(self, connection: sa.Connection, facts: str) -> None:
        now = self._database.now(connection)
        mine = PROCESS.c.name == self._name
        if connection.execute(sa.update(PROCESS).where(mine).values(seen_at=now, facts=facts)).rowcount:
            return
        connection.execute(sa.delete(PROCESS).where(PROCESS.c.seen_at < now - KEPT))
        row = {"name": self._name, "kind": self._kind, "owner": self._owner, "started_at": now, "seen_at": now}
        connection.execute(sa.insert(PROCESS).values(**row, facts=facts))


def processes(database: Database) -> list[Process]:
    """Every process that was seen within a day and did not end as it was told to, by kind, the newest first."""
    with database.reading() as connection:
        now = database.now(connection)
        rows = connection.execute(sa.select(PROCESS).order_by(PROCESS.c.kind, PROCESS.c.started_at.desc())).mappings()
        return [
            Process(
                kind=row["kind"],
                owner=row["owner"],
                started_at=row["started_at"],
                silent=max(0.0, (now - row["seen_at"]).total_seconds()),
                facts=json.loads(row["facts"]),
            )
            for row in rows
        ]


def current(found: list[Process], kind: str) -> list[Process]:
    """Processes of a kind that run; if none does, the one that was seen last."""
    of_kind = [each for each in found if each.kind == kind]
    running = [each for each in of_kind if not each.lost]
    return running or sorted(of_kind, key=lambda each: each.silent)[:1]
