"""What a population of simulated people is, and how one is found.

Populations live in plugins under the entry point group `plaudit.populations`. Only this module loads that group
and only the simulator's process imports this module, so that no training code can reach a gold preference.
"""

from __future__ import annotations

import abc
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from typing import Any, Literal

from plaudit.errors import Misconfigured
from plaudit.types import Act, FeedbackKind, Message, Option, Passage, Request

ENTRY_POINT_GROUP = "plaudit.populations"


@dataclass(frozen=True, slots=True, kw_only=True)
class SimPrompt:
    """A request that simulated people make. `seen_kind` is False if channel prompts never make such a request.

    `history` was said before `text`, oldest first, and may begin with a system message. `options` stay empty if the
    domain makes completions, or makes its options itself.
    """

    text: str
    kind: str
    check: str = "none"
    topic: tuple[str, ...] = ()
    seen_kind: bool = True
    history: tuple[Message, ...] = ()
    options: tuple[Option, ...] = ()
    passages: tuple[Passage, ...] = ()

    @property
    def request(self) -> Request:
        """What a caller sends: the history and the text as the last user turn, with options and passages."""
        messages = (*self.history, Message("user", self.text))
        return Request(messages=messages, options=self.options, passages=self.passages)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rater:
    """One simulated person.

    `weights` multiply the parts of the gold, `temperature` is the noise of comparisons in gold units, `threshold`
    the value from which a thumb goes up, `length_bias` the liking of one more word, `mistakes` the share of wrong
    labels.
    """

    name: str
    weights: Mapping[str, float] = field(default_factory=dict)
    temperature: float = 0.6
    threshold: float = 1.6
    length_bias: float = 0.0
    mistakes: float = 0.0


@dataclass(frozen=True, slots=True)
class Shown:
    """A candidate as people see it. `place` counts from 0 in the order shown; only options have an `option_id`."""

    candidate_id: str
    text: str
    place: int = 0
    option_id: str = ""


@dataclass(frozen=True, slots=True)
class SimAct:
    """An act with its reasons."""

    act: Act
    reasons: tuple[str, ...] = ()


class Population(abc.ABC):
    """Simulated people of one domain, with their hidden gold. Class attributes may stand for the properties."""

    @property
    @abc.abstractmethod
    def domain(self) -> str:
        """Domain whose channel they rate."""

    @property
    @abc.abstractmethod
    def mix(self) -> Mapping[FeedbackKind, float]:
        """Share of each kind of feedback; the shares sum to 1."""

    @abc.abstractmethod
    def channel_prompts(self) -> Sequence[SimPrompt]:
        """What they ask in the channel."""

    @abc.abstractmethod
    def evaluation_prompts(self) -> Sequence[SimPrompt]:
        """What only evaluations ask; no group of them is a channel prompt's."""

    @abc.abstractmethod
    def raters(self, seed: int) -> Sequence[Rater]:
        """The people; the same for the same seed."""

    @abc.abstractmethod
    def gold(self, prompt: SimPrompt, text: str) -> float:
        """How good a displayed text is, or an option as the answer to the prompt, without noise."""

    @abc.abstractmethod
    def act(
        self, rater: Rater, prompt: SimPrompt, shown: Sequence[Shown], kind: FeedbackKind, rng: random.Random
    ) -> SimAct | None:
        """One act of `kind` about what was shown; None if the rater has nothing to say.

        Then another kind of the mix is tried. Every draw comes from `rng`.
        """

    @property
    def model(self) -> Literal["tiny", "smollm2"]:
        """Model of `plaudit model prepare` that reads their language, for demos: tiny reads the toy language alone."""
        return "tiny"

    @property
    def max_tokens(self) -> int:
        """Longest completion that they ask for; says nothing for choices."""
        return 64

    @property
    def explore_share(self) -> float:
        """Share of requests with purpose EXPLORE, in [0, 1]: their options come in an order drawn with propensities."""
        return 0.0

    @property
    def taste(self) -> str:
        """The taste in words, as a caller could put it into a system message; empty if nobody can say it."""
        return ""

    @property
    def patterns(self) -> Sequence[str]:
        """Fixed texts with "{t}" for the question's subject that are known to please the gold; may be empty.

        Where the search for the best filled-in pattern starts: whoever writes a gold knows best how to please it.
        """
        return ()

    def truth(self, prompt: SimPrompt) -> str:
        """Label of the right option; empty if the prompt has no single right one. With it accuracy is counted."""
        return ""

    def parts(self, prompt: SimPrompt, text: str) -> Mapping[str, float]:
        """The parts of the gold, each in [0, 1], for reports."""
        return {}


def installed_populations() -> tuple[str, ...]:
    """Names of the populations that are installed, in order."""
    return tuple(sorted(point.name for point in entry_points(group=ENTRY_POINT_GROUP)))


def described(tell: Callable[[str], None]) -> list[dict[str, Any]]:
    """Facts of every installed population that a demo needs, as plain JSON types; nothing of what they like.

    One that cannot be loaded is left out, and `tell` hears of it: it must not keep the others from their demos.
    """
    found = []
    for name in installed_populations():
        try:
            population = load_population(name)
        # Importing runs a distribution's own code, which may raise anything.
        except Exception as error:
            tell(f"the population {name!r} cannot be loaded: {type(error).__name__}: {error}")
            continue
        found.append(
            {
                "name": name,
                "domain": population.domain,
                "model": population.model,
                "max_tokens": population.max_tokens,
                "channel_prompts": len(population.channel_prompts()),
                "evaluation_prompts": len(population.evaluation_prompts()),
                "kinds": sorted(map(str, population.mix)),
            }
        )
    return found


def load_population(name: str) -> Population:
    """The population `name`; raises Misconfigured if no plugin brings it."""
    for point in entry_points(group=ENTRY_POINT_GROUP, name=name):
        population = point.load()()
        if not isinstance(population, Population):
            raise Misconfigured(
                f"population {name!r} ({point.value}) is not a plaudit.simulate.population.Population; inherit from it",
                population=name,
            )
        return population
    raise Misconfigured(
        f"no population {name!r} is installed; installed are: {', '.join(installed_populations()) or 'none'}",
        population=name,
    )
