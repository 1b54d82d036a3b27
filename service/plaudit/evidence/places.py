"""How far the join has read each partition, and in which life of its topic.

Enters: records that were read, within the join's transaction. Leaves: a row per partition (`OffsetRow`), moved only by
whoever knows where it stands: that fences off a worker whose partitions went to another (docs/join.md, step 3).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import structlog
from sqlalchemy import Connection, Table, and_, delete, insert, select, update

from plaudit.errors import Misconfigured
from plaudit.eventlog import Place, Positions, Record, Topic
from plaudit.eventlog.codec import record_mark
from plaudit.eventlog.protocol import HOW_TO_DECIDE
from plaudit.evidence.tables import OffsetRow

_OFFSETS: Table = OffsetRow.metadata.tables["offsets"]

_log = structlog.get_logger(__name__)


class Overtaken(Exception):
    """Another worker read on in a partition that this one believed its own; its transaction must not count."""


@dataclass(frozen=True, slots=True)
class Moved:
    """Places after a batch, and how many records of each topic retention took before they were read."""

    places: Mapping[tuple[Topic, int], Place]
    expired: Counter[str]


def read(connection: Connection) -> Positions:
    """Where reading goes on in every partition that was ever read."""
    columns = (_OFFSETS.c.topic, _OFFSETS.c.partition, _OFFSETS.c.next, _OFFSETS.c.topic_id, _OFFSETS.c.before)
    rows = connection.execute(select(*columns))
    return {(Topic(topic), partition): Place(*place) for topic, partition, *place in rows}


def unread(records: Iterable[Record], places: Positions) -> list[Record]:
    """The records at their places and behind them.

    The record before a place is read again, and must be the one that was there: raises Misconfigured otherwise.
    """
    fresh = []
    for record in records:
        place = places.get((record.topic, record.partition))
        if place is None or record.offset >= place.next:
            fresh.append(record)
        elif place.before and record.offset == place.next - 1 and record_mark(record.value) != place.before:
            raise Misconfigured(
                f"{record.topic}[{record.partition}] (identity {place.topic_id or 'unknown'}) holds record "
                f"{record_mark(record.value)} at offset {record.offset}, where the evidence store has read "
                f"{place.before}: the topic lost records or was restored from an older copy. {HOW_TO_DECIDE}",
                setting="log.kind",
            )
    return fresh


def advance(
    connection: Connection, expected: Positions, records: Iterable[Record], topic_ids: Mapping[Topic, str]
) -> Moved:
    """Moves the places past these records, if they stand where `expected` says. Raises Overtaken."""
    spans: dict[tuple[Topic, int], tuple[Record, Record]] = {}
    for record in records:
        at = (record.topic, record.partition)
        spans[at] = (spans.get(at, (record, record))[0], record)
    moved: dict[tuple[Topic, int], Place] = {}
    expired: Counter[str] = Counter()
    for (topic, partition), (first, last) in sorted(spans.items(), key=lambda span: span[0]):
        row = and_(_OFFSETS.c.topic == topic.value, _OFFSETS.c.partition == partition)
        place = Place(last.offset + 1, topic_ids.get(topic, ""), record_mark(last.value))
        values = {"next": place.next, "topic_id": place.topic_id, "before": place.before}
        moved[topic, partition] = place
        before = expected.get((topic, partition))
        if before is None:
            if connection.execute(select(_OFFSETS.c.next).where(row)).first() is not None:
                raise Overtaken(f"{topic}[{partition}] was begun by another worker")
            fresh = {"topic": topic.value, "partition": partition, "first": first.offset, "expired": 0}
            connection.execute(insert(_OFFSETS).values(fresh | values))
            continue
        # Offsets of these topics have no gaps: what is missing was deleted before it was read.
        gap = max(0, first.offset - before.next)
        found = connection.execute(
            update(_OFFSETS)
            .where(row, _OFFSETS.c.next == before.next, _OFFSETS.c.topic_id == before.topic_id)
            .values(expired=_OFFSETS.c.expired + gap, **values)
        )
        if found.rowcount != 1:
            raise Overtaken(f"{topic}[{partition}] no longer stands at {before.next}")
        if gap:
            expired[topic.value] += gap
            _log.error("join.records_expired_unread", topic=topic.value, partition=partition, records=gap)
    return Moved(moved, expired)


def reset(connection: Connection, topics: Sequence[Topic], ends: Positions) -> Positions:
    """Forgets the places of these topics and sets those of `ends`; returns what was forgotten.

    A worker that runs meanwhile finds its place gone, writes nothing and begins where the store says.
    """
    known = {at: place for at, place in read(connection).items() if at[0] in topics}
    connection.execute(delete(_OFFSETS).where(_OFFSETS.c.topic.in_([topic.value for topic in topics])))
    for (topic, partition), place in sorted(ends.items()):
        row = {"topic": topic.value, "partition": partition, "first": place.next, "next": place.next}
        connection.execute(insert(_OFFSETS).values(row | {"topic_id": place.topic_id, "before": "", "expired": 0}))
    return known


def next_offsets(places: Positions) -> dict[tuple[Topic, int], int]:
    """The offsets alone, for the log's lag tools."""
    return {at: place.next for at, place in places.items()}
