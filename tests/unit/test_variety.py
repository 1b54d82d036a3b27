"""Variety compares like with like: the same prompts, as many answers, and for distinct-2 as many words."""

from __future__ import annotations

import random

import pytest
from plaudit.release.texts import (
    Sample,
    Variety,
    VarietyCompared,
    compare_variety,
    distinct_2,
    distinct_masked,
    masked,
    words,
)

WORDS = ["tea", "rain", "hill", "lamp", "door", "fish", "road", "song", "milk", "bread", "cup", "moon"]


def _answers(prompts: int, each: int, length: int, seed: int) -> list[Sample]:
    rng = random.Random(seed)
    return [Sample(f"p{i}", " ".join(rng.choices(WORDS, k=length))) for i in range(prompts) for _ in range(each)]


def _ratio(candidate: list[Sample], base: list[Sample]) -> float:
    found = compare_variety(candidate, base)
    assert found.candidate.distinct_2 is not None
    assert found.other.distinct_2 is not None
    return found.candidate.distinct_2 / found.other.distinct_2


def test_each_pair_of_answers_is_cut_to_the_shorter_one_by_hand() -> None:
    ours = [Sample("p", "a b"), Sample("q", "you can do it"), Sample("only ours", "x y z")]
    theirs = [Sample("q", "you can"), Sample("p", "a b a b"), Sample("p", "not counted")]
    # "a b" and "you can" of both: two pairs each, both different. Openings are those of the whole answers.
    assert compare_variety(ours, theirs) == VarietyCompared(
        candidate=Variety(1.0, 1.0, "a b", 0.5), other=Variety(1.0, 1.0, "a b a", 0.5), texts=2, pairs=2
    )
    # Whole, theirs would be a b, b a, a b, you can: three of four.
    assert distinct_2(["a b a b", "you can"]) == 0.75


def test_nothing_to_compare_is_no_figure() -> None:
    nothing = Variety(None, None, "", 0.0)
    assert compare_variety([Sample("p", "a b")], [Sample("q", "a b")]) == VarietyCompared(nothing, nothing, 0, 0)
    one_word = compare_variety([Sample("p", "a b c")], [Sample("p", "a")])
    assert (one_word.candidate.distinct_2, one_word.texts, one_word.pairs) == (None, 1, 0)


def test_a_source_with_more_answers_is_not_called_less_varied() -> None:
    few, many = _answers(60, 2, 12, seed=1), _answers(60, 4, 12, seed=2)
    assert compare_variety(few, many).texts == 120
    assert _ratio(few, many) == pytest.approx(1.0, abs=0.05)
    # The comparison that would be wrong: all texts of both.
    everything = [distinct_2([each.text for each in side]) for side in (few, many)]
    assert everything[0] > 1.3 * everything[1]


@pytest.mark.parametrize("length", [2, 3, 6, 12])
def test_answers_of_any_length_from_the_same_words_are_called_as_varied(length: int) -> None:
    assert _ratio(_answers(60, 4, length, seed=3), _answers(60, 4, 24, seed=4)) == pytest.approx(1.0, abs=0.1)


@pytest.mark.parametrize(("short", "long"), [(4, 8), (4, 24), (4, 60), (12, 60)])
def test_shorter_answers_about_their_topic_are_not_called_more_varied(short: int, long: int) -> None:
    """Each topic has words of its own, and answers say little else: what is counted must come from the same topics.

    The first so many pairs of each side would be those of every topic for the brief side, and of the first few for
    the other: the brief side looked 1.4 to 1.8 times as varied as it is.
    """
    rng = random.Random(5)

    def said(length: int) -> list[Sample]:
        return [
            Sample(f"p{topic}", " ".join(f"t{topic}w{rng.randrange(4)}" for _ in range(length)))
            for topic in range(60)
            for _ in range(4)
        ]

    brief, whole = said(short), said(long)
    assert _ratio(brief, whole) == pytest.approx(1.0, abs=0.08)
    # The comparison that would be wrong: as many pairs of both, in the order of the prompts.
    pairs = sum(len(words(each.text)) - 1 for each in brief)
    first, left = [], pairs
    for each in whole:
        first.append(" ".join(words(each.text)[: left + 1]))
        left -= min(left, len(words(each.text)) - 1)
        if not left:
            break
    share, other = distinct_2([each.text for each in brief]), distinct_2(first)
    assert share is not None
    assert other is not None
    assert share / other > 1.3


def test_one_filled_in_pattern_is_one_shape_once_the_subject_is_masked() -> None:
    questions = ["tips for tea", "tips for rain", "what are hills?"]
    answers = ["Enjoy your tea now.", "Enjoy your rain now.", "Enjoy your hill now."]
    assert masked(answers[2], questions[2]) == "enjoy your _ now"
    assert distinct_masked([Sample(q, a) for q, a in zip(questions, answers, strict=True)]) == pytest.approx(1 / 3)
    assert distinct_masked([Sample("", "a tea"), Sample("", "a hill")]) == 1.0
    assert distinct_masked([]) is None
