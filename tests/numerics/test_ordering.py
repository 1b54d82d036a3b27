"""Orders of options against the definition: enumeration, pencil and paper, and counts of draws."""

import itertools
import math
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from plaudit.ordering import draw, first_probabilities, log_factors, most_probable

scores = st.lists(st.floats(-60, 0), min_size=2, max_size=6)


def test_the_probabilities_of_all_orders_of_four_sum_to_one():
    values = [-1.0, -2.5, -0.25, -7.0]
    logs = {order: math.fsum(log_factors(values, order)) for order in itertools.permutations(range(4))}
    assert math.fsum(map(math.exp, logs.values())) == pytest.approx(1.0, abs=1e-12)
    for place, probability in enumerate(first_probabilities(values)):
        first = math.fsum(math.exp(log) for order, log in logs.items() if order[0] == place)
        assert first == pytest.approx(probability, abs=1e-12)


def test_two_options_by_pencil():
    # Scores log 3 and log 1: the first comes first three times of four, and then the rest is certain.
    values = [math.log(3), math.log(1)]
    assert first_probabilities(values) == pytest.approx([0.75, 0.25])
    assert math.fsum(log_factors(values, (0, 1))) == pytest.approx(math.log(0.75))
    assert math.fsum(log_factors(values, (1, 0))) == pytest.approx(math.log(0.25))
    assert log_factors(values, (1, 0))[1] == 0.0


def test_three_options_by_pencil():
    # Weights 1, 2, 3: the order (2, 0, 1) has probability 3/6 * 1/3 * 1.
    values = [math.log(weight) for weight in (1, 2, 3)]
    assert math.exp(math.fsum(log_factors(values, (2, 0, 1)))) == pytest.approx(1 / 6)


def test_options_that_are_not_valid_come_last_whatever_their_scores():
    # Weights 6, 1, 2, 1 of which the first and the last are not valid. Valid ones: 1/3 and 2/3; the others: 6/7, 1/7.
    values, valid = [math.log(weight) for weight in (6, 1, 2, 1)], (False, True, True, False)
    assert first_probabilities(values, valid) == pytest.approx([0, 1 / 3, 2 / 3, 0])
    assert most_probable(values, valid).places == (2, 1, 0, 3)
    assert math.fsum(log_factors(values, (2, 1, 3, 0), valid)) == pytest.approx(math.log(2 / 3 * 1 / 7))
    assert math.fsum(log_factors(values, (2, 0, 1, 3), valid)) == -math.inf
    orders = [order for order in itertools.permutations(range(4)) if {*order[:2]} == {1, 2}]
    assert math.fsum(math.exp(math.fsum(log_factors(values, order, valid))) for order in orders) == pytest.approx(1)
    drawn = [draw(values, seed, valid) for seed in range(300)]
    assert {order.places for order in drawn} == set(orders)
    assert drawn[0].logprob == pytest.approx(math.fsum(log_factors(values, drawn[0].places, valid)))


@pytest.mark.parametrize("valid", [(), (True,) * 3, (False,) * 3])
def test_if_all_are_alike_validity_says_nothing(valid):
    values = [-1.0, -0.5, -3.0]
    assert first_probabilities(values, valid) == first_probabilities(values)
    assert most_probable(values, valid) == most_probable(values)
    assert draw(values, 7, valid) == draw(values, 7)
    assert log_factors(values, (1, 2, 0), valid) == log_factors(values, (1, 2, 0))


def test_orders_are_drawn_as_often_as_their_probability_says():
    values, draws = [math.log(weight) for weight in (1, 2, 3)], 6000
    counts = Counter(draw(values, seed).places for seed in range(draws))
    for order in itertools.permutations(range(3)):
        expected = math.exp(math.fsum(log_factors(values, order)))
        # Four standard deviations of a count: the seeds are fixed, so this never flickers.
        assert abs(counts[order] / draws - expected) < 4 * math.sqrt(expected * (1 - expected) / draws)


@given(scores, st.integers(0, 2**63 - 1))
def test_a_draw_is_an_order_with_its_own_probability_and_comes_back_with_its_seed(values, seed):
    order = draw(values, seed)
    assert sorted(order.places) == list(range(len(values)))
    assert order.logprob <= 1e-12
    assert order.logprob == pytest.approx(math.fsum(log_factors(values, order.places)))
    assert math.prod(order.propensities) == pytest.approx(math.exp(order.logprob), rel=1e-9, abs=1e-300)
    assert draw(values, seed) == order


@given(scores)
def test_served_orders_are_certain_and_stable(values):
    order = most_probable(values)
    assert [values[place] for place in order.places] == sorted(values, reverse=True)
    assert (set(order.propensities), order.logprob) == ({1.0}, 0.0)
    assert most_probable([0.0] * 5).places == (0, 1, 2, 3, 4)


def test_scores_far_apart_neither_overflow_nor_lose_the_order():
    order = draw([-5000.0, 0.0, -2000.0], seed=1)
    assert order.places == (1, 2, 0)
    assert math.isfinite(order.logprob)
