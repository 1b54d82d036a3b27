"""How a turn ends: always with one outcome, a reason in words, and what is still needed in numbers.

Reasons name checks, counts and types of errors, never what people wrote.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from plaudit.errors import LearnerProcessLost, PlauditError
from plaudit.release.reading import Refusal


class TurnOutcome(StrEnum):
    """How a turn ended."""

    PROMOTED = "promoted"
    """The candidate is live."""
    GATED = "gated"
    """The gate accepted the candidate; promoting it is an operator's (`learn.promote`, a pinned channel)."""
    OVERTAKEN = "overtaken"
    """Somebody changed the channel during the turn, and the candidate stays gated; or nothing was written.

    Nothing is written if another learner took the channel over, or a person was erased.
    """
    REJECTED = "rejected"
    """The gate refused the candidate."""
    REFUSED = "refused"
    """The reward model was refused: it may steer nothing."""
    NO_PROGRESS = "no_progress"
    """No iterate was better than what is live: there is no candidate."""
    WAITED = "waited"
    """Too little evidence, too few prompts, another learner, or nothing new since a refusal."""
    FAILED = "failed"
    """Something broke; the turn is tried again after a pause."""
    LOST = "lost"
    """A process that shared the turn's passes is gone: the learner ends, to be started again."""


# Something broke, and the log says what.
BREAKS = (TurnOutcome.FAILED, TurnOutcome.LOST)
# Refusals: the same evidence under the same settings would only come to them again.
REFUSALS = (TurnOutcome.REJECTED, TurnOutcome.REFUSED, TurnOutcome.NO_PROGRESS)


@dataclass(frozen=True, slots=True)
class Need:
    """How far a channel is on the way to a turn: `have` of `want` things of one kind."""

    what: str
    have: int
    want: int
    note: str = ""

    @property
    def met(self) -> bool:
        """Whether there is enough."""
        return self.have >= self.want

    def __str__(self) -> str:
        """Return, for example, "142 of 150 comparisons"."""
        return f"{self.have} of {self.want} {self.what}" + (f" ({self.note})" if self.note else "")


class TurnEnded(Exception):
    """Ends a turn before its last step."""

    def __init__(
        self, outcome: TurnOutcome, reason: str, needs: Sequence[Need] = (), refusals: Sequence[Refusal] = ()
    ) -> None:
        super().__init__(reason)
        self.outcome, self.reason, self.needs, self.refusals = outcome, reason, tuple(needs), tuple(refusals)


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What a turn, or a look at a channel that needs none, came to."""

    outcome: TurnOutcome
    reason: str
    needs: tuple[Need, ...] = ()
    version: int | None = None
    evidence: str = ""
    """Digest of the frozen evidence; empty if there is nothing to remember about it."""
    as_of: dt.datetime | None = None
    """When the evidence was frozen."""
    refusals: tuple[Refusal, ...] = ()
    """Checks that failed."""

    @property
    def facts(self) -> dict[str, Any]:
        """What is remembered beside the reason, as plain JSON types."""
        found: dict[str, Any] = {} if self.version is None else {"version": self.version}
        return found | ({"refusals": [asdict(each) for each in self.refusals]} if self.refusals else {})


def require(*needs: Need) -> None:
    """End the turn as waiting if anything is short; the reason has every need, so that nobody meets them singly."""
    if not all(need.met for need in needs):
        raise TurnEnded(TurnOutcome.WAITED, "waits: " + ", ".join(str(need) for need in needs), needs)


def failed(error: Exception) -> Result:
    """The result of what broke: our own message, or the kind of an error whose words may quote people's."""
    reason = error.message if isinstance(error, PlauditError) else f"{type(error).__name__}; the log says where"
    outcome = TurnOutcome.LOST if isinstance(error, LearnerProcessLost) else TurnOutcome.FAILED
    return Result(outcome=outcome, reason=reason)
