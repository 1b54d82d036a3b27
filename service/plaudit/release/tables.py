"""The registry's three tables, and an engine that is safe for several processes on one SQLite file.

They may share a database with the evidence store and have their own metadata, so that neither creates or drops
the other's tables.
"""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Dialect, Engine
from sqlalchemy.schema import CreateTable

# Longest wait for another writer: a join batch takes well under a second, a slow disk some.
_BUSY_MILLISECONDS = 30_000
# Any fixed number: the lock under which PostgreSQL creates the tables.
_CREATE_LOCK = 4_172_008


class UtcTime(sa.types.TypeDecorator[dt.datetime]):
    """Aware UTC datetimes also where the database keeps no zone (SQLite)."""

    impl = sa.DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: dt.datetime | None, dialect: Dialect) -> dt.datetime | None:
        """The moment in UTC."""
        return None if value is None else value.astimezone(dt.UTC)

    def process_result_value(self, value: dt.datetime | None, dialect: Dialect) -> dt.datetime | None:
        """The moment, with its zone."""
        if value is None:
            return None
        return value.replace(tzinfo=dt.UTC) if value.tzinfo is None else value.astimezone(dt.UTC)


METADATA = sa.MetaData()

RELEASE = sa.Table(
    "release",
    METADATA,
    sa.Column("channel", sa.String(200), primary_key=True),
    sa.Column("version", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("digest", sa.String(64), nullable=False),
    # Digest of the manifest before it had a version: registering the same one twice changes nothing.
    sa.Column("draft", sa.String(64), nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("created_at", UtcTime, nullable=False),
    sa.Column("decision", sa.Text, nullable=False, default=""),
    sa.Column("skipped", sa.String(64), nullable=False, default=""),
    sa.UniqueConstraint("channel", "draft"),
)

CHANNEL_STATE = sa.Table(
    "channel_state",
    METADATA,
    sa.Column("channel", sa.String(200), primary_key=True),
    sa.Column("generation", sa.BigInteger, nullable=False),
    sa.Column("live", sa.Integer, nullable=False),
    sa.Column("canary", sa.Integer),
    sa.Column("pinned", sa.Boolean, nullable=False),
)

CHANNEL_CHANGE = sa.Table(
    "channel_change",
    METADATA,
    sa.Column("channel", sa.String(200), primary_key=True),
    sa.Column("generation", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("live", sa.Integer, nullable=False),
    sa.Column("pinned", sa.Boolean, nullable=False),
    sa.Column("move", sa.String(64), nullable=False),
    sa.Column("at", UtcTime, nullable=False),
    sa.Column("actor", sa.String(200), nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
)


def open_engine(url: str) -> Engine:
    """An engine whose transactions, on SQLite, take the write lock when they begin.

    A transaction that reads first and locks later fails at once where another writer came between; one that
    locks first waits its turn.
    """
    engine = sa.create_engine(url)
    if engine.dialect.name == "sqlite":
        if engine.url.database:
            Path(engine.url.database).parent.mkdir(parents=True, exist_ok=True)
        sa.event.listen(engine, "connect", _on_connect)
        sa.event.listen(engine, "begin", _on_begin)
    return engine


def reading(engine: Engine) -> Engine:
    """The same engine for single reads: no transaction, no lock."""
    return engine.execution_options(isolation_level="AUTOCOMMIT", plaudit_reading=True)


def create_tables(engine: Engine) -> None:
    """Creates what is missing; several processes may do it at once."""
    with engine.begin() as connection:
        if engine.dialect.name == "postgresql":
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_CREATE_LOCK)))
        for table in METADATA.sorted_tables:
            connection.execute(CreateTable(table, if_not_exists=True))


def _on_connect(connection: Any, record: object) -> None:
    connection.isolation_level = None  # the driver would begin transactions of its own
    cursor = connection.cursor()
    cursor.execute(f"PRAGMA busy_timeout={_BUSY_MILLISECONDS}")
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=FULL")
    cursor.close()


def _on_begin(connection: Connection) -> None:
    if not connection.get_execution_options().get("plaudit_reading"):
        connection.exec_driver_sql("BEGIN IMMEDIATE")
