"""A decision of the gate, its checks, and what an operator can do about one that failed. Pure."""

from __future__ import annotations

import datetime as dt
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any, Self

from plaudit.release.intervals import Interval


class Outcome(StrEnum):
    """What a set of checks calls for; WAIT if there is too little evidence to judge by."""

    ACCEPT = "accept"
    REFUSE = "refuse"
    WAIT = "wait"


@dataclass(frozen=True, slots=True)
class Check:
    """One condition of the gate: the measured value, what it was held against, and one-sided 95% bounds."""

    name: str
    passed: bool
    value: float
    threshold: float
    low: float | None = None
    high: float | None = None
    note: str = ""


@dataclass(frozen=True, slots=True)
class Decision:
    """The gate's answer with every number behind it."""

    accepted: bool
    checks: tuple[Check, ...]
    decided_at: dt.datetime

    def to_json(self) -> str:
        """JSON for the registry and for people; numbers that were not measured are null."""
        return json.dumps(
            {
                "accepted": self.accepted,
                "decided_at": self.decided_at.isoformat(),
                "checks": [{key: _or_null(value) for key, value in asdict(check).items()} for check in self.checks],
            },
            allow_nan=False,
        )

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The decision that `to_json` wrote."""
        found = json.loads(text)
        checks = tuple(Check(**{**check, **_measured(check)}) for check in found["checks"])
        return cls(found["accepted"], checks, dt.datetime.fromisoformat(found["decided_at"]))


_MOVED_TOO_FAR = "the policy moved too far: lower policy.kl_target or raise policy.kl_coef"
_MORE_FEEDBACK = "more feedback is needed; rankings of several answers teach most"
_MORE_LABELS = "more labels are needed, or a higher policy.label_coef"
_REMEDIES = {
    "gate_prompts": "let people ask more different prompts, or lower gate.min_prompts",
    "win_base": _MORE_FEEDBACK,
    "win_live": _MORE_FEEDBACK,
    "kl_base": _MOVED_TOO_FAR,
    "kl_live": _MOVED_TOO_FAR,
    "distinct_2": _MOVED_TOO_FAR,
    "distinct_masked": _MOVED_TOO_FAR,
    "commonest_opening": _MOVED_TOO_FAR,
    "degenerate": _MOVED_TOO_FAR,
    "probes": "the probes were not run: see the learner's log",
    "reward_comparisons": _MORE_FEEDBACK,
    "reward_raters": "feedback of more people is needed",
    "reward_accuracy": "feedback of more people is needed, or people disagree about what is good",
    "reward_against_live": _MORE_FEEDBACK,
    "reward_base": _MORE_FEEDBACK,
    "reward_live": _MORE_FEEDBACK,
    "order_kl_base": _MOVED_TOO_FAR,
    "order_kl_live": _MOVED_TOO_FAR,
    "commonest_choice": _MOVED_TOO_FAR,
    "coverage": _MOVED_TOO_FAR,
    "labelled_items": "more labels are needed, on more different prompts, or lower gate.min_labelled",
    "label_base": _MORE_LABELS,
    "label_live": _MORE_LABELS,
    "missed_severe": "more labels of severe cases are needed, or a higher cost of missing them (decision.costs)",
}


def remedy(check: Check) -> str:
    """What an operator can do about a failed check."""
    if check.name.startswith("harm_"):
        return "read the answers with `plaudit release probes`; feedback pulls towards this harm"
    if check.name.startswith("term_"):
        return "the domain's own reward lost weight against votes: raise the term's weight in the plugin"
    return _REMEDIES.get(check.name, "see `plaudit release show`")


def problem_of(values: Sequence[float], least: int, *, low: float, high: float) -> str:
    """What is wrong with measured values, in words; empty if nothing is."""
    if len(values) < max(1, least):
        return f"{len(values)} measured, {max(1, least)} are needed"
    if not all(math.isfinite(value) and low <= value <= high for value in values):
        return f"a value is not a number between {low:g} and {high:g}"
    return ""


def missing(name: str, threshold: float, note: str) -> Check:
    """The failed check of what was not measured."""
    return Check(name, False, math.nan, threshold, note=note)


def bounded(name: str, passed: bool, interval: Interval, threshold: float, note: str) -> Check:
    """The check of an interval; the note ends with the threshold."""
    return Check(name, passed, interval.value, threshold, interval.low, interval.high, f"{note} {threshold:g}")


def _or_null(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _measured(check: dict[str, Any]) -> dict[str, Any]:
    return {key: math.nan for key in ("value", "threshold") if check[key] is None}
