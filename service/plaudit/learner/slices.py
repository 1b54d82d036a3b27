"""How well a reward model orders what belongs to each of the domain's slices: an audit, never an input of a model.

Enters: calibration raters' comparisons with whether the model ordered them right, and the interactions they are about.
Leaves: an accuracy per slice with its interval, for the reward model's report and the gate's.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

from plaudit.domain import DomainPlugin
from plaudit.release.gate_reward import SliceAccuracy
from plaudit.release.intervals import rater_accuracy
from plaudit.reward.comparisons import Comparison
from plaudit.reward.completion import Completion
from plaudit.types import Interaction

MOST_SLICES = 20  # In reports and metrics.


def slice_accuracies(
    plugin: DomainPlugin,
    interactions: Mapping[str, Interaction],
    found: Sequence[Comparison],
    outcomes: Sequence[tuple[str, float]],
    *,
    rater_cap: float,
) -> tuple[SliceAccuracy, ...]:
    """Accuracy by slice, those with most comparisons first, at most MOST_SLICES; raises PluginFailed.

    outcomes: (rater, 1 if the model ordered the comparison as the rater did, 0 if not, .5 if it scored both alike), in
    the order of `found`. A comparison is in a slice if all its interactions are.
    """
    names = {
        of: frozenset(plugin.slices(interactions[of])) for of in sorted({i for c in found for i in c.interactions})
    }
    by_slice: dict[str, list[tuple[Comparison, tuple[str, float]]]] = defaultdict(list)
    for comparison, outcome in zip(found, outcomes, strict=True):
        for name in frozenset.intersection(*(names[of] for of in comparison.interactions)):
            by_slice[name].append((comparison, outcome))
    largest = sorted(by_slice, key=lambda name: (-len(by_slice[name]), name))
    return tuple(_accuracy(name, by_slice[name], rater_cap) for name in largest[:MOST_SLICES])


def _accuracy(name: str, judged: Sequence[tuple[Comparison, tuple[str, float]]], rater_cap: float) -> SliceAccuracy:
    outcomes = [outcome for _, outcome in judged]
    agreed, asked = agreement([comparison for comparison, _ in judged])
    return SliceAccuracy(
        name=name,
        comparisons=len(outcomes),
        raters=len({who for who, _ in outcomes}),
        accuracy=rater_accuracy(outcomes, rater_cap=rater_cap),
        agreed=agreed,
        asked_twice=asked,
    )


def agreement(found: Sequence[Comparison]) -> tuple[int, int]:
    """Of the pairs of raters who compared the same two texts, how many preferred the same one, and all of them.

    A rater counts once for two texts, by the last comparison.
    """
    by_texts: dict[frozenset[Completion], dict[str, Completion]] = defaultdict(dict)
    for each in found:
        by_texts[frozenset((each.better, each.worse))][each.who] = each.better
    agreed = asked = 0
    for preferred in by_texts.values():
        raters, first = len(preferred), Counter(preferred.values())
        asked += raters * (raters - 1) // 2
        agreed += sum(count * (count - 1) // 2 for count in first.values())
    return agreed, asked
