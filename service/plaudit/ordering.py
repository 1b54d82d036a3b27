"""Orders of options: the most probable first, or drawn without replacement (Plackett-Luce). Pure.

Enters: one score (nats) per option. Leaves: an order of their places, and its exact log-probability. An order is drawn
place by place: the next option is i with probability exp(s_i) / sum over the options that are left of exp(s_j) (Luce
1959; Plackett 1975, "The Analysis of Permutations", eq. 1), so that its probability is the product of these factors.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Order:
    """Places of the options in the order shown. `propensities`: the factor of each place, in that order."""

    places: tuple[int, ...]
    propensities: tuple[float, ...]
    logprob: float
    """Exact log-probability (nats) of the order under what drew it; 0 if nothing was drawn."""


def first_probabilities(scores: Sequence[float]) -> list[float]:
    """Probability of each option to be the first: the softmax of the scores; sums to 1."""
    total = _logsumexp(scores)
    return [math.exp(score - total) for score in scores]


def most_probable(scores: Sequence[float]) -> Order:
    """The options by falling score, with certainty. Ties keep the caller's order, so equal requests agree."""
    places = sorted(range(len(scores)), key=lambda place: -scores[place])
    return Order(tuple(places), (1.0,) * len(places), 0.0)


def draw(scores: Sequence[float], seed: int) -> Order:
    """An order drawn by Plackett-Luce; the same seed and scores give the same order."""
    uniform = random.Random(seed)
    left = list(range(len(scores)))
    places: list[int] = []
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
    factors = log_factors(scores, places)
    return Order(tuple(places), tuple(math.exp(factor) for factor in factors), math.fsum(factors))


def log_factors(scores: Sequence[float], places: Sequence[int]) -> list[float]:
    """Log of each place's factor of an order's probability; their sum is the order's log-probability."""
    return [scores[place] - _logsumexp([scores[each] for each in places[at:]]) for at, place in enumerate(places)]


def _logsumexp(values: Sequence[float]) -> float:
    top = max(values)
    return top + math.log(math.fsum(math.exp(value - top) for value in values))
