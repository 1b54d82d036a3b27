"""What another policy would have been worth, from what people gave to what was shown: off-policy estimates.

Enters: shown options with their rewards, the logged probability of each in its place, and its probability under the
policy that is asked about. Leaves: estimates with intervals and the effective sample size. Pure: equal input and seed
give equal output. docs/release.md says when which estimate is worth its name.

For an interaction i and a place k, w = target / logged is the importance weight and lambda_k the place's weight; a
verdict has one place. Places are weighed one by one ("item-position": Li et al. 2018, arXiv:1804.10488, section 3.2),
which holds if the reward of an option in its place does not depend on the other places.

- ips:   sum_k lambda_k mean_i(w r) (Horvitz and Thompson 1952, JASA 47:663). Unbiased, and wide if weights are.
- snips: sum_k lambda_k sum_i(w r) / sum_i(w) (Swaminathan and Joachims 2015, "The Self-Normalized Estimator for
  Counterfactual Learning", eq. 8). A small bias for a smaller variance; never outside the range of the rewards.
- dr:    sum_k lambda_k mean_i(q(target) + w (r - q(shown))), q a reward estimate per option (Dudik, Langford and Li
  2011, arXiv:1103.4601, eq. 1; Dudik et al. 2014, arXiv:1503.02834). Unbiased whatever q is as long as q was not
  fitted to these rewards, and narrow if q is good.

None of them sees an option that the log never shows: if logged is 0 and target is not, there is no answer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from plaudit.release.intervals import DRAWS, Interval

Floats = NDArray[np.float64]

# Below so many interactions' worth of weight an interval of 95% covers less often than it says (tests/numerics).
MIN_ESS = 50.0
# Bounds are resampled over people. Of two, most are the estimate itself and hold the truth in 2 of 10 simulations; from
# five on they hold it as often as they say (tests/numerics).
MIN_UNITS = 5
# Cells of a block of bootstrap draws: bounds memory.
_CELLS = 4_000_000


class TooLittleOverlap(ValueError):
    """The log says too little about the policy; `ess` interactions' worth of weight is left of `interactions`."""

    def __init__(self, message: str, *, interactions: int, ess: float) -> None:
        super().__init__(message)
        self.interactions, self.ess = interactions, ess


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """One person's reactions to one interaction. The tuples have one entry per place that counts.

    `unit` is what was drawn at random and is resampled: a rater, or the interaction. A reward of None was not given.
    `logged` and `target`: probability that the option shown stood in its place under what drew it and under the policy
    asked about. `predicted` and `expected`: reward estimate of the option shown, and its mean under `target` over all
    options; empty if there is none.
    """

    unit: str
    rewards: tuple[float | None, ...]
    logged: tuple[float, ...]
    target: tuple[float, ...]
    predicted: tuple[float, ...] = ()
    expected: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimates:
    """Value of a policy per interaction, in units of the reward, by each estimator.

    `observed` is the mean of what was given in the log, whoever drew it. `dr` is None without a reward estimate.
    `ess` is the smallest effective sample size of the places, (sum w)^2 / sum w^2 (Kish 1965, section 11.7).
    `clipped` weights were cut to `clip`, which biases towards the log.
    """

    interactions: int
    units: int
    ess: float
    observed: Interval
    ips: Interval
    snips: Interval
    dr: Interval | None
    clip: float
    clipped: int


def estimate(
    shown: Sequence[Shown],
    *,
    place_weights: Sequence[float] = (1.0,),
    clip: float = math.inf,
    min_ess: float = MIN_ESS,
    level: float = 0.95,
    draws: int = DRAWS,
    seed: int = 0,
) -> Estimates:
    """Value of the target policy, with one-sided bounds at `level` each, resampled over units.

    Raises TooLittleOverlap with fewer than `min_ess` interactions' worth of weight or weight on fewer than MIN_UNITS
    units, and ValueError for what is no probability.
    """
    sums = _Sums(shown, place_weights, clip)
    sums.require(min_ess)
    found = {name: ratios.interval(name, level, draws, seed) for name, ratios in sums.estimators.items()}
    return Estimates(
        interactions=len(shown),
        units=len(sums.units),
        ess=sums.ess,
        observed=found["observed"],
        ips=found["ips"],
        snips=found["snips"],
        dr=found.get("dr"),
        clip=clip,
        clipped=sums.clipped,
    )


def difference(
    first: Sequence[Shown],
    second: Sequence[Shown],
    *,
    place_weights: Sequence[float] = (1.0,),
    clip: float = math.inf,
    min_ess: float = MIN_ESS,
    level: float = 0.95,
    draws: int = DRAWS,
    seed: int = 0,
) -> Interval:
    """Value of the first policy less that of the second, by `dr` if both have it, else by `snips`.

    Both are over the same interactions in the same order, resampled together. Raises as `estimate`.
    """
    mine, theirs = _Sums(first, place_weights, clip), _Sums(second, place_weights, clip)
    if [each.unit for each in first] != [each.unit for each in second]:
        raise ValueError("a difference is taken over the same interactions in the same order")
    mine.require(min_ess)
    theirs.require(min_ess)
    name = "dr" if mine.modelled and theirs.modelled else "snips"
    return mine.estimators[name].less(theirs.estimators[name]).interval(name, level, draws, seed)


def place_probabilities(scores: Sequence[float], places: int, *, draws: int = 1000, seed: int = 0) -> Floats:
    """Probability of each option to stand in each of the first `places` places of a Plackett-Luce order: (K, n).

    Exact for the first two places; from the third on the mean, over drawn beginnings, of the exact probability of the
    next option, so that no option that can stand there has probability 0. scores: nats, one per option.
    """
    values = np.asarray(scores, dtype=np.float64)
    options = len(values)
    first = np.exp(values - values.max())
    first /= first.sum()
    found = np.zeros((min(places, options), options))
    found[0] = first
    if len(found) > 1:
        beginnings = np.eye(options, dtype=bool)
        found[1] = first @ _next(values, beginnings)
    if len(found) > 2:
        noise = np.random.default_rng(seed).gumbel(size=(draws, options))
        # Gumbel noise sorts into a Plackett-Luce order (Yellott 1977, J. Math. Psychology 15:109).
        orders = np.argsort(-(values + noise), axis=1, kind="stable")  # (draws, options)
        taken = np.zeros((draws, options), dtype=bool)
        rows = np.arange(draws)
        for place in range(2, len(found)):
            taken[rows, orders[:, place - 2]] = True
            taken[rows, orders[:, place - 1]] = True
            found[place] = _next(values, taken).mean(axis=0)
            for option in np.flatnonzero(taken.all(axis=0)):  # every drawn order has it in an earlier place
                found[place, option] = _passed_over(values, orders, place, int(option))
    return found


def _passed_over(scores: Floats, orders: NDArray[np.intp], place: int, option: int) -> float:
    """Probability that an option stands in a place, if every drawn order had it in an earlier one.

    Over the drawn orders (draws, n) of the others: that each of the first `place` is taken before it, and it is next.
    """
    others = scores[orders[orders != option].reshape(len(orders), -1)]
    # Log of what is left of the others when so many of them are taken: (draws, n), nothing in the end.
    left = np.logaddexp.accumulate(others[:, ::-1], axis=1)[:, ::-1]
    left = np.pad(left, ((0, 0), (0, 1)), constant_values=-np.inf)
    own = scores[option]
    passed = left[:, :place] - np.logaddexp(left[:, :place], own)
    return float(np.exp(passed.sum(axis=1) + own - np.logaddexp(left[:, place], own)).mean())


def _next(scores: Floats, taken: NDArray[np.bool_]) -> Floats:
    """Probability of each option to be next, by what is taken: (beginnings, options)."""
    left = np.where(taken, -np.inf, scores)
    top = left.max(axis=1, keepdims=True)
    shares: Floats = np.exp(left - np.where(np.isfinite(top), top, 0.0))
    totals = shares.sum(axis=1, keepdims=True)
    shares /= np.where(totals > 0, totals, 1.0)
    return shares


class _Ratios:
    """sum_k lambda_k sum_g(x) / sum_g(d) over units g: what every estimator is. x, d: (G, K); weights: (K,)."""

    def __init__(self, x: Floats, d: Floats, weights: Floats) -> None:
        self._x, self._d, self._weights = x, d, weights

    def less(self, other: _Ratios) -> _Ratios:
        """This less another one over the same units, which are then resampled together."""
        return _Ratios(
            np.hstack([self._x, other._x]),
            np.hstack([self._d, other._d]),
            np.concatenate([self._weights, -other._weights]),
        )

    def interval(self, name: str, level: float, draws: int, seed: int) -> Interval:
        """The value with one-sided bounds at `level` each, resampled over units.

        By bootstrap-t (Efron and Tibshirani 1993, section 12.5): with skewed weights percentiles miss on one side. For
        `dr`, whose residuals are not, percentiles expanded for few units (Hesterberg 2015, The American Statistician
        69:371, section 4.3.2), which held the truth more often there (tests/numerics/test_estimate.py).
        """
        (value,), (error,) = self._values(np.ones((1, len(self._x))))
        rng = np.random.default_rng(seed)
        units = len(self._x)
        step = max(1, _CELLS // units)
        values: list[Floats] = []
        errors: list[Floats] = []
        for start in range(0, draws, step):
            many = min(step, draws - start)
            # Units drawn with replacement, counted by draw: draw d's units lie at d * units and behind.
            drawn = rng.integers(0, units, (many, units)) + units * np.arange(many)[:, None]
            counts = np.bincount(drawn.ravel(), minlength=many * units).reshape(many, units)
            for kept, part in zip((values, errors), self._values(counts.astype(np.float64)), strict=True):
                kept.append(part)
        if not error > 0:  # every unit says the same
            return Interval(float(value), float(value), float(value))
        resampled = np.concatenate(values)
        if name == "dr":
            return _percentiles(float(value), resampled, units, level)
        spread = np.concatenate(errors)
        scaled = (resampled - value) / np.where(spread > 0, spread, np.nan)
        low, high = np.nanquantile(scaled, (1 - level, level))
        return Interval(float(value), float(value - high * error), float(value - low * error))

    def _values(self, counts: Floats) -> tuple[Floats, Floats]:
        """Values and their standard errors, (draws,) each, if unit g was drawn counts[:, g] times: (draws, G).

        The error is that of the linearised ratios, clustered by unit. A draw without feedback or weight for a place
        has none, and is NaN.
        """
        draws, (units, places) = len(counts), self._x.shape

        def moments(first: Floats, second: Floats) -> Floats:
            crossed = (first[:, :, None] * second[:, None, :]).reshape(units, places * places)
            return (counts @ crossed).reshape(draws, places, places)

        total = counts @ self._d
        total = np.where(total > 0, total, np.nan)
        ratio = (counts @ self._x) / total  # (draws, K)
        mixed = moments(self._x, self._d)
        spread = moments(self._x, self._x) + ratio[:, :, None] * ratio[:, None, :] * moments(self._d, self._d)
        spread -= ratio[:, None, :] * mixed + ratio[:, :, None] * mixed.transpose(0, 2, 1)
        slopes = self._weights / total
        variance = np.einsum("dk,dkl,dl->d", slopes, spread, slopes) * units / max(1, units - 1)
        return ratio @ self._weights, np.sqrt(np.maximum(variance, 0.0))


class _Sums:
    """What is known of the interactions, summed by unit."""

    def __init__(self, shown: Sequence[Shown], place_weights: Sequence[float], clip: float) -> None:
        self._places = np.asarray(place_weights, dtype=np.float64)  # (K,)
        self.interactions = len(shown)
        self.modelled = bool(shown) and all(each.predicted for each in shown)
        given, rewards, logged, target = self._read(shown)
        weights = np.where(given, target / logged, 0.0)
        self.clipped = int((weights > clip).sum())
        weights = np.minimum(weights, clip)
        squares = (weights**2).sum(axis=0)
        self.ess = float(np.min(weights.sum(axis=0) ** 2 / np.where(squares > 0, squares, np.inf))) if shown else 0.0
        self.units = sorted({each.unit for each in shown})
        where = {unit: at for at, unit in enumerate(self.units)}
        self._rows = np.array([where[each.unit] for each in shown], dtype=np.intp)
        count, weight = self._by_unit(given.astype(np.float64)), self._by_unit(weights)
        self._weighty = int((weight > 0).sum(axis=0).min())  # units with weight, of the place that has fewest
        weighted = self._by_unit(weights * rewards)
        parts = {
            "observed": (self._by_unit(np.where(given, rewards, 0.0)), count),
            "ips": (weighted, count),
            "snips": (weighted, weight),
        }
        if self.modelled:
            predicted = np.array([each.predicted for each in shown], dtype=np.float64)
            expected = np.array([each.expected for each in shown], dtype=np.float64)
            corrected = np.where(given, expected + weights * (rewards - predicted), 0.0)
            parts["dr"] = (self._by_unit(corrected), count)
        self.estimators = {name: _Ratios(x, d, self._places) for name, (x, d) in parts.items()}

    def _by_unit(self, part: Floats) -> Floats:
        """Sums (G, K) by unit of a part (N, K)."""
        found = np.zeros((len(self.units), len(self._places)))
        np.add.at(found, self._rows, part)
        return found

    def _read(self, shown: Sequence[Shown]) -> tuple[NDArray[np.bool_], Floats, Floats, Floats]:
        places = len(self._places)
        if any(len(each.rewards) != places or len(each.logged) != places for each in shown):
            raise ValueError(f"every interaction needs {places} places, as many as there are place weights")
        shape = (len(shown), places)
        given = np.array([[r is not None for r in each.rewards] for each in shown], dtype=bool).reshape(shape)
        rewards = np.array([[r or 0.0 for r in each.rewards] for each in shown]).reshape(shape)
        logged = np.array([each.logged for each in shown], dtype=np.float64).reshape(shape)
        target = np.array([each.target for each in shown], dtype=np.float64).reshape(shape)
        sound = (logged > 0) & (logged <= 1 + 1e-9) & (target >= 0) & (target <= 1 + 1e-9) & np.isfinite(rewards)
        if not (sound | ~given).all():
            raise ValueError(
                "a logged probability must be above 0 and at most 1, a target's from 0 to 1, rewards finite"
            )
        return given, rewards, np.where(given, logged, 1.0), target

    def require(self, min_ess: float) -> None:
        """Raise TooLittleOverlap unless the log says enough."""
        if self.ess < min_ess or self._weighty < MIN_UNITS:
            raise TooLittleOverlap(
                f"the log says too little about this policy: {self.interactions} interactions are worth {self.ess:.0f} "
                f"of its own, and {self._weighty} raters saw what it would show; {min_ess:.0f} interactions and "
                f"{MIN_UNITS} raters are needed; let more requests have the purpose EXPLORE, or ask about a policy "
                "nearer to the one that drew",
                interactions=self.interactions,
                ess=self.ess,
            )


def _percentiles(value: float, resampled: Floats, units: int, level: float) -> Interval:
    """Percentile bounds, at a more extreme level: they lack a factor sqrt(G / (G - 1)) and Student's quantile."""
    from scipy.stats import norm, t

    tail = float(norm.cdf(-math.sqrt(units / (units - 1)) * t.ppf(level, units - 1)))
    low, high = np.nanquantile(resampled, (tail, 1 - tail))
    return Interval(value, float(low), float(high))
