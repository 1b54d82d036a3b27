"""Step 6: the gate's decision about a registered candidate, recorded with its numbers."""

from __future__ import annotations

import math

import structlog

from plaudit.learner.actions.protocol import Fitted, Measured
from plaudit.learner.context import Turn
from plaudit.metrics import set_only
from plaudit.release import gate
from plaudit.release.decision import Decision
from plaudit.release.moves import ReleaseRow
from plaudit.release.reading import failed_checks

log = structlog.get_logger(__name__)


def decide(turn: Turn, fitted: Fitted, measured: Measured, row: ReleaseRow) -> Decision:
    """Decide, and record it."""
    turn.begin(6, "decide")
    metrics, channel = turn.learner.metrics, str(turn.channel)
    decision = gate.decide(measured.measurements, turn.settings.gate, seed=turn.seed, slices=fitted.slices)
    turn.learner.registry.decide(turn.channel, row.version, decision, guard=turn.guard)
    for gauge, values in (
        (metrics.gate_check, {each.name: each.value for each in decision.checks if math.isfinite(each.value)}),
        (metrics.gate_bound, {each.name: each.threshold for each in decision.checks}),
        (metrics.gate_passed, {each.name: float(each.passed) for each in decision.checks}),
    ):
        set_only(gauge, {(channel, name): value for name, value in values.items()}, among=(channel,))
    metrics.gate_decisions.labels(channel, str(decision.accepted).lower()).inc()
    log.info(
        "gate", channel=channel, version=row.version, accepted=decision.accepted, failed=failed_checks(decision.checks)
    )
    return decision
