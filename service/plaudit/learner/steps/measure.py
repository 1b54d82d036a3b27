"""Step 4: what the gate will decide by: the candidate's answers to gate prompts beside those of base and live.

Judged by the gate's reward model, on prompts that no update has seen.
"""

from __future__ import annotations

from plaudit.learner import actions
from plaudit.learner.actions.protocol import Fitted, Frozen, Measured
from plaudit.learner.context import Turn
from plaudit.policy.optimizer import Optimised


def measure(turn: Turn, frozen: Frozen, fitted: Fitted, optimised: Optimised) -> Measured:
    """Ask candidate, base and live the gate's prompts."""
    turn.begin(4, "measure")
    measured = actions.of(turn.plugin.declaration.action).measure(turn, frozen, fitted, optimised)
    turn.learner.metrics.policy_kl.labels(str(turn.channel)).set(measured.kl)
    return measured
