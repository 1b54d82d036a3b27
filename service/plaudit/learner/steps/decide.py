"""Step 6: the gate's decision about a registered candidate, recorded with its numbers."""

from __future__ import annotations

import math

import structlog

from plaudit.learner.actions.protocol import Fitted, Measured
from plaudit.learner.context import Turn
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
    for check in decision.checks:
        if math.isfinite(check.value):
            metrics.gate_check.labels(channel, check.name).set(check.value)
        metrics.gate_bound.labels(channel, check.name).set(check.threshold)
        metrics.gate_passed.labels(channel, check.name).set(check.passed)
    metrics.gate_decisions.labels(channel, str(decision.accepted).lower()).inc()
    log.info(
        "gate", channel=channel, version=row.version, accepted=decision.accepted, failed=failed_checks(decision.checks)
    )
    return decision
