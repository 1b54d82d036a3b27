"""How far the join has read each partition, and in which life of its topic.

Enters: records that were read, within the join's transaction. Leaves: a row per partition (`OffsetRow`), moved only by
whoever knows where it stands: that fences off a worker whose partitions went to another (docs/join.md, step 3).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import structlog
from sqlalchemy import ColumnElement, Connection, Table, and_, delete, func, insert, select, update

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


def skip(connection: Connection, expected: Positions, firsts: Mapping[tuple[Topic, int], int]) -> Moved:
    """Moves places that retention has passed to the first record that there is, and counts what lay between.

    At once, and not with the next record: on a quiet partition that may be never. Raises Overtaken.
    """
    moved: dict[tuple[Topic, int], Place] = {}
    expired: Counter[str] = Counter()
    for at, first in sorted(firsts.items()):
        before = expected.get(at)
        if before is None or first <= before.next:
            continue
        moved[at] = Place(first, before.topic_id)
        expired[at[0].value] += _move(connection, at, before, moved[at], first - before.next)
    return Moved(moved, expired)


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
        place = Place(last.offset + 1, topic_ids.get(topic, ""), record_mark(last.value))
        moved[topic, partition] = place
        before = expected.get((topic, partition))
        if before is None:
            if connection.execute(select(_OFFSETS.c.next).where(_row(topic, partition))).first() is not None:
                raise Overtaken(f"{topic}[{partition}] was begun by another worker")
            fresh = {"topic": topic.value, "partition": partition, "first": first.offset, "expired": 0}
            connection.execute(insert(_OFFSETS).values(fresh | _values(place)))
            continue
        # Offsets of these topics have no gaps: what is missing was deleted before it was read.
        gap = max(0, first.offset - before.next)
        expired[topic.value] += _move(connection, (topic, partition), before, place, gap)
    return Moved(moved, +expired)


def _move(connection: Connection, at: tuple[Topic, int], before: Place, place: Place, gap: int) -> int:
    """Moves one place, and counts `gap` records that were never read; returns them. Raises Overtaken."""
    topic, partition = at
    found = connection.execute(
        update(_OFFSETS)
        .where(_row(topic, partition), _OFFSETS.c.next == before.next, _OFFSETS.c.topic_id == before.topic_id)
        .values(expired=_OFFSETS.c.expired + gap, **_values(place))
    )
    if found.rowcount != 1:
        raise Overtaken(f"{topic}[{partition}] no longer stands at {before.next}")
    if gap:
        _log.error("join.records_expired_unread", topic=topic.value, partition=partition, records=gap)
    return gap


def _row(topic: Topic, partition: int) -> ColumnElement[bool]:
    return and_(_OFFSETS.c.topic == topic.value, _OFFSETS.c.partition == partition)


def _values(place: Place) -> dict[str, Any]:
    return {"next": place.next, "topic_id": place.topic_id, "before": place.before}


def lost(connection: Connection) -> int:
    """Records that retention took before they were read, of all partitions since the places were set last."""
    return int(connection.execute(select(func.coalesce(func.sum(_OFFSETS.c.expired), 0))).scalar_one())


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
