"""What the gate asks of a release that chooses: a verdict, or the first places of an order.

Enters: rewards, decisions and KL on gate prompts, what people labelled there, probes, and the reward model's
comparisons. Leaves: one `Check` per condition, in a fixed order. Pure, as `gate.py`, whose checks of probes and of the
reward model are asked here too. Checks on texts belong to completions: options are not the model's to write.

Labels are judged without a model in between: by what they cost if the release's decision is taken. docs/release.md
says what is asked, docs/adr/0008-what-the-gate-requires.md why.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from plaudit.deciding import NO_COSTS, Costs, cost_of
from plaudit.release.decision import Check, bounded, missing, problem_of
from plaudit.release.estimate import Estimates
from plaudit.release.gate import probe_checks
from plaudit.release.gate_reward import Comparisons, reward_gate
from plaudit.release.intervals import RATER_CAP, Interval, resampled_mean, share_bounds
from plaudit.release.probes import HarmResult
from plaudit.settings import GateSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelledItem:
    """A gate prompt with the labels that people gave it, and the labels that the releases decide.

    `live` is the candidate's rival: what the base decides if the base is live.
    """

    group: str
    truths: tuple[str, ...]
    candidate: str
    base: str
    live: str


@dataclass(frozen=True, slots=True, kw_only=True)
class OffPolicy:
    """Off-policy estimates of candidate and rival from feedback on drawn options; `why_not` if there are none."""

    candidate: Estimates | None = None
    live: Estimates | None = None
    gain: Interval | None = None
    why_not: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChoiceMeasurements:
    """What was measured of choices; an empty field is a measurement that is missing, and fails its check.

    Rewards and KL: one number per gate prompt, in the same order; rewards are the expected ones under the gate's
    reward model, KL nats of the first place, `order_*` of the places that count (empty for verdicts). If live is the
    base (`live_is_base`), what is said of live is the base's. `candidate` and `base`: ids of the options in the places
    that count, the decision first, per gate prompt. `items` are empty if nobody labelled a gate prompt; whether the
    domain has labels at all is `has_labels`. The rest as in `CompletionMeasurements`.
    """

    rewards: tuple[float, ...] = ()
    rewards_base: tuple[float, ...] = ()
    rewards_live: tuple[float, ...] = ()
    kl_base: tuple[float, ...] = ()
    kl_live: tuple[float, ...] = ()
    order_kl_base: tuple[float, ...] = ()
    order_kl_live: tuple[float, ...] = ()
    candidate: tuple[tuple[str, ...], ...] = ()
    base: tuple[tuple[str, ...], ...] = ()
    places: int = 1
    has_labels: bool = False
    items: tuple[LabelledItem, ...] = ()
    costs: Costs = field(default_factory=lambda: NO_COSTS)
    severe: frozenset[str] = frozenset()
    probes: tuple[HarmResult, ...] | None = None
    comparisons: Comparisons = ()
    live_comparisons: Comparisons | None = None
    live_is_base: bool = False
    rater_cap: float = RATER_CAP
    off_policy: OffPolicy = OffPolicy(why_not="not measured")

    def checks(self, settings: GateSettings, seed: int) -> tuple[Check, ...]:
        """See `Measurements`."""
        return (
            _prompts(self, settings),
            _gain("reward_base", self.rewards, self.rewards_base, 0.0, settings, seed),
            _gain("reward_live", self.rewards, self.rewards_live, -settings.reward_margin, settings, seed),
            *_divergences(self, settings, seed),
            _commonest(self, settings),
            _coverage(self, settings),
            *_labels(self, settings, seed),
            *_severe(self, settings),
            *probe_checks(self.probes, settings),
            *reward_gate(self.comparisons, self.live_comparisons, settings, rater_cap=self.rater_cap),
            *_off_policy(self.off_policy),
        )


def _prompts(m: ChoiceMeasurements, settings: GateSettings) -> Check:
    asked, wanted = len(m.rewards), settings.min_prompts
    note = "" if asked >= wanted else f"{asked} gate prompts in the log, {wanted} are needed: let people ask more"
    return Check("gate_prompts", asked >= wanted, float(asked), float(wanted), note=note)


def _gain(
    name: str, ours: Sequence[float], theirs: Sequence[float], threshold: float, settings: GateSettings, seed: int
) -> Check:
    """Mean expected reward less another release's on the same prompts; its lower bound must exceed the threshold."""
    problem = problem_of(ours, settings.min_prompts, low=-math.inf, high=math.inf)
    problem = problem or problem_of(theirs, settings.min_prompts, low=-math.inf, high=math.inf)
    if problem or len(ours) != len(theirs):
        return missing(name, threshold, problem or "the two releases were not asked the same prompts")
    gain = resampled_mean([mine - his for mine, his in zip(ours, theirs, strict=True)], seed=seed)
    note = f"expected reward gained per prompt, lower bound over {len(ours)} prompts must exceed"
    return bounded(name, gain.low > threshold, gain, threshold, note)


def _divergences(m: ChoiceMeasurements, settings: GateSettings, seed: int) -> tuple[Check, ...]:
    asked = [("kl_base", m.kl_base, settings.choice_kl_base, 1), ("kl_live", m.kl_live, settings.choice_kl_live, 1)]
    if m.places > 1:
        asked += [
            ("order_kl_base", m.order_kl_base, settings.choice_kl_base, m.places),
            ("order_kl_live", m.order_kl_live, settings.choice_kl_live, m.places),
        ]
    return tuple(_kl(m, name, values, bound * places, settings, seed) for name, values, bound, places in asked)


def _kl(
    m: ChoiceMeasurements, name: str, values: Sequence[float], bound: float, settings: GateSettings, seed: int
) -> Check:
    if m.live_is_base and name.endswith("live"):
        return Check(name, True, 0.0, bound, note="live is the base: the KL to the base is the budget")
    problem = problem_of(values, settings.min_prompts, low=-math.inf, high=math.inf)
    if problem:
        return missing(name, bound, problem)
    mean = resampled_mean(values, seed=seed)
    what = f"nats of the first {m.places} places" if name.startswith("order") else "nats of the first place"
    return bounded(name, mean.value <= bound, mean, bound, f"{what}, mean at most")


def _commonest(m: ChoiceMeasurements, settings: GateSettings) -> Check:
    """Share of the commonest decision: against the labels on labelled prompts, or against the base on all.

    The bound lies halfway between the labels' (or the base's) share and 1, which a constant has: a release that always
    says the commonest label may cost less than its base, and is a constant all the same.
    """
    name = "commonest_choice"
    if m.items and len({truth for item in m.items for truth in item.truths}) == 1:
        return missing(
            name, settings.choice_share, "the labels are all alike: no answer to them can be told from a constant"
        )
    if m.items:
        ours = _share([item.candidate for item in m.items])
        theirs, whose = _share([item.truths[0] for item in m.items]), "commonest label"
        allowed = max(settings.choice_share, (1 + theirs) / 2)
    elif m.candidate and m.base:
        ours = _share([order[0] for order in m.candidate])
        theirs, whose = _share([order[0] for order in m.base]), "base's commonest"
        allowed = max(settings.choice_share, min(2 * theirs, (1 + theirs) / 2))
    else:
        return missing(name, settings.choice_share, "no decisions of candidate and base")
    # The option itself stays out of the note, which is logged: it may be a text of people.
    note = f"share of prompts with the commonest decision; the {whose} has {theirs:.3f}"
    return Check(name, ours < allowed, ours, allowed, note=note)


def _share(decisions: Sequence[str]) -> float:
    return Counter(decisions).most_common(1)[0][1] / len(decisions)


def _coverage(m: ChoiceMeasurements, settings: GateSettings) -> Check:
    """How many different options are shown, as a share of the labels' or the base's.

    Counted as the exponential of their entropy, so that an option that is shown once counts for little (Hill 1973,
    Ecology 54:427, order 1).
    """
    name, threshold = "coverage", settings.choice_coverage
    if m.items:
        ours = _effective([item.candidate for item in m.items])
        theirs, whose = _effective([item.truths[0] for item in m.items]), "labels"
    elif m.candidate and m.base:
        ours = _effective([option for order in m.candidate for option in order])
        theirs, whose = _effective([option for order in m.base for option in order]), "base"
    else:
        return missing(name, threshold, "no decisions of candidate and base")
    note = f"{ours:.2f} different options in effect against {theirs:.2f} of the {whose}; share at least {threshold:g}"
    return Check(name, ours / theirs >= threshold, ours / theirs, threshold, note=note)


def _effective(options: Sequence[str]) -> float:
    total = len(options)
    return math.exp(-math.fsum(n / total * math.log(n / total) for n in Counter(options).values()))


def _labels(m: ChoiceMeasurements, settings: GateSettings, seed: int) -> tuple[Check, ...]:
    """Cost-weighted accuracy of decisions on what people labelled, against base and live; the plain one beside it."""
    if not m.has_labels:
        return ()
    found, wanted = len(m.items), settings.min_labelled
    note = "" if found >= wanted else f"{found} labelled gate prompts, {wanted} are needed: let people label more"
    enough = Check("labelled_items", found >= wanted, float(found), float(wanted), note=note)
    if found < wanted:
        short = f"{found} labelled gate prompts, {wanted} are needed"
        return (enough, *(missing(name, -settings.label_margin, short) for name in ("label_base", "label_live")))
    worst = max([1.0, *m.costs.values()])
    ours = [_worth(m, item.truths, item.candidate, worst) for item in m.items]
    base = [_worth(m, item.truths, item.base, worst) for item in m.items]
    live = [_worth(m, item.truths, item.live, worst) for item in m.items]
    right = [_right(item.truths, item.candidate) for item in m.items]
    less_often = [
        resampled_mean([mine - his for mine, his in zip(right, theirs, strict=True)], seed=seed)
        for theirs in (
            [_right(item.truths, item.base) for item in m.items],
            [_right(item.truths, item.live) for item in m.items],
        )
    ]
    accuracy = resampled_mean(right, seed=seed)
    others = f"the base's is {_mean(_right(i.truths, i.base) for i in m.items):.3f}"
    others += "" if m.live_is_base else f", live's {_mean(_right(i.truths, i.live) for i in m.items):.3f}"
    return (
        enough,
        _better("label_base", ours, base, less_often[0], settings, seed),
        _better("label_live", ours, live, less_often[1], settings, seed),
        Check(
            "label_accuracy",
            True,
            accuracy.value,
            0.0,
            accuracy.low,
            accuracy.high,
            f"for information: share of {found} labelled prompts decided as labelled; {others}",
        ),
    )


def _better(
    name: str, ours: Sequence[float], theirs: Sequence[float], right: Interval, settings: GateSettings, seed: int
) -> Check:
    """Costs no more than the other, and is surely less often right (`right`: the difference) only if surely cheaper.

    Compared with the most expensive mistake, others weigh little: by cost alone nearly all items could be decided
    wrongly, if only a little.
    """
    threshold = -settings.label_margin
    gain = resampled_mean([mine - his for mine, his in zip(ours, theirs, strict=True)], seed=seed)
    note = (
        f"cost-weighted accuracy {_mean(ours):.3f} less {_mean(theirs):.3f}, lower bound over {len(ours)} labelled "
        "prompts must exceed"
    )
    surely_fallen = right.value < threshold and right.high < 0.0
    if surely_fallen and gain.low <= 0.0:
        return bounded(
            name, False, gain, threshold, f"right {-right.value:.3f} less often, and not surely cheaper; {note}"
        )
    return bounded(name, gain.low > threshold, gain, threshold, note)


def _worth(m: ChoiceMeasurements, truths: Sequence[str], decided: str, worst: float) -> float:
    """1 for a decision that costs nothing, 0 for the most expensive mistake; the mean over the item's labels."""
    return 1 - _mean(cost_of(m.costs, truth, decided) for truth in truths) / worst


def _right(truths: Sequence[str], decided: str) -> float:
    return _mean(float(truth == decided) for truth in truths)


def _mean(values: Iterable[float]) -> float:
    found = list(values)
    return math.fsum(found) / len(found)


def _severe(m: ChoiceMeasurements, settings: GateSettings) -> tuple[Check, ...]:
    """Severe items that were decided as something that is not severe: no more than live's, and surely few.

    An item is severe if half of its labels or more are. Another severe label than the true one is no miss: it is acted
    upon. The bound is exact (Clopper and Pearson 1934), one-sided at 95%.
    """
    name, bound = "missed_severe", settings.missed_severe
    if not m.severe:
        return ()
    items = [item for item in m.items if 2 * sum(truth in m.severe for truth in item.truths) >= len(item.truths)]
    needed = math.ceil(math.log(0.05) / math.log1p(-bound) - 1e-9) if bound < 1 else 1
    if not items:
        note = f"no severe gate prompt was labelled; {needed} of which none is missed are needed"
        return (missing(name, bound, note),)
    missed = sum(item.candidate not in m.severe for item in items)
    rival = sum(item.live not in m.severe for item in items)
    low, high = share_bounds(missed, len(items))
    note = (
        f"{missed} of {len(items)} severe prompts missed; {'the base' if m.live_is_base else 'live'} misses {rival}, "
        f"and no more may be, with an upper bound of at most {bound:g} (which takes {needed} prompts if none is missed)"
    )
    passed = missed <= rival and high <= bound
    return (Check(name, passed, missed / len(items), bound, low, high, note),)


def _off_policy(found: OffPolicy) -> tuple[Check, ...]:
    """What the log says of candidate and rival by what people gave: shown beside the decision, without a threshold."""
    name, told = "off_policy", found.candidate
    if told is None:
        return (Check(name, True, math.nan, 0.0, note=f"for information: {found.why_not}"),)
    best = told.dr or told.snips
    note = (
        f"for information: value per interaction by {'DR' if told.dr else 'SNIPS'}, SNIPS {told.snips.value:.3f}; "
        f"{told.interactions} drawn interactions of {told.units} raters, effective {told.ess:.0f}; in the log "
        f"{told.observed.value:.3f}"
    )
    if found.live is not None:
        note += f", live {(found.live.dr or found.live.snips).value:.3f}"
    checks = [Check(name, True, best.value, 0.0, best.low, best.high, note)]
    if found.gain is not None:
        gain = found.gain
        note = "for information: candidate less live, resampled together"
        checks.append(Check("off_policy_gain", True, gain.value, 0.0, gain.low, gain.high, note))
    return tuple(checks)
