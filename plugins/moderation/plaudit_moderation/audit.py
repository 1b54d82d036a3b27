"""Which items people look at, and what that says about the items that nobody looked at. Pure.

Moderators who see flagged items alone never learn what passed by mistake. So a share of the items that were allowed is
drawn for them, with a known probability (its propensity), and each miss that they find counts for the items that it
was drawn from: the share of misses is estimated by inverse propensity (Horvitz and Thompson 1952; Hajek 1971).
"""

from __future__ import annotations

import hashlib
import hmac
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

Z95 = 1.959964


class Why(StrEnum):
    """Why an item is shown to people, or not."""

    FLAGGED = "flagged"
    UNSURE = "unsure"
    AUDIT = "audit"
    PASSED = "passed"


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditPlan:
    """Which items are shown to people.

    `share`: of the items that pass, how many are drawn (0 to 1, above 0). `sure`: probability of passing below which an
    item is always shown. `key`: secret, or authors could tell which of their items are looked at.
    """

    key: bytes
    passing: frozenset[str] = frozenset({"allowed"})
    share: float = 0.02
    sure: float = 0.8

    def __post_init__(self) -> None:
        """Raises ValueError for a share that draws nothing, and for an empty key."""
        if not 0.0 < self.share <= 1.0:
            raise ValueError(f"share is {self.share}; an audit draws more than 0 and at most 1 of what passes")
        if not self.key:
            raise ValueError("key is empty; give a secret of 16 bytes or more")


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawn:
    """Keep it with the case. `propensity`: probability with which an item like this is shown to people."""

    shown: bool
    why: Why
    propensity: float


def draw(plan: AuditPlan, interaction_id: str, decision: str, probabilities: Mapping[str, float]) -> Drawn:
    """Whether people see this item. The same arguments give the same answer, so that it can be told from the log.

    decision: the verdict in force. probabilities: of each verdict, as `Choose` returned them.
    """
    if decision not in plan.passing:
        return Drawn(shown=True, why=Why.FLAGGED, propensity=1.0)
    if sum(probabilities.get(verdict, 0.0) for verdict in sorted(plan.passing)) < plan.sure:
        return Drawn(shown=True, why=Why.UNSURE, propensity=1.0)
    mac = hmac.new(plan.key, interaction_id.encode(), hashlib.sha256).digest()
    shown = int.from_bytes(mac[:8], "big") < plan.share * 2**64
    return Drawn(shown=shown, why=Why.AUDIT if shown else Why.PASSED, propensity=plan.share)


@dataclass(frozen=True, slots=True)
class Audited:
    """An item that passed and that people looked at. `missed`: they found that it must not have passed."""

    propensity: float
    missed: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class MissRate:
    """Estimated share of the passed items that must not have passed, with a 95% interval.

    `audited`: items that people looked at. `effective`: as many equally weighted ones would tell as much.
    """

    rate: float
    low: float
    high: float
    audited: int
    effective: float


def miss_rate(items: Sequence[Audited]) -> MissRate:
    """Share of misses among all items that passed, from those that were looked at.

    Each item counts 1 / propensity, over the sum of all (Hajek). The interval is Wilson's with the effective sample
    size (sum w)^2 / sum w^2 (Kish 1965) for the count: it does not shrink to a point if no miss was found. Raises
    ValueError for a propensity outside (0, 1]; without items nothing is known: (nan, 0, 1).
    """
    for item in items:
        if not 0.0 < item.propensity <= 1.0:
            raise ValueError(f"propensity is {item.propensity}; it lies above 0 and is at most 1")
    if not items:
        return MissRate(rate=math.nan, low=0.0, high=1.0, audited=0, effective=0.0)
    weights = [1.0 / item.propensity for item in items]
    total = math.fsum(weights)
    rate = math.fsum(weight for weight, item in zip(weights, items, strict=True) if item.missed) / total
    effective = total**2 / math.fsum(weight * weight for weight in weights)
    low, high = _wilson(rate, effective)
    return MissRate(rate=rate, low=low, high=high, audited=len(items), effective=effective)


def _wilson(rate: float, count: float) -> tuple[float, float]:
    """Wilson's 95% interval of a share (Wilson 1927)."""
    square = Z95 * Z95
    middle = (rate + square / (2 * count)) / (1 + square / count)
    half = Z95 / (1 + square / count) * math.sqrt(rate * (1 - rate) / count + square / (4 * count * count))
    return max(0.0, middle - half), min(1.0, middle + half)
