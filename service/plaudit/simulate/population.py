"""What a population of simulated people is, and how one is found.

Populations live in plugins under the entry point group `plaudit.populations`. Only this module loads that group
and only the simulator's process imports this module, so that no training code can reach a gold preference.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from typing import Protocol

from plaudit.errors import Misconfigured
from plaudit.types import Act, FeedbackKind

ENTRY_POINT_GROUP = "plaudit.populations"


@dataclass(frozen=True, slots=True, kw_only=True)
class SimPrompt:
    """A request that simulated people make. `seen_kind` is False where channel prompts never make such a request."""

    text: str
    kind: str
    check: str = "none"
    topic: tuple[str, ...] = ()
    seen_kind: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Rater:
    """One simulated person.

    `weights` multiply the parts of the gold, `temperature` is the noise of comparisons in gold units, `threshold`
    the value from which a thumb goes up, `length_bias` the liking of one more word.
    """

    name: str
    weights: Mapping[str, float] = field(default_factory=dict)
    temperature: float = 0.6
    threshold: float = 1.6
    length_bias: float = 0.0


@dataclass(frozen=True, slots=True)
class Shown:
    """A candidate as people see it."""

    candidate_id: str
    text: str


@dataclass(frozen=True, slots=True)
class SimAct:
    """An act with its reasons."""

    act: Act
    reasons: tuple[str, ...] = ()


class Population(Protocol):
    """Simulated people of one domain, with their hidden gold."""

    @property
    def domain(self) -> str:
        """Domain whose channel they rate."""

    @property
    def max_tokens(self) -> int:
        """Longest completion that they ask for."""

    @property
    def taste(self) -> str:
        """The taste in words, as a caller could put it into a system message."""

    @property
    def patterns(self) -> Sequence[str]:
        """Fixed texts with "{t}" for the question's subject that are known to please the gold; may be empty.

        Where the search for the best filled-in pattern starts: whoever writes a gold knows best how to please it.
        """

    @property
    def mix(self) -> Mapping[FeedbackKind, float]:
        """Share of each kind of feedback; the shares sum to 1."""

    def channel_prompts(self) -> Sequence[SimPrompt]:
        """What they ask in the channel."""

    def evaluation_prompts(self) -> Sequence[SimPrompt]:
        """What only evaluations ask; no group of them is a channel prompt's."""

    def raters(self, seed: int) -> Sequence[Rater]:
        """The people; the same for the same seed."""

    def gold(self, prompt: SimPrompt, text: str) -> float:
        """How good a displayed text is, without noise."""

    def parts(self, prompt: SimPrompt, text: str) -> Mapping[str, float]:
        """The parts of the gold, each in [0, 1], for reports."""

    def act(
        self, rater: Rater, prompt: SimPrompt, shown: Sequence[Shown], kind: FeedbackKind, rng: random.Random
    ) -> SimAct | None:
        """One act of `kind` about what was shown; None where the rater has nothing to say."""


def installed_populations() -> tuple[str, ...]:
    """Names of the populations that are installed, in order."""
    return tuple(sorted(point.name for point in entry_points(group=ENTRY_POINT_GROUP)))


def load_population(name: str) -> Population:
    """The population `name`; raises Misconfigured where no plugin brings it."""
    for point in entry_points(group=ENTRY_POINT_GROUP, name=name):
        population: Population = point.load()()
        return population
    raise Misconfigured(
        f"no population {name!r} is installed; installed are: {', '.join(installed_populations()) or 'none'}",
        population=name,
    )
