"""Intervals for what the gate measures: resampled over prompts, and Student's over raters.

Numbers in, numbers out; equal input and seed give equal output. The unit is what was drawn at random (a prompt, a
rater), never the single answer: answers to one prompt, or by one rater, go together.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

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


def share_bounds(successes: int, trials: int, *, level: float = 0.95) -> tuple[float, float]:
    """One-sided exact bounds of a proportion at `level` each (Clopper and Pearson 1934, Biometrika 26:404)."""
    from scipy.stats import beta

    low = float(beta.ppf(1 - level, successes, trials - successes + 1)) if successes else 0.0
    high = float(beta.ppf(level, successes + 1, trials - successes)) if successes < trials else 1.0
    return low, high


# A rater counts as at most so many comparisons, as in training (reward.rater_cap): one keen or hostile account among a
# handful would otherwise be most of what is judged.
RATER_CAP = 20.0


def rater_accuracy(
    comparisons: Sequence[tuple[str, float]], *, level: float = 0.95, rater_cap: float = RATER_CAP
) -> Interval:
    """Share of comparisons that a model orders as the rater did, with one-sided bounds for the mean over raters.

    comparisons: (rater, 1 if the model agrees, 0 if not, .5 if it scores both alike). Each rater weighs as its number
    of comparisons, at most `rater_cap`. The bounds are of Student's t over raters (cluster-robust, G - 1 degrees of
    freedom: Cameron and Miller 2015, Journal of Human Resources 50:317, section VI), with a variance of at least the
    binomial one: at 5 to 12 raters a percentile bootstrap lets chance pass 9 to 13% of the time instead of 5%
    (tests/numerics/test_intervals.py has the coverage). With one rater the bounds are 0 and 1. Raises ValueError
    without comparisons.
    """
    sums, counts = _by_rater(comparisons)
    means = [sums[rater] / counts[rater] for rater in sorted(counts)]
    weights = [min(float(counts[rater]), rater_cap) for rater in sorted(counts)]
    share = float(np.average(means, weights=weights)) if means else 0.0
    found = _weighted_mean(means, weights, level, least_variance=share * (1 - share) / max(1.0, sum(weights)))
    return Interval(found.value, max(0.0, found.low), min(1.0, found.high))


def rater_accuracy_difference(
    first: Sequence[tuple[str, float]],
    second: Sequence[tuple[str, float]],
    *,
    level: float = 0.95,
    rater_cap: float = RATER_CAP,
) -> Interval:
    """Accuracy of `first` less accuracy of `second` on the same comparisons, weighed and bounded as `rater_accuracy`.

    Raises ValueError if the two do not judge the same number of comparisons of each rater: the difference would then
    be one of people, not of models.
    """
    sums, counts = _by_rater(first)
    other_sums, other_counts = _by_rater(second)
    if counts != other_counts:
        raise ValueError("both models must judge the same comparisons of the same raters")
    raters = sorted(counts)
    differences = [(sums[rater] - other_sums[rater]) / counts[rater] for rater in raters]
    weights = [min(float(counts[rater]), rater_cap) for rater in raters]
    return _weighted_mean(differences, weights, level, least_variance=0.0)


def _weighted_mean(
    means: Sequence[float], weights: Sequence[float], level: float, *, least_variance: float
) -> Interval:
    """A weighted mean of groups with Student's bounds over the groups."""
    # Imported here: only the learner asks, and programs that read a decision need no scipy.
    from scipy.stats import t

    groups, total = len(means), sum(weights)
    if groups == 0:
        raise ValueError("an interval needs at least one group")
    value = sum(w * m for w, m in zip(weights, means, strict=True)) / total
    if groups == 1:
        return Interval(value, -math.inf, math.inf)
    spread = sum((w * (m - value)) ** 2 for w, m in zip(weights, means, strict=True)) / total**2
    variance = max(groups / (groups - 1) * spread, least_variance)
    half = float(t.ppf(level, groups - 1)) * math.sqrt(variance)
    return Interval(value, value - half, value + half)


def _by_rater(comparisons: Sequence[tuple[str, float]]) -> tuple[dict[str, float], dict[str, int]]:
    sums: dict[str, float] = {}
    counts: dict[str, int] = {}
    for rater, correct in comparisons:
        sums[rater] = sums.get(rater, 0.0) + float(correct)
        counts[rater] = counts.get(rater, 0) + 1
    return sums, counts
