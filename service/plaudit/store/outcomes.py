"""What became of turns: remembered by what they were made of, so that a refusal is not computed again."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import sqlalchemy as sa

from plaudit.store.database import METADATA, Database, UtcTime
from plaudit.types import Channel

TURN_OUTCOME = sa.Table(
    "turn_outcome",
    METADATA,
    sa.Column("channel", sa.String(200), primary_key=True),
    sa.Column("evidence_digest", sa.String(64), primary_key=True),
    sa.Column("settings_digest", sa.String(64), primary_key=True),
    sa.Column("outcome", sa.String(32), nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("at", UtcTime, nullable=False),
    sa.Column("facts", sa.Text, nullable=False, server_default="{}"),
    sa.Index("turn_outcome_by_time", "channel", "at"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class RememberedTurn:
    """How a turn from this evidence under these settings ended, the last time, and how often it was tried.

    `facts`, if there are any: `version` that it made, and `refusals` with check, value, bound and next step.
    """

    channel: Channel
    evidence_digest: str
    settings_digest: str
    outcome: str
    reason: str
    attempts: int
    at: dt.datetime
    facts: Mapping[str, Any] = field(default_factory=dict)


class TurnOutcomes:
    """The remembered turns of every channel."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def find(self, channel: Channel, evidence_digest: str, settings_digest: str) -> RememberedTurn | None:
        """What became of a turn from this evidence under these settings; None if there was none."""
        query = sa.select(TURN_OUTCOME).where(_is(channel, evidence_digest, settings_digest))
        with self._database.reading() as connection:
            row = connection.execute(query).mappings().one_or_none()
        return None if row is None else _remembered(row)

    def last(
        self, channel: Channel, *, settings_digest: str | None = None, outcomes: Sequence[str] = ()
    ) -> RememberedTurn | None:
        """The channel's newest turn, of those under the settings and with one of the outcomes that are given."""
        query = sa.select(TURN_OUTCOME).where(TURN_OUTCOME.c.channel == str(channel))
        if settings_digest is not None:
            query = query.where(TURN_OUTCOME.c.settings_digest == settings_digest)
        if outcomes:
            query = query.where(TURN_OUTCOME.c.outcome.in_([str(outcome) for outcome in outcomes]))
        newest = (TURN_OUTCOME.c.at.desc(), TURN_OUTCOME.c.evidence_digest, TURN_OUTCOME.c.settings_digest)
        with self._database.reading() as connection:
            row = connection.execute(query.order_by(*newest).limit(1)).mappings().one_or_none()
        return None if row is None else _remembered(row)

    def recent(self, channel: Channel, most: int) -> list[RememberedTurn]:
        """The channel's newest turns, the newest first."""
        query = sa.select(TURN_OUTCOME).where(TURN_OUTCOME.c.channel == str(channel))
        newest = (TURN_OUTCOME.c.at.desc(), TURN_OUTCOME.c.evidence_digest, TURN_OUTCOME.c.settings_digest)
        with self._database.reading() as connection:
            rows = connection.execute(query.order_by(*newest).limit(most)).mappings().all()
        return [_remembered(row) for row in rows]

    def remember(
        self,
        channel: Channel,
        evidence_digest: str,
        settings_digest: str,
        outcome: str,
        reason: str,
        *,
        at: dt.datetime | None = None,
        facts: Mapping[str, Any] = MappingProxyType({}),
    ) -> RememberedTurn:
        """Notes how a turn ended; a repeat replaces outcome, reason and time, and counts one attempt more.

        `at` is the time as of which the turn saw the evidence; the present if it is not given.
        """
        mine = _is(channel, evidence_digest, settings_digest)
        with self._database.writing() as connection:
            values = {
                "outcome": outcome,
                "reason": reason.replace("\0", "\ufffd"),
                "at": at or self._database.now(connection),
                "facts": json.dumps(dict(facts)),
            }
            update = sa.update(TURN_OUTCOME).where(mine).values(attempts=TURN_OUTCOME.c.attempts + 1, **values)
            if connection.execute(update).rowcount == 0:
                key = {"evidence_digest": evidence_digest, "settings_digest": settings_digest}
                connection.execute(sa.insert(TURN_OUTCOME).values(channel=str(channel), attempts=1, **key, **values))
            return _remembered(connection.execute(sa.select(TURN_OUTCOME).where(mine)).mappings().one())


def _is(channel: Channel, evidence_digest: str, settings_digest: str) -> sa.ColumnElement[bool]:
    return sa.and_(
        TURN_OUTCOME.c.channel == str(channel),
        TURN_OUTCOME.c.evidence_digest == evidence_digest,
        TURN_OUTCOME.c.settings_digest == settings_digest,
    )


def _remembered(row: sa.RowMapping) -> RememberedTurn:
    return RememberedTurn(**{**row, "channel": Channel.parse(row["channel"]), "facts": json.loads(row["facts"])})
