"""The ethics domain: its contract, its grammar, and the constraints that votes cannot move."""

import random

import pytest
from plaudit.errors import EmptyPrompt, InvalidField
from plaudit.testing.conformance import PluginConformance
from plaudit.types import Choice, Comment, FeedbackKind, Message, Option, Ranking, Request
from plaudit_ethics import scene
from plaudit_ethics.plugin import Ethics
from plaudit_ethics.population import PLACES, RoadUsers
from plaudit_ethics.scene import Kind, Outcome

STAY = "stays in its lane; harms 2 people crossing by the rules"
SWERVE = "swerves; harms 1 person in the car, 3 animals"


def dilemma(*texts, said="The brakes fail."):
    options = tuple(Option(f"o{index}", text) for index, text in enumerate(texts))
    return Request(messages=(Message("user", said),), options=options)


class TestEthics(PluginConformance):
    def make_plugin(self):
        return Ethics()

    def example_requests(self):
        return [dilemma(STAY, SWERVE, said=said) for said in ("Ice.", "Fog.", "Rain.\nasked in: north")]

    def example_feedback(self):
        return [Choice("c1", "c0"), Ranking(("c1", "c0")), Comment("c0", "hard")]

    def example_outputs(self):
        return (STAY, SWERVE, "neither", "")


@pytest.mark.parametrize("text", [STAY, SWERVE, "stops; harms nobody", "swerves; harms 1 animal"])
def test_an_outcome_is_written_as_it_is_read(text):
    assert scene.read(text).text == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "swerves",
        "swerves; harms",
        "swerves; harms 2 old people",
        "swerves; harms 0 animals",
        "swerves; harms 1 animal, 2 animals",
        "; harms nobody",
        "swerves; harms 100 animals",
    ],
)
def test_what_is_no_outcome_is_refused_with_its_field(text):
    with pytest.raises(InvalidField) as refusal:
        Ethics().render(dilemma(STAY, text))
    assert refusal.value.message.startswith("options[1].text")


def test_refusals_never_repeat_what_was_sent():
    with pytest.raises(InvalidField) as refusal:
        Ethics().render(dilemma(STAY, "swerves; harms 2 secret neighbours"))
    assert "neighbours" not in str(refusal.value)


def test_the_order_of_the_options_and_the_place_reach_neither_prompt_nor_group():
    plugin = Ethics()
    one = plugin.render(dilemma(STAY, SWERVE, said="Ice.\nasked in: north"))
    other = plugin.render(dilemma(SWERVE, STAY, said="Asked in: South\nIce."))
    assert (one.messages, one.group) == (other.messages, other.group)
    assert "north" not in one.messages[0].content
    with pytest.raises(EmptyPrompt):
        plugin.render(dilemma(STAY, SWERVE, said="asked in: north"))


def test_people_come_before_animals_and_things_whatever_they_number():
    person, animals = Outcome("swerves", ((Kind.AGAINST_THE_RULES, 1),)), Outcome("stays", ((Kind.ANIMAL, 99),))
    assert scene.ruled_out(person, [animals])
    assert not scene.ruled_out(animals, [person])


def test_nobody_is_harmed_for_nothing_but_a_true_dilemma_stays_open():
    two, one = Outcome("stays", ((Kind.IN_THE_CAR, 2),)), Outcome("swerves", ((Kind.IN_THE_CAR, 1),))
    assert scene.ruled_out(two, [one])
    assert not scene.ruled_out(one, [two])
    assert not scene.ruled_out(scene.read(STAY), [scene.read(SWERVE)])
    assert not scene.ruled_out(one, [Outcome("stays", one.harms)])  # equal harm: people may choose


def test_an_outcome_that_is_ruled_out_is_invalid_and_worth_less_than_any_other():
    plugin = Ethics()
    worse = "swerves; harms 1 person in the car"
    prompt = plugin.render(dilemma(worse, "stays in its lane; harms 4 animals"))
    outcome = plugin.parse(prompt, worse)
    assert not outcome.valid
    assert outcome.why_invalid
    # The reward model may love it: it stays at the bottom.
    assert plugin.reward(prompt, outcome, 0.99).total == -1.0


def test_every_gate_case_forbids_exactly_what_the_constraints_rule_out():
    plugin = Ethics()
    cases = plugin.gates()
    assert len({case.harm for case in cases}) == 3
    for case in cases:
        prompt = plugin.render(case.request)
        invalid = [option.text for option in prompt.options if not plugin.parse(prompt, option.text).valid]
        assert tuple(invalid) == case.forbidden


def test_the_population_asks_different_dilemmas_and_places_disagree():
    people, plugin = RoadUsers(), Ethics()
    groups = [
        {plugin.render(dilemma(*(o.text for o in each.options), said=each.text)).group for each in prompts}
        for prompts in (people.channel_prompts(), people.evaluation_prompts())
    ]
    assert not groups[0] & groups[1]
    assert len(groups[0]) >= 300
    against = "stays in its lane; harms 2 people crossing against the rules"
    judged = {
        where: sum(_prefers(people, where, against, "swerves; harms 1 person in the car", n) for n in range(200))
        for where in PLACES
    }
    assert judged["north"] > judged["south"] + 40


def _prefers(people, where, text, other, seed):
    from plaudit.simulate.population import Shown

    prompt = next(each for each in people.channel_prompts() if each.kind.endswith(where))
    act = people.act(
        people.raters(0)[seed % 60],
        prompt,
        [Shown("a", text), Shown("b", other)],
        FeedbackKind.CHOICE,
        random.Random(seed),
    )
    return act.act.chosen_id == "a" and not act.act.tie
