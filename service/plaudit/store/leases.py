"""Leases: which process may work on what, for a while, with a token that fences off earlier holders.

A lease is a row `(name, owner, token, expires_at)`. A process that takes it raises the token by compare-and-set and
renews the lease until it is done; a process that died or was cut off loses it when its time is over. Time alone
protects nothing, because a paused holder may wake up after its time: each write of a holder calls `Lease.check` in the
same transaction, which refuses every token but the newest.
"""

from __future__ import annotations

import datetime as dt
import os
import secrets
import socket
import threading
from dataclasses import dataclass
from typing import Self

import sqlalchemy as sa
import structlog
from sqlalchemy.exc import IntegrityError

from plaudit.errors import PlauditError
from plaudit.store.database import METADATA, Database, UtcTime

LEASE = sa.Table(
    "lease",
    METADATA,
    sa.Column("name", sa.String(200), primary_key=True),
    sa.Column("owner", sa.String(200), nullable=False),  # empty: given back
    sa.Column("token", sa.BigInteger, nullable=False),
    sa.Column("expires_at", UtcTime, nullable=False),
)

SECONDS = 15.0  # how long a process that died keeps others waiting
RENEWALS = 3  # per lease time: two may fail

_log = structlog.get_logger(__name__)


class LeaseHeld(Exception):
    """Somebody else holds the lease."""

    def __init__(self, name: str, owner: str, until: dt.datetime) -> None:
        self.name, self.owner, self.until = name, owner, until
        super().__init__(f"{name} is held by {owner} until {until.isoformat(timespec='seconds')} or longer")


class LeaseLost(Exception):
    """The lease went to somebody else; what its holder wanted to write must not be written."""


@dataclass(frozen=True, slots=True)
class Holder:
    """Who holds a lease, and until when unless it is renewed."""

    owner: str
    token: int
    expires_at: dt.datetime


class Leases:
    """The leases of one database, taken in one owner's name (default: host, process and a random part)."""

    def __init__(self, database: Database, owner: str = "", seconds: float = SECONDS) -> None:
        self._database = database
        self.owner = owner or f"{socket.gethostname()[:100]}:{os.getpid()}:{secrets.token_hex(4)}"
        self.seconds = seconds

    def take(self, name: str) -> Lease:
        """The lease, with a token above all before it. Raises LeaseHeld, at once; StoreUnavailable.

        Use it as a context manager: it is renewed by a thread within the block and given back at its end.
        """
        try:
            return self._take(name)
        except IntegrityError:  # a rival inserted the row between our look and our insert
            return self._take(name)

    def holder(self, name: str) -> Holder | None:
        """Who holds the lease now; None if nobody does."""
        with self._database.reading() as connection:
            row = connection.execute(sa.select(LEASE).where(LEASE.c.name == name)).mappings().one_or_none()
            if row is None or not row["owner"] or row["expires_at"] <= self._database.now(connection):
                return None
            return Holder(row["owner"], row["token"], row["expires_at"])

    def _take(self, name: str) -> Lease:
        with self._database.writing() as connection:
            query = sa.select(LEASE).where(LEASE.c.name == name).with_for_update()
            row = connection.execute(query).mappings().one_or_none()
            now = self._database.now(connection)
            if row is not None and row["owner"] and row["expires_at"] > now:
                raise LeaseHeld(name, row["owner"], row["expires_at"])
            token = 1 if row is None else row["token"] + 1
            values = {"owner": self.owner, "token": token, "expires_at": now + dt.timedelta(seconds=self.seconds)}
            if row is None:
                connection.execute(sa.insert(LEASE).values(name=name, **values))
            else:
                connection.execute(sa.update(LEASE).where(LEASE.c.name == name).values(**values))
        return Lease(self._database, name, self.owner, token, self.seconds)


class Lease:
    """A lease that was taken. Its methods may be called from any thread."""

    def __init__(self, database: Database, name: str, owner: str, token: int, seconds: float) -> None:
        self.name, self.owner, self.token = name, owner, token
        self._database = database
        self._seconds = seconds
        self._done = threading.Event()
        self._lost = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._keep, name=f"lease {self.name}", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        if self._thread is not None:
            self._thread.join()
        try:
            self.release()
        except PlauditError as error:  # its time will give it back
            _log.warning("lease.not_given_back", lease=self.name, error=str(error))

    @property
    def lost(self) -> bool:
        """Whether a renewal found it in other hands. False proves nothing: only `check` does."""
        return self._lost.is_set()

    def check(self, connection: sa.Connection) -> None:
        """Raises LeaseLost unless this is the newest token; nobody can take the lease until the transaction ends."""
        query = sa.select(LEASE.c.token).where(LEASE.c.name == self.name).with_for_update(read=True)
        newest = connection.execute(query).scalar_one_or_none()
        if newest != self.token:
            raise LeaseLost(f"{self.name}: {self.owner} holds token {self.token}, the newest is {newest}")

    def renew(self) -> None:
        """Extends it by its whole time; late is right as long as nobody else took it. Raises LeaseLost."""
        with self._database.writing() as connection:
            until = self._database.now(connection) + dt.timedelta(seconds=self._seconds)
            if not self._update(connection, owner=self.owner, expires_at=until):
                self._lost.set()
                raise LeaseLost(f"{self.name}: somebody else took it from {self.owner}")

    def release(self) -> None:
        """Gives it back, so that the next may take it at once. Does nothing if it is lost."""
        with self._database.writing() as connection:
            self._update(connection, owner="", expires_at=self._database.now(connection))

    def _update(self, connection: sa.Connection, *, owner: str, expires_at: dt.datetime) -> bool:
        mine = (LEASE.c.name == self.name) & (LEASE.c.token == self.token) & (LEASE.c.owner == self.owner)
        statement = sa.update(LEASE).where(mine).values(owner=owner, expires_at=expires_at)
        return connection.execute(statement).rowcount == 1

    def _keep(self) -> None:
        while not self._done.wait(self._seconds / RENEWALS):
            try:
                self.renew()
            except LeaseLost as error:
                _log.warning("lease.lost", lease=self.name, error=str(error))
                return
            except PlauditError as error:
                _log.warning("lease.not_renewed", lease=self.name, error=str(error))
