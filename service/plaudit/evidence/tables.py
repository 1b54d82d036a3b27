"""The SQL schema of the evidence store, and how its transactions begin.

Everything here is portable SQL through SQLAlchemy; `_prepare_sqlite` is the one place that knows a dialect.
Times are integer microseconds since 1970 (UTC), so that every database sorts and compares them alike; token ids and
log-probs are little-endian arrays.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum
from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    Connection,
    Engine,
    Float,
    Index,
    Integer,
    LargeBinary,
    RowMapping,
    String,
    Table,
    Text,
    create_engine,
    event,
    make_url,
    select,
)
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from plaudit.errors import Misconfigured

EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
MICROSECOND = dt.timedelta(microseconds=1)
IN_LIMIT = 500  # values of one IN list: below every database's limit on parameters
BUSY_SECONDS = 30  # a join transaction holds a SQLite file for well under a second; far longer means that one hangs


class Status(StrEnum):
    """What became of an act or a retraction; always recomputable from the records of its interaction."""

    WAITING = "waiting"
    """The interaction has not arrived."""
    JOINED = "joined"
    """The act counts (a comment counts too, and gives no evidence)."""
    SUPERSEDED = "superseded"
    """A newer act by the same rater on the same subject counts."""
    RETRACTED = "retracted"
    """Its rater withdrew it."""
    REJECTED = "rejected"
    """It cannot be used; the reason stands beside it."""
    APPLIED = "applied"
    """A retraction that withdrew its act."""
    UNMATCHED = "unmatched"
    """A retraction whose act has not arrived."""


class Base(DeclarativeBase):
    """The tables of the evidence store."""


class InteractionRow(Base):
    """An interaction. Of an EVALUATE one only id, channel, purpose and digest are kept."""

    __tablename__ = "interactions"

    interaction_id: Mapped[str] = mapped_column(String, primary_key=True)
    domain: Mapped[str] = mapped_column(String)
    tenant: Mapped[str] = mapped_column(String)
    purpose: Mapped[str] = mapped_column(String)
    action: Mapped[str] = mapped_column(String)
    session_id: Mapped[str] = mapped_column(String)
    end_user: Mapped[str] = mapped_column(String)
    rater: Mapped[str] = mapped_column(String)
    messages: Mapped[str] = mapped_column(Text)  # JSON [[role, content], ...]
    passages: Mapped[str] = mapped_column(Text)  # JSON [[passage_id, text, source], ...]
    prompt_group: Mapped[str] = mapped_column(Text)
    plugin_version: Mapped[str] = mapped_column(String)
    base_digest: Mapped[str] = mapped_column(String)
    completed_at: Mapped[int] = mapped_column(BigInteger)
    prompt_tokens: Mapped[bytes] = mapped_column(LargeBinary)  # uint32
    order_logprob: Mapped[float] = mapped_column(Float(53))
    answers: Mapped[str] = mapped_column(Text)  # JSON [mark in hex, ...]
    digest: Mapped[bytes] = mapped_column(LargeBinary)  # of the request, to tell a repeat from a conflict

    __table_args__ = (Index("interactions_by_channel", "domain", "tenant", "purpose"),)


class CandidateRow(Base):
    """A candidate of an interaction, in order of `position`."""

    __tablename__ = "candidates"

    interaction_id: Mapped[str] = mapped_column(String, primary_key=True)
    position: Mapped[int] = mapped_column(Integer, primary_key=True)
    candidate_id: Mapped[str] = mapped_column(String)
    release_version: Mapped[int] = mapped_column(BigInteger)
    release_digest: Mapped[str] = mapped_column(String)
    tokens: Mapped[bytes] = mapped_column(LargeBinary)  # uint32
    logprobs_raw: Mapped[bytes] = mapped_column(LargeBinary)  # float32, as in the log
    logprobs_sampled: Mapped[bytes] = mapped_column(LargeBinary)  # float32, as in the log
    text: Mapped[str] = mapped_column(Text)
    displayed_text: Mapped[str] = mapped_column(Text)
    finish_reason: Mapped[str] = mapped_column(String)  # empty where there is none
    sampling: Mapped[str] = mapped_column(Text)  # JSON
    seed: Mapped[str] = mapped_column(String)  # decimal: a uint64 does not fit SQL's largest integer
    width: Mapped[int] = mapped_column(BigInteger)
    probability: Mapped[float] = mapped_column(Float(53))
    propensity: Mapped[float] = mapped_column(Float(53))
    redacted: Mapped[bool] = mapped_column(Boolean)
    valid: Mapped[bool] = mapped_column(Boolean)
    option_id: Mapped[str] = mapped_column(String)


class FeedbackRow(Base):
    """An act, or a retraction of one, with the record that first brought it."""

    __tablename__ = "feedback"

    interaction_id: Mapped[str] = mapped_column(String, primary_key=True)
    feedback_id: Mapped[str] = mapped_column(String, primary_key=True)
    retraction: Mapped[bool] = mapped_column(Boolean, primary_key=True)
    digest: Mapped[bytes] = mapped_column(LargeBinary(32), primary_key=True)  # of the body; of `who` for a retraction
    domain: Mapped[str] = mapped_column(String)
    tenant: Mapped[str] = mapped_column(String)
    who: Mapped[str] = mapped_column(String)
    accepted_at: Mapped[int] = mapped_column(BigInteger)  # the earliest of all records with this body
    seen_at: Mapped[int] = mapped_column(BigInteger)  # when the join first read it
    status: Mapped[str] = mapped_column(String)
    reason: Mapped[str] = mapped_column(String)  # an ErrorReason without its prefix; empty unless rejected
    topic: Mapped[str] = mapped_column(String)
    partition: Mapped[int] = mapped_column(Integer)
    offset: Mapped[int] = mapped_column(BigInteger)
    key: Mapped[bytes] = mapped_column(LargeBinary)
    value: Mapped[bytes] = mapped_column(LargeBinary)  # the record's bytes: decoded when evidence is derived

    __table_args__ = (
        Index("feedback_by_channel", "domain", "tenant", "status"),
        Index("feedback_by_status", "status", "seen_at"),
    )


class EvidenceTable(Base):
    """One row of evidence; `payload` is a deterministic `plaudit.v1.EvidenceRow`."""

    __tablename__ = "evidence"

    interaction_id: Mapped[str] = mapped_column(String, primary_key=True)
    feedback_id: Mapped[str] = mapped_column(String, primary_key=True)
    index: Mapped[int] = mapped_column(Integer, primary_key=True)
    domain: Mapped[str] = mapped_column(String)
    tenant: Mapped[str] = mapped_column(String)
    payload: Mapped[bytes] = mapped_column(LargeBinary)

    __table_args__ = (Index("evidence_by_channel", "domain", "tenant"),)


class OffsetRow(Base):
    """How far a partition has been read: from `first`, up to but not including `next`."""

    __tablename__ = "offsets"

    topic: Mapped[str] = mapped_column(String, primary_key=True)
    partition: Mapped[int] = mapped_column(Integer, primary_key=True)
    first: Mapped[int] = mapped_column(BigInteger)
    next: Mapped[int] = mapped_column(BigInteger)


class RejectionRow(Base):
    """A record on its way to plaudit.rejected, kept after it went there."""

    __tablename__ = "rejections"

    identity: Mapped[str] = mapped_column(String, primary_key=True)  # topic:partition:offset:reason
    topic: Mapped[str] = mapped_column(String)
    partition: Mapped[int] = mapped_column(Integer)
    offset: Mapped[int] = mapped_column(BigInteger)
    reason: Mapped[str] = mapped_column(String)
    message: Mapped[str] = mapped_column(Text)
    key: Mapped[bytes] = mapped_column(LargeBinary)
    value: Mapped[bytes] = mapped_column(LargeBinary)
    rejected_at: Mapped[int] = mapped_column(BigInteger)
    published: Mapped[bool] = mapped_column(Boolean)

    __table_args__ = (Index("rejections_by_published", "published"),)


class Database:
    """An open evidence database."""

    def __init__(self, url: str) -> None:
        self.engine = _open(url)
        with self.writing() as connection:
            Base.metadata.create_all(connection)

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """One transaction that writes: committed where the block ends, undone where it raises."""
        with self.engine.connect().execution_options(plaudit_writes=True) as connection, connection.begin():
            yield connection

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """One transaction whose reads all see the same state (repeatable read)."""
        with self.engine.connect() as connection:
            if self.engine.dialect.name != "sqlite":  # there every transaction reads one snapshot
                connection.execution_options(isolation_level="REPEATABLE READ")
            with connection.begin():
                yield connection

    def close(self) -> None:
        """Closes every connection."""
        self.engine.dispose()


def to_micros(moment: dt.datetime) -> int:
    """Microseconds since 1970 of an aware time."""
    return (moment - EPOCH) // MICROSECOND


def from_micros(micros: int) -> dt.datetime:
    """The UTC time of microseconds since 1970."""
    return EPOCH + micros * MICROSECOND


def where_in(
    connection: Connection, table: Table, column: str, values: Iterable[str], columns: Sequence[str] = ()
) -> Iterator[RowMapping]:
    """Rows of a table with one of these values in a column, in statements of bounded size."""
    wanted = [table.c[name] for name in columns] if columns else [table]
    for some in chunks(sorted(values)):
        yield from connection.execute(select(*wanted).where(table.c[column].in_(some))).mappings()


def chunks(values: Sequence[str]) -> Iterator[Sequence[str]]:
    """The values in runs that fit an IN list."""
    for start in range(0, len(values), IN_LIMIT):
        yield values[start : start + IN_LIMIT]


def _open(url: str) -> Engine:
    try:
        is_sqlite = make_url(url).get_backend_name() == "sqlite"
        engine = create_engine(url, connect_args={"timeout": BUSY_SECONDS} if is_sqlite else {})
    except (ArgumentError, NoSuchModuleError, ImportError) as error:
        raise Misconfigured(
            f"store.url is not the URL of a database that is installed here ({error}); "
            "write it as sqlite:////path/to/file or postgresql+psycopg://user@host/name",
            setting="store.url",
        ) from error
    if is_sqlite:
        _prepare_sqlite(engine)
    try:
        engine.connect().close()
    except DBAPIError as error:
        engine.dispose()
        raise Misconfigured(
            f"the evidence store cannot be opened ({error.orig}); check store.url, the folder and its permissions",
            setting="store.url",
        ) from error
    return engine


def _prepare_sqlite(engine: Engine) -> None:
    """Makes SQLite keep snapshots, wait for locks, and begin a write as a write."""

    @event.listens_for(engine, "connect")
    def _connect(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # the driver must not begin transactions of its own
        connection.execute("PRAGMA journal_mode = WAL")
        # The log is the truth: what a power cut takes from the end of this file is read from the log again.
        connection.execute("PRAGMA synchronous = NORMAL")

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        # A read that later wants to write would be refused, not queued: writers take the lock at once.
        writes = connection.get_execution_options().get("plaudit_writes", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
