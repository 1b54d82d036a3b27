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
    measured_values = {(channel, check.name): check.value for check in decision.checks if math.isfinite(check.value)}
    for gauge, values in (
        (metrics.gate_check, measured_values),
        (metrics.gate_bound, {(channel, check.name): check.threshold for check in decision.checks}),
        (metrics.gate_passed, {(channel, check.name): float(check.passed) for check in decision.checks}),
    ):
        set_only(gauge, values, among=(channel,))
    metrics.gate_decisions.labels(channel, str(decision.accepted).lower()).inc()
    log.info(
        "gate", channel=channel, version=row.version, accepted=decision.accepted, failed=failed_checks(decision.checks)
    )
    return decision
