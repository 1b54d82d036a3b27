"""Groundedness by hand, and its place in the reward."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from plaudit.types import Message, Outcome, Passage, Request
from plaudit_instruction.grounding import UNCITED, citations, groundedness
from plaudit_instruction.plugin import GROUNDED_WEIGHT, Instruction
from plaudit_instruction.shops import Shoppers, ShoppersWithPassages

TEA = "Green tea is brewed at eighty degrees for two minutes."
MOON = "The moon circles the earth in about a month."


@pytest.mark.parametrize(
    ("answer", "passages", "share"),
    [
        ("Green tea is brewed at eighty degrees [1].", [TEA, MOON], 1.0),
        ("Green tea is brewed at eighty degrees.", [TEA, MOON], UNCITED),
        ("Green tea is brewed at eighty degrees. [1]", [TEA, MOON], 1.0),
        ("Green tea is brewed at eighty degrees [2].", [TEA, MOON], 0.0),
        ("Green tea is brewed at eighty degrees [3].", [TEA, MOON], 0.0),
        ("Green tea cures colds [1].", [TEA], 0.5),  # green, tea of green, tea, cure, cold
        ("Green tea is brewed [1]. Cats purr [1].", [TEA], 0.5),
        ("It is so.", [TEA], 0.0),
        ("", [TEA], 0.0),
    ],
)
def test_by_hand(answer, passages, share):
    assert groundedness(answer, passages) == pytest.approx(share)


def test_citations_in_order_and_once():
    assert citations("As [2] says, and [1] and [2] too [x] [1234].") == (2, 1)


@given(st.text(max_size=200), st.lists(st.text(max_size=80), max_size=4))
def test_any_text_has_a_share(answer, passages):
    assert 0.0 <= groundedness(answer, passages) <= 1.0


def test_an_answer_that_keeps_to_its_passages_is_worth_more_and_never_much():
    plugin = Instruction()
    request = Request(messages=(Message("user", "How is green tea brewed?"),), passages=(Passage("p", TEA),))
    prompt = plugin.render(request)
    held, made_up = (
        plugin.reward(prompt, Outcome(displayed=text), 0.5).total
        for text in ("Green tea is brewed at eighty degrees [1].", "Boil the kettle twice and add lemon [1].")
    )
    assert held - made_up == pytest.approx(GROUNDED_WEIGHT)
    plain = plugin.render(Request(messages=request.messages))
    assert plugin.reward(plain, Outcome(displayed="Anything."), 0.5).total == 0.5


@pytest.mark.parametrize(
    ("text", "right", "clean"),
    [
        ("It opens at {right} in the morning.", 1.0, 1.0),
        ("It opens at 11:45 in the morning.", 0.0, 0.0),
        ("It opens at {right}, or at 11:45.", 1.0, 0.0),
        ("You can ask there.", 0.0, 1.0),
        ("", 0.0, 0.0),
    ],
)
def test_answers_about_a_shop_are_right_or_made_up(text: str, right: float, clean: float) -> None:
    prompt = next(each for each in Shoppers().channel_prompts() if each.kind == "opens")

    parts = Shoppers().parts(prompt, text.format(right=prompt.check))

    assert (parts["right"], parts["nothing_made_up"]) == (right, clean)


def test_of_two_passages_one_answers_the_question() -> None:
    alone, helped = Shoppers().evaluation_prompts(), ShoppersWithPassages().evaluation_prompts()

    assert [each.text for each in alone] == [each.text for each in helped]
    assert not any(each.passages for each in alone)
    for each in helped:
        (shop,) = each.topic
        about = [passage.text for passage in each.passages if shop in passage.text]
        assert (len(about), len(each.passages)) == (1, 2)
        assert each.check in about[0]
