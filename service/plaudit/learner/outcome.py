"""How a turn ends: always with one outcome and a reason in words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum


class TurnOutcome(StrEnum):
    """How a turn ended."""

    PROMOTED = "promoted"
    """The candidate is live."""
    GATED = "gated"
    """The gate accepted the candidate; promoting it is an operator's (`learn.promote`, a pinned channel)."""
    OVERTAKEN = "overtaken"
    """The gate accepted the candidate, and somebody changed the channel meanwhile: it stays gated."""
    REJECTED = "rejected"
    """The gate refused the candidate."""
    REFUSED = "refused"
    """The reward model was refused: it may steer nothing."""
    NO_PROGRESS = "no_progress"
    """No iterate was better than the live release: there is no candidate."""
    WAITED = "waited"
    """Too little evidence, or too few prompts."""
    FAILED = "failed"
    """Something broke; the turn is tried again after a pause."""


# What the same evidence under the same settings would only come to again.
FINAL = frozenset(
    {TurnOutcome.REJECTED, TurnOutcome.REFUSED, TurnOutcome.NO_PROGRESS, TurnOutcome.OVERTAKEN, TurnOutcome.WAITED}
)


@dataclass(frozen=True, slots=True)
class Need:
    """How far a channel is on the way to something: `have` of `want` things of one kind."""

    what: str
    have: int
    want: int

    @property
    def met(self) -> bool:
        """Whether there is enough."""
        return self.have >= self.want

    def __str__(self) -> str:
        """Return, for example, "142 of 150 comparisons"."""
        return f"{self.have} of {self.want} {self.what}"


class TurnEnded(Exception):
    """Ends a turn before its last step. `needs` says in numbers what a turn that waits is waiting for."""

    def __init__(self, outcome: TurnOutcome, reason: str, needs: Sequence[Need] = ()) -> None:
        super().__init__(reason)
        self.outcome, self.reason, self.needs = outcome, reason, tuple(needs)


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What a turn came to. `evidence` is the frozen evidence's digest, empty if the turn ended before it was known."""

    outcome: TurnOutcome
    reason: str
    needs: tuple[Need, ...] = ()
    version: int | None = None
    evidence: str = ""


def require(*needs: Need) -> None:
    """End the turn as waiting if anything is short; the reason lists every need, so that nobody meets them singly."""
    if not all(need.met for need in needs):
        raise TurnEnded(TurnOutcome.WAITED, "waits: " + ", ".join(str(need) for need in needs), needs)
