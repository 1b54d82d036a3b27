"""Step 7: an accepted candidate goes live, if the channel is still where the turn began."""

from __future__ import annotations

import dataclasses
import datetime as dt

import structlog

import plaudit
from plaudit.errors import GenerationChanged, PlauditError
from plaudit.failpoints import fail_point
from plaudit.learner.context import Learner
from plaudit.learner.outcome import TurnOutcome
from plaudit.release import publish
from plaudit.release.decision import Check, Decision
from plaudit.release.moves import Promote
from plaudit.store.leases import Lease
from plaudit.types import Channel

log = structlog.get_logger(__name__)

ACTOR = "learner"
PRODUCER = f"plaudit-learn/{plaudit.__version__}"
OVERTAKEN = "overtaken"


def promote(learner: Learner, channel: Channel, version: int, generation: int, lease: Lease) -> tuple[TurnOutcome, str]:
    """Make a gated release live from exactly `generation`, and tell the replicas; the outcome and its reason.

    Somebody who rolled back, pinned or promoted meanwhile knew better than a turn that began before: the release
    stays gated, and its decision says so.
    """
    fail_point("learn.7")
    learner.status.step(7, "promote")
    reason = "the gate accepted it"
    try:
        change = learner.registry.change(
            channel,
            Promote(version),
            expected_generation=generation,
            actor=ACTOR,
            reason=reason,
            guard=lease.check,
        )
    except GenerationChanged:
        return TurnOutcome.OVERTAKEN, overtake(learner, channel, version, generation, lease)
    try:
        publish.publish(learner.log, change, actor=ACTOR, reason=reason, producer=PRODUCER)
    except PlauditError as error:  # it is live: replicas find it when they look at the registry
        log.warning("replicas were not told of a release", channel=str(channel), version=version, why=error.message)
    return TurnOutcome.PROMOTED, reason


def overtake(learner: Learner, channel: Channel, version: int, generation: int, lease: Lease) -> str:
    """Record in a gated release's decision that its channel moved on; the reason in words."""
    registry = learner.registry
    state = registry.state(channel)
    found = state.generation if state else generation
    note = f"the turn began at generation {generation}, the channel is at {found}: promote {version} by hand, or not"
    decision = Decision.from_json(registry.release(channel, version).decision_json)
    check = Check(OVERTAKEN, False, float(found), float(generation), note=note)
    now = dt.datetime.now(dt.UTC)
    overtaken = dataclasses.replace(decision, checks=(*decision.checks, check), decided_at=now)
    registry.decide(channel, version, overtaken, guard=lease.check)
    log.warning("overtaken", channel=str(channel), version=version, began=generation, found=found)
    return note
