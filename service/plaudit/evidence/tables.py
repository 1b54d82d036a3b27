"""The tables of the evidence store.

Times are integer microseconds since 1970 (UTC), so that every database sorts and compares them alike.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Iterator, Sequence
from enum import StrEnum

from sqlalchemy import (
    BigInteger,
    Boolean,
    Connection,
    Float,
    Index,
    Integer,
    LargeBinary,
    PrimaryKeyConstraint,
    RowMapping,
    String,
    Table,
    Text,
    select,
    true,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from plaudit.store.database import METADATA

EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
MICROSECOND = dt.timedelta(microseconds=1)
IN_LIMIT = 500  # values of one IN list: below every database's limit on parameters


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
    WITHHELD = "withheld"
    """Nobody agreed that anything is learnt from the interaction."""
    APPLIED = "applied"
    """A retraction that withdrew its act."""
    UNMATCHED = "unmatched"
    """A retraction whose act has not arrived."""


class Base(DeclarativeBase):
    """The tables of the evidence store."""

    metadata = METADATA


class InteractionRow(Base):
    """An interaction as its log record, and what is asked about it.

    The record of one that nothing may be learnt from (EVALUATE, or without consent) has no text.
    """

    __tablename__ = "interactions"

    interaction_id: Mapped[str] = mapped_column(String)
    domain: Mapped[str] = mapped_column(String)
    tenant: Mapped[str] = mapped_column(String)
    purpose: Mapped[str] = mapped_column(String)
    prompt_group: Mapped[str] = mapped_column(Text)
    completed_at: Mapped[int] = mapped_column(BigInteger)
    digest: Mapped[bytes] = mapped_column(LargeBinary)  # of the request, to tell a repeat from a conflict
    record: Mapped[bytes] = mapped_column(LargeBinary)  # decoded whenever it is read
    may_train: Mapped[bool] = mapped_column(Boolean, server_default=true())
    # Pseudonyms that the record names; None in rows of v0.1.0 until somebody looks (`removal.fill_names`).
    end_user: Mapped[str | None] = mapped_column(String)
    rater: Mapped[str | None] = mapped_column(String)

    __table_args__ = (
        PrimaryKeyConstraint("interaction_id", name="interactions_by_id"),
        Index("interactions_by_channel", "domain", "tenant", "purpose"),
        Index("interactions_by_time", "domain", "tenant", "completed_at"),
        Index("interactions_by_end_user", "tenant", "end_user"),
        Index("interactions_by_rater", "tenant", "rater"),
    )


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
        Index("feedback_by_who", "tenant", "who"),
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
    kind: Mapped[str] = mapped_column(String, server_default="")
    who: Mapped[str] = mapped_column(String, server_default="")
    accepted_at: Mapped[int] = mapped_column(BigInteger, server_default="0")
    policy_version: Mapped[str] = mapped_column(String, server_default="")  # the interaction's; empty if it has none
    # Hashes of rater and prompt group with the channel's salt, in [0, 1) (`splits`). The join does not know the salt;
    # a process that counts does, and fills them in if they are missing (`counts`).
    rater_unit: Mapped[float | None] = mapped_column(Float(53))
    group_unit: Mapped[float | None] = mapped_column(Float(53))

    __table_args__ = (
        Index("evidence_to_count", "domain", "tenant", "accepted_at"),
        Index("evidence_without_units", "domain", "tenant", "rater_unit"),
    )


class OffsetRow(Base):
    """How far a partition has been read: from `first`, up to but not including `next`.

    `topic_id` is the life of the topic that the offsets belong to, `before` names the record before `next`
    (`codec.record_mark`); both are empty in a store of v0.1.0 until the join reads on. `expired` counts the records
    that retention took before they were read.
    """

    __tablename__ = "offsets"

    topic: Mapped[str] = mapped_column(String, primary_key=True)
    partition: Mapped[int] = mapped_column(Integer, primary_key=True)
    first: Mapped[int] = mapped_column(BigInteger)
    next: Mapped[int] = mapped_column(BigInteger)
    topic_id: Mapped[str] = mapped_column(String, server_default="")
    before: Mapped[str] = mapped_column(String, server_default="")
    expired: Mapped[int] = mapped_column(BigInteger, server_default="0")


class RejectionRow(Base):
    """A record on its way to plaudit.rejected, kept after it went there."""

    __tablename__ = "rejections"

    identity: Mapped[str] = mapped_column(String, primary_key=True)  # topic:partition:offset:reason:digest of value
    topic: Mapped[str] = mapped_column(String)
    partition: Mapped[int] = mapped_column(Integer)
    offset: Mapped[int] = mapped_column(BigInteger)
    reason: Mapped[str] = mapped_column(String)
    message: Mapped[str] = mapped_column(Text)
    key: Mapped[bytes] = mapped_column(LargeBinary)
    value: Mapped[bytes] = mapped_column(LargeBinary)
    headers: Mapped[bytes | None] = mapped_column(LargeBinary)  # `codec.headers_to_bytes`
    rejected_at: Mapped[int] = mapped_column(BigInteger)
    published: Mapped[bool] = mapped_column(Boolean)

    __table_args__ = (Index("rejections_by_published", "published"),)


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
