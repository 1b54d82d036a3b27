"""Counts of evidence in SQL, by what it may be used for. No evidence is decoded, so that a look costs little.

The split of a row follows from two numbers between 0 and 1, of its rater and of its prompt group, which are hashes with
the channel's salt (`splits`). The join does not know the salt, so it leaves their columns empty, and a process that
counts fills in the new rows first. They are a cache of a pure function, written in small transactions that neither wait
for the join nor make it wait for long.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, RowMapping, Table, and_, bindparam, case, func, literal, or_, select, update
from sqlalchemy.sql.elements import ColumnElement

from plaudit.evidence.quarantine import out_of_quarantine
from plaudit.evidence.rows import evidence_from_bytes
from plaudit.evidence.splits import Bounds, Split, group_bounds, group_unit, rater_bounds, rater_unit
from plaudit.evidence.tables import EvidenceTable, to_micros
from plaudit.store.database import Database
from plaudit.types import NAMELESS, Channel, FeedbackKind

FILL_ROWS = 1000  # rows filled in by one transaction: some tens of milliseconds

_EVIDENCE: Table = EvidenceTable.metadata.tables["evidence"]
_KEY = (_EVIDENCE.c.interaction_id, _EVIDENCE.c.feedback_id, _EVIDENCE.c.index)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tally:
    """Acts with evidence, and the raters who gave them (`is_rater`), of one kind in one pair of splits."""

    kind: FeedbackKind
    rater_split: Split
    group_split: Split
    acts: int
    raters: int


def fill_units(database: Database, channel: Channel, salt: bytes) -> None:
    """Fills in rater_unit and group_unit of rows that have none."""
    missing = (
        select(*_KEY, _EVIDENCE.c.payload)
        .where(_of(channel), or_(_EVIDENCE.c.rater_unit.is_(None), _EVIDENCE.c.group_unit.is_(None)))
        .order_by(*_KEY)
        .limit(FILL_ROWS)
        .with_for_update(skip_locked=True)
    )
    with database.reading() as connection:  # nearly always nothing is missing: no write lock for that
        if connection.execute(missing.with_only_columns(_EVIDENCE.c.index).limit(1)).first() is None:
            return
    while True:
        with database.writing() as connection:
            rows = connection.execute(missing).mappings().all()
            if rows:
                _fill(connection, salt, rows)
        if len(rows) < FILL_ROWS:
            return


@dataclass(frozen=True, slots=True, kw_only=True)
class Counted:
    """Which rows are counted: those of a channel that a turn would freeze. Fields as in `EvidenceStore.freeze`.

    since: only acts that were accepted after this time; None: ever.
    """

    channel: Channel
    since: dt.datetime | None = None
    few_raters: bool = False
    policy_version: str | None = None

    @property
    def rows(self) -> ColumnElement[bool]:
        """SQL: a row is counted."""
        after = literal(True) if self.since is None else _EVIDENCE.c.accepted_at > to_micros(self.since)
        version = self.policy_version
        return and_(
            _counting(self.channel), after, literal(True) if version is None else _EVIDENCE.c.policy_version == version
        )


def count_new(connection: Connection, counted: Counted) -> int:
    """Acts by train raters on train groups."""
    rater, group = _splits(counted.few_raters)
    acts = (
        select(_EVIDENCE.c.interaction_id, _EVIDENCE.c.feedback_id)
        .where(counted.rows, rater == Split.TRAIN.value, group == Split.TRAIN.value)
        .distinct()
    )
    return int(connection.execute(select(func.count()).select_from(acts.subquery())).scalar_one())


def tally(connection: Connection, counted: Counted) -> tuple[Tally, ...]:
    """Acts and raters by kind and splits, in that order."""
    rater, group = _splits(counted.few_raters)
    acts = (
        select(
            _EVIDENCE.c.kind,
            rater.label("rater"),
            group.label("part"),
            _EVIDENCE.c.interaction_id,
            _EVIDENCE.c.feedback_id,
            case((_EVIDENCE.c.who.startswith(NAMELESS), None), else_=_EVIDENCE.c.who).label("who"),
        )
        .where(counted.rows)
        .distinct()
        .subquery()
    )
    query = select(acts.c.kind, acts.c.rater, acts.c.part, func.count(), func.count(acts.c.who.distinct())).group_by(
        acts.c.kind, acts.c.rater, acts.c.part
    )
    found = [
        Tally(
            kind=FeedbackKind(kind), rater_split=Split(of_rater), group_split=Split(of_group), acts=many, raters=raters
        )
        for kind, of_rater, of_group, many, raters in connection.execute(query)
    ]
    return tuple(sorted(found, key=lambda each: (each.kind, each.rater_split, each.group_split)))


def in_split(split: Split, few_raters: bool) -> ColumnElement[bool]:
    """SQL: the row's rater is of the split. Rows that are not filled in are of none."""
    rater, _ = _splits(few_raters)
    return and_(_EVIDENCE.c.rater_unit.is_not(None), rater == split.value)


def _fill(connection: Connection, salt: bytes, rows: Sequence[RowMapping]) -> None:
    statement = (
        update(_EVIDENCE)
        .where(*(column == bindparam(f"at_{column.name}") for column in _KEY))
        .values(rater_unit=bindparam("rater"), group_unit=bindparam("part"))
    )
    values = []
    for row in rows:
        stored = evidence_from_bytes(row["payload"])
        units = {"rater": rater_unit(salt, stored.who), "part": group_unit(salt, stored.prompt_group)}
        values.append({f"at_{column.name}": row[column.name] for column in _KEY} | units)
    connection.execute(statement, values)


def _of(channel: Channel) -> ColumnElement[bool]:
    return and_(_EVIDENCE.c.domain == channel.domain, _EVIDENCE.c.tenant == channel.tenant)


def _counting(channel: Channel) -> ColumnElement[bool]:
    """The channel's evidence, but for that of raters in quarantine."""
    return and_(_of(channel), out_of_quarantine(channel, None))


def _splits(few_raters: bool) -> tuple[ColumnElement[str], ColumnElement[str]]:
    """SQL for the splits of a row's rater and prompt group, as `rater_split` and `group_split` give them."""
    group = _split(_EVIDENCE.c.group_unit, group_bounds(few_raters))
    return (group if few_raters else _split(_EVIDENCE.c.rater_unit, rater_bounds())), group


def _split(unit: ColumnElement[float | None], bounds: Bounds) -> ColumnElement[str]:
    *first, (_, last) = bounds
    return case(*[(unit < bound, literal(split.value)) for bound, split in first], else_=literal(last.value))
