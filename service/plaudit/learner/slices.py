"""How well a reward model orders what belongs to each of the domain's slices: an audit, never an input of a model.

Enters: calibration raters' comparisons with whether the model ordered them right, and the interactions they are about.
Leaves: an accuracy per slice with its interval, for the reward model's report and the gate's.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

from plaudit.domain import DomainPlugin
from plaudit.release.gate import SliceAccuracy
from plaudit.release.intervals import rater_accuracy
from plaudit.reward.dataset import Comparison
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
    by_slice: dict[str, list[tuple[str, float]]] = defaultdict(list)
    for comparison, outcome in zip(found, outcomes, strict=True):
        for name in frozenset.intersection(*(names[of] for of in comparison.interactions)):
            by_slice[name].append(outcome)
    largest = sorted(by_slice, key=lambda name: (-len(by_slice[name]), name))
    return tuple(_accuracy(name, by_slice[name], rater_cap) for name in largest[:MOST_SLICES])


def _accuracy(name: str, outcomes: Sequence[tuple[str, float]], rater_cap: float) -> SliceAccuracy:
    raters = len({who for who, _ in outcomes})
    return SliceAccuracy(name, len(outcomes), raters, rater_accuracy(outcomes, rater_cap=rater_cap))
