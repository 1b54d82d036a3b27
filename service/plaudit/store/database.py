"""One SQL database (SQLite or PostgreSQL): how it is opened, brought to its schema, locked, read and written.

Enters: a URL. Leaves: transactions, and PlauditErrors for a database that is away, full or not ours. The evidence
store, the registry, leases and turn outcomes all live in the database of `store.url`; tables are declared on
`METADATA` beside the code that asks for them, and made by the migrations alone.
"""

from __future__ import annotations

import datetime as dt
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa
import structlog
from sqlalchemy.exc import ArgumentError, DBAPIError, IntegrityError, NoSuchModuleError
from sqlalchemy.pool import Pool

from plaudit.errors import Misconfigured, PlauditError, StoreUnavailable
from plaudit.store import sqlite
from plaudit.store.files import is_full, private_database

METADATA = sa.MetaData()
SCHEMA = "0011"  # the newest migration
BUSY_SECONDS = 30.0  # a join transaction holds a SQLite file for well under a second; far longer means that one hangs
CONNECT_SECONDS = 10
# A server whose machine or network is gone closes no connection: without these, libpq waits for it for two hours.
_GONE = {"keepalives_idle": 15, "keepalives_interval": 5, "keepalives_count": 3, "tcp_user_timeout": 30_000}
# Any fixed number: the lock under which PostgreSQL runs the migrations.
_MIGRATION_LOCK = 4_172_008
_FENCE = 4_172_009  # between the join's transactions and what ends a person's data
# SQLSTATE classes of PostgreSQL that an operator must fix: wrong user or password, no such database, no permission.
_WRONG_STATES = ("28", "3D", "42501", "3F")
# Alembic keeps the migration that runs in module globals.
_migrating = threading.Lock()

_log = structlog.get_logger(__name__)


class UtcTime(sa.types.TypeDecorator[dt.datetime]):
    """Aware UTC datetimes even if the database keeps no zone (SQLite)."""

    impl = sa.DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: dt.datetime | None, dialect: sa.Dialect) -> dt.datetime | None:
        """The moment in UTC."""
        return None if value is None else value.astimezone(dt.UTC)

    def process_result_value(self, value: dt.datetime | None, dialect: sa.Dialect) -> dt.datetime | None:
        """The moment, with its zone."""
        if value is None:
            return None
        return value.replace(tzinfo=dt.UTC) if value.tzinfo is None else value.astimezone(dt.UTC)


class Database:
    """An open database with the schema of this release. Safe to use from several threads and processes.

    Opening it raises Misconfigured for a URL, a file or a schema that this release cannot use, StoreUnavailable for a
    database that is away, locked or full.
    """

    def __init__(self, url: str) -> None:
        self.engine = _engine(url)
        try:
            self._bring_to_schema()
        except BaseException:
            self.close()
            raise

    @contextmanager
    def writing(self) -> Iterator[sa.Connection]:
        """One transaction that writes: committed if the block ends, undone if it raises.

        On SQLite it takes the write lock when it begins and waits its turn; a transaction that reads first and locks
        later would be refused. Raises StoreUnavailable or Misconfigured; IntegrityError passes as it is.
        """
        options = {"plaudit_writes": True}
        with self._errors(), self.engine.connect().execution_options(**options) as connection, connection.begin():
            yield connection

    @contextmanager
    def reading(self) -> Iterator[sa.Connection]:
        """One transaction whose reads all see the same state (repeatable read). Raises as `writing`."""
        with self._errors(), self.engine.connect() as connection:
            if self.engine.dialect.name != "sqlite":  # there every transaction reads one snapshot
                connection.execution_options(isolation_level="REPEATABLE READ")
            with connection.begin():
                yield connection

    def now(self, connection: sa.Connection) -> dt.datetime:
        """The database's clock: one for all processes that share it."""
        if self.engine.dialect.name == "postgresql":
            return connection.execute(sa.select(sa.func.clock_timestamp(type_=UtcTime))).scalar_one()
        return dt.datetime.now(dt.UTC)

    def fence(self, connection: sa.Connection, *, alone: bool) -> None:
        """Keeps writers apart until their transactions end: one that is `alone` waits for all others, and they for it.

        Whoever passes afterwards sees what the other wrote. On SQLite the one writer is the fence.
        """
        if self.engine.dialect.name == "postgresql":
            lock = sa.func.pg_advisory_xact_lock if alone else sa.func.pg_advisory_xact_lock_shared
            connection.execute(sa.select(lock(_FENCE)))

    def close(self) -> None:
        """Closes every connection."""
        self.engine.dispose()

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except IntegrityError:
            raise
        except DBAPIError as error:
            raise _translated(self.engine.url, error) from error

    def _bring_to_schema(self) -> None:
        """Runs the migrations that are missing; of several processes one does and the others wait."""
        with self.reading() as connection:
            if _schema(connection) == SCHEMA:
                return
        with _migrating, self.writing() as connection:
            if self.engine.dialect.name == "postgresql":
                connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_MIGRATION_LOCK)))
            found = _schema(connection)
            if found != SCHEMA:
                _migrate(connection)
                _log.info("store.migrated", found=found or "none", schema=SCHEMA)


def _engine(url: str) -> sa.Engine:
    try:
        parsed = sa.make_url(url)
        if parsed.get_backend_name() == "sqlite":
            engine = sa.create_engine(parsed, hide_parameters=True, connect_args={"timeout": BUSY_SECONDS})
        else:
            # A connection that a restart of the database cut is replaced before it is used.
            options = {"connect_timeout": CONNECT_SECONDS, **_GONE}
            engine = sa.create_engine(parsed, hide_parameters=True, pool_pre_ping=True, connect_args=options)
    except (ArgumentError, NoSuchModuleError, ImportError, ValueError) as error:
        raise Misconfigured(
            f"store.url is not the URL of a database that is installed here ({error}); "
            "write it as sqlite:////path/to/file or postgresql+psycopg://user@host/name",
            setting="store.url",
        ) from error
    if engine.dialect.name == "sqlite":
        _prepare_sqlite(engine)
    return engine


def _prepare_sqlite(engine: sa.Engine) -> None:
    """Makes SQLite keep snapshots, wait for locks, and begin a write as a write."""
    if (path := _file(engine.url)) is not None:
        try:
            private_database(path)
        except OSError as error:
            if is_full(path.parent):
                raise StoreUnavailable(f"the disk of {path} is full; free space") from error
            raise Misconfigured(
                f"the store {path} cannot be opened ({error}); check store.url, the folder and its permissions",
                setting="store.url",
            ) from error

    def connected(connection: Any, _record: Any) -> None:
        sqlite.prepare(connection, BUSY_SECONDS)

    def begun(connection: sa.Connection) -> None:
        # A read that later wants to write would be refused, not queued: writers take the lock at once.
        writes = connection.get_execution_options().get("plaudit_writes", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    pool: Pool = engine.pool
    sa.event.listen(pool, "connect", connected)
    sa.event.listen(engine, "begin", begun)


def _schema(connection: sa.Connection) -> str | None:
    """The migration that the database is at; None before the first."""
    if not sa.inspect(connection).has_table("alembic_version"):
        return None
    found = connection.execute(sa.text("SELECT version_num FROM alembic_version")).scalar_one_or_none()
    return None if found is None else str(found)


def _migrate(connection: sa.Connection) -> None:
    # Imported here alone: a database that is up to date is opened without Alembic.
    from alembic import command
    from alembic.config import Config
    from alembic.util import CommandError

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
    config.attributes["connection"] = connection
    try:
        command.upgrade(config, SCHEMA)
    except CommandError as error:
        raise Misconfigured(
            f"the store has schema {_schema(connection)} and this release reads up to {SCHEMA} ({error}); "
            "run the release that wrote it, or a newer one",
            setting="store.url",
        ) from error


def _translated(url: sa.URL, error: DBAPIError) -> PlauditError:
    """What the driver's error means for whoever asked. Never names the password."""
    name, original = url.render_as_string(hide_password=True), error.orig
    said = (str(original).splitlines() or [""])[0]  # further lines of PostgreSQL's quote rows
    path = _file(url)
    if path is not None:
        name = str(path)
        if is_full(path.parent) or getattr(original, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_FULL:
            return StoreUnavailable(f"the store {name} cannot grow: its disk is full ({said}); free space")
    if isinstance(original, sqlite3.Error):
        passing = sqlite.passes(original)
    else:
        # Without a state the database was not reached. Programming errors are not for a retry either.
        state = getattr(original, "sqlstate", None) or ""
        passing = isinstance(error, sa.exc.OperationalError | sa.exc.InterfaceError | sa.exc.InternalError)
        passing = passing and not state.startswith(_WRONG_STATES)
        if state.startswith("53100"):
            return StoreUnavailable(f"the store {name} cannot grow: its disk is full ({said}); free space")
    if passing or error.connection_invalidated:
        return StoreUnavailable(f"the store {name} does not answer ({said}); it is asked again, or retry")
    if isinstance(error, sa.exc.DataError):
        said = type(original).__name__  # its message quotes the value
    return Misconfigured(
        f"the store {name} cannot be used ({said}); check store.url, the folder and its permissions",
        setting="store.url",
    )


def _file(url: sa.URL) -> Path | None:
    """The file of a SQLite database; None for one in memory or on a server."""
    if url.get_backend_name() != "sqlite" or url.database in (None, "", ":memory:"):
        return None
    return Path(str(url.database))
