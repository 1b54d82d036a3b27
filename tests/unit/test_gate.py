"""The gate: what it accepts, what it refuses, and what it counts in texts."""

from __future__ import annotations

import dataclasses
import datetime as dt
import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from plaudit.release.decision import Check, Decision, Outcome, remedy
from plaudit.release.gate import CompletionMeasurements, decide, win_rates
from plaudit.release.gate_reward import reward_gate, reward_outcome
from plaudit.release.probes import HarmRate, HarmResult
from plaudit.release.reading import failed_checks
from plaudit.release.texts import (
    Sample,
    commonest_opening,
    degenerate,
    degenerate_share,
    distinct_2,
    distinct_masked,
    longer_share,
    matched,
    mean_words,
)
from plaudit.settings import GateSettings

SETTINGS = GateSettings()
CLEAN = HarmResult(harm="insult", candidate=HarmRate(60, 0))
NOW = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
NAMES = (
    "gate_prompts",
    "win_base",
    "win_live",
    "kl_base",
    "kl_live",
    "distinct_2",
    "distinct_masked",
    "commonest_opening",
    "degenerate",
    "harm_insult",
    "reward_comparisons",
    "reward_raters",
    "reward_accuracy",
    "reward_against_live",
    "length_alone",
)


def judged(raters: int, each: int, right: int) -> tuple[tuple[str, float], ...]:
    """Each rater's comparisons, of which the model gets `right` right."""
    return tuple((f"rater-{r}", float(i < right)) for r in range(raters) for i in range(each))


def samples(texts: int = 100) -> tuple[Sample, ...]:
    return tuple(Sample(f"prompt {i}", f"answer {i} speaks of thing {i + 1} plainly") for i in range(texts))


def good() -> CompletionMeasurements:
    return CompletionMeasurements(
        wins_base=(0.75, 0.5) * 50,
        wins_live=(0.625, 0.5) * 50,
        kl_base=(8.0, 10.0) * 50,
        kl_live=(2.0, 4.0) * 50,
        candidate=samples(),
        base=samples(),
        probes=(HarmResult(harm="insult", candidate=HarmRate(60, 0)),),
        comparisons=judged(10, 20, 13),
        live_comparisons=judged(10, 20, 12),
    )


def check_of(measurements: CompletionMeasurements, name: str) -> Check:
    (found,) = (check for check in decide(measurements, SETTINGS, decided_at=NOW).checks if check.name == name)
    return found


def test_a_good_candidate_is_accepted_with_its_numbers_in_a_fixed_order() -> None:
    decision = decide(good(), SETTINGS, decided_at=NOW)
    assert [check.name for check in decision.checks if not check.passed] == []
    assert decision.accepted
    assert tuple(check.name for check in decision.checks) == NAMES
    win = decision.checks[1]
    assert (win.value, win.threshold) == (0.625, 0.5)
    assert win.low is not None
    assert win.high is not None
    assert 0.5 < win.low < 0.625 < win.high


@pytest.mark.parametrize(
    ("fields", "failing"),
    [
        ({"wins_base": (0.5, 0.52) * 50 + (0.0, 1.0) * 50}, "win_base"),
        ({"wins_live": (0.0, 0.8) * 50}, "win_live"),
        ({"kl_base": (16.2, 16.0) * 50}, "kl_base"),
        ({"kl_live": (12.2, 12.0) * 50}, "kl_live"),
        # Every answer differs by its first word, and goes on as all the others do.
        (
            {"candidate": tuple(Sample(f"prompt {i}", f"{i} one two three four five six") for i in range(100))},
            "distinct_2",
        ),
        (
            {"candidate": tuple(Sample(f"prompt {i}", "" if i < 6 else s.text) for i, s in enumerate(samples()))},
            "degenerate",
        ),
        (
            {"probes": (CLEAN, HarmResult(harm="poison", candidate=HarmRate(60, 1), base=HarmRate(60, 0)))},
            "harm_poison",
        ),
        (
            {"probes": (HarmResult(harm="poison", candidate=HarmRate(60, 4), base=HarmRate(60, 6)),)},
            "harm_poison",
        ),
        ({"terms": {"grounded": (-0.08, -0.04) * 20}}, "term_grounded"),
        ({"comparisons": judged(10, 20, 10), "live_comparisons": None}, "reward_accuracy"),
        ({"live_comparisons": judged(10, 20, 14)}, "reward_against_live"),
        ({"comparisons": judged(7, 20, 13), "live_comparisons": None}, "reward_comparisons"),
        ({"comparisons": judged(4, 50, 40), "live_comparisons": None}, "reward_raters"),
    ],
)
def test_one_failed_condition_refuses(fields: dict[str, object], failing: str) -> None:
    decision = decide(dataclasses.replace(good(), **fields), SETTINGS, decided_at=NOW)  # type: ignore[arg-type]
    assert [check.name for check in decision.checks if not check.passed] == [failing]
    assert not decision.accepted


def test_a_harm_that_the_base_does_too_is_held_to_the_absolute_rate() -> None:
    # 3 of 60 against 1 of 60 is no sign of a difference, and .05 is what an operator allows.
    for others in ({"base": HarmRate(60, 1)}, {"base": HarmRate(60, 0), "live": HarmRate(60, 2)}):
        result = HarmResult(harm="poison", candidate=HarmRate(60, 3), **others)
        assert check_of(dataclasses.replace(good(), probes=(result,)), "harm_poison").passed


def test_a_term_of_the_domain_may_fall_a_little_or_by_chance_and_rise_at_will() -> None:
    for differences in ((-0.04,) * 40, (-0.5, 0.3) * 5, (0.2,) * 40):
        measured = dataclasses.replace(good(), terms={"grounded": differences})
        assert check_of(measured, "term_grounded").passed, differences[:2]


def test_a_refusal_names_check_value_bound_and_what_to_do() -> None:
    decision = decide(dataclasses.replace(good(), kl_base=(17.0,) * 100), SETTINGS, decided_at=NOW)
    assert failed_checks(decision.checks).startswith("kl_base 17 [17, 17], bound 16")
    assert "lower policy.kl_target" in failed_checks(decision.checks)
    for name in (*NAMES[:-1], "probes"):
        assert remedy(Check(name, False, 0.0, 0.0)) != remedy(Check("unknown", False, 0.0, 0.0)), name


def test_what_was_not_measured_fails_with_a_note() -> None:
    decision = decide(CompletionMeasurements(), SETTINGS, decided_at=NOW)
    by_name = {check.name: check for check in decision.checks}
    assert not decision.accepted
    # Without probes there are no harms to name.
    for name in (name.replace("harm_insult", "probes") for name in NAMES[:12]):
        assert not by_name[name].passed, name
    assert "60 are needed" in by_name["win_base"].note
    assert "not run" in by_name["probes"].note
    assert "no reward model is live" in by_name["reward_against_live"].note


def test_too_few_gate_prompts_refuse_however_many_wins() -> None:
    few = dataclasses.replace(good(), wins_base=(1.0,) * 59)
    assert not check_of(few, "gate_prompts").passed
    assert not check_of(few, "win_base").passed
    assert check_of(dataclasses.replace(good(), wins_base=(1.0,) * 60), "win_base").passed


@pytest.mark.parametrize("field", ["wins_base", "wins_live", "kl_base", "kl_live"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_number_that_is_none_fails_its_check(field: str, value: float) -> None:
    measured = dataclasses.replace(good(), **{field: (value,) + (0.6,) * 99})
    failed = [check.name for check in decide(measured, SETTINGS, decided_at=NOW).checks if not check.passed]
    assert failed == [field.replace("wins", "win")]


def test_a_win_rate_outside_zero_and_one_fails() -> None:
    assert not check_of(dataclasses.replace(good(), wins_base=(1.5,) * 100), "win_base").passed


def test_a_domain_without_probes_passes_and_one_whose_probes_were_not_run_does_not() -> None:
    assert check_of(dataclasses.replace(good(), probes=()), "probes").passed
    assert not check_of(dataclasses.replace(good(), probes=None), "probes").passed


def test_a_decision_survives_json_and_the_same_seed_gives_the_same_decision() -> None:
    decision = decide(good(), SETTINGS, seed=3, decided_at=NOW)
    assert Decision.from_json(decision.to_json()) == decision
    assert decide(good(), SETTINGS, seed=3, decided_at=NOW) == decision
    missing = decide(CompletionMeasurements(), SETTINGS, decided_at=NOW)
    assert Decision.from_json(missing.to_json()).to_json() == missing.to_json()
    assert "NaN" not in missing.to_json()


# The reward model's own gate.


@pytest.mark.parametrize(
    ("comparisons", "live", "outcome"),
    [
        (judged(10, 15, 10), None, Outcome.ACCEPT),
        (judged(10, 14, 10), None, Outcome.WAIT),
        (judged(4, 100, 70), None, Outcome.WAIT),
        (judged(5, 30, 20), None, Outcome.ACCEPT),
        (judged(10, 15, 7), None, Outcome.REFUSE),
        (judged(10, 100, 65), judged(10, 100, 65), Outcome.ACCEPT),
        (judged(10, 100, 65), judged(10, 100, 66), Outcome.ACCEPT),
        (judged(10, 100, 65), judged(10, 100, 67), Outcome.REFUSE),
        ((), None, Outcome.WAIT),
    ],
)
def test_a_reward_model_is_accepted_refused_or_waits(
    comparisons: tuple[tuple[str, float], ...], live: tuple[tuple[str, float], ...] | None, outcome: Outcome
) -> None:
    assert reward_outcome(reward_gate(comparisons, live, SETTINGS)) is outcome


def test_a_few_diligent_raters_are_not_many_witnesses() -> None:
    # 600 comparisons at .55: as independent answers surely above chance, but one rater of six carries all of it.
    lopsided = judged(5, 100, 49) + tuple(("keen", float(i < 85)) for i in range(100))
    accuracy = reward_gate(lopsided, None, SETTINGS)[2]
    assert accuracy.value == pytest.approx(330 / 600)
    assert not accuracy.passed


def test_a_reward_model_that_is_not_surely_worse_than_the_live_one_passes() -> None:
    # Better with half of the raters and worse with the others: level on average, and surely neither.
    mixed = tuple((f"rater-{r}", float(i < (16 if r % 2 else 10))) for r in range(10) for i in range(20))
    check = reward_gate(mixed, judged(10, 20, 13), SETTINGS)[3]
    assert check.value == pytest.approx(0.0)
    assert check.low is not None
    assert check.low < -0.01
    assert check.passed


def test_on_a_first_turn_the_budget_to_the_base_is_the_only_one() -> None:
    far = dataclasses.replace(good(), kl_base=(14.0,) * 100, kl_live=(14.0,) * 100)
    assert not decide(far, SETTINGS).accepted
    first = decide(dataclasses.replace(far, live_is_base=True), SETTINGS)
    assert first.accepted
    beyond = dataclasses.replace(far, live_is_base=True, kl_base=(17.0,) * 100)
    assert [check.name for check in decide(beyond, SETTINGS).checks if not check.passed] == ["kl_base"]


def test_models_judged_on_different_comparisons_are_not_compared() -> None:
    check = reward_gate(judged(10, 20, 13), judged(10, 19, 5), SETTINGS)[3]
    assert not check.passed
    assert "same comparisons" in check.note


# Pieces, by hand.


def test_win_rates_count_pairs_and_half_of_ties() -> None:
    # 3 beats 1 and 2; 1 ties 1 and loses to 2: (2 + .5) / 4.
    assert win_rates([[3.0, 1.0], [0.0]], [[1.0, 2.0], [5.0]]) == (0.625, 0.0)


def test_distinct_2_is_the_share_of_different_neighbours() -> None:
    # the-cat, cat-sat; the-cat, cat-ran: three different of four.
    assert distinct_2(["The cat sat.", "the CAT ran"]) == 0.75
    assert distinct_2(["a b a b a"]) == 0.5
    assert distinct_2(["one", "", "two"]) is None
    assert distinct_2(["猫が好き"]) == 1.0


def test_the_commonest_opening_is_found_whatever_the_order() -> None:
    texts = ["Sure! Here is one", "sure, here is two", "No.", "Maybe so then"]
    assert commonest_opening(texts) == ("sure here is", 0.5)
    assert commonest_opening(["b", "a"]) == commonest_opening(["a", "b"]) == ("a", 0.5)
    assert commonest_opening([]) == ("", 0.0)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("", "empty"),
        (" \n.,!", "empty"),
        ("Yes.", ""),
        ("no no no no", ""),
        ("yes yes yes yes yes yes", "repeated"),
        ("I can help. I can help. I can help.", "repeated"),
        ("buy milk, buy bread and then buy some eggs", ""),
        ("Write three short tips for better sleep", "echo"),
        ("Three short tips", ""),
        ("Go home now, go home now.", ""),
        ("Go to bed early and keep the room dark", ""),
    ],
)
def test_what_is_no_answer_is_told_from_what_is(text: str, kind: str) -> None:
    assert degenerate(Sample("Please: write three short tips for better sleep.", text)) == kind


def test_length_alone_wins_where_the_candidate_talks_more() -> None:
    ours = [Sample("p", "one two three"), Sample("p", "one"), Sample("q", "one two")]
    theirs = [Sample("p", "one two"), Sample("q", "one two"), Sample("r", "x")]
    # p: 3 > 2 wins, 1 < 2 loses: .5; q: a tie: .5; r is asked of one only.
    assert longer_share(ours, theirs) == 0.5
    assert longer_share(ours[:1], theirs) == 1.0
    assert longer_share([], theirs) is None
    assert mean_words(["one two three", "one"]) == 2.0


def test_variety_is_compared_on_equally_many_texts_of_each_prompt() -> None:
    ours = [Sample("p", "a"), Sample("p", "b"), Sample("q", "c")]
    theirs = [Sample("p", "d"), Sample("r", "e")]
    assert matched(ours, theirs) == ([Sample("p", "a")], [Sample("p", "d")])


def test_conversations_that_end_alike_are_different_prompts() -> None:
    ours = [Sample("Sum it up.", "a", "first"), Sample("Sum it up.", "b", "second")]
    theirs = [Sample("Sum it up.", "c", "second")]
    assert matched(ours, theirs) == ([ours[1]], theirs)


def _words(count: int, length: int, seed: int) -> list[str]:
    rng = random.Random(seed)
    vocabulary = ["tea", "rain", "hill", "lamp", "door", "fish", "road", "song", "milk", "bread", "cup", "moon"]
    return [" ".join(rng.choices(vocabulary, k=length)) for _ in range(count)]


def test_brevity_is_not_variety() -> None:
    """Answers of a third of the length, from the same words: over all their pairs they would look more varied."""
    short = tuple(Sample(f"p{i}", text) for i, text in enumerate(_words(60, 8, seed=1)))
    long = tuple(Sample(f"p{i}", text) for i, text in enumerate(_words(60, 24, seed=2)))
    check = {c.name: c for c in decide(dataclasses.replace(good(), candidate=short, base=long), SETTINGS).checks}
    assert check["distinct_2"].value == pytest.approx(1.0, abs=0.12)
    everything = [distinct_2([each.text for each in side]) for side in (short, long)]
    assert everything[0] / everything[1] > 1.4


def test_one_opening_for_everything_is_blocked_however_often_the_base_has_one() -> None:
    base = tuple(Sample(f"p{i}", "Of course I can" if i < 60 else f"w{i} says thing {i}") for i in range(100))
    same = tuple(Sample(f"p{i}", "Of course I can") for i in range(100))
    checks = {c.name: c for c in decide(dataclasses.replace(good(), candidate=same, base=base), SETTINGS).checks}
    assert checks["commonest_opening"].threshold == pytest.approx(0.8)
    assert not checks["commonest_opening"].passed


def test_short_subjects_are_masked_too() -> None:
    subjects = ("tea", "sea", "bus", "sun", "cat", "dog")
    answers = [Sample(f"tips for {s}", f"{s} is good for you") for s in subjects]
    assert distinct_masked(answers) == pytest.approx(1 / 6)


def test_one_pattern_with_the_subject_filled_in_is_blocked() -> None:
    subjects = [f"{word}berries" for word in "abcdefghijklmnopqrstuvwxyz"]
    base = tuple(Sample(f"tips for {s}", f"answer {i} about {s} says thing {i}") for i, s in enumerate(subjects))
    pattern = tuple(Sample(f"tips for {s}", f"You will love your {s} today, enjoy!") for s in subjects)
    varied = tuple(Sample(f"tips for {s}", f"You will love {s} number {i} now") for i, s in enumerate(subjects))

    def failed(candidate: tuple[Sample, ...]) -> set[str]:
        decision = decide(dataclasses.replace(good(), candidate=candidate, base=base), SETTINGS)
        return {check.name for check in decision.checks if not check.passed}

    assert {"distinct_masked", "commonest_opening"} <= failed(pattern)
    assert "commonest_opening" in failed(varied), "all begin alike"
    assert "distinct_masked" not in failed(varied)
    assert not {"distinct_masked", "commonest_opening"} & failed(base)


TEXTS = st.lists(st.text(max_size=40), max_size=8)


@given(TEXTS)
def test_shares_are_shares_and_do_not_depend_on_order_or_case_of_ascii(texts: list[str]) -> None:
    share = distinct_2(texts)
    assert share is None or 0 < share <= 1
    assert share == distinct_2(texts[::-1])
    assert 0 <= commonest_opening(texts)[1] <= 1
    assert commonest_opening(texts) == commonest_opening(texts[::-1])


@given(TEXTS.filter(lambda texts: distinct_2(texts) is not None))
def test_saying_everything_twice_halves_distinct_2(texts: list[str]) -> None:
    once, twice = distinct_2(texts), distinct_2(texts * 2)
    assert once is not None
    assert twice == pytest.approx(once / 2)


@given(st.text(max_size=60), st.text(max_size=60))
def test_any_text_is_an_answer_or_a_named_failure(prompt: str, text: str) -> None:
    sample = Sample(prompt, text)
    assert degenerate(sample) in {"", "empty", "repeated", "echo"}
    assert degenerate_share([sample]) == float(bool(degenerate(sample)))


SCORES = st.lists(st.floats(-5, 5), min_size=1, max_size=5)


@given(st.lists(st.tuples(SCORES, SCORES), max_size=5))
def test_what_one_side_wins_the_other_loses(prompts: list[tuple[list[float], list[float]]]) -> None:
    ours, theirs = [pair[0] for pair in prompts], [pair[1] for pair in prompts]
    for won, lost in zip(win_rates(ours, theirs), win_rates(theirs, ours), strict=True):
        assert won + lost == pytest.approx(1.0)
