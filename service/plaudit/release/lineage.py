"""Which releases learnt from which act of feedback, and what of it has been withdrawn since.

Enters: the acts of the frozen evidence, when a release is registered. Leaves: the releases that had an act, and what
became of a release's acts. Nearly all evidence of a turn is that of the next one too, so an act's releases are kept as
intervals of versions: a turn writes what came and what went. Ids and statuses only, never what people wrote.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import sqlalchemy as sa

from plaudit.evidence.quarantine import out_of_quarantine
from plaudit.evidence.tables import EvidenceTable, FeedbackRow, Status, chunks
from plaudit.release.tables import RELEASE, RELEASE_ACT
from plaudit.store.database import Database
from plaudit.types import Channel

# (interaction id, feedback id): names an act.
ActKey = tuple[str, str]

# Of several records under one feedback id the first of these says what became of the act.
_FATES = (Status.RETRACTED, Status.SUPERSEDED, Status.REJECTED, Status.WAITING, Status.JOINED)
DELETED = "deleted"
QUARANTINED = "quarantined"
NO_EVIDENCE = "without evidence"


@dataclass(frozen=True, slots=True, kw_only=True)
class LearntAct:
    """An act, and the versions that learnt from it, oldest first."""

    channel: Channel
    interaction_id: str
    feedback_id: str
    versions: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Since:
    """What of a release's acts no longer counts.

    `acts`: acts that it learnt from; None if that was not kept, as of releases of v0.1.0. `counts`: of
    those that no longer count, by what became of them: retracted, superseded, rejected, deleted (erased, or beyond
    retention), quarantined, or without evidence. `first`: some of them, as (interaction id, feedback id, what became).
    """

    acts: int | None
    counts: dict[str, int]
    first: tuple[tuple[str, str, str], ...]


def record(connection: sa.Connection, channel: Channel, version: int, acts: Iterable[ActKey]) -> int:
    """Notes that a version learnt from exactly these acts, within the transaction that takes it; returns how many."""
    table, here = RELEASE_ACT.c, RELEASE_ACT.c.channel == str(channel)
    wanted = set(acts)
    query = sa.select(table.interaction_id, table.feedback_id).where(here, table.last.is_(None))
    known: set[ActKey] = {(interaction, feedback) for interaction, feedback in connection.execute(query)}
    before = sa.select(sa.func.max(RELEASE.c.version)).where(
        RELEASE.c.channel == str(channel), RELEASE.c.version < version, RELEASE.c.acts > 0
    )
    if gone := sorted(known - wanted):
        ended = sa.update(RELEASE_ACT).where(
            here,
            table.interaction_id == sa.bindparam("at_interaction"),
            table.feedback_id == sa.bindparam("at_feedback"),
            table.last.is_(None),
        )
        last = connection.execute(before).scalar_one()
        connection.execute(
            ended.values(last=last), [{"at_interaction": each, "at_feedback": act} for each, act in gone]
        )
    if came := sorted(wanted - known):
        rows = [{"interaction_id": each, "feedback_id": act, "first": version} for each, act in came]
        connection.execute(sa.insert(RELEASE_ACT).values(channel=str(channel), last=None), rows)
    return len(wanted)


def learnt(database: Database, *, feedback_id: str = "", interaction_id: str = "") -> list[LearntAct]:
    """The acts under a feedback id, or on an interaction, that any release learnt from, with the releases."""
    table = RELEASE_ACT.c
    query = sa.select(table.channel, table.interaction_id, table.feedback_id, table.first, table.last)
    if feedback_id:
        query = query.where(table.feedback_id == feedback_id)
    if interaction_id:
        query = query.where(table.interaction_id == interaction_id)
    spans: dict[tuple[str, str, str], list[tuple[int, int | None]]] = {}
    with database.reading() as connection:
        for channel, interaction, act, first, last in connection.execute(query):
            spans.setdefault((channel, interaction, act), []).append((first, last))
        versions = {channel: _versions(connection, channel) for channel in {key[0] for key in spans}}
    return [
        LearntAct(
            channel=Channel.parse(channel),
            interaction_id=interaction,
            feedback_id=act,
            versions=tuple(
                each
                for each in versions[channel]
                if any(
                    first <= each and (last is None or each <= last) for first, last in spans[channel, interaction, act]
                )
            ),
        )
        for channel, interaction, act in sorted(spans)
    ]


def versions_with(connection: sa.Connection, channel: Channel, acts: Iterable[ActKey]) -> set[int]:
    """Versions of a channel that learnt from any of these acts."""
    table, wanted = RELEASE_ACT.c, set(acts)
    columns = (table.interaction_id, table.feedback_id, table.first, table.last)
    spans = []
    for some in chunks(sorted({interaction for interaction, _ in wanted})):
        query = sa.select(*columns).where(table.channel == str(channel), table.interaction_id.in_(some))
        rows = connection.execute(query)
        spans += [(first, last) for interaction, act, first, last in rows if (interaction, act) in wanted]
    every = _versions(connection, str(channel)) if spans else []
    return {each for each in every if any(first <= each and (last is None or each <= last) for first, last in spans)}


def versions_that_tell(connection: sa.Connection, channel: Channel) -> set[int]:
    """Versions of a channel of which it was kept which acts they learnt from."""
    query = sa.select(RELEASE.c.version).where(RELEASE.c.channel == str(channel), RELEASE.c.acts.is_not(None))
    return set(connection.execute(query).scalars())


def since(database: Database, channel: Channel, version: int, *, most: int = 100) -> Since:
    """What became of the acts that a version learnt from; `most` of those that no longer count are named."""
    table = RELEASE_ACT.c
    mine = sa.and_(
        table.channel == str(channel), table.first <= version, sa.or_(table.last.is_(None), table.last >= version)
    )
    pieces = (
        sa.select(EvidenceTable.index)
        .where(EvidenceTable.interaction_id == table.interaction_id, EvidenceTable.feedback_id == table.feedback_id)
        .correlate(RELEASE_ACT)
    )
    evidence, counts = pieces.exists(), pieces.where(out_of_quarantine(channel, None)).exists()
    feedback = sa.and_(
        FeedbackRow.interaction_id == table.interaction_id,
        FeedbackRow.feedback_id == table.feedback_id,
        ~FeedbackRow.retraction,
    )
    gone = (
        sa.select(table.interaction_id, table.feedback_id, evidence.label("has_evidence"), FeedbackRow.status)
        .select_from(RELEASE_ACT.outerjoin(FeedbackRow.__table__, feedback))
        .where(mine, ~counts)
        .order_by(table.interaction_id, table.feedback_id)
    )
    total = sa.select(RELEASE.c.acts).where(RELEASE.c.channel == str(channel), RELEASE.c.version == version)
    found: Counter[str] = Counter()
    first: list[tuple[str, str, str]] = []
    with database.reading() as connection:
        acts = connection.execute(total).scalar_one_or_none()
        records: Iterable[Any] = connection.execute(gone)
        for (interaction, act), rows in groupby(records, key=lambda row: (row.interaction_id, row.feedback_id)):
            fate = _fate(list(rows))
            found[fate] += 1
            if len(first) < most:
                first.append((interaction, act, fate))
    return Since(acts=acts, counts=dict(sorted(found.items())), first=tuple(first))


def _fate(rows: Sequence[Any]) -> str:
    if rows[0].has_evidence:
        return QUARANTINED
    statuses = {row.status for row in rows}
    found = next((str(each) for each in _FATES if each in statuses), DELETED)
    return NO_EVIDENCE if found == Status.JOINED else found


def _versions(connection: sa.Connection, channel: str) -> list[int]:
    """Versions that learnt from acts, oldest first."""
    query = sa.select(RELEASE.c.version).where(RELEASE.c.channel == channel, RELEASE.c.acts > 0)
    return list(connection.execute(query.order_by(RELEASE.c.version)).scalars())
