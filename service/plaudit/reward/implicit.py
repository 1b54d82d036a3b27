"""What behaviour is worth as evidence: where a value stands among its rater's own, and how often a signal errs. Pure.

Enters: values with whose they are, or what people said and did about the same completions. Leaves: positions in (0, 1)
and rates of error. Nothing here knows tensors, weights or domains.
"""

from __future__ import annotations

import bisect
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

About = TypeVar("About", bound=Hashable)
# What the initial rate weighs against what is seen, in acts.
PRIOR_ACTS = 10
# From one half on a signal would say the contrary; so few acts as there are must not turn one round.
MOST_NOISE = 0.45


@dataclass(frozen=True, slots=True)
class Noise:
    """How often a signal errs: `false_up` is P(positive | bad), `false_down` is P(negative | good)."""

    false_up: float = 0.0
    false_down: float = 0.0


CERTAIN = Noise()


def positions(values: Sequence[tuple[Hashable, float]]) -> list[float]:
    """Position of each value among those of the same key, in (0, 1): the share below it, and half of its equals.

    Raw fractions of what was watched say as much about the person and the length of the item as about its worth.
    A value alone stands at one half: it says nothing.
    """
    by_key: defaultdict[Hashable, list[float]] = defaultdict(list)
    for key, value in values:
        by_key[key].append(value)
    for several in by_key.values():
        several.sort()
    found = []
    for key, value in values:
        own = by_key[key]
        found.append((bisect.bisect_left(own, value) + bisect.bisect_right(own, value)) / (2 * len(own)))
    return found


def noise_rates(
    said: Mapping[About, bool], done: Iterable[tuple[str, About, bool]], initial: float
) -> dict[str, Noise]:
    """Rates of error of each source of signals, from raters who also said what they think of the same completion.

    said: by (rater, completion), whether it was found good; done: (source, (rater, completion), positive). Each rate
    is the mean of a Beta posterior whose prior is `initial`, worth PRIOR_ACTS acts, and at most MOST_NOISE. A source of
    one sign only (a skip that is never taken back) keeps `initial`: how often it is left out nobody knows.
    """
    counts: Counter[tuple[str, bool, bool]] = Counter()
    signs: dict[str, set[bool]] = {}
    for source, about, positive in done:
        signs.setdefault(source, set()).add(positive)
        if about in said:
            counts[source, said[about], positive] += 1

    def rate(source: str, good: bool) -> float:
        if len(signs[source]) < 2:
            return min(MOST_NOISE, initial)
        wrong, right = counts[source, good, not good], counts[source, good, good]
        return min(MOST_NOISE, (initial * PRIOR_ACTS + wrong) / (PRIOR_ACTS + wrong + right))

    return {source: Noise(rate(source, False), rate(source, True)) for source in sorted(signs)}
