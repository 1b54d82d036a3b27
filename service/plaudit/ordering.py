"""Orders of options: the most probable first, or drawn without replacement (Plackett-Luce). Pure.

Enters: one score (nats) per option, and which of them are valid. Leaves: an order of their places, and its exact
log-probability. An order is drawn place by place: the next option is i with probability exp(s_i) / sum over the options
that are left of exp(s_j) (Luce 1959; Plackett 1975, "The Analysis of Permutations", eq. 1), so that its probability is
the product of these factors. Options that are not valid come last, whatever their scores: they are drawn in the same
way once no valid one is left. `valid` empty says that all are; if none is, they are all alike and it says nothing.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

from plaudit.domain import OptionScore


@dataclass(frozen=True, slots=True)
class Order:
    """Places of the options in the order shown. `propensities`: the factor of each place, in that order."""

    places: tuple[int, ...]
    propensities: tuple[float, ...]
    logprob: float
    """Exact log-probability (nats) of the order under what drew it; 0 if nothing was drawn."""


def score_of(logprobs: Sequence[float], how: OptionScore) -> float:
    """Score (nats) of an option from the log-probs of its tokens and of its end."""
    total = math.fsum(logprobs)
    return total / len(logprobs) if how is OptionScore.MEAN else total


def first_probabilities(scores: Sequence[float], valid: Sequence[bool] = ()) -> list[float]:
    """Probability of each option to be the first: the softmax of the valid ones' scores; sums to 1."""
    first = _tiers(len(scores), valid)[0]
    total = _logsumexp([scores[place] for place in first])
    return [math.exp(score - total) if place in first else 0.0 for place, score in enumerate(scores)]


def most_probable(scores: Sequence[float], valid: Sequence[bool] = ()) -> Order:
    """The options by falling score, with certainty. Ties keep the caller's order, so equal requests agree."""
    places = [place for tier in _tiers(len(scores), valid) for place in sorted(tier, key=lambda each: -scores[each])]
    return Order(tuple(places), (1.0,) * len(places), 0.0)


def draw(scores: Sequence[float], seed: int, valid: Sequence[bool] = ()) -> Order:
    """An order drawn by Plackett-Luce; the same seed, scores and validity give the same order."""
    uniform = random.Random(seed)
    places: list[int] = []
    for tier in _tiers(len(scores), valid):
        left = list(tier)
        while left:
            shares = first_probabilities([scores[place] for place in left])
            point, reached = uniform.random(), 0.0
            chosen = len(left) - 1  # what rounding leaves of the unit interval belongs to the last
            for index, share in enumerate(shares):
                reached += share
                if point < reached:
                    chosen = index
                    break
            places.append(left.pop(chosen))
    factors = log_factors(scores, places, valid)
    return Order(tuple(places), tuple(math.exp(factor) for factor in factors), math.fsum(factors))


def log_factors(scores: Sequence[float], places: Sequence[int], valid: Sequence[bool] = ()) -> list[float]:
    """Log of each place's factor of an order's probability; their sum is the order's log-probability.

    -inf for a place that shows an option which is not valid before a valid one.
    """
    tiers = _tiers(len(scores), valid)
    tier_of = {place: number for number, tier in enumerate(tiers) for place in tier}
    factors = []
    for at, place in enumerate(places):
        left = places[at:]
        first = min(tier_of[each] for each in left)
        drawn_from = [scores[each] for each in left if tier_of[each] == first]
        factors.append(scores[place] - _logsumexp(drawn_from) if tier_of[place] == first else -math.inf)
    return factors


def _tiers(count: int, valid: Sequence[bool]) -> list[list[int]]:
    """Places of the options that may be drawn first, and of those that come after them."""
    fits = [place for place in range(count) if not valid or valid[place]]
    rest = [place for place in range(count) if valid and not valid[place]]
    return [tier for tier in (fits, rest) if tier] or [[]]


def _logsumexp(values: Sequence[float]) -> float:
    top = max(values)
    return top + math.log(math.fsum(math.exp(value - top) for value in values))
