"""What a piece of evidence weighs: by kind, by rater, by share, and in each head's bootstrap (docs/reward.md)."""

from __future__ import annotations

import bisect
import hashlib
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace

from plaudit.reward.units import Event, Weighed
from plaudit.types import FeedbackKind

# What one event of a kind is worth (docs/reward.md); a ranking is worth one a place.
PAIR_WEIGHT = 1.0
MOST_RANKING_WEIGHT = 3.0
LABEL_WEIGHT = 1.0
DEMO_WEIGHT = 0.5
THUMB_WEIGHT = 0.4
SCALAR_WEIGHT = 0.2
SIGNAL_WEIGHT = 0.15
PICK_WEIGHT = 0.3  # Behaviour that took one among those shown: of a slate, or of two answers.
# Most of the total weight that a kind may hold: a person's prose must not teach "written by a person", and
# implicit behaviour must not outvote what people said.
MOST_SHARE = {FeedbackKind.CORRECTION: 0.2, FeedbackKind.SIGNAL: 0.3}
# Cumulative Binomial(3, 1/3): 8/27, 12/27, 6/27, 1/27.
BOOTSTRAP_STEPS = (8 / 27, 20 / 27, 26 / 27)


def times(event: Event, worth: float) -> Event:
    """The event with its weight times `worth`."""
    return replace(event, weight=event.weight * worth)


def weigh(units: Sequence[Weighed], rater_cap: float) -> list[Weighed]:
    """Caps each rater's total weight, then each kind's share, then scales the mean weight to 1, once for the set."""
    totals: defaultdict[str, float] = defaultdict(float)
    for unit in units:
        totals[unit.event.who] += unit.event.weight
    weights = [unit.event.weight * min(1.0, rater_cap / totals[unit.event.who]) for unit in units]
    of_kind: defaultdict[FeedbackKind, float] = defaultdict(float)
    for unit, w in zip(units, weights, strict=True):
        of_kind[unit.event.kind] += w
    scales = _shares_kept(of_kind)
    weights = [w * scales.get(unit.event.kind, 1.0) for unit, w in zip(units, weights, strict=True)]
    mean = sum(weights) / len(weights) if weights else 1.0
    return [replace(unit, event=replace(unit.event, weight=w / mean)) for unit, w in zip(units, weights, strict=True)]


def _shares_kept(of_kind: Mapping[FeedbackKind, float]) -> dict[FeedbackKind, float]:
    """Factors of the kinds that would hold more than MOST_SHARE of the whole: with them none does.

    Cutting one kind makes the others' shares larger, so those that are cut are found together. With no other kind
    there corrections are what people said, and signals alone are cut; of one kind alone nothing is outvoted.
    """
    bounds = {kind: share for kind, share in MOST_SHARE.items() if of_kind.keys() - {kind}}
    if of_kind.keys() <= bounds.keys():
        bounds.pop(FeedbackKind.CORRECTION, None)
    cut: set[FeedbackKind] = set()
    while True:
        rest = math.fsum(weight for kind, weight in of_kind.items() if kind not in cut)
        whole = rest / (1 - math.fsum(bounds[kind] for kind in cut))
        more = {kind for kind in bounds.keys() - cut if of_kind.get(kind, 0.0) > bounds[kind] * whole}
        if not more:
            return {kind: bounds[kind] * whole / of_kind[kind] for kind in cut}
        cut |= more


def bootstrap_weight(event_id: str, head: int, seed: int) -> int:
    """A draw of Binomial(3, 1/3) that depends on event, head and seed alone, so that a replay draws the same."""
    digest = hashlib.sha256(f"{seed}\0{head}\0{event_id}".encode()).digest()
    return bisect.bisect_right(BOOTSTRAP_STEPS, int.from_bytes(digest[:8], "big") / 2**64)
