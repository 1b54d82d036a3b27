"""Records that the join cannot use, on their way from the transaction that found them to plaudit.rejected.

Enters: a record and the error that it met. Leaves: a row that waits until it is published, and stays after that. A
record is rejected once for one reason, however often the join reads it.
"""

from __future__ import annotations

import datetime as dt
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, RowMapping, Table, func, insert, select, update

from plaudit.errors import PlauditError
from plaudit.eventlog import Record
from plaudit.eventlog.codec import headers_to_bytes
from plaudit.eventlog.protocol import Headers
from plaudit.evidence.tables import RejectionRow, chunks, to_micros, where_in

_REJECTIONS: Table = RejectionRow.metadata.tables["rejections"]


@dataclass(frozen=True, slots=True)
class Rejection:
    """A record that cannot be used, and why."""

    topic: str
    partition: int
    offset: int
    key: bytes
    value: bytes
    error: PlauditError
    headers: Headers = ()

    @classmethod
    def of(cls, record: Record, error: PlauditError) -> Rejection:
        """The rejection of a record as it was read."""
        where = (record.topic.value, record.partition, record.offset)
        return cls(*where, record.key, record.value, error, record.headers)

    @classmethod
    def of_row(cls, row: RowMapping | dict[str, Any], error: PlauditError) -> Rejection:
        """The rejection of feedback by its row."""
        return cls(row["topic"], row["partition"], row["offset"], row["key"], row["value"], error)

    @property
    def identity(self) -> str:
        """Names the rejection; a record is rejected once for one reason."""
        digest = hashlib.sha256(self.value).hexdigest()[:16]  # a topic that was made anew has the same offsets again
        return f"{self.topic}:{self.partition}:{self.offset}:{self.error.reason}:{digest}"


def write_rejections(connection: Connection, rejections: Sequence[Rejection], now: dt.datetime) -> None:
    """Notes rejections for publication, each once."""
    fresh = {rejection.identity: rejection for rejection in rejections}
    for row in where_in(connection, _REJECTIONS, "identity", list(fresh), ("identity",)):
        del fresh[row["identity"]]
    if fresh:
        connection.execute(
            insert(_REJECTIONS),
            [
                {
                    "identity": identity,
                    "topic": each.topic,
                    "partition": each.partition,
                    "offset": each.offset,
                    "reason": each.error.reason,
                    "message": each.error.message.replace("\0", "\ufffd"),  # PostgreSQL keeps no NUL
                    "key": each.key,
                    "value": each.value,
                    "headers": headers_to_bytes(each.headers),
                    "rejected_at": to_micros(now),
                    "published": False,
                }
                for identity, each in fresh.items()
            ],
        )


def unpublished(connection: Connection, limit: int) -> list[RowMapping]:
    """Rejections that have not been marked as published."""
    query = select(_REJECTIONS).where(~_REJECTIONS.c.published).order_by(_REJECTIONS.c.identity).limit(limit)
    return list(connection.execute(query).mappings())


def by_reason(connection: Connection) -> dict[str, int]:
    """How many records were rejected, by reason."""
    query = select(_REJECTIONS.c.reason, func.count()).group_by(_REJECTIONS.c.reason).order_by(_REJECTIONS.c.reason)
    return {str(reason): int(count) for reason, count in connection.execute(query)}


def mark_published(connection: Connection, identities: Iterable[str]) -> None:
    """Marks rejections as published."""
    for some in chunks(sorted(identities)):
        connection.execute(update(_REJECTIONS).where(_REJECTIONS.c.identity.in_(some)).values(published=True))
