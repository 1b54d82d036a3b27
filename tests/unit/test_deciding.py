"""Decisions by pencil: the least expected cost, whose costs they are, and what never is one."""

import pytest
from plaudit.deciding import cost_of, costs_of, decide, expected_costs, labels_of
from plaudit.domain import Declaration
from plaudit.errors import Misconfigured
from plaudit.types import Action, FeedbackKind, Option

LABELS = ("allow", "block")


def declared(**more):
    kinds = frozenset({FeedbackKind.LABEL})
    return Declaration(
        name="d", version="1", action=Action.CHOICE, kinds=kinds, labels=frozenset({"allow", "block"}), **more
    )


def test_without_costs_the_decision_is_the_most_probable_option():
    assert decide((0.2, 0.5, 0.3)) == 1
    assert decide((0.4, 0.4, 0.2)) == 0, "of equal ones the first"
    assert decide((0.4, 0.6), labels=LABELS) == 1


def test_a_dear_mistake_moves_the_decision():
    # Allowing what must be blocked costs 5: allow costs 0.2 * 5 = 1.0, block costs 0.8 * 1 = 0.8.
    costs = costs_of(declared(costs=(("block", "allow", 5.0),)))
    assert expected_costs(LABELS, (0.8, 0.2), costs) == pytest.approx([1.0, 0.8])
    assert decide((0.8, 0.2), labels=LABELS, costs=costs) == 1
    # At 0.15 allow costs 0.75 and block 0.85.
    assert decide((0.85, 0.15), labels=LABELS, costs=costs) == 0


def test_costs_say_nothing_of_options_without_labels():
    assert decide((0.8, 0.2), costs=costs_of(declared(costs=(("block", "allow", 5.0),)))) == 0


def test_equal_expected_costs_are_decided_by_probability():
    costs = {("block", "allow"): 0.0, ("allow", "block"): 0.0}
    assert decide((0.3, 0.7), labels=LABELS, costs=costs) == 1


def test_a_cost_of_being_right_counts():
    # To block costs 0.5 even where it is right: 0.1 * 1 + 0.9 * 0.5 = 0.55 against 0.9 for allowing.
    costs = {("block", "block"): 0.5}
    assert expected_costs(LABELS, (0.1, 0.9), costs) == pytest.approx([0.9, 0.55])


def test_what_is_not_valid_is_decided_only_if_nothing_is():
    assert decide((0.9, 0.06, 0.04), valid=(False, True, True)) == 1
    assert decide((0.9, 0.1), valid=(False, False)) == 0
    costs = {("block", "allow"): 100.0}
    assert decide((0.5, 0.5), labels=LABELS, costs=costs, valid=(True, False)) == 0


def test_the_settings_come_before_the_declaration_pair_by_pair():
    costs = costs_of(
        declared(costs=(("block", "allow", 5.0), ("allow", "block", 0.5))), settings=(("block", "allow", 2.0),)
    )
    assert [cost_of(costs, *pair) for pair in (("block", "allow"), ("allow", "block"), ("allow", "allow"))] == [
        2.0,
        0.5,
        0.0,
    ]


def test_settings_that_name_no_label_are_misconfigured():
    with pytest.raises(
        Misconfigured, match=r"decision\.costs of the domain 'd': costs name the label 'blok'"
    ) as caught:
        costs_of(declared(), settings=(("blok", "allow", 2.0),))
    assert caught.value.metadata == {"setting": "decision.costs"}


def test_an_option_stands_for_the_label_of_its_id_or_of_its_text():
    labels = frozenset(LABELS)
    assert labels_of((Option("block", "take it away"), Option("2", "allow")), labels) == ("block", "allow")
    assert labels_of((Option("block", "x"), Option("y", "perhaps")), labels) == ()


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({"costs": (("block", "allow", -1.0),)}, "must be 0 or more"),
        ({"costs": (("block", "allow", float("nan")),)}, "must be 0 or more"),
        ({"costs": (("block", "allow", 1.0), ("block", "allow", 2.0))}, "named twice"),
        ({"costs": (("spam", "allow", 1.0),)}, "'spam', which is not declared"),
        ({"severe": frozenset({"spam"})}, "severe names labels that are not declared: spam"),
        ({"place_weights": ()}, "not one or more numbers"),
        ({"place_weights": (1.0, 0.0)}, "not one or more numbers"),
        ({"place_weights": (0.5, 1.0)}, "rise"),
        ({"place_weights": (float("nan"),)}, "not one or more numbers"),
    ],
)
def test_a_declaration_names_its_faults(facts, words):
    assert words in "; ".join(declared(**facts).faults())


def test_a_sound_declaration_has_no_faults():
    sound = declared(
        costs=(("block", "allow", 5.0),), severe=frozenset({"block"}), place_weights=(1, 0.5, 0.5), policy_version="3"
    )
    assert sound.faults() == declared().faults() == []


def test_completions_have_no_places_costs_or_severe_labels():
    facts = {"name": "d", "version": "1", "action": Action.COMPLETION, "kinds": frozenset({FeedbackKind.THUMBS})}
    assert Declaration(**facts).faults() == []
    assert "for domains of choices" in "; ".join(Declaration(**facts, place_weights=(1.0, 0.5)).faults())
