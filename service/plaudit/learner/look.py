"""One look at a channel: a turn if it is due, else what it waits for. Never raises what a channel's trouble is.

Enters: a channel. Leaves: a Result, remembered and told. A look costs a few SQL reads; the channel's lease is taken
only for a turn or for what a dead turn left, so that of several learners one works and the others say that they wait.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from dataclasses import dataclass
from pathlib import Path

import structlog
import tenacity

from plaudit.eventlog import Positions
from plaudit.learner import needs
from plaudit.learner.context import Learner
from plaudit.learner.outcome import BREAKS, Need, Result, TurnEnded, TurnOutcome, failed, require
from plaudit.learner.recover import is_left, recover
from plaudit.learner.since import LEASE, learnt_until, settings_digest
from plaudit.learner.survey import Survey, survey
from plaudit.learner.turn import new_turn, run
from plaudit.metrics import set_only
from plaudit.privacy.models import ErasedMeanwhile, erasures_of
from plaudit.release.moves import ChannelState
from plaudit.settings import Settings
from plaudit.store.kept import forget_if_erased
from plaudit.store.leases import Lease, LeaseHeld, LeaseLost
from plaudit.telemetry import places
from plaudit.types import Channel

log = structlog.get_logger(__name__)

FIRST_PAUSE_SECONDS = 2.0
# A look that reads all evidence only to find too little may take at most this share of the time.
SHARE_OF_TIME = 0.05
# Shortest time between two lines of the log that differ in numbers alone.
LINE_SECONDS = 60.0


@dataclass(slots=True)
class Watch:
    """What a process knows of one channel between looks."""

    failures: int = 0
    rest_until: float = 0.0
    told: tuple[object, ...] = ()
    told_reason: str = ""
    told_at: float = -math.inf
    surveyed: Survey | None = None
    surveyed_at: tuple[Positions, tuple[Need, ...]] | None = None


def look(learner: Learner, channel: Channel, watch: Watch, *, force: bool = False) -> Result | None:
    """Run a turn if it is due; None if the channel rests after a failure or has never served.

    With `force` any new evidence is enough and no rest is kept.
    """
    if not force and time.monotonic() < watch.rest_until:
        return None
    began = time.monotonic()
    try:
        state = learner.registry.learning_state(channel)
        if state is None:
            return None
        result = _looked(learner, state, force=force)
        watch.failures = 0
        if [need.what for need in result.needs] == [needs.EVENTS]:
            result = _with_all_needs(learner, state, watch, result)
        if result.outcome is TurnOutcome.WAITED:
            watch.rest_until = time.monotonic() + (time.monotonic() - began) / SHARE_OF_TIME
    except Exception as error:  # the outermost loop: this channel's turn is lost, and others go on
        watch.failures += 1
        result = failed(error)
        pause = _pause(learner.settings.learn.backoff_seconds, watch.failures)
        watch.rest_until = time.monotonic() + pause
        learner.metrics.turns.labels(str(channel), str(result.outcome)).inc()
        with contextlib.suppress(Exception):  # the store may be what failed
            learner.outcomes.remember(channel, "", "", str(result.outcome), result.reason)
        log.error(
            "turn failed",
            channel=str(channel),
            reason=result.reason,
            failures=watch.failures,
            pause_seconds=round(pause, 1),
            places=places(error),
        )
    _tell(learner, channel, watch, result)
    return result


def _looked(learner: Learner, state: ChannelState, *, force: bool) -> Result:
    """The turn's result, or what it waits for."""
    channel = state.channel
    if channel.domain not in learner.plugins:
        return Result(outcome=TurnOutcome.WAITED, reason=f"the domain {channel.domain} is not loaded here")
    settings = learner.settings.for_channel(channel)
    with learner.store.database.reading() as connection:
        forget_if_erased(Path(learner.settings.data_dir), channel, erasures_of(connection, channel))
    try:
        if is_left(learner, channel, may_promote=settings.learn.promote):
            with learner.leases.take(LEASE.format(channel=channel)) as lease:
                recover(learner, channel, lease, may_promote=settings.learn.promote)
            state = learner.registry.learning_state(channel) or state
        _require_new_events(learner, settings, state, force=force)
        with learner.leases.take(LEASE.format(channel=channel)) as lease:
            # Another learner may have ended a turn between the first look and the lease.
            _require_new_events(learner, settings, learner.registry.learning_state(channel) or state, force=force)
            return _turn(learner, channel, settings, lease)
    except TurnEnded as end:
        return Result(outcome=end.outcome, reason=end.reason, needs=end.needs)
    except LeaseHeld as held:
        return Result(outcome=TurnOutcome.WAITED, reason=f"another learner works on it: {held.owner}")
    except LeaseLost:
        reason = "another learner took the channel over; nothing of this turn was written"
        return Result(outcome=TurnOutcome.OVERTAKEN, reason=reason)
    except ErasedMeanwhile:
        reason = "somebody was erased while the turn ran; nothing of it was written, and the next leaves them out"
        return Result(outcome=TurnOutcome.OVERTAKEN, reason=reason)


def _require_new_events(learner: Learner, settings: Settings, state: ChannelState, *, force: bool) -> None:
    channel, declaration = state.channel, learner.plugins[state.channel.domain].declaration
    digest = settings_digest(settings, declaration, learner.registry, state)
    since = learnt_until(learner.registry, learner.outcomes, state, digest)
    salt = learner.registry.salt(channel)
    events = learner.store.count_new(
        channel, salt, since, few_raters=declaration.few_raters, policy_version=declaration.policy_version
    )
    require(*needs.of_events(events, settings.learn, force=force))


def _with_all_needs(learner: Learner, state: ChannelState, watch: Watch, result: Result) -> Result:
    """The result of a look that found too few events, with all that the turn will need, so that nobody meets it singly.

    Evidence is read again only if the join has read on since, or if the number of new events has changed because a
    person was erased, quarantined or released.
    """
    at = (dict(learner.store.positions()), result.needs)
    if watch.surveyed is None or watch.surveyed_at != at:
        declaration, settings = learner.plugins[state.channel.domain].declaration, learner.settings
        watch.surveyed = survey(
            learner.store, learner.registry, learner.outcomes, settings.for_channel(state.channel), declaration, state
        )
        watch.surveyed_at = at
    found = watch.surveyed
    # Whether it is enough to look was decided by the count of this look, which `force` may have lowered.
    every = (*result.needs, *(need for need in found.needs if need.what != needs.EVENTS))
    return dataclasses.replace(result, reason=f"waits: {found.words}", needs=every)


def _turn(learner: Learner, channel: Channel, settings: Settings, lease: Lease) -> Result:
    version = len(learner.registry.releases(channel))
    learner.status.turn(channel, version)
    try:
        with new_turn(learner, channel, settings.learn.seed + version, lease) as turn:
            result = run(turn)
    except (LeaseLost, ErasedMeanwhile):
        learner.metrics.turns.labels(str(channel), str(TurnOutcome.OVERTAKEN)).inc()
        raise
    learner.metrics.turns.labels(str(channel), str(result.outcome)).inc()
    # That a channel waits is told as it is found: remembered, each new act would leave a row.
    if result.evidence and result.outcome is not TurnOutcome.WAITED:
        learner.outcomes.remember(
            channel,
            result.evidence,
            turn.digest,
            str(result.outcome),
            result.reason,
            at=result.as_of,
            facts=result.facts,
        )
    return result


def _pause(longest: float, failures: int) -> float:
    """Seconds before the next try: doubled with each failure, and spread, so that channels do not come together."""
    attempt = tenacity.RetryCallState(tenacity.Retrying(), None, (), {})
    attempt.attempt_number = failures
    wait = tenacity.wait_exponential_jitter(multiplier=FIRST_PAUSE_SECONDS, max=longest, jitter=FIRST_PAUSE_SECONDS / 2)
    return wait(attempt)


def _tell(learner: Learner, channel: Channel, watch: Watch, result: Result) -> None:
    """Status and metrics always; the log per change, at most once per LINE_SECONDS if numbers alone changed."""
    if result.needs:
        metrics, name = learner.metrics, str(channel)
        set_only(metrics.turn_have, {(name, need.what): need.have for need in result.needs}, among=(name,))
        set_only(metrics.turn_want, {(name, need.what): need.want for need in result.needs}, among=(name,))
    if result.outcome is not TurnOutcome.WAITED:
        learner.metrics.last_turn.labels(str(channel), str(result.outcome)).set_to_current_time()
    learner.status.idle(channel, result)
    short = tuple(need.what for need in result.needs if not need.met)
    told = (result.outcome, short) if short else (result.outcome, result.reason)
    numbers = result.reason != watch.told_reason and time.monotonic() - watch.told_at >= LINE_SECONDS
    if (told != watch.told or numbers) and result.outcome not in BREAKS:
        seconds = learner.status.seconds if result.outcome is not TurnOutcome.WAITED else {}
        log.info("turn", channel=str(channel), outcome=str(result.outcome), reason=result.reason, seconds=seconds)
        watch.told_at, watch.told_reason = time.monotonic(), result.reason
    watch.told = told
