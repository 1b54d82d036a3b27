"""Reads the registry's tables inside a connection that the caller opened. Never writes."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.engine import Connection, RowMapping

from plaudit.errors import UnknownChannel, UnknownRelease
from plaudit.release.moves import ChangeRow, ChannelState, ReleaseRow, ReleaseState
from plaudit.release.tables import CHANNEL_CHANGE, CHANNEL_STATE, ERASED_RELEASE, RELEASE
from plaudit.types import Channel


def read_state(connection: Connection, channel: Channel) -> ChannelState | None:
    """What the channel serves; None if it has never served."""
    query = sa.select(CHANNEL_STATE).where(CHANNEL_STATE.c.channel == str(channel))
    row = connection.execute(query).mappings().one_or_none()
    return None if row is None else channel_state(row)


def channel_state(row: RowMapping) -> ChannelState:
    """A channel's state from its row."""
    return ChannelState(Channel.parse(row["channel"]), row["generation"], row["live"], row["canary"], row["pinned"])


def read_release(connection: Connection, channel: Channel, version: int) -> ReleaseRow:
    """One release; raises UnknownRelease."""
    query = sa.select(RELEASE).where(RELEASE.c.channel == str(channel), RELEASE.c.version == version)
    row = connection.execute(query).mappings().one_or_none()
    if row is None:
        raise UnknownRelease(
            f"{channel} has no release {version}; list its releases to see those it has",
            channel=channel,
            version=version,
        )
    return release_row(row)


def release_row(row: RowMapping) -> ReleaseRow:
    """A release from its row."""
    skipped = tuple(ReleaseState(name) for name in row["skipped"].split(",") if name)
    channel, state = Channel.parse(row["channel"]), ReleaseState(row["state"])
    return ReleaseRow(channel, row["version"], row["digest"], state, row["created_at"], row["decision"], skipped)


def read_history(connection: Connection, channel: Channel) -> list[ChangeRow]:
    """Every change of the channel, oldest first."""
    table = CHANNEL_CHANGE
    query = sa.select(
        table.c.generation, table.c.live, table.c.at, table.c.actor, table.c.reason, table.c.move, table.c.pinned
    )
    rows = connection.execute(query.where(table.c.channel == str(channel)).order_by(table.c.generation))
    return [ChangeRow(*row) for row in rows]


def erased_versions(connection: Connection, channel: Channel) -> frozenset[int]:
    """Releases that learnt from somebody who has been erased."""
    query = sa.select(ERASED_RELEASE.c.version).where(ERASED_RELEASE.c.channel == str(channel))
    return frozenset(connection.execute(query).scalars())


def unknown_channel(channel: Channel) -> UnknownChannel:
    """The error for a channel without a state."""
    return UnknownChannel(f"{channel} has never served; a channel begins with its first request", channel=channel)
