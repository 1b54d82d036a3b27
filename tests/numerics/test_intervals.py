"""Intervals: worked examples, coverage, and the gate's operating characteristic."""

from __future__ import annotations

from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plaudit.release.intervals import (
    rater_accuracy,
    rater_accuracy_difference,
    resampled_mean,
    resampled_ratio,
)

PROMPTS, SAMPLES, TRIALS, DRAWS = 100, 4, 1200, 800
# With this much of a difference between prompts (standard deviations of one score), the win-rate over 4 x 4 pairs
# has a standard deviation of about .36 a prompt, as releases of one channel measured against each other have.
PROMPT_SPREAD = 1.7


def test_bounds_of_a_mean_are_those_of_its_exact_bootstrap() -> None:
    # Means of two of (0, 1) with replacement: 0, .5, 1 with probabilities 1/4, 1/2, 1/4.
    found = resampled_mean([0.0, 1.0])
    assert (found.value, found.low, found.high) == (0.5, 0.0, 1.0)
    narrow = resampled_mean([0.0, 1.0], level=0.7)
    assert (narrow.low, narrow.high) == (0.5, 0.5)


def test_bounds_of_many_groups_agree_with_the_normal_ones() -> None:
    values = np.random.default_rng(0).normal(3.0, 2.0, 400)
    found = resampled_mean(values.tolist(), draws=20_000)
    half = NormalDist().inv_cdf(0.95) * values.std() / 20
    assert found.value == pytest.approx(values.mean())
    assert found.low == pytest.approx(values.mean() - half, abs=0.01)
    assert found.high == pytest.approx(values.mean() + half, abs=0.01)


def test_the_same_seed_gives_the_same_bounds_and_another_one_others() -> None:
    values = np.random.default_rng(1).random(30).tolist()
    assert resampled_mean(values, seed=4) == resampled_mean(values, seed=4)
    assert resampled_mean(values, seed=4) != resampled_mean(values, seed=5)


def test_groups_count_by_their_size() -> None:
    # 1 of 1 and 2 of 8: pooled 3 of 9, not the mean of 1 and .25.
    assert resampled_ratio([1.0, 2.0], [1.0, 8.0]).value == pytest.approx(1 / 3)


@pytest.mark.parametrize(("sums", "counts"), [([], []), ([1.0], [0.0])])
def test_an_interval_of_nothing_is_refused(sums: list[float], counts: list[float]) -> None:
    with pytest.raises(ValueError, match="at least one"):
        resampled_ratio(sums, counts)


@settings(max_examples=50)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_bounds_enclose_the_mean_within_the_data(values: list[float]) -> None:
    found = resampled_mean(values, draws=400)
    assert min(values) - 1e-12 <= found.low <= found.high <= max(values) + 1e-12


def test_repeating_every_answer_of_every_rater_does_not_narrow_the_bound() -> None:
    answers = [(f"r{rater}", float(rater % 3 > 0)) for rater in range(12)]
    once, often = rater_accuracy(answers), rater_accuracy(answers * 10)
    assert (often.low, often.high) == pytest.approx((once.low, once.high))


def test_the_difference_of_two_models_is_taken_within_raters() -> None:
    # Raters differ wildly, the models by one comparison of each rater's ten: the difference has no spread.
    first = [(f"r{r}", float(i < r)) for r in range(1, 9) for i in range(10)]
    second = [(f"r{r}", float(i < r - 1)) for r in range(1, 9) for i in range(10)]
    found = rater_accuracy_difference(first, second)
    assert (found.low, found.value, found.high) == pytest.approx((0.1, 0.1, 0.1))
    assert rater_accuracy(first).high - rater_accuracy(first).low > 0.2


def test_models_must_judge_the_same_comparisons() -> None:
    with pytest.raises(ValueError, match="same comparisons"):
        rater_accuracy_difference([("a", 1.0)], [("b", 1.0)])


@pytest.mark.parametrize("raters", [5, 6, 8, 12])
@pytest.mark.parametrize("shape", ["even", "one keen rater", "people differ"])
def test_a_reward_model_at_chance_is_accepted_one_time_in_twenty_however_few_raters(raters: int, shape: str) -> None:
    rng = np.random.default_rng(raters)
    counts = [30] * raters if shape != "one keen rater" else [*[12] * (raters - 1), 300]
    # Where people differ, a model at chance on average agrees with some of them more than with others.
    spread = 0.08 if shape == "people differ" else 0.0
    passed = 0
    for _ in range(TRIALS):
        chances = np.clip(0.5 + rng.normal(0, spread, raters) if spread else np.full(raters, 0.5), 0, 1)
        right = rng.binomial(counts, chances)
        judged = [(f"r{r}", right[r] / counts[r]) for r in range(raters) for _ in range(counts[r])]
        passed += rater_accuracy(judged).low > 0.5
    # Three standard errors of 1,200 trials at 5% are .019.
    assert passed / TRIALS <= 0.05 + 0.019


def test_one_keen_and_hostile_rater_does_not_outvote_the_others() -> None:
    # Eleven raters at .68 with 20 comparisons each, one inverted account with 220: half of all comparisons.
    judged = [(f"r{r}", 0.68) for r in range(11) for _ in range(20)] + [("inverted", 0.2)] * 220
    assert rater_accuracy(judged).low > 0.5
    assert rater_accuracy(judged, rater_cap=1e9).low < 0.5


def test_raters_that_all_agree_alike_are_still_a_sample() -> None:
    # No spread between raters: the bound is then the binomial one, with Student's quantile for five raters.
    found = rater_accuracy([(f"r{r}", 1.0 if i < 20 else 0.0) for r in range(5) for i in range(30)], rater_cap=30)
    assert found.low == pytest.approx(2 / 3 - 2.1318 * (2 / 9 / 150) ** 0.5, abs=1e-4)


def test_one_rater_is_no_sample() -> None:
    assert rater_accuracy([("r", 1.0)] * 100).low == 0.0


def simulated_wins(rng: np.random.Generator, rate: float) -> np.ndarray:
    """Per-prompt win-rates over 4 x 4 pairs of normal scores whose mean is `rate`, (trials, prompts)."""
    # A pair's difference is N(mu, 2 + spread^2), so that the mean win-rate is Phi(mu / sqrt(2 + spread^2)).
    shift = NormalDist().inv_cdf(rate) * (2 + PROMPT_SPREAD**2) ** 0.5
    prompt = rng.normal(shift, PROMPT_SPREAD, (TRIALS, PROMPTS, 1))
    ours = np.sort(prompt + rng.normal(size=(TRIALS, PROMPTS, SAMPLES)), axis=-1)
    theirs = rng.normal(size=(TRIALS, PROMPTS, SAMPLES))
    return (ours[..., :, None] > theirs[..., None, :]).mean(axis=(-2, -1))


def share_that_passes(rate: float, bound: float) -> float:
    wins = simulated_wins(np.random.default_rng(7), rate)
    passed = [resampled_mean(row, draws=DRAWS, seed=trial).low > bound for trial, row in enumerate(wins)]
    return float(np.mean(passed))


def test_an_equal_candidate_passes_the_bound_against_live_about_four_times_in_ten() -> None:
    assert simulated_wins(np.random.default_rng(7), 0.5).std() == pytest.approx(0.36, abs=0.01)
    assert 0.3 < share_that_passes(0.5, 0.45) < 0.5


def test_a_candidate_at_the_bound_passes_at_most_about_one_time_in_twenty() -> None:
    # The percentile bound of 100 prompts runs slightly over 5%; three standard errors of 1,200 trials are .019.
    assert 0.02 < share_that_passes(0.45, 0.45) < 0.06


def test_a_candidate_that_wins_three_in_five_is_seldom_refused() -> None:
    assert share_that_passes(0.6, 0.5) > 0.8


def test_an_equal_candidate_passes_the_bound_against_the_base_about_one_time_in_twenty() -> None:
    assert 0.02 < share_that_passes(0.5, 0.5) < 0.07
