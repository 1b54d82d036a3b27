"""A gate's decision in words: what the candidate gained, and of each failed check the value, the bound and what to do.

Enters: a decision. Leaves: facts and sentences for the log, `plaudit status` and `plaudit release list`. Pure. Holds
names of checks and numbers, never what people wrote.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from plaudit.release.decision import Check, Decision, remedy

# What says how much better a candidate is than the base: of completions and of choices.
_GAINS = {"win_base": "wins against the base", "reward_base": "reward gained on the base"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """A failed check: its value with one-sided 95% bounds (None if there is none), its bound, and what to do."""

    check: str
    value: float | None
    bound: float
    low: float | None
    high: float | None
    note: str
    next_step: str

    def __str__(self) -> str:
        """Return, for example, "kl_base 17 [16, 18], bound 16 (nats per sequence): lower policy.kl_target"."""
        value = "not measured" if self.value is None else f"{self.value:.3g}"
        note = f" ({self.note})" if self.note else ""
        return f"{self.check} {value}{_interval(self.low, self.high)}, bound {self.bound:.3g}{note}: {self.next_step}"


def refusals(checks: Iterable[Check]) -> tuple[Refusal, ...]:
    """The failed checks."""
    return tuple(
        Refusal(
            check=check.name,
            value=check.value if math.isfinite(check.value) else None,
            bound=check.threshold,
            low=check.low,
            high=check.high,
            note=check.note,
            next_step=remedy(check),
        )
        for check in checks
        if not check.passed
    )


def failed_checks(checks: Iterable[Check]) -> str:
    """Each failed check with its value, its bound, its note, and what to do, in one line."""
    return "; ".join(str(each) for each in refusals(checks))


def gain(decision: Decision) -> str:
    """How much better than the base the candidate is, with its interval; empty if that was not measured."""
    for check in decision.checks:
        if check.name in _GAINS and math.isfinite(check.value):
            return f"{_GAINS[check.name]}: {check.value:.3g}{_interval(check.low, check.high)}"
    return ""


def _interval(low: float | None, high: float | None) -> str:
    return "" if low is None or high is None else f" [{low:.3g}, {high:.3g}]"
