"""The likelihoods: pencil examples, independent values and gradients, invariances, and recovery of the truth."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from plaudit.reward import likelihoods as like
from scipy.optimize import approx_fprime, minimize
from scipy.special import expit

DOUBLE = torch.float64
finite = st.floats(-4, 4, allow_nan=False, width=32)


def tensor(values: object, **keywords: bool) -> torch.Tensor:
    return torch.tensor(values, dtype=DOUBLE, **keywords)


def vectors(low: int = 2, high: int = 6) -> st.SearchStrategy[list[float]]:
    return st.lists(finite, min_size=low, max_size=high)


def assert_same_as(
    loss: Callable[[torch.Tensor], torch.Tensor], oracle: Callable[[np.ndarray], float], at: list[float]
):
    """Value and gradient of `loss` equal those of `oracle`, the latter by finite differences."""
    x = tensor(at, requires_grad=True)
    value = loss(x)
    value.backward()
    assert value.item() == pytest.approx(oracle(np.array(at)), rel=1e-9, abs=1e-12)
    assert x.grad is not None
    np.testing.assert_allclose(x.grad.numpy(), approx_fprime(np.array(at), oracle, 1e-7), atol=5e-6)


# Pencil examples.


def test_pair_with_a_lead_of_log_three_costs_the_log_of_four_thirds():
    # sigmoid(log 3) = 3/4.
    assert like.pair_loss(tensor(math.log(3)), tensor(0.0)).item() == pytest.approx(math.log(4 / 3))


def test_margin_and_temperature_enter_as_written():
    # tau (2 - 0.5 - 0.5) = 2 * 1 = 2.
    loss = like.pair_loss(tensor(2.0), tensor(0.5), margin=0.5, temperature=2.0)
    assert loss.item() == pytest.approx(math.log(1 + math.exp(-2)))


def test_equal_scores_with_nu_two_tie_half_of_the_time():
    # d = 0: D = 1 + 1 + 2 = 4; win 1/4, tie 2/4.
    outcome = torch.tensor([1, -1, 0])
    losses = like.pair_with_ties_loss(tensor([0.0] * 3), tensor([0.0] * 3), outcome, tensor(math.log(2)))
    assert losses.tolist() == pytest.approx([math.log(4), math.log(4), math.log(2)])


def test_ranking_of_three_by_pencil():
    # Weights 4, 2, 1: P = 4/7 * 2/3; two terms, so the loss is half of its -log.
    loss = like.ranking_loss(tensor([math.log(4), math.log(2), 0.0]))
    assert loss.item() == pytest.approx(-math.log(4 / 7 * 2 / 3) / 2)


def test_only_the_observed_places_of_a_ranking_count():
    scores = tensor([math.log(4), math.log(2), 0.0])
    assert like.ranking_loss(scores, observed=1).item() == pytest.approx(math.log(7 / 4))


def test_thumbs_contrast_by_pencil():
    # Ups score log 3 and 0, the down 0; kappa 1: -log(3/4) and -log(1/2); min(2,1)/(2*1) = 1/2 of the sum.
    loss = like.thumbs_contrast_loss(
        tensor([math.log(3), 0.0, 0.0]), torch.tensor([True, True, False]), torch.ones(3, dtype=bool), tensor(0.0)
    )
    assert loss.item() == pytest.approx((math.log(4 / 3) + math.log(2)) / 2)


def test_centred_thumbs_by_pencil():
    # Scores 3 and 1 centre to 1 and -1; kappa log(2) makes 2 and 1/2 of the odds, the intercept log(3) triples them.
    loss = like.thumbs_centred_loss(
        tensor([3.0, 1.0]),
        torch.tensor([True, False]),
        torch.ones(2, dtype=bool),
        tensor(math.log(math.log(2))),
        tensor(math.log(3)),
    )
    assert loss.item() == pytest.approx(-math.log(6 / 7) - math.log(1 / 2.5))


def test_one_thumb_of_a_rater_counts_nothing():
    alone = torch.tensor([True])
    assert like.thumbs_centred_loss(tensor([2.0]), alone, alone, tensor(0.0), tensor(1.0)).item() == 0
    assert like.thumbs_contrast_loss(tensor([2.0]), alone, alone, tensor(0.0)).item() == 0


def test_a_correction_is_a_pair_with_a_margin():
    loss = like.pair_loss(tensor(1.0), tensor(0.0), margin=0.5)
    assert loss.item() == pytest.approx(math.log(1 + math.exp(-0.5)))


def test_centring_penalty_of_a_pair_is_the_square_of_its_sum():
    assert like.centring_penalty(tensor([1.5, -0.5])).item() == pytest.approx(1.0)


def test_reference_mean_carries_gradient():
    references = tensor([1.0, 3.0], requires_grad=True)
    like.minus_reference_mean(tensor(5.0), references).backward()
    assert references.grad.tolist() == [-0.5, -0.5]


# Value and gradient against differently written formulas.


@given(a=finite, b=finite, margin=st.floats(0, 1), temperature=st.floats(0.2, 2))
@settings(max_examples=30, deadline=None)
def test_pair_matches_the_logistic_distribution(a: float, b: float, margin: float, temperature: float):
    def oracle(x: np.ndarray) -> float:
        return -float(np.log(expit(temperature * (x[0] - x[1] - margin))))

    assert_same_as(lambda x: like.pair_loss(x[0], x[1], margin=margin, temperature=temperature), oracle, [a, b])


@given(a=finite, b=finite, n=st.floats(-2, 2), outcome=st.sampled_from([1, 0, -1]), margin=st.floats(0, 1))
@settings(max_examples=40, deadline=None)
def test_ties_match_davidsons_odds_of_strengths(a: float, b: float, n: float, outcome: int, margin: float):
    def oracle(x: np.ndarray) -> float:
        # Strengths p = e^r: win p1, tie nu sqrt(p1 p2), over p1 + p2 + nu sqrt(p1 p2).
        shift = {1: -margin, 0: 0.0, -1: margin}[outcome]
        one, two, tie = np.exp(x[0] + shift), np.exp(x[1]), np.exp(x[2] + (x[0] + shift + x[1]) / 2)
        return -float(np.log({1: one, 0: tie, -1: two}[outcome] / (one + two + tie)))

    def loss(x: torch.Tensor) -> torch.Tensor:
        return like.pair_with_ties_loss(x[0], x[1], torch.tensor(outcome), x[2], margin=margin)

    assert_same_as(loss, oracle, [a, b, n])


@given(scores=vectors(2, 4), observed=st.integers(1, 4))
@settings(max_examples=25, deadline=None)
def test_ranking_matches_the_sum_over_all_completions_of_the_order(scores: list[float], observed: int):
    places = min(observed, len(scores) - 1)

    def oracle(x: np.ndarray) -> float:
        # Probability of the observed head: sum, over the orders of the unobserved rest, of the full order's.
        total = 0.0
        for rest in itertools.permutations(range(places, len(x))):
            weights = np.exp(x[[*range(places), *rest]])
            total += float(np.prod([weights[j] / weights[j:].sum() for j in range(len(x))]))
        return -math.log(total) / places

    assert_same_as(lambda x: like.ranking_loss(x, observed=observed), oracle, scores)


@given(data=st.data(), scores=vectors(2, 6), log_kappa=st.floats(-1, 1))
@settings(max_examples=25, deadline=None)
def test_thumbs_contrast_matches_a_double_loop(data: st.DataObject, scores: list[float], log_kappa: float):
    size = len(scores)
    positive = data.draw(st.lists(st.booleans(), min_size=size, max_size=size))
    weights = data.draw(st.lists(st.floats(0.1, 2), min_size=size, max_size=size))
    ups = [i for i in range(size) if positive[i]]
    downs = [i for i in range(size) if not positive[i]]

    def oracle(x: np.ndarray) -> float:
        if not ups or not downs:
            return 0.0
        total = 0.0
        for i, j in itertools.product(ups, downs):
            chance = expit(math.exp(x[-1]) * (x[i] - x[j]))
            total -= weights[i] * weights[j] * math.log(chance)
        return total * min(len(ups), len(downs)) / (len(ups) * len(downs))

    def loss(x: torch.Tensor) -> torch.Tensor:
        everything = torch.ones(size, dtype=torch.bool)
        outer = tensor(weights)[:, None] * tensor(weights)[None, :]
        return like.thumbs_contrast_loss(x[:-1], torch.tensor(positive), everything, x[-1], weights=outer)

    assert_same_as(loss, oracle, [*scores, log_kappa])


@given(data=st.data(), scores=vectors(2, 6), log_kappa=st.floats(-1, 1), intercept=finite)
@settings(max_examples=25, deadline=None)
def test_centred_thumbs_match_a_bernoulli_likelihood(
    data: st.DataObject, scores: list[float], log_kappa: float, intercept: float
):
    positive = data.draw(st.lists(st.booleans(), min_size=len(scores), max_size=len(scores)))

    def oracle(x: np.ndarray) -> float:
        logit = np.exp(x[-2]) * (x[:-2] - x[:-2].mean()) + x[-1]
        return -float(np.sum(np.log(expit(np.where(positive, logit, -logit)))))

    def loss(x: torch.Tensor) -> torch.Tensor:
        everything = torch.ones(len(scores), dtype=torch.bool)
        return like.thumbs_centred_loss(x[:-2], torch.tensor(positive), everything, x[-2], x[-1])

    assert_same_as(loss, oracle, [*scores, log_kappa, intercept])


# Invariances.


def every_loss(scores: torch.Tensor, positive: torch.Tensor, mask: torch.Tensor) -> list[torch.Tensor]:
    log_kappa, intercept = tensor(0.3), tensor(-0.2)
    return [
        like.ranking_loss(scores, mask),
        like.ranking_loss(scores, mask, observed=1),
        like.thumbs_contrast_loss(scores, positive, mask, log_kappa),
        like.thumbs_centred_loss(scores, positive, mask, log_kappa, intercept),
    ]


@given(scores=vectors(2, 5), shift=finite)
@settings(max_examples=30, deadline=None)
def test_a_shift_of_all_scores_changes_no_likelihood(scores: list[float], shift: float):
    x = tensor(scores)
    positive = torch.arange(len(scores)) % 2 == 0
    everything = torch.ones(len(scores), dtype=torch.bool)
    pairs = zip(every_loss(x, positive, everything), every_loss(x + shift, positive, everything), strict=True)
    for loss, shifted in pairs:
        torch.testing.assert_close(loss, shifted, rtol=1e-9, atol=1e-9)
    for outcome in (1, 0, -1):
        ties = [like.pair_with_ties_loss(y[0], y[1], torch.tensor(outcome), tensor(0.4)) for y in (x, x + shift)]
        torch.testing.assert_close(ties[0], ties[1], rtol=1e-9, atol=1e-9)


@given(scores=vectors(2, 5), garbage=st.sampled_from([math.nan, math.inf, 1e30]), extra=st.integers(1, 3))
@settings(max_examples=30, deadline=None)
def test_masked_positions_are_never_read(scores: list[float], garbage: float, extra: int):
    size = len(scores)
    positive = torch.arange(size + extra) % 2 == 0
    mask = torch.arange(size + extra) < size
    short = tensor(scores, requires_grad=True)
    long = tensor([*scores, *[garbage] * extra], requires_grad=True)
    plain = every_loss(short, positive[:size], mask[:size])
    padded = every_loss(long, positive, mask)
    for loss, other in zip(plain, padded, strict=True):
        torch.testing.assert_close(other, loss, rtol=1e-12, atol=1e-12)
    sum(plain).backward()
    sum(padded).backward()
    torch.testing.assert_close(long.grad[:size], short.grad, rtol=1e-12, atol=1e-12)
    assert (long.grad[size:] == 0).all()


@given(scores=vectors(2, 6), seed=st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_the_order_of_a_raters_thumbs_changes_nothing(scores: list[float], seed: int):
    order = torch.randperm(len(scores), generator=torch.Generator().manual_seed(seed))
    x, positive = tensor(scores), torch.arange(len(scores)) % 2 == 0
    everything = torch.ones(len(scores), dtype=torch.bool)
    plain = every_loss(x, positive, everything)[2:]
    permuted = every_loss(x[order], positive[order], everything)[2:]
    for loss, other in zip(plain, permuted, strict=True):
        torch.testing.assert_close(loss, other, rtol=1e-9, atol=1e-12)


@given(scores=vectors(4, 4), n=st.floats(-3, 3))
@settings(max_examples=30, deadline=None)
def test_probabilities_of_all_outcomes_sum_to_one(scores: list[float], n: float):
    x = tensor(scores)
    outcome = torch.tensor([1, 0, -1])
    ties = like.pair_with_ties_loss(x[0].expand(3), x[1].expand(3), outcome, tensor(n))
    assert (-ties).exp().sum().item() == pytest.approx(1)
    orders = torch.stack([x[list(order)] for order in itertools.permutations(range(4))])
    assert (-3 * like.ranking_loss(orders)).exp().sum().item() == pytest.approx(1)


def test_without_ties_davidson_is_bradley_terry():
    a, b = tensor([0.3, -1.0]), tensor([1.0, 0.5])
    ties = like.pair_with_ties_loss(a, b, torch.tensor([1, 1]), tensor(-60.0))
    torch.testing.assert_close(ties, like.pair_loss(a, b))


def test_sampled_contrasts_estimate_the_full_sum_without_bias():
    scores, positive = tensor([0.9, -0.4, 0.1, 1.2, -0.8]), torch.tensor([True, True, False, False, True])
    everything = torch.ones(5, dtype=torch.bool)
    full = like.thumbs_contrast_loss(scores, positive, everything, tensor(0.0))
    contrasts = [(i, j) for i in (0, 1, 4) for j in (2, 3)]
    samples = []
    for chosen in itertools.combinations(contrasts, 2):
        drawn = torch.zeros(5, 5, dtype=torch.bool)
        for i, j in chosen:
            drawn[i, j] = True
        samples.append(like.thumbs_contrast_loss(scores, positive, everything, tensor(0.0), drawn=drawn))
    torch.testing.assert_close(torch.stack(samples).mean(), full)


def test_heads_are_carried_through_as_a_leading_dimension():
    scores = torch.randn(3, 5, dtype=DOUBLE, generator=torch.Generator().manual_seed(0))
    positive = torch.tensor([True, False, True, False, False])
    everything = torch.ones(5, dtype=torch.bool)
    for index, joint in enumerate(every_loss(scores, positive, everything)):
        alone = torch.stack([every_loss(head, positive, everything)[index] for head in scores])
        torch.testing.assert_close(joint, alone)


# Recovery of the parameters that made the data.


def fit(loss: Callable[[torch.Tensor], torch.Tensor], size: int) -> np.ndarray:
    def objective(x: np.ndarray) -> tuple[float, np.ndarray]:
        theta = tensor(x, requires_grad=True)
        value = loss(theta)
        value.backward()
        return value.item(), theta.grad.numpy()

    return minimize(objective, np.zeros(size), jac=True, method="L-BFGS-B").x


def test_pairs_with_ties_recover_strengths_and_nu():
    rng = np.random.default_rng(1)
    truth, log_nu = np.array([1.0, -0.6, 0.4]), math.log(0.8)
    lead = rng.normal(size=(6000, 3))
    d = lead @ truth
    odds = np.stack([np.exp(d / 2), np.full_like(d, math.exp(log_nu)), np.exp(-d / 2)], 1)
    drawn = (rng.random(len(d))[:, None] > np.cumsum(odds / odds.sum(1, keepdims=True), 1)).sum(1)
    outcome, x = torch.tensor(1 - drawn), tensor(lead)

    def loss(theta: torch.Tensor) -> torch.Tensor:
        r = x @ theta[:3]
        return like.pair_with_ties_loss(r, torch.zeros_like(r), outcome, theta[3]).mean()

    np.testing.assert_allclose(fit(loss, 4), [*truth, log_nu], atol=0.1)


def test_rankings_recover_strengths():
    rng = np.random.default_rng(2)
    truth = np.array([1.0, -0.6, 0.4])
    x = rng.normal(size=(2500, 4, 3))
    # The order of r + Gumbel noise is a draw from Plackett-Luce.
    order = np.argsort(-(x @ truth + rng.gumbel(size=(2500, 4))), axis=1)
    ranked = tensor(np.take_along_axis(x, order[..., None], 1))
    np.testing.assert_allclose(fit(lambda theta: like.ranking_loss(ranked @ theta).mean(), 3), truth, atol=0.1)


@pytest.mark.parametrize("treatment", ["contrast", "centred"])
def test_thumbs_recover_strengths_although_leniency_follows_the_content(treatment: str):
    rng = np.random.default_rng(3)
    truth = np.array([0.0, 1.0, -0.7])
    raters, each = 300, 12
    leniency = rng.normal(size=raters) * 1.5
    x = rng.normal(size=(raters, each, 3))
    x[:, :, 0] += 1.5 * leniency[:, None]  # lenient raters ask for what shows feature 0, which is worth nothing
    up = torch.tensor(rng.random((raters, each)) < expit(x @ truth + leniency[:, None]))
    scores, everything, zero = tensor(x), torch.ones(raters, each, dtype=torch.bool), tensor(0.0)

    def loss(theta: torch.Tensor) -> torch.Tensor:
        if treatment == "contrast":
            return like.thumbs_contrast_loss(scores @ theta[:3], up, everything, zero).mean()
        return like.thumbs_centred_loss(scores @ theta[:3], up, everything, zero, theta[3]).mean()

    found = fit(loss, 4)[:3]
    assert found @ truth / np.linalg.norm(found) / np.linalg.norm(truth) > 0.98
    assert abs(found[0]) < 0.1 * np.abs(found).max()
