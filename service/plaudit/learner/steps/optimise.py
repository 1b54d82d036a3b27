"""Step 3: the optimiser makes a candidate adapter out of prompts of train groups and the reward model."""

from __future__ import annotations

from plaudit.learner import actions
from plaudit.learner.actions.protocol import Fitted, Frozen
from plaudit.learner.context import Turn
from plaudit.learner.outcome import TurnEnded, TurnOutcome
from plaudit.policy.optimizer import Optimised


def optimise(turn: Turn, frozen: Frozen, fitted: Fitted) -> Optimised:
    """The candidate's adapter; ends the turn if nothing was better than what is live."""
    turn.begin(3, "policy")
    optimised = actions.of(turn.plugin.declaration.action).optimise(turn, frozen, fitted)
    if not optimised.progressed:
        raise TurnEnded(TurnOutcome.NO_PROGRESS, optimised.why)
    return optimised
