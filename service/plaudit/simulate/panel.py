"""Asks the questions of an evaluation: named releases, purpose EVALUATE, many at once.

Evaluation prompts of a population enter, answers leave. What they are worth is judged elsewhere: evaluate_completions
and evaluate_choices.
"""

from __future__ import annotations

import dataclasses
import random
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from plaudit import ids
from plaudit.errors import Misconfigured, PlauditError
from plaudit.simulate.asking import Answer, Question, ask_of, plugin_of
from plaudit.simulate.connection import Connection
from plaudit.simulate.judge import Golds
from plaudit.simulate.population import Population, SimPrompt, load_population
from plaudit.types import Channel, Message, Purpose, Request

BASE = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluateSettings:
    """What is judged. `prompts` None asks all evaluation prompts; otherwise that many, half of each kind.

    `pool` is the number of answers of the base among which best-of-n and the length baselines choose. `temperature`
    None is each release's own. Samples, pool and temperature say nothing about choices.
    """

    target: str
    releases: tuple[int, ...]
    population: str = "instruction"
    tenant: str = "default"
    samples: int = 4
    pool: int = 4
    prompts: int | None = None
    baselines: bool = True
    seed: int = 0
    concurrency: int = 32
    temperature: float | None = None
    deadline_seconds: float = 120.0
    patience_seconds: float = 180.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """Releases by version (the base, asked again, under 0), and baselines by name.

    `headline` names the figure that says most: gold_win_rate for texts, whose golds compare, or gold itself.
    `offered`: per prompt, the texts among which a reward model may pick, and `picked_as` the name of that baseline.
    `notes` say more, as plain JSON types.
    """

    prompts: Sequence[SimPrompt]
    releases: Mapping[int, Golds]
    baselines: Mapping[str, Golds]
    base_answers: Sequence[Sequence[str]]
    headline: str
    offered: Sequence[Sequence[str]]
    picked_as: str
    examples: Sequence[Mapping[str, Any]] = ()
    notes: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Figures and examples as plain JSON types."""
        return {
            "prompts": len(self.prompts),
            "releases": {str(version): judged.to_json() for version, judged in self.releases.items()},
            "baselines": {name: judged.to_json() for name, judged in self.baselines.items()},
            "examples": [dict(example) for example in self.examples],
            "headline": self.headline,
            "picked_as": self.picked_as,
            "notes": dict(self.notes),
        }

    def answers_to_json(self) -> dict[str, Any]:
        """What a reward model needs to pick among `offered`, and a judge to say what its picks are worth."""
        return {
            "prompts": [dataclasses.asdict(prompt.request) for prompt in self.prompts],
            "base": self.base_answers,
            "offered": self.offered,
        }


class Panel:
    """The evaluation prompts of a population, and how they are asked."""

    def __init__(self, settings: EvaluateSettings, progress: Callable[[str], None]) -> None:
        self.settings = settings
        self.population: Population = load_population(settings.population)
        self.plugin = plugin_of(self.population.domain)
        self.prompts = chosen(self.population.evaluation_prompts(), settings.prompts, settings.seed)
        if not self.prompts:
            raise Misconfigured(
                f"the population {settings.population!r} has no evaluation prompts; nothing can be judged"
            )
        self._progress = progress
        self._channel = Channel(self.population.domain, settings.tenant)
        self._stop = threading.Event()
        self._connection = Connection(
            settings.target,
            ask_of(self.plugin),
            deadline_seconds=settings.deadline_seconds,
            patience_seconds=settings.patience_seconds,
            stop=self._stop,
        )

    def close(self) -> None:
        """Ends the connection."""
        self._connection.close()

    def told(self) -> str:
        """The taste as a system message, for the baseline of a better prompt; empty if the domain takes none."""
        if not self.population.taste:
            return ""
        try:
            self.plugin.render(asked(self.prompts[0], self.population.taste))
        except PlauditError:
            return ""
        return self.population.taste

    def answers(
        self, prompts: Sequence[SimPrompt], version: int, name: str, *, system: str = "", samples: int = 0
    ) -> list[Answer]:
        """What a release answers to each prompt, in order; raises Refused if a request fails.

        name: fixes the seeds, and is told to whoever waits. samples: completions per prompt; 0: as the settings say.
        """
        self._progress(name)

        def answer(numbered: tuple[int, SimPrompt]) -> Answer:
            index, prompt = numbered
            question = Question(
                interaction_id=ids.new_id(),
                channel=self._channel,
                request=asked(prompt, system),
                n=samples or self.settings.samples,
                max_tokens=self.population.max_tokens,
                seed=random.Random(f"evaluate:{self.settings.seed}:{name}:{index}").randrange(2**28) * 8,
                purpose=Purpose.EVALUATE,
                versions=(version,),
                temperature=self.settings.temperature,
            )
            return self._connection.ask(question)[0]

        with ThreadPoolExecutor(self.settings.concurrency, thread_name_prefix="evaluate") as pool:
            try:
                return list(pool.map(answer, enumerate(prompts)))
            except BaseException:
                # The threads that still ask give up soon; the pool waits for them.
                self._stop.set()
                raise


def asked(prompt: SimPrompt, system: str = "") -> Request:
    """The request of a prompt, behind a system message if there is one to say."""
    request = prompt.request
    return dataclasses.replace(request, messages=(Message("system", system), *request.messages)) if system else request


def chosen(prompts: Sequence[SimPrompt], count: int | None, seed: int) -> list[SimPrompt]:
    """All prompts, or `count` of them drawn by lot: half of seen and half of unseen kinds, as far as there are."""
    if count is None or count >= len(prompts):
        return list(prompts)
    if count < 1:
        raise Misconfigured(f"prompts is {count}; it must be 1 or more", field="prompts")
    rng = random.Random(f"prompts:{seed}")
    seen = [prompt for prompt in prompts if prompt.seen_kind]
    unseen = [prompt for prompt in prompts if not prompt.seen_kind]
    of_unseen = min(len(unseen), max(count // 2, count - len(seen)))
    return rng.sample(seen, count - of_unseen) + rng.sample(unseen, of_unseen)
