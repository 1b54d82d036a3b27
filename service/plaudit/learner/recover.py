"""Completes or rejects what a turn that died after step 5 has left. Only the holder of the channel's lease calls it."""

from __future__ import annotations

import datetime as dt

import structlog

from plaudit.learner.context import Learner
from plaudit.learner.steps.promote import OVERTAKEN, overtake, promote
from plaudit.release.decision import Check, Decision
from plaudit.release.moves import ReleaseRow, ReleaseState
from plaudit.store.leases import Lease
from plaudit.types import Channel

# Check of a release that an operator brought: promoting it is the operator's, too.
IMPORTED = "imported"

log = structlog.get_logger(__name__)


def is_left(learner: Learner, channel: Channel, *, may_promote: bool) -> bool:
    """Whether there is something to recover, or a turn of another learner under way."""
    releases, state = learner.registry.releases(channel), learner.registry.state(channel)
    if any(row.state is ReleaseState.TRAINED and row.version for row in releases):
        return True
    waits = releases[-1].state is ReleaseState.GATED and not _is_an_operators(releases[-1])
    return waits and may_promote and state is not None and not state.pinned


def recover(learner: Learner, channel: Channel, lease: Lease, *, may_promote: bool) -> None:
    """Reject releases without a decision; promote a gated one if the channel is still where its turn began."""
    releases = learner.registry.releases(channel)
    for row in releases:
        if row.state is ReleaseState.TRAINED and row.version:
            check = Check("interrupted", False, 0.0, 0.0, note="the turn ended before its decision")
            decision = Decision(False, (check,), dt.datetime.now(dt.UTC))
            learner.registry.decide(channel, row.version, decision, guard=lease.check)
            log.warning("rejected what an interrupted turn left", channel=str(channel), version=row.version)
    newest = releases[-1]
    if newest.state is ReleaseState.GATED and may_promote and not _is_an_operators(newest):
        _promote(learner, channel, newest, lease)


def _promote(learner: Learner, channel: Channel, row: ReleaseRow, lease: Lease) -> None:
    manifest, state = learner.registry.manifest(channel, row.version), learner.registry.state(channel)
    if state is None or state.pinned:
        return
    # A release of v0.1.0 does not say from which generation its turn began.
    if manifest.generation is None or manifest.parent != state.live:
        overtake(learner, channel, row.version, manifest.generation or 0, lease)
        return
    log.warning("promoting what an interrupted turn left", channel=str(channel), version=row.version)
    promote(learner, channel, row.version, manifest.generation, lease)


def _is_an_operators(row: ReleaseRow) -> bool:
    return any(check.name in (OVERTAKEN, IMPORTED) for check in Decision.from_json(row.decision_json).checks)
