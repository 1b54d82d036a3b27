"""Releases that learnt from somebody who was erased: which they are, and how the live one leaves service.

Enters: an erasure's channels. Leaves: marks on releases, and roll-backs. A release is marked if it learnt from an act
of the person, which the lineage tells; if it was made when a question of the person was there, which it may have been
trained to answer; or if it was trained on from one that is marked. Of a release whose acts were not kept, it is marked
if its evidence was read after the first that came from the person: too many rather than too few. A
marked release that is not live is rejected at once. The live one goes on until the next turn, which leaves the person
out and begins from the base, replaces it; if none has by `privacy.retrain_days`, it is rolled back to the newest one
that is not marked, the base at last, pinned or not.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Collection, Iterable
from dataclasses import dataclass

import sqlalchemy as sa
import structlog

from plaudit import __version__
from plaudit.errors import BadArtifact, GenerationChanged, PlauditError
from plaudit.eventlog import EventLog
from plaudit.evidence.tables import to_micros
from plaudit.privacy.tables import ERASED_CHANNEL
from plaudit.release import lineage, publish
from plaudit.release.moves import ChannelState, ReleaseRow, RollBack
from plaudit.release.registry import Erased, Registry
from plaudit.release.tables import CHANNEL_STATE, ERASED_RELEASE
from plaudit.store.database import Database
from plaudit.types import Channel

ACTOR = "privacy"
PRODUCER = f"plaudit-join/{__version__}"

_log = structlog.get_logger(__name__)


class ErasedMeanwhile(Exception):
    """Somebody was erased while a turn ran; what the turn learnt must not be written."""


def note_channel(connection: sa.Connection, erasure_id: str, channel: Channel, since: int) -> None:
    """Notes that a channel had something of the person, at the earliest from `since` (microseconds since 1970)."""
    table = ERASED_CHANNEL.c
    mine = (table.erasure_id == erasure_id) & (table.channel == str(channel))
    known = connection.execute(sa.select(table.since).where(mine)).scalar_one_or_none()
    if known is None:
        values = {"erasure_id": erasure_id, "channel": str(channel), "since": since}
        connection.execute(sa.insert(ERASED_CHANNEL).values(values))
    elif since < known:
        connection.execute(sa.update(ERASED_CHANNEL).where(mine).values(since=since))


def erasures_of(connection: sa.Connection, channel: Channel) -> int:
    """How many erasures have reached a channel: a turn must write under the same number that it began with."""
    query = sa.select(sa.func.count()).where(ERASED_CHANNEL.c.channel == str(channel))
    return int(connection.execute(query).scalar_one())


def check_nobody_erased(database: Database, connection: sa.Connection, channel: Channel, began_with: int) -> None:
    """Raises ErasedMeanwhile if an erasure has reached the channel since; none does until the transaction ends."""
    database.fence(connection, alone=False)
    if erasures_of(connection, channel) != began_with:
        raise ErasedMeanwhile(str(channel))


@dataclass(frozen=True, slots=True, kw_only=True)
class Learnt:
    """What a channel had of a person.

    `first`: when the first of it came; `first_question`: the first interaction, None if there was none; `versions`:
    those that learnt from the person's acts.
    """

    first: dt.datetime
    first_question: dt.datetime | None
    versions: Collection[int]


def mark(registry: Registry, channel: Channel, had: Learnt, erasure_id: str, retire_by: int) -> list[int]:
    """Marks the channel's releases that may have learnt from the person; returns their versions."""
    with registry.database.writing() as connection:
        registry.database.fence(connection, alone=True)  # a turn that registers now is seen, or sees the erasure
        affected: list[int] = []
        telling = lineage.versions_that_tell(connection, channel)
        for row in registry.releases(channel):
            since = had.first_question if row.version in telling else had.first
            if row.version in had.versions or (row.version and _learnt(registry, row, since, affected)):
                affected.append(row.version)
        registry.mark_erased(connection, channel, affected, Erased(erasure_id, retire_by))
    return affected


def retire_overdue(registry: Registry, log: EventLog | None, now: dt.datetime) -> list[str]:
    """Rolls back live releases whose time is over; returns "channel@version" of each."""
    gone = []
    for state, marked in _live_and_marked(registry.database):
        if marked.retire_by > to_micros(now):
            continue
        reason = f"release {state.live} learnt from somebody who was erased (erasure {marked.erasure_id})"
        try:
            change = registry.change(
                state.channel, RollBack(), expected_generation=state.generation, actor=ACTOR, reason=reason
            )
        except GenerationChanged:
            continue  # somebody changed the channel: the next look decides again
        gone.append(f"{state.channel}@{state.live}")
        _log.warning("erasure.rolled_back", channel=str(state.channel), version=state.live, to=change.state.live)
        if log is None:
            continue
        try:
            publish.publish(log, change, actor=ACTOR, reason=reason, producer=PRODUCER)
        except PlauditError as error:  # replicas poll the state
            _log.warning("erasure.roll_back_not_published", why=error.message)
    return gone


def any_live(database: Database, releases: Iterable[str]) -> bool:
    """Whether one of these releases ("channel@version") is in service."""
    with database.reading() as connection:
        rows = connection.execute(sa.select(CHANNEL_STATE.c.channel, CHANNEL_STATE.c.live))
        live = {f"{channel}@{version}" for channel, version in rows}
    return not live.isdisjoint(releases)


def _learnt(registry: Registry, row: ReleaseRow, since: dt.datetime | None, affected: list[int]) -> bool:
    try:
        manifest = registry.manifest(row.channel, row.version)
    except BadArtifact:
        return True  # nobody can tell
    read_later = manifest.as_of is not None and since is not None and manifest.as_of >= since
    return read_later or manifest.parent in affected


def _live_and_marked(database: Database) -> list[tuple[ChannelState, Erased]]:
    state, marked = CHANNEL_STATE.c, ERASED_RELEASE.c
    query = sa.select(
        state.channel, state.generation, state.live, state.canary, state.pinned, marked.erasure_id, marked.retire_by
    ).select_from(
        CHANNEL_STATE.join(ERASED_RELEASE, (marked.channel == state.channel) & (marked.version == state.live))
    )
    with database.reading() as connection:
        return [
            (ChannelState(Channel.parse(channel), generation, live, canary, pinned), Erased(erasure_id, retire_by))
            for channel, generation, live, canary, pinned, erasure_id, retire_by in connection.execute(query)
        ]
