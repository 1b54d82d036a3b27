"""Intervals for what the gate measures: resampled over prompts, resampled over raters, and Wilson's.

Numbers in, numbers out; equal input and seed give equal output. What is resampled is the unit that was drawn at
random (a prompt, a rater), never the single answer: answers to one prompt, or by one rater, go together.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

# The Monte Carlo error of a 5% quantile is then about 0.0035 standard errors' worth of probability.
DRAWS = 4000
# Draws resampled at once: bounds memory to this many indices.
_CELLS = 4_000_000


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate with its bounds. One-sided bounds at `level` each, so that together they cover 2 level - 1."""

    value: float
    low: float
    high: float


def resampled_mean(values: Sequence[float], *, level: float = 0.95, draws: int = DRAWS, seed: int = 0) -> Interval:
    """The mean of one value a group, with one-sided percentile-bootstrap bounds over the groups.

    Efron and Tibshirani 1993, An Introduction to the Bootstrap, section 13.3. Raises ValueError without values.
    """
    return resampled_ratio(values, np.ones(len(values)), level=level, draws=draws, seed=seed)


def resampled_ratio(
    sums: Sequence[float] | Floats,
    counts: Sequence[float] | Floats,
    *,
    level: float = 0.95,
    draws: int = DRAWS,
    seed: int = 0,
) -> Interval:
    """sum(sums) / sum(counts) over groups (a pooled mean), with one-sided bootstrap bounds over the groups.

    sums, counts: (G,), one entry a group; counts are positive.
    """
    top, bottom = np.asarray(sums, dtype=np.float64), np.asarray(counts, dtype=np.float64)  # (G,), (G,)
    groups = len(top)
    if groups == 0:
        raise ValueError("an interval needs at least one group")
    if not (bottom > 0).all():
        raise ValueError("every group needs at least one value")
    rng = np.random.default_rng(seed)
    step = max(1, _CELLS // groups)
    drawn = []
    for start in range(0, draws, step):
        chosen = rng.integers(0, groups, (min(step, draws - start), groups))
        drawn.append(top[chosen].sum(axis=1) / bottom[chosen].sum(axis=1))
    low, high = np.quantile(np.concatenate(drawn), (1 - level, level))
    return Interval(float(top.sum() / bottom.sum()), float(low), float(high))


def rater_accuracy(
    comparisons: Sequence[tuple[str, float]], *, level: float = 0.95, draws: int = DRAWS, seed: int = 0
) -> Interval:
    """Share of comparisons that a model orders as the rater did, with bounds that resample raters.

    comparisons: (rater, 1 where the model agrees, 0 where not, .5 where it scores both alike).
    """
    sums, counts = _by_rater(comparisons)
    raters = sorted(counts)
    return resampled_ratio(
        [sums[rater] for rater in raters], [counts[rater] for rater in raters], level=level, draws=draws, seed=seed
    )


def rater_accuracy_difference(
    first: Sequence[tuple[str, float]],
    second: Sequence[tuple[str, float]],
    *,
    level: float = 0.95,
    draws: int = DRAWS,
    seed: int = 0,
) -> Interval:
    """Accuracy of `first` less accuracy of `second` on the same comparisons, resampling raters.

    Raises ValueError where the two do not judge the same number of comparisons of each rater: the difference would
    then be one of people, not of models.
    """
    sums, counts = _by_rater(first)
    other_sums, other_counts = _by_rater(second)
    if counts != other_counts:
        raise ValueError("both models must judge the same comparisons of the same raters")
    raters = sorted(counts)
    differences = [sums[rater] - other_sums[rater] for rater in raters]
    return resampled_ratio(differences, [counts[rater] for rater in raters], level=level, draws=draws, seed=seed)


def wilson(successes: float, trials: int, *, level: float = 0.95) -> Interval:
    """Wilson's score interval of a proportion, two-sided at `level`.

    Wilson 1927, Journal of the American Statistical Association 22, p. 209. Without trials it is all of [0, 1].
    """
    if not 0 <= successes <= trials:
        raise ValueError(f"{successes} successes of {trials} trials is not a proportion")
    if trials == 0:
        return Interval(math.nan, 0.0, 1.0)
    z = NormalDist().inv_cdf(0.5 + level / 2)
    share, shrink = successes / trials, 1 + z * z / trials
    centre = (share + z * z / (2 * trials)) / shrink
    half = z / shrink * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    return Interval(share, max(0.0, centre - half), min(1.0, centre + half))


def _by_rater(comparisons: Sequence[tuple[str, float]]) -> tuple[dict[str, float], dict[str, int]]:
    sums: dict[str, float] = {}
    counts: dict[str, int] = {}
    for rater, correct in comparisons:
        sums[rater] = sums.get(rater, 0.0) + float(correct)
        counts[rater] = counts.get(rater, 0) + 1
    return sums, counts
