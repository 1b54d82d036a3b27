"""Raters in quarantine: their acts are kept, joined and counted as acknowledged, and nothing is learnt from them.

What enters: an operator's word, or an anomaly that the learner saw. What leaves: intervals of time, so that a data set
of an earlier moment is the same again. Once a rater is let out, all of their acts count again, those given in it too.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass

import sqlalchemy as sa

from plaudit.evidence.tables import EvidenceTable, from_micros, to_micros
from plaudit.store.database import METADATA, Database
from plaudit.types import Channel

RATER_QUARANTINE = sa.Table(
    "rater_quarantine",
    METADATA,
    sa.Column("tenant", sa.String(64), primary_key=True),
    sa.Column("domain", sa.String(64), primary_key=True),
    sa.Column("rater", sa.String(200), primary_key=True),  # as evidence names them: a pseudonym
    sa.Column("since", sa.BigInteger, primary_key=True),
    sa.Column("until", sa.BigInteger),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("by", sa.String(200), nullable=False),
    sa.Column("released_by", sa.String(200), nullable=False),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Quarantined:
    """A rater's time in quarantine. `until` is None while it lasts; `acts`: acts with evidence that do not count."""

    channel: Channel
    rater: str
    since: dt.datetime
    until: dt.datetime | None
    reason: str
    by: str
    released_by: str
    acts: int


class Quarantine:
    """The quarantine of every channel in one database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def list(self, channel: Channel | None = None, *, ended: bool = False) -> Sequence[Quarantined]:
        """Who is in quarantine, oldest first; with `ended` also who was."""
        table = RATER_QUARANTINE.c
        acts = (
            sa.select(sa.func.count(sa.distinct(EvidenceTable.feedback_id)))
            .where(
                EvidenceTable.domain == table.domain,
                EvidenceTable.tenant == table.tenant,
                EvidenceTable.who == table.rater,
            )
            .scalar_subquery()
        )
        query = sa.select(RATER_QUARANTINE, acts.label("acts")).order_by(table.since, table.rater)
        if channel is not None:
            query = query.where(_of(channel))
        if not ended:
            query = query.where(table.until.is_(None))
        with self._database.reading() as connection:
            return [_quarantined(row) for row in connection.execute(query).mappings()]

    def put(self, channel: Channel, rater: str, reason: str, *, by: str, since: dt.datetime | None = None) -> bool:
        """Puts a rater in quarantine as of `since` (default: now); False if the rater is in it already."""
        table = RATER_QUARANTINE.c
        with self._database.writing() as connection:
            if connection.execute(sa.select(table.rater).where(_mine(channel, rater), table.until.is_(None))).first():
                return False
            values = {
                "tenant": channel.tenant,
                "domain": channel.domain,
                "rater": rater,
                "since": to_micros(since or self._database.now(connection)),
                "until": None,
                "reason": reason,
                "by": by,
                "released_by": "",
            }
            connection.execute(sa.insert(RATER_QUARANTINE).values(**values))
        return True

    def release(self, channel: Channel, rater: str, *, by: str) -> bool:
        """Lets a rater's acts count again; False if the rater is not in quarantine."""
        table = RATER_QUARANTINE.c
        with self._database.writing() as connection:
            values = {"until": to_micros(self._database.now(connection)), "released_by": by}
            statement = sa.update(RATER_QUARANTINE).where(_mine(channel, rater), table.until.is_(None)).values(**values)
            return connection.execute(statement).rowcount > 0

    def judged(self, channel: Channel) -> frozenset[str]:
        """Raters whom an operator let out: no anomaly puts them back, an operator may."""
        query = sa.select(RATER_QUARANTINE.c.rater).where(_of(channel), RATER_QUARANTINE.c.released_by != "")
        with self._database.reading() as connection:
            return frozenset(connection.execute(query).scalars())


def out_of_quarantine(channel: Channel, as_of: dt.datetime | None) -> sa.ColumnElement[bool]:
    """SQL: the evidence's rater was not in quarantine at `as_of` (None: is not now)."""
    table = RATER_QUARANTINE.c
    during: sa.ColumnElement[bool] = table.until.is_(None)
    if as_of is not None:
        moment = to_micros(as_of)
        during = sa.and_(table.since <= moment, sa.or_(table.until.is_(None), table.until > moment))
    return EvidenceTable.who.not_in(sa.select(table.rater).where(_of(channel), during))


def _of(channel: Channel) -> sa.ColumnElement[bool]:
    table = RATER_QUARANTINE.c
    return sa.and_(table.tenant == channel.tenant, table.domain == channel.domain)


def _mine(channel: Channel, rater: str) -> sa.ColumnElement[bool]:
    return sa.and_(_of(channel), RATER_QUARANTINE.c.rater == rater)


def _quarantined(row: sa.RowMapping) -> Quarantined:
    return Quarantined(
        channel=Channel(row["domain"], row["tenant"]),
        rater=row["rater"],
        since=from_micros(row["since"]),
        until=None if row["until"] is None else from_micros(row["until"]),
        reason=row["reason"],
        by=row["by"],
        released_by=row["released_by"],
        acts=row["acts"],
    )
