"""Whether a reward model may steer anything: its checks, by comparisons of calibration raters. Pure.

The conditions are those of docs/release.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from plaudit.release.decision import Check, Outcome, bounded, missing, problem_of
from plaudit.release.intervals import RATER_CAP, Interval, rater_accuracy, rater_accuracy_difference
from plaudit.settings import GateSettings

# Chance: a reward model must beat it before it may steer anything.
_CHANCE = 0.5
# A reward model is refused if it is surely more than this much less accurate than the live one.
_WORSE_BY = -0.01
Comparisons = Sequence[tuple[str, float]]


@dataclass(frozen=True, slots=True)
class SliceAccuracy:
    """What the reward model is worth on calibration raters' comparisons of one of the domain's slices.

    `agreed` of `asked_twice` pairs of raters who compared the same two texts preferred the same one: what people do not
    agree on, no model can get right.
    """

    name: str
    comparisons: int
    raters: int
    accuracy: Interval
    agreed: int = 0
    asked_twice: int = 0


def reward_gate(
    comparisons: Comparisons,
    live_comparisons: Comparisons | None,
    settings: GateSettings,
    *,
    rater_cap: float = RATER_CAP,
) -> tuple[Check, ...]:
    """The conditions on a reward model, asked before it steers PPO and again of the release that carries it.

    comparisons: (rater, 1 if the model orders the two as the rater did, 0 if not, .5 for equal scores), of
    calibration raters, those inside rankings too. `live_comparisons` are the same under the live reward model. A rater
    counts as at most `rater_cap` comparisons. `reward_outcome` says what the checks call for.
    """
    raters = len({rater for rater, _ in comparisons})
    wanted, wanted_raters = settings.reward_comparisons, settings.reward_raters
    return (
        Check("reward_comparisons", len(comparisons) >= wanted, float(len(comparisons)), float(wanted)),
        Check("reward_raters", raters >= wanted_raters, float(raters), float(wanted_raters)),
        _reward_accuracy(comparisons, rater_cap),
        _reward_against_live(comparisons, live_comparisons, rater_cap),
    )


def slice_checks(slices: Sequence[SliceAccuracy]) -> tuple[Check, ...]:
    """Accuracy by slice, for information: slices are audits, and many of them would fail one by chance."""
    return tuple(
        Check(
            f"slice_{each.name}",
            True,
            each.accuracy.value,
            _CHANCE,
            each.accuracy.low,
            each.accuracy.high,
            f"for information: reward_accuracy on {each.comparisons} comparisons of {each.raters} raters; two raters "
            f"agreed in {each.agreed} of {each.asked_twice} cases",
        )
        for each in slices
    )


def reward_outcome(checks: Sequence[Check]) -> Outcome:
    """WAIT with too few comparisons or raters, else ACCEPT if all checks passed, else REFUSE."""
    failed = {check.name for check in checks if not check.passed}
    if failed & {"reward_comparisons", "reward_raters"}:
        return Outcome.WAIT
    return Outcome.REFUSE if failed else Outcome.ACCEPT


def _reward_accuracy(comparisons: Comparisons, rater_cap: float) -> Check:
    problem = problem_of([correct for _, correct in comparisons], 1, low=0.0, high=1.0)
    if problem:
        return missing("reward_accuracy", _CHANCE, problem)
    accuracy = rater_accuracy(comparisons, rater_cap=rater_cap)
    return bounded("reward_accuracy", accuracy.low > _CHANCE, accuracy, _CHANCE, "lower bound over raters must exceed")


def _reward_against_live(comparisons: Comparisons, live: Comparisons | None, rater_cap: float) -> Check:
    name = "reward_against_live"
    if live is None:
        return Check(name, True, 0.0, _WORSE_BY, note="no reward model is live")
    problem = problem_of([correct for _, correct in [*comparisons, *live]], 1, low=0.0, high=1.0)
    if problem:
        return missing(name, _WORSE_BY, problem)
    try:
        difference = rater_accuracy_difference(comparisons, live, rater_cap=rater_cap)
    except ValueError as error:
        return missing(name, _WORSE_BY, str(error))
    # An equal model would fail four times in five if the lower bound were asked: refuse only what is surely worse.
    passed = difference.high >= _WORSE_BY
    return bounded(name, passed, difference, _WORSE_BY, "accuracy less the live one's; upper bound at least")
