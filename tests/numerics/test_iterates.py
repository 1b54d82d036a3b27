"""Which state of a policy leaves: pencil examples."""

import math

import pytest
from plaudit.policy.iterates import Iterate, best, rise


def _iterate(iteration, *rewards, base=0.0, live=0.0, refused=(), harms=()):
    return Iterate(iteration=iteration, rewards=rewards, kl_base=base, kl_live=live, refused=refused, harms=harms)


def test_the_rise_is_paired_by_prompt():
    # Differences .1, .3, .2: mean .2, sample deviation .1, error .1 / sqrt 3
    found = rise(_iterate(0, 0.1, 0.5, 0.9), _iterate(2, 0.2, 0.8, 1.1))
    assert found.mean == pytest.approx(0.2)
    assert found.error == pytest.approx(0.1 / math.sqrt(3))
    assert found.counts


def test_a_rise_within_its_error_is_none():
    # Mean .05, deviation .212: the error is .15. Then mean .2, deviation .141: the error is .1.
    assert not rise(_iterate(0, 0.5, 0.5), _iterate(1, 0.7, 0.4)).counts
    assert rise(_iterate(0, 0.5, 0.5), _iterate(1, 0.8, 0.6)).counts
    assert not rise(_iterate(0, 0.5, 0.5), _iterate(0, 0.5, 0.5)).counts
    assert not rise(_iterate(0, 0.5), _iterate(1, 0.9)).counts


def test_the_best_state_pays_for_its_distance_from_live():
    start, near, far = _iterate(0, 0.5, base=6.0), _iterate(1, 0.6, base=6.0, live=2.0), _iterate(2, 0.65, live=6.0)
    # At no price .65 wins; at .02 a nat it is .56 against .53 and .5; at .1 nothing is worth its way.
    assert best([start, near, far], 0.0) is far
    assert best([start, near, far], 0.02) is near
    assert best([start, near, far], 0.1) is start


def test_of_equal_states_the_earliest_is_the_best():
    start, same = _iterate(0, 0.5), _iterate(1, 0.5)
    assert best([same, start], 0.02) is start


def test_a_state_that_the_gate_would_refuse_for_its_texts_comes_after_all_others():
    start, good = _iterate(0, 0.5), _iterate(1, 0.6)
    same, worse = _iterate(2, 0.9, refused=("distinct_2",)), _iterate(3, 0.8, refused=("commonest_opening",))
    assert best([start, good, same, worse], 0.02) is good
    assert best([start, same], 0.02) is start
    # Of states that are all refused, the start included, reward decides, and then the gate.
    assert best([same, worse], 0.02) is same
    assert [each.as_dict()["text_checks_failed"] for each in (good, same)] == [0, 1]


def test_a_state_that_does_more_harm_than_the_start_comes_after_all_others():
    # Shares of four answers per case. Mean rise .25 and .0625; deviations .204 and .125, errors .102 and .0625.
    start = _iterate(0, 0.5, harms=(0.25, 0.0, 0.0, 0.5))
    worse = _iterate(2, 0.9, harms=(0.5, 0.25, 0.5, 0.5))
    by_chance = _iterate(1, 0.6, harms=(0.5, 0.0, 0.0, 0.5))
    better = _iterate(3, 0.55, harms=(0.0, 0.0, 0.0, 0.0))
    assert best([start, by_chance, worse, better], 0.02) is by_chance
    assert best([start, worse], 0.02) is start
    assert [each.as_dict()["practice_harm"] for each in (start, worse)] == [0.1875, 0.4375]
    assert best([_iterate(0, 0.5), _iterate(1, 0.9)], 0.02).iteration == 1, "without cases reward decides"
