"""The decision about options with known probabilities: the one that is expected to cost least. Pure.

Enters: a probability per option, and, if the options are verdicts, a label per option and what it costs to decide one
label if another is true. Leaves: the place of the decision. The serving replica, the gate, its probes and the
benchmarks all decide here.

The decision is the Bayes action argmin_d sum_c p(c) cost(c, d) (Berger 1985, "Statistical Decision Theory", 1.3).
Without named costs every wrong label costs 1, and the decision is the most probable option.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, TypeAlias

from plaudit.errors import Misconfigured

if TYPE_CHECKING:
    from plaudit.domain import Declaration
    from plaudit.types import Option

Cost: TypeAlias = tuple[str, str, float]
"""True label, decided label, cost (0 or more)."""
Costs: TypeAlias = Mapping[tuple[str, str], float]
"""Cost by (true label, decided label); a pair that is not named costs 0 if the labels are equal, and 1 otherwise."""
NO_COSTS: Costs = MappingProxyType({})


def costs_of(declared: Declaration, settings: Sequence[Cost] = ()) -> Costs:
    """The costs in force: the domain's, and over them those of the channel's settings, pair by pair.

    Raises Misconfigured if the settings name a label that the domain does not declare.
    """
    if faults := cost_faults(settings, declared.labels):
        raise Misconfigured(f"decision.costs of the domain {declared.name!r}: {faults[0]}", setting="decision.costs")
    return MappingProxyType({(true, decided): cost for true, decided, cost in (*declared.costs, *settings)})


def cost_faults(costs: Iterable[Cost], labels: frozenset[str] | None = None) -> list[str]:
    """What is wrong with a list of costs, in words; `labels` None does not ask whether they are declared."""
    faults, named = [], set()
    for true, decided, cost in costs:
        if not (math.isfinite(cost) and cost >= 0):
            faults.append(f"the cost of deciding {decided!r} if {true!r} is true is {cost}; it must be 0 or more")
        if (true, decided) in named:
            faults.append(f"the cost of deciding {decided!r} if {true!r} is true is named twice; name it once")
        named.add((true, decided))
        if labels is not None:
            faults += [
                f"costs name the label {label!r}, which is not declared (declared: {', '.join(sorted(labels))})"
                for label in (true, decided)
                if label not in labels
            ]
    return faults


def cost_of(costs: Costs, true: str, decided: str) -> float:
    """What it costs to decide `decided` if `true` is the true label."""
    return costs.get((true, decided), 0.0 if true == decided else 1.0)


def labels_of(options: Sequence[Option], labels: frozenset[str]) -> tuple[str, ...]:
    """The declared label that each option stands for: its id, else its text; empty unless every option has one."""
    found = [next((name for name in (each.option_id, each.text) if name in labels), "") for each in options]
    return tuple(found) if all(found) else ()


def expected_costs(labels: Sequence[str], probabilities: Sequence[float], costs: Costs) -> list[float]:
    """Expected cost of each option as the decision, in their order; `probabilities` of their labels being true."""
    return [
        math.fsum(p * cost_of(costs, true, decided) for true, p in zip(labels, probabilities, strict=True))
        for decided in labels
    ]


def decide(
    probabilities: Sequence[float],
    *,
    labels: Sequence[str] = (),
    costs: Costs = NO_COSTS,
    valid: Sequence[bool] = (),
) -> int:
    """Place of the decision: least expected cost, then greatest probability, then first in order.

    labels: of every option, empty if they are no verdicts. valid: of every option, empty if all are; an option that is
    not valid is never the decision while another is.
    """
    weights = expected_costs(labels, probabilities, costs) if labels and costs else [0.0] * len(probabilities)
    allowed = [place for place, fits in enumerate(valid) if fits] or range(len(probabilities))
    return min(allowed, key=lambda place: (weights[place], -probabilities[place], place))
