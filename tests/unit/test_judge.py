"""Figures of diversity compare like with like: equally many texts, equally many two-word runs."""

import random

import pytest
from plaudit.demo import plan
from plaudit.demo.plan import FULL, QUICK
from plaudit.release.texts import masked
from plaudit.simulate.judge import common_cut, cut_texts, distinct_2, distinct_masked
from plaudit.simulate.plan import visits
from plaudit.simulate.population import load_population

WORDS = ["tea", "rain", "hill", "lamp", "door", "fish", "road", "song", "milk", "bread", "cup", "moon"]


def _answers(prompts, each, length, seed):
    rng = random.Random(seed)
    return [[" ".join(rng.choices(WORDS, k=length)) for _ in range(each)] for _ in range(prompts)]


def test_distinct_2_counts_different_runs_by_hand():
    # Runs: a b, b a, a b | b a: two different ones of four.
    assert distinct_2(["a b a b", "b a"], 4) == 0.5
    assert distinct_2(["a b a b", "b a"], 3) == pytest.approx(2 / 3), "only the first runs count"
    assert distinct_2(["a b"], 2) is None, "too little to be compared"
    assert distinct_2([], 0) is None


def test_a_source_with_more_answers_is_not_called_less_diverse():
    few, many = _answers(60, 2, 12, seed=1), _answers(60, 4, 12, seed=2)
    cut = common_cut([few, many])
    assert cut.texts == 2
    one, other = (distinct_2(cut_texts(source, cut), cut.bigrams) for source in (few, many))
    assert abs(one - other) < 0.03
    # The comparison that would be wrong: all texts of both.
    everything = [[text for group in source for text in group] for source in (few, many)]
    runs = [sum(len(text.split()) - 1 for text in texts) for texts in everything]
    assert distinct_2(everything[0], runs[0]) > distinct_2(everything[1], runs[1]) + 0.03


def test_shorter_answers_are_not_called_more_diverse():
    short, long = _answers(60, 1, 6, seed=3), _answers(60, 1, 24, seed=4)
    cut = common_cut([short, long])
    assert cut.bigrams == int(0.9 * 60 * 5)
    one, other = (distinct_2(cut_texts(source, cut), cut.bigrams) for source in (short, long))
    assert abs(one - other) < 0.1


def test_one_filled_in_pattern_is_one_shape_once_the_subject_is_masked():
    questions = ["tips for tea", "tips for rain", "what are hills?"]
    answers = ["Enjoy your tea now.", "Enjoy your rain now.", "Enjoy your hill now."]
    assert masked(answers[2], questions[2]) == "enjoy your _ now"
    assert distinct_masked(answers, questions) == pytest.approx(1 / 3)
    assert distinct_masked(["a tea", "a hill"], ["", ""]) == 1.0
    assert distinct_masked([], []) is None


@pytest.mark.parametrize("scale", [FULL, QUICK], ids=["full", "quick"])
def test_every_round_asks_every_channel_prompt_and_none_repeats_another(scale):
    population = load_population(scale.population)
    prompts, people = population.channel_prompts(), population.raters(0)
    rounds = []
    for number in range(scale.turns):
        first = number == 0
        rounds.append(
            list(
                visits(
                    prompts,
                    people,
                    population.mix,
                    seed=f"0:{number}",
                    events=scale.first_acts if first else scale.own_acts,
                    acts_per_interaction=scale.acts_per_interaction if first else scale.own_acts_per_interaction,
                )
            )
        )
        assert {visit.prompt.text for visit in rounds[-1]} == {prompt.text for prompt in prompts}
    same = sum(one.prompt is other.prompt for one, other in zip(*rounds, strict=False))
    assert same < 0.05 * len(rounds[1])


@pytest.mark.parametrize("scale", [FULL, QUICK], ids=["full", "quick"])
def test_what_people_ask_for_is_what_the_channel_trains_and_gates(scale):
    assert scale.settings["policy"]["max_tokens"] == load_population(scale.population).max_tokens


def test_the_demo_tells_each_round_apart():
    from plaudit.demo import people

    arguments = people.simulate_arguments(
        population="instruction",
        target="127.0.0.1:1",
        events=1,
        seed=3,
        round_=1,
        concurrency=1,
        temperature=0.7,
        ledger=plan.cache_dir(),
    )
    assert arguments[arguments.index("--round") + 1] == "1"
    assert arguments[arguments.index("--seed") + 1] == "3"
