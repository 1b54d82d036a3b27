"""The instruction domain: what people see, which prompts share a group, what acts say."""

import dataclasses

import pytest
from plaudit.domain import Mode
from plaudit.errors import EmptyPrompt, IncompleteRanking, InvalidField, OutOfScale, UndeclaredKind, UnknownCandidate
from plaudit.testing import examples
from plaudit.testing.conformance import PluginConformance
from plaudit.types import (
    Binary,
    Choice,
    Comment,
    Correction,
    Demo,
    LabelAct,
    Message,
    Pair,
    PairOutcome,
    Passage,
    Ranking,
    RankingEvidence,
    Rating,
    Request,
    Scalar,
    Signal,
    Thumbs,
)
from plaudit_instruction.plugin import Instruction, edit_distance
from plaudit_instruction.sentences import cut_after_last_sentence, sentences

PLUGIN = Instruction()


def asked(*contents):
    return Request(messages=tuple(Message("user", content) for content in contents))


class TestInstruction(PluginConformance):
    def make_plugin(self):
        return Instruction()

    def example_requests(self):
        return [
            asked("How do I make tea?"),
            Request(messages=(Message("system", "Be brief."), Message("user", "Name a tree."))),
            Request(
                messages=(Message("user", "Hi."), Message("assistant", "Hello."), Message("user", "Who wrote it?")),
                passages=(Passage("p1", "Ada wrote the notes.", "letters"),),
            ),
        ]

    def example_feedback(self):
        return [
            Thumbs("c0", up=True),
            Thumbs("c1", up=False),
            Choice("c1", "c0"),
            Choice("c0", "c2", tie=True, tie_offered=True),
            Ranking(("c2", "c0", "c1", "c3")),
            Correction("c0", "Warm the pot first. Then add one spoon of tea."),
            Rating("c3", 4.0),
            Comment("c0", "Nice."),
            Signal("c0", "stopped", 1.0),
        ]


@pytest.fixture
def interaction():
    return TestInstruction().interaction()


def evidence(interaction, act):
    return list(PLUGIN.to_evidence(interaction, examples.feedback(interaction, act)))


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Hi there. I go to", "Hi there."),
        ("  Hi there!  ", "Hi there!"),
        ("It costs 3.5 dollars. Then", "It costs 3.5 dollars."),
        ("It costs 3.5", "It costs 3.5"),
        ("1. Buy milk.\n2. Eat the", "1. Buy milk."),
        ("1. Buy milk\n2. Eat", "1. Buy milk\n2. Eat"),
        ("Two tips: 1. Buy milk. 2. Drink", "Two tips: 1. Buy milk."),
        ("Use a tool. Take e.g. a saw", "Use a tool."),
        ('He said "go." Then she', 'He said "go."'),
        ("It is late (very late.) And", "It is late (very late.)"),
        ("Ask Dr. Lee about", "Ask Dr. Lee about"),
        ("Meet me at 5 p.m. and bring", "Meet me at 5 p.m. and bring"),
        ("No one knew. Written by J. Smith and", "No one knew."),
        ("The answer is no. But", "The answer is no."),
        ("See example.org for", "See example.org for"),
        ("你好。我想", "你好。"),
        ("no end at all", "no end at all"),
    ],
)
def test_people_see_the_text_up_to_its_last_full_sentence(text, shown):
    assert cut_after_last_sentence(text) == shown
    # The shown tokens are found by looking for the displayed text in the decoded tokens.
    assert shown in text


def test_a_text_of_white_space_is_invalid_and_says_why():
    outcome = PLUGIN.parse(PLUGIN.render(asked("Hi.")), " \n ")
    assert not outcome.valid
    assert outcome.why_invalid


def test_sentences_and_their_cut_agree():
    text = "One. Two! Three"
    assert sentences(text) == ["One.", "Two!", "Three"]


def test_requests_that_differ_in_case_space_and_punctuation_share_a_group():
    groups = {
        PLUGIN.render(asked(text)).group for text in ("Name a tree.", " name  a TREE", "Name a tree?", "Ｎame a tree")
    }
    assert groups == {"name a tree"}
    assert PLUGIN.render(asked("Name a bush.")).group not in groups


def test_the_group_is_the_whole_conversation_with_its_passages():
    """ "Sum it up." after 900 different texts is 900 prompts; one group would tie all of them to one split."""

    def conversation(*texts, passages=(), system=""):
        roles = ("user", "assistant")
        messages = [Message(roles[place % 2], text) for place, text in enumerate(texts)]
        head = (Message("system", system),) if system else ()
        return PLUGIN.render(Request(messages=(*head, *messages), passages=passages)).group

    last = "Sum it up."
    tea, book = Passage("p", "Tea is a drink."), Passage("p", "A book has pages.")
    groups = [
        conversation(last),
        conversation("Tea is a drink.", "Yes.", last),
        conversation("A book has pages.", "Yes.", last),
        conversation("A book has pages.", "No.", last),
        conversation(last, passages=(tea,)),
        conversation(last, passages=(book,)),
        conversation(last, system="Be brief."),
    ]
    assert len(set(groups)) == len(groups)
    assert conversation("tea  is A drink", "yes", "Sum it up!") == conversation("Tea is a drink.", "Yes.", last)
    assert conversation(last) == "sum it up"
    assert len(conversation("tea " * 10_000, "Yes.", "sum " * 10_000)) < 300


def test_passages_are_numbered_in_the_last_user_turn():
    request = Request(
        messages=(Message("user", "Who?"),), passages=(Passage("p", "Ada.", "letters"), Passage("q", "Babbage."))
    )
    (message,) = PLUGIN.render(request).messages
    assert message.content.startswith("[1] Ada. (letters)\n[2] Babbage.\n")
    assert message.content.endswith("\n\nWho?")


@pytest.mark.parametrize(
    ("request_", "error"),
    [
        (Request(messages=()), EmptyPrompt),
        (asked("  "), EmptyPrompt),
        (Request(messages=(Message("assistant", "Hi."),)), InvalidField),
    ],
)
def test_requests_without_a_user_text_at_the_end_are_refused(request_, error):
    with pytest.raises(error):
        PLUGIN.render(request_)


def test_a_choice_keeps_the_order_in_which_candidates_were_shown(interaction):
    assert evidence(interaction, Choice("c2", "c1")) == [Pair(first="c1", second="c2", outcome=PairOutcome.SECOND)]
    assert evidence(interaction, Choice("c1", "c2")) == [Pair(first="c1", second="c2", outcome=PairOutcome.FIRST)]
    (tie,) = evidence(interaction, Choice("c2", "c1", tie=True))
    assert (tie.outcome, tie.tie_offered) == (PairOutcome.TIE, True)


def test_thumbs_rankings_and_ratings_become_their_evidence(interaction):
    assert evidence(interaction, Thumbs("c1", up=False)) == [Binary(candidate="c1", positive=False)]
    order = ("c3", "c2", "c1", "c0")
    assert evidence(interaction, Ranking(order)) == [RankingEvidence(order=order)]
    # (4 - 1) / (5 - 1)
    assert evidence(interaction, Rating("c0", 4.0)) == [Scalar(candidate="c0", value=0.75)]
    assert evidence(interaction, Comment("c0", "Nice.")) == []


def test_a_correction_is_a_demo_with_a_margin_by_its_edit_distance(interaction):
    # Shown: "Warm the pot first. Then add two spoons of tea." has 12 tokens (10 words, 2 stops); 3 are replaced.
    # Distance 3/12 = .25, margin .5 * min(1, .25 / .5) = .25.
    text = "Heat the pot first. Then add one cup of tea."
    assert evidence(interaction, Correction("c0", text)) == [Demo(candidate="c0", text=text, margin=0.25)]


def test_corrections_that_rewrite_or_change_nothing_say_nothing(interaction):
    assert evidence(interaction, Correction("c0", "Order a coffee instead, my dear.")) == []
    assert evidence(interaction, Correction("c0", interaction.candidates[0].displayed_text)) == []


def test_edit_distance_by_hand():
    # kitten -> sitting: two substitutions and an insertion over seven letters.
    assert edit_distance(list("kitten"), list("sitting")) == pytest.approx(3 / 7)
    assert edit_distance([], []) == 0.0
    assert edit_distance([], ["a"]) == 1.0


@pytest.mark.parametrize(
    ("act", "error"),
    [
        (Ranking(("c0", "c1")), IncompleteRanking),
        (Ranking(("c0", "c1", "c2", "c2")), IncompleteRanking),
        (Rating("c0", 6.0), OutOfScale),
        (LabelAct("c0", "yes"), UndeclaredKind),
        (Thumbs("x", up=True), UnknownCandidate),
        (Choice("c0", "c0"), InvalidField),
    ],
)
def test_acts_that_cannot_be_meant_are_refused(interaction, act, error):
    with pytest.raises(error):
        evidence(interaction, act)


def test_answers_are_short_in_every_mode():
    prompt = PLUGIN.render(asked("Hi."))
    assert {PLUGIN.decode_spec(prompt, mode).sampling.max_tokens for mode in Mode} == {64}


def test_slices_name_conversations_and_passages(interaction):
    assert list(PLUGIN.slices(interaction)) == []
    longer = dataclasses.replace(
        interaction, messages=(*interaction.messages, Message("user", "More?")), passages=(Passage("p", "x"),)
    )
    assert list(PLUGIN.slices(longer)) == ["several_turns", "passages"]
