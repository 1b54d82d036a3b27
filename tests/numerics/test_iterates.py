"""Which state of a policy leaves: pencil examples."""

import math

import pytest
from plaudit.policy.iterates import Iterate, best, rise


def _iterate(iteration, *rewards, base=0.0, live=0.0):
    return Iterate(iteration=iteration, rewards=rewards, kl_base=base, kl_live=live)


def test_the_rise_is_paired_by_prompt():
    # Differences .1, .3, .2: mean .2, sample deviation .1, error .1 / sqrt 3
    found = rise(_iterate(0, 0.1, 0.5, 0.9), _iterate(2, 0.2, 0.8, 1.1))
    assert found.mean == pytest.approx(0.2)
    assert found.error == pytest.approx(0.1 / math.sqrt(3))
    assert found.certain


def test_a_rise_within_chance_is_none():
    # Mean .05, deviation .212: the error is .15.
    assert not rise(_iterate(0, 0.5, 0.5), _iterate(1, 0.7, 0.4)).certain
    assert not rise(_iterate(0, 0.5, 0.5), _iterate(0, 0.5, 0.5)).certain
    assert not rise(_iterate(0, 0.5), _iterate(1, 0.9)).certain


def test_the_best_state_pays_for_its_distance():
    start, near, far = _iterate(0, 0.5), _iterate(1, 0.6, base=2.0, live=1.0), _iterate(2, 0.65, base=6.0, live=5.0)
    # At no price .65 wins; at .02 a nat it is .56 against .53; with .02 for live, .54 against .43.
    assert best([start, near, far], kl_coef=0.0, kl_live_coef=0.0) is far
    assert best([start, near, far], kl_coef=0.02, kl_live_coef=0.0) is near
    assert best([start, near, far], kl_coef=0.02, kl_live_coef=0.02) is near
    assert best([start, near, far], kl_coef=0.0, kl_live_coef=0.02) is near
    assert best([start, near, far], kl_coef=0.1, kl_live_coef=0.0) is start


def test_of_equal_states_the_earliest_is_the_best():
    start, same = _iterate(0, 0.5), _iterate(1, 0.5)
    assert best([start, same], kl_coef=0.02, kl_live_coef=0.02) is start
