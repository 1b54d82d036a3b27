"""One move of a channel inside the caller's transaction: checks it, and makes it by compare-and-set.

Enters: the state that the caller read, and the move. Leaves: the channel's next state, the releases that enter and
leave service, and a line of history; or None, and then the caller rolls back. Only `Registry.change` calls this.
"""

from __future__ import annotations

import datetime as dt

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from plaudit.errors import WrongState
from plaudit.release.moves import Change, ChannelState, Move, Pin, Promote, ReleaseRow, ReleaseState, RollBack
from plaudit.release.rows import erased_versions, read_history, read_release, read_state
from plaudit.release.tables import CHANNEL_CHANGE, CHANNEL_STATE, RELEASE

_PROMOTABLE = (ReleaseState.GATED, ReleaseState.RETIRED)


def make_move(connection: Connection, state: ChannelState, move: Move, actor: str, reason: str) -> Change | None:
    """Makes the move in the open transaction; None if a rival changed the channel meanwhile."""
    channel = state.channel
    entering, pinned = None, state.pinned
    match move:
        case Promote(version):
            entering = _promotion_target(connection, state, version)
        case RollBack(to_version):
            entering = _rollback_target(connection, state, to_version)
        case Pin(wanted):
            pinned = wanted
    live = state.live if entering is None else entering.version
    values = {"generation": state.generation + 1, "live": live, "pinned": pinned}
    unchanged = (CHANNEL_STATE.c.channel == str(channel)) & (CHANNEL_STATE.c.generation == state.generation)
    if connection.execute(sa.update(CHANNEL_STATE).where(unchanged).values(**values)).rowcount != 1:
        return None
    if entering is not None and not _swap(connection, state, entering, taken_back=isinstance(move, RollBack)):
        return None
    row = {
        **values,
        "channel": str(channel),
        "move": str(move),
        "at": dt.datetime.now(dt.UTC),
        "actor": actor,
        "reason": reason,
    }
    connection.execute(sa.insert(CHANNEL_CHANGE).values(**row))
    after = read_state(connection, channel)
    assert after is not None
    return Change(after, read_release(connection, channel, live))


def _promotion_target(connection: Connection, state: ChannelState, version: int) -> ReleaseRow:
    row = read_release(connection, state.channel, version)
    if state.pinned:
        raise WrongState(
            f"{state.channel} is pinned to version {state.live}; unpin it before promoting {version}",
            version=version,
            state="pinned",
            wanted="unpinned",
        )
    if row.state not in _PROMOTABLE:
        raise wrong_state(row, "promoted", _PROMOTABLE)
    return row


def _rollback_target(connection: Connection, state: ChannelState, to_version: int | None) -> ReleaseRow:
    if to_version is not None:
        row = read_release(connection, state.channel, to_version)
        if row.state is not ReleaseState.RETIRED:
            raise wrong_state(row, "rolled back to", (ReleaseState.RETIRED,))
        return row
    for earlier in reversed(read_history(connection, state.channel)):
        if earlier.live != state.live:
            row = read_release(connection, state.channel, earlier.live)
            if row.state is ReleaseState.RETIRED:
                return row
    raise WrongState(
        f"{state.channel} has nothing before version {state.live} to roll back to; name a retired version",
        version=state.live,
        state=str(ReleaseState.LIVE),
        wanted=str(ReleaseState.RETIRED),
    )


def _swap(connection: Connection, state: ChannelState, entering: ReleaseRow, *, taken_back: bool) -> bool:
    """Marks the releases that leave and enter service; false if either was moved meanwhile."""
    leaving = read_release(connection, state.channel, state.live)
    # The base stays within reach: a channel can always go back to it.
    mark = ReleaseState.ROLLED_BACK if taken_back and leaving.version != 0 else ReleaseState.RETIRED
    if leaving.version in erased_versions(connection, state.channel):
        mark = ReleaseState.REJECTED  # it learnt from somebody who was erased: nobody takes it into service again
    return _set_state(connection, leaving, mark) and _set_state(connection, entering, ReleaseState.LIVE)


def _set_state(connection: Connection, row: ReleaseRow, state: ReleaseState) -> bool:
    """Moves a release on from the state in which it was read; false if somebody moved it meanwhile."""
    values: dict[str, str] = {"state": str(state)}
    if row.state is ReleaseState.GATED:
        values["skipped"] = f"{ReleaseState.SHADOW},{ReleaseState.CANARY}"
    as_read = (RELEASE.c.channel == str(row.channel)) & (RELEASE.c.version == row.version)
    as_read &= RELEASE.c.state == str(row.state)
    return connection.execute(sa.update(RELEASE).where(as_read).values(**values)).rowcount == 1


def wrong_state(row: ReleaseRow, verb: str, wanted: tuple[ReleaseState, ...]) -> WrongState:
    """The error for a release that a move or decision does not fit."""
    names = " or ".join(wanted)
    return WrongState(
        f"{row.channel}@{row.version} is {row.state} and can be {verb} only if it is {names}",
        version=row.version,
        state=row.state,
        wanted=names,
    )
