"""Accuracy by slice: what belongs to which, the names that are taken, and where it shows."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

import pytest
from plaudit.learner.slices import MOST_SLICES, agreement, slice_accuracies
from plaudit.plugins.returned import slices_fault
from plaudit.release.gate_reward import SliceAccuracy, slice_checks
from plaudit.release.intervals import rater_accuracy
from plaudit.reward.comparisons import Comparison
from plaudit.reward.completion import Completion

GOOD, BAD = Completion((1,), (2,)), Completion((1,), (3,))


def _comparison(who: str, *interactions: str) -> Comparison:
    return Comparison(who, GOOD, BAD, interactions=frozenset(interactions))


def _found(slices: dict[str, tuple[str, ...]], *said: tuple[Comparison, float]) -> tuple[SliceAccuracy, ...]:
    plugin: Any = SimpleNamespace(slices=lambda interaction: slices[interaction])
    # The plugin of this test knows an interaction by its id.
    interactions: Any = {name: name for name in slices}
    outcomes = [(comparison.who, right) for comparison, right in said]
    return slice_accuracies(plugin, interactions, [comparison for comparison, _ in said], outcomes, rater_cap=20.0)


def test_a_comparison_counts_in_the_slices_of_all_its_interactions() -> None:
    slices = {"i": ("long", "greek"), "j": ("long",), "k": ()}
    found = _found(
        slices,
        (_comparison("ann", "i"), 1.0),
        (_comparison("bob", "j"), 0.0),
        (_comparison("bob", "i", "j"), 1.0),
        # One side of this contrast is in no slice, so it tells of none.
        (_comparison("cyd", "i", "k"), 0.0),
        (_comparison("cyd", "k"), 0.0),
    )
    assert found == (
        # Ann and Bob compared the same two texts, and agreed.
        SliceAccuracy("long", 3, 2, rater_accuracy([("ann", 1.0), ("bob", 0.0), ("bob", 1.0)]), 1, 1),
        SliceAccuracy("greek", 1, 1, rater_accuracy([("ann", 1.0)])),
    )
    assert found[0].accuracy.value == pytest.approx(2 / 3)


def test_agreement_counts_pairs_of_raters_about_the_same_two_texts() -> None:
    other = Completion((2,), (2,))
    found = [
        *(Comparison(who, GOOD, BAD) for who in ("ann", "bob", "cyd")),
        Comparison("dan", BAD, GOOD),
        # Ann changed her mind: the last counts.
        Comparison("ann", BAD, GOOD),
        # Nobody else compared these.
        Comparison("ann", GOOD, other),
    ]
    # Of ann and dan against bob and cyd: two pairs agree, four do not.
    assert agreement(found) == (2, 6)
    assert agreement([]) == (0, 0)


def test_a_domain_without_slices_has_no_figures() -> None:
    assert _found({"i": ()}, (_comparison("ann", "i"), 1.0)) == ()
    assert _found({}) == ()


def test_a_slice_that_is_named_twice_counts_once() -> None:
    (only,) = _found({"i": ("long", "long")}, (_comparison("ann", "i"), 1.0))
    assert only.comparisons == 1


@pytest.mark.parametrize("name", ["Tell me about tea", "", "x" * 41, "åland", "A", "_a", 3])
def test_names_that_could_be_what_somebody_wrote_are_a_fault_and_not_repeated(name: object) -> None:
    assert slices_fault(["fine.name-1", "verdict_no"]) == ""
    fault = slices_fault(["fine", name])
    assert fault
    assert not name or str(name) not in fault.removesuffix("a-z 0-9 _ . -")


def test_the_number_of_slices_is_bounded_and_the_largest_stay() -> None:
    slices = {f"i{n}": (f"s{n}",) for n in range(MOST_SLICES + 5)}
    said = [(_comparison("ann", name), 1.0) for name in slices]
    found = _found(slices, *said, (_comparison("ann", "i24"), 0.0))
    assert len(found) == MOST_SLICES
    assert (found[0].name, found[0].comparisons) == ("s24", 2)


def test_the_gate_shows_them_and_decides_nothing_by_them() -> None:
    accuracy = dataclasses.replace(rater_accuracy([("ann", 0.0), ("bob", 0.0)]), value=0.1)
    (check,) = slice_checks([SliceAccuracy("long", 40, 6, accuracy)])
    assert (check.name, check.passed, check.value) == ("slice_long", True, 0.1)
    assert "40 comparisons of 6 raters" in check.note
