"""What a turn does differently by kind of action, behind one seam; `of` is the one place that asks for the kind."""

from __future__ import annotations

from plaudit.learner.actions.choices import Choices
from plaudit.learner.actions.completions import Completions
from plaudit.learner.actions.protocol import ActionPolicy
from plaudit.types import Action

__all__ = ["of"]


def of(action: Action) -> ActionPolicy:
    """How a turn works with actions of a kind."""
    return Choices() if action is Action.CHOICE else Completions()
