"""What a reward model is fitted to: units of evidence, each with its completions and its weight.

A unit is a pair, a ranking, a correction, or all thumbs of one rater.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from plaudit.reward.completion import Completion
from plaudit.reward.implicit import CERTAIN, Noise
from plaudit.types import FeedbackKind

# Places that are told apart; further down all count as the last of these.
MOST_PLACES = 10
NO_PLACE = -1


@dataclass(frozen=True, slots=True)
class Event:
    """What a unit owes to one row of evidence; `weight` is omega."""

    event_id: str
    who: str
    group: str
    kind: FeedbackKind
    weight: float
    interaction_id: str = ""


@dataclass(frozen=True, slots=True)
class PairUnit:
    """Two completions compared; outcome is 1 (first), 0 (tie) or -1 (second). `places`: where they stood."""

    event: Event
    first: Completion
    second: Completion
    outcome: int
    tie_offered: bool
    margin: float
    places: tuple[int, int] = (NO_PLACE, NO_PLACE)


@dataclass(frozen=True, slots=True)
class RankingUnit:
    """Completions best first; only the first `observed` are ordered (None: all). `places`: where they stood, or ()."""

    event: Event
    order: tuple[Completion, ...]
    observed: int | None = None
    places: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class DemoUnit:
    """A person's text, better than the completion that it corrects."""

    event: Event
    demo: Completion
    original: Completion
    margin: float


@dataclass(frozen=True, slots=True)
class Thumb:
    """One completion found good or bad. `source`: the signal it was read from, which errs as `noise` says.

    `among`: all options of its request, in the request's order; empty for what was generated.
    """

    event: Event
    completion: Completion
    positive: bool
    source: str = ""
    place: int = NO_PLACE
    noise: Noise = CERTAIN
    among: tuple[Completion, ...] = ()


@dataclass(frozen=True, slots=True)
class ThumbsUnit:
    """All thumbs of one rater: they are only ever compared with each other."""

    who: str
    thumbs: tuple[Thumb, ...]


Unit: TypeAlias = PairUnit | RankingUnit | DemoUnit | ThumbsUnit
Weighed: TypeAlias = PairUnit | RankingUnit | DemoUnit | Thumb


@dataclass(frozen=True, slots=True)
class Units:
    """Units of one split; `left_out` counts rows by the reason that kept them out.

    `noise`: rates of error of each source of signals. `drawn`: events in which places have a say, about an order that
    was drawn. `leaning`: log-prob (nats) of each option of such an order to be first, less its mean over the order.
    `served`: events about the policy's own order of options, the most probable first.
    """

    pairs: tuple[PairUnit, ...]
    rankings: tuple[RankingUnit, ...]
    demos: tuple[DemoUnit, ...]
    thumbs: tuple[ThumbsUnit, ...]
    left_out: Mapping[str, int]
    noise: Mapping[str, Noise] = field(default_factory=dict)
    drawn: frozenset[str] = frozenset()
    leaning: Mapping[Completion, float] = field(default_factory=dict)
    served: frozenset[str] = frozenset()

    @property
    def all(self) -> tuple[Unit, ...]:
        """Every unit, in a fixed order."""
        return (*self.pairs, *self.rankings, *self.demos, *self.thumbs)

    @property
    def events(self) -> int:
        """Rows of evidence in use."""
        return len(self.pairs) + len(self.rankings) + len(self.demos) + sum(len(u.thumbs) for u in self.thumbs)


def said_pairs(units: Units) -> tuple[PairUnit, ...]:
    """Pairs that people compared, without those that their behaviour made."""
    return tuple(pair for pair in units.pairs if pair.event.kind is not FeedbackKind.SIGNAL)
