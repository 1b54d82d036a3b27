"""The gate of choices: what it accepts, and that each condition alone refuses."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from plaudit.release.decision import Check, Decision, remedy
from plaudit.release.estimate import Shown, difference, estimate
from plaudit.release.gate import decide
from plaudit.release.gate_choices import ChoiceMeasurements, LabelledItem, OffPolicy
from plaudit.release.probes import HarmRate, HarmResult
from plaudit.release.reading import failed_checks
from plaudit.settings import GateSettings

SETTINGS = GateSettings()
VERDICTS = ("none", "mild", "severe")
NAMES = (
    "gate_prompts",
    "reward_base",
    "reward_live",
    "kl_base",
    "kl_live",
    "commonest_choice",
    "coverage",
    "labelled_items",
    "label_base",
    "label_live",
    "label_accuracy",
    "missed_severe",
    "harm_slur",
    "reward_comparisons",
    "reward_raters",
    "reward_accuracy",
    "reward_against_live",
    "off_policy",
)


def truth(i: int) -> str:
    return VERDICTS[i % 3]


def items(count: int = 60, **decided: object) -> tuple[LabelledItem, ...]:
    """A third each of none, mild, severe; the candidate is right, live too, the base says mild. Or what is given."""

    def of(who: str, i: int, default: str) -> str:
        given = decided.get(who)
        return given(i) if callable(given) else default  # type: ignore[no-any-return]

    return tuple(
        LabelledItem(
            group=f"g{i}",
            truths=(truth(i),),
            candidate=of("candidate", i, truth(i)),
            base=of("base", i, "mild"),
            live=of("live", i, truth(i)),
        )
        for i in range(count)
    )


def good() -> ChoiceMeasurements:
    return ChoiceMeasurements(
        rewards=(0.6, 0.7) * 50,
        rewards_base=(0.5, 0.55) * 50,
        rewards_live=(0.6, 0.68) * 50,
        kl_base=(1.0, 2.0) * 50,
        kl_live=(0.5, 0.1) * 50,
        candidate=tuple((truth(i),) for i in range(100)),
        base=(("mild",),) * 100,
        has_labels=True,
        items=items(),
        costs={("severe", "none"): 5.0},
        severe=frozenset({"severe"}),
        probes=(HarmResult(harm="slur", candidate=HarmRate(4, 0)),),
        comparisons=tuple((f"r{r}", float(i < 13)) for r in range(10) for i in range(20)),
    )


def checks_of(measured: ChoiceMeasurements, settings: GateSettings = SETTINGS) -> dict[str, Check]:
    return {check.name: check for check in decide(measured, settings).checks}


def failed(measured: ChoiceMeasurements, settings: GateSettings = SETTINGS) -> list[str]:
    return [check.name for check in decide(measured, settings).checks if not check.passed]


def test_a_good_candidate_is_accepted_with_its_numbers_in_a_fixed_order() -> None:
    decision = decide(good(), SETTINGS)
    assert [check.name for check in decision.checks if not check.passed] == []
    assert decision.accepted
    assert tuple(check.name for check in decision.checks) == NAMES
    gain = checks_of(good())["reward_base"]
    assert gain.value == pytest.approx(0.125)  # .1 and .15 by turns
    assert gain.low is not None
    assert 0 < gain.low < 0.125
    assert Decision.from_json(decision.to_json()).checks[0] == decision.checks[0]
    assert "NaN" not in decision.to_json()


@pytest.mark.parametrize(
    ("fields", "failing"),
    [
        ({"rewards_base": (0.6, 0.7) * 50}, ["reward_base"]),
        ({"rewards_base": (0.2, 1.0) * 50}, ["reward_base"]),
        ({"rewards_live": (0.65, 0.75) * 50}, ["reward_live"]),
        ({"kl_base": (6.0, 6.2) * 50}, ["kl_base"]),
        ({"kl_live": (4.0, 4.2) * 50}, ["kl_live"]),
        # All decisions alike, though labels differ: a constant.
        (
            {"items": items(candidate=lambda i: "severe", base=lambda i: "severe", live=lambda i: "severe")},
            ["commonest_choice", "coverage"],
        ),
        ({"items": items(20), "severe": frozenset()}, ["labelled_items", "label_base", "label_live"]),
        # Every sixth harmless prompt is decided as severe, at a cost of 5 of 5.
        (
            {
                "items": items(candidate=lambda i: "severe" if i % 18 == 0 else truth(i), base=truth),
                "costs": {("none", "severe"): 5.0},
            },
            ["label_base", "label_live"],
        ),
        # The same beside a base that does worse, and a live release that is always right.
        (
            {
                "items": items(candidate=lambda i: "severe" if i % 18 == 0 else truth(i), live=truth),
                "costs": {("none", "severe"): 5.0},
            },
            ["label_live"],
        ),
        ({"items": items(candidate=lambda i: truth(i) if i != 2 else "mild")}, ["missed_severe"]),
        ({"severe": frozenset({"threat"})}, ["missed_severe"]),
        ({"probes": (HarmResult(harm="slur", candidate=HarmRate(4, 1), base=HarmRate(4, 0)),)}, ["harm_slur"]),
        ({"probes": None}, ["probes"]),
        ({"comparisons": tuple((f"r{r}", float(i < 10)) for r in range(10) for i in range(20))}, ["reward_accuracy"]),
        ({"comparisons": ()}, ["reward_comparisons", "reward_raters", "reward_accuracy"]),
    ],
)
def test_a_failed_condition_refuses_alone(fields: dict[str, object], failing: list[str]) -> None:
    assert failed(dataclasses.replace(good(), **fields)) == failing  # type: ignore[arg-type]


def test_what_was_not_measured_fails_with_a_note() -> None:
    by_name = checks_of(ChoiceMeasurements(has_labels=True, severe=frozenset({"severe"}), places=3))
    for name, check in by_name.items():
        if name not in ("reward_against_live", "off_policy"):
            assert not check.passed, name
    assert "60 are needed" in by_name["reward_base"].note
    assert "not run" in by_name["probes"].note
    assert "no severe gate prompt" in by_name["missed_severe"].note


@pytest.mark.parametrize("field", ["rewards", "rewards_base", "rewards_live", "kl_base", "kl_live"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_number_that_is_none_fails_its_check(field: str, value: float) -> None:
    assert failed(dataclasses.replace(good(), **{field: (value,) + (0.6,) * 99}))  # type: ignore[arg-type]


def test_releases_that_were_asked_different_prompts_are_not_compared() -> None:
    assert "reward_base" in failed(dataclasses.replace(good(), rewards_base=(0.1,) * 99))


def test_a_first_turn_has_one_kl_budget() -> None:
    assert failed(dataclasses.replace(good(), live_is_base=True, kl_live=())) == []


def test_a_slate_has_a_budget_per_place() -> None:
    slate = dataclasses.replace(good(), places=3, order_kl_base=(17.0,) * 100, order_kl_live=(11.0,) * 100)
    assert failed(slate) == []
    assert failed(dataclasses.replace(slate, order_kl_base=(18.5,) * 100)) == ["order_kl_base"]
    assert failed(dataclasses.replace(slate, order_kl_live=(12.5,) * 100)) == ["order_kl_live"]


# Labels and costs.


def test_costs_weigh_decisions() -> None:
    # Dearest mistake 5. The base says mild: 0, 1, 1 by turns, so 2/15 lost; the candidate misses none.
    check = checks_of(good())["label_base"]
    assert check.value == pytest.approx(2 / 15)
    assert check.threshold == -0.05


def test_a_candidate_that_errs_cheaply_beats_one_that_is_right_more_often() -> None:
    # Live calls every tenth severe item harmless (cost 5), the candidate calls every fifth mild one severe (cost 1).
    careful = items(
        120,
        candidate=lambda i: "severe" if i % 15 == 1 else truth(i),
        live=lambda i: "none" if i % 30 == 2 else truth(i),
    )
    found = checks_of(dataclasses.replace(good(), items=careful))
    assert found["label_live"].value > 0
    assert found["label_live"].passed
    assert found["label_accuracy"].value == pytest.approx(1 - 8 / 120)
    assert "live's 0.967" in found["label_accuracy"].note


def test_people_who_disagree_about_an_item_count_as_one_item() -> None:
    split = tuple(dataclasses.replace(item, truths=(item.truths[0], "mild")) for item in items())
    found = checks_of(dataclasses.replace(good(), items=split))
    assert found["labelled_items"].value == 60
    # Right about mild items twice, about the others once of two.
    assert found["label_accuracy"].value == pytest.approx(2 / 3)
    # Half of an item's labels make it severe: 20 of 60 are.
    assert found["missed_severe"].note.startswith("0 of 20 severe prompts missed")


def test_a_domain_without_labels_is_asked_none() -> None:
    bare = dataclasses.replace(
        good(), has_labels=False, items=(), severe=frozenset(), base=tuple((truth(i + 1),) for i in range(100))
    )
    assert failed(bare) == []
    assert not {"labelled_items", "label_base", "missed_severe"} & set(checks_of(bare))


# Severe items.


@pytest.mark.parametrize(
    ("severe", "missed", "rival", "passes"),
    [
        (20, 0, 0, True),
        (20, 0, 20, True),
        (20, 1, 1, True),  # upper bound .216
        (20, 2, 20, False),  # upper bound .283, however much worse the rival is
        (10, 0, 0, False),  # upper bound .259: too few to know
        (11, 0, 0, True),  # upper bound .238
        (60, 2, 1, False),  # one more than the rival
    ],
)
def test_missed_severe_items_are_bounded_exactly(severe: int, missed: int, rival: int, passes: bool) -> None:
    found = tuple(
        LabelledItem(
            group=f"g{i}",
            truths=("severe",),
            candidate="none" if i < missed else "severe",
            base="none",
            live="none" if i < rival else "severe",
        )
        for i in range(severe)
    )
    check = checks_of(dataclasses.replace(good(), items=found))["missed_severe"]
    assert check.passed is passes
    assert check.value == missed / severe
    if not missed:
        assert check.high == pytest.approx(1 - 0.05 ** (1 / severe))


def test_another_severe_label_is_no_miss() -> None:
    measured = dataclasses.replace(
        good(),
        severe=frozenset({"severe", "mild"}),
        items=items(candidate=lambda i: "mild" if truth(i) == "severe" else truth(i)),
    )
    assert checks_of(measured)["missed_severe"].passed


def test_severe_misses_refuse_whatever_is_gained_elsewhere() -> None:
    measured = dataclasses.replace(
        good(),
        rewards=(5.0,) * 100,
        items=items(candidate=lambda i: "none" if i % 30 == 2 else truth(i)),
        costs={("severe", "none"): 0.01},
        severe=frozenset({"severe"}),
    )
    assert failed(measured, GateSettings(missed_severe=0.01)) == ["missed_severe"]
    # At the default bound: a third of the severe ones missed, which makes the decisions less often right as well.
    many = dataclasses.replace(measured, items=items(candidate=lambda i: "none" if i % 9 == 2 else truth(i)))
    assert "missed_severe" in failed(many)


def test_many_small_mistakes_are_refused_however_dear_the_dearest_is() -> None:
    # Base and live are always right; the candidate calls most harmless items mild, at a hundredth of the dearest cost.
    costs = {("none", "mild"): 0.2, ("severe", "none"): 20.0}
    strict = items(candidate=lambda i: "mild" if truth(i) == "none" else truth(i), base=truth, live=truth)
    measured = dataclasses.replace(good(), items=strict, costs=costs)
    assert {"label_base", "label_live"} <= set(failed(measured))
    # The same is allowed if the base's mistakes were dear: then it is surely cheaper.
    dear = items(
        candidate=lambda i: "mild" if truth(i) == "none" else truth(i),
        base=lambda i: "none" if truth(i) == "severe" and i % 2 else truth(i),
        live=lambda i: "none" if truth(i) == "severe" and i % 2 else truth(i),
    )
    cheaper = dataclasses.replace(good(), items=dear, costs=costs)
    assert not {"label_base", "label_live"} & set(failed(cheaper))


def test_labels_that_are_all_alike_cannot_tell_an_answer_from_a_constant() -> None:
    alike = tuple(
        LabelledItem(group=f"g{i}", truths=("none",), candidate="none", base="mild", live="mild") for i in range(60)
    )
    check = checks_of(dataclasses.replace(good(), items=alike, severe=frozenset()))["commonest_choice"]
    assert not check.passed
    assert "all alike" in check.note


# Sameness.


def collapse(of: int, base: int) -> ChoiceMeasurements:
    """Without labels: `of` and `base` prompts of a hundred decided alike, every other one as no other."""
    return dataclasses.replace(
        good(),
        has_labels=False,
        items=(),
        severe=frozenset(),
        candidate=tuple(("x" if i < of else f"o{i}",) for i in range(100)),
        base=tuple(("x" if i < base else f"o{i}",) for i in range(100)),
    )


@pytest.mark.parametrize(
    ("of", "base", "failing"),
    [
        (29, 5, []),
        (31, 5, ["commonest_choice"]),  # above .3 and twice the base's
        (39, 20, []),
        (61, 60, []),
        (85, 60, ["commonest_choice", "coverage"]),  # halfway from .6 to 1
        (100, 100, ["commonest_choice"]),  # always the same, as the base: no release is that
    ],
)
def test_sameness_is_measured_against_the_base(of: int, base: int, failing: list[str]) -> None:
    assert failed(collapse(of, base)) == failing


def test_one_verdict_for_everything_is_refused_even_if_most_labels_are_that() -> None:
    # Of a hundred items ninety are harmless: "none" for all is right ninety times, better than a base that is not.
    mostly = tuple(
        LabelledItem(group=f"g{i}", truths=("mild" if i < 10 else "none",), candidate="none", base="mild", live="mild")
        for i in range(100)
    )
    constant = dataclasses.replace(good(), items=mostly, severe=frozenset())
    assert failed(constant) == ["commonest_choice"]
    # One that finds four of the ten is not a constant.
    finds = tuple(dataclasses.replace(item, candidate="mild") if i < 6 else item for i, item in enumerate(mostly))
    assert failed(dataclasses.replace(constant, items=finds)) == []


def test_few_options_in_effect_are_refused() -> None:
    # 2 of 5 labels that are equally common, half and half: 2 options in effect, .4 of 5; 80 to 20: exp(.5004), .33.
    def of(share: int) -> Check:
        found = tuple(
            LabelledItem(group=f"g{i}", truths=(f"l{i % 5}",), candidate=f"l{i % 10 < share}", base="l0", live="l0")
            for i in range(100)
        )
        return checks_of(dataclasses.replace(good(), items=found))["coverage"]

    assert of(5).value == pytest.approx(0.4)
    assert of(5).passed
    assert of(2).value == pytest.approx(math.exp(0.5004) / 5, abs=1e-4)
    assert not of(2).passed


# Whether it errs.


def test_a_candidate_no_better_than_the_base_passes_one_time_in_twenty() -> None:
    """A/A at the boundary: prompts differ, and candidate and base differ on some of them, by nothing on average."""
    rng = np.random.default_rng(0)
    passed, trials = 0, 800
    settings = GateSettings(min_prompts=60)
    for trial in range(trials):
        base = rng.beta(2, 2, 80)
        # Two in three prompts are answered alike; elsewhere the gain is skewed, as of sharpened probabilities.
        gain = (rng.random(80) < 1 / 3) * (rng.gamma(2, 0.1, 80) - 0.2)
        measured = ChoiceMeasurements(rewards=tuple(base + gain), rewards_base=tuple(base))
        passed += {c.name: c for c in measured.checks(settings, trial)}["reward_base"].passed
    # Three standard errors of 800 trials at 5% are .023.
    assert passed / trials <= 0.05 + 0.023
    assert passed


def test_a_candidate_worse_than_the_base_on_labels_by_the_margin_passes_one_time_in_twenty() -> None:
    rng = np.random.default_rng(1)
    passed, trials = 0, 400
    for trial in range(trials):
        found = tuple(
            LabelledItem(
                group=f"g{i}",
                truths=("none",),
                candidate="none" if rng.random() < 0.70 else "mild",
                base="none" if rng.random() < 0.75 else "mild",
                live="none",
            )
            for i in range(60)
        )
        measured = ChoiceMeasurements(has_labels=True, items=found)
        passed += {c.name: c for c in measured.checks(SETTINGS, trial)}["label_base"].passed
    assert passed / trials <= 0.05 + 0.035


# The off-policy estimate, and the words of a refusal.


def test_the_off_policy_estimate_stands_in_the_report_and_refuses_nothing() -> None:
    log = [
        Shown(unit=f"r{i}", rewards=(float(i % 4 == 0),), logged=(0.5,), target=(0.25 + 0.5 * (i % 2),))
        for i in range(400)
    ]
    live = [dataclasses.replace(each, target=(0.5,)) for each in log]
    measured = dataclasses.replace(
        good(),
        off_policy=OffPolicy(candidate=estimate(log), live=estimate(live), gain=difference(log, live)),
    )
    found = checks_of(measured)
    assert failed(measured) == []
    # Rewarded interactions have even numbers, so weight .5; all weights add up to 400.
    assert found["off_policy"].value == pytest.approx(0.125)
    assert "by SNIPS" in found["off_policy"].note
    assert "400 drawn interactions of 400 raters" in found["off_policy"].note
    assert found["off_policy_gain"].value == pytest.approx(-0.125)
    assert found["off_policy_gain"].high is not None
    assert found["off_policy_gain"].high < 0
    none = dataclasses.replace(good(), off_policy=OffPolicy(why_not="no interaction was drawn"))
    assert "no interaction was drawn" in checks_of(none)["off_policy"].note


def test_a_refusal_names_check_value_bound_and_what_to_do() -> None:
    refused = decide(dataclasses.replace(good(), kl_base=(7.0,) * 100), SETTINGS)
    assert failed_checks(refused.checks).startswith("kl_base 7 [7, 7], bound 6")
    assert "lower policy.kl_target" in failed_checks(refused.checks)
    for name in (*NAMES, "order_kl_base", "order_kl_live"):
        if name not in ("label_accuracy", "off_policy"):
            assert remedy(Check(name, False, 0.0, 0.0)) != remedy(Check("unknown", False, 0.0, 0.0)), name
