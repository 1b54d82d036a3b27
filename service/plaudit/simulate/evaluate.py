"""The verdict of the hidden gold on releases and on baselines that cost no training.

Questions that nobody asked in the channel go to named releases with purpose EVALUATE, so that they are never joined
or replayed; golds of what people would see become win-rates against samples of the base, with 95% intervals over
prompts, apart for kinds that the channel saw and kinds that it never did. Nothing here reaches the learner.
"""

from __future__ import annotations

import dataclasses
import random
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import uuid6

from plaudit.errors import Misconfigured
from plaudit.release.texts import Sample, VarietyCompared, compare_variety, mean_words
from plaudit.simulate import judge
from plaudit.simulate.asking import Question, ask_of, plugin_of
from plaudit.simulate.connection import Connection
from plaudit.simulate.judge import Rate
from plaudit.simulate.population import Population, SimPrompt, load_population
from plaudit.simulate.templates import best_pattern, fill
from plaudit.types import Channel, Message, Purpose, Request

BASE = 0
# Texts that a constant answer is chosen from are tried on a part of the prompts first: gold is slow to compute.
SCREENED_ON = 48
FINALISTS = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluateSettings:
    """What is judged. `prompts` None asks all evaluation prompts; otherwise that many, half of each kind.

    `pool` is the number of answers of the base among which best-of-n and the length baselines choose. `temperature`
    None is each release's own.
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
class Judged:
    """Figures of one source of answers. `unseen` is None if no prompt of an unseen kind was asked.

    `variety` compares its texts with the base's, on equally many answers and words, as the gate does.
    """

    win_rate: Rate
    seen: Rate | None
    unseen: Rate | None
    gold_mean: float
    mean_words: float
    variety: VarietyCompared

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types, under the names that the demo's report reads."""
        own, bases = self.variety.candidate, self.variety.other
        return {
            "gold_win_rate": self.win_rate.to_json(),
            "gold_win_rate_seen": self.seen.to_json() if self.seen else None,
            "gold_win_rate_unseen": self.unseen.to_json() if self.unseen else None,
            "gold_mean": self.gold_mean,
            "mean_words": self.mean_words,
            "distinct_2": own.distinct_2,
            "distinct_2_base": bases.distinct_2,
            "distinct_masked": own.distinct_masked,
            "distinct_masked_base": bases.distinct_masked,
            "commonest_opening": own.opening_share,
            "commonest_opening_base": bases.opening_share,
            "commonest_opening_text": own.opening,
            "variety_texts": self.variety.texts,
            "variety_pairs": self.variety.pairs,
        }


Answers = Sequence[Sequence[str]]
"""For each prompt, in order, its displayed answers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """Releases by version (the base's own second samples under 0: about one half), and baselines by name."""

    prompts: Sequence[SimPrompt]
    releases: Mapping[int, Judged]
    baselines: Mapping[str, Judged]
    base_answers: Answers
    answers: Mapping[int, Answers]
    constant: str = ""
    pattern: str = ""
    examples: Sequence[Mapping[str, str]] = field(default=())

    def to_json(self) -> dict[str, Any]:
        """Figures and examples as plain JSON types."""
        return {
            "prompts": len(self.prompts),
            "releases": {str(version): judged.to_json() for version, judged in self.releases.items()},
            "baselines": {name: judged.to_json() for name, judged in self.baselines.items()},
            "constant_answer_text": self.constant,
            "filled_in_pattern": self.pattern,
            "examples": [dict(example) for example in self.examples],
        }


def evaluate(settings: EvaluateSettings, *, progress: Callable[[str], None] | None = None) -> Evaluation:
    """Asks, judges and returns the figures; `progress` hears what is asked next. Raises Refused where a request fails.

    Every source answers with `samples` texts a prompt (the base's second set with `pool`) and is compared with the same
    `samples` of the base.
    """
    for name, value in (("samples", settings.samples), ("pool", settings.pool)):
        if not 1 <= value <= 8:
            raise Misconfigured(f"{name} is {value}; it must be from 1 to 8", field=name)
    evaluator = _Evaluator(settings, progress or (lambda _: None))
    try:
        return evaluator.run()
    finally:
        evaluator.close()


class _Evaluator:
    def __init__(self, settings: EvaluateSettings, progress: Callable[[str], None]) -> None:
        self.settings = settings
        self.population: Population = load_population(settings.population)
        self.prompts = chosen(self.population.evaluation_prompts(), settings.prompts, settings.seed)
        self._progress = progress
        self._channel = Channel(self.population.domain, settings.tenant)
        self._stop = threading.Event()
        self._connection = Connection(
            settings.target,
            ask_of(plugin_of(self.population.domain)),
            deadline_seconds=settings.deadline_seconds,
            patience_seconds=settings.patience_seconds,
            stop=self._stop,
        )

    def close(self) -> None:
        self._connection.close()

    def run(self) -> Evaluation:
        base = self._answers(self.prompts, BASE, "base")
        again = self._answers(self.prompts, BASE, "base-again", samples=self.settings.pool)
        answers: dict[int, Answers] = {BASE: again}
        for version in self.settings.releases:
            if version != BASE:
                answers[version] = self._answers(self.prompts, version, f"release-{version}")
        baselines: dict[str, Answers] = {}
        constant = pattern = ""
        if self.settings.baselines:
            baselines, constant, pattern = self._baselines(again)
        last = answers[max(answers)]
        return Evaluation(
            prompts=self.prompts,
            releases={version: self._judged(given, base) for version, given in answers.items()},
            baselines={name: self._judged(given, base) for name, given in baselines.items()},
            base_answers=base,
            answers=answers,
            constant=constant,
            pattern=pattern,
            examples=[
                {"prompt": prompt.text, "before": before[0], "after": after[0]}
                for prompt, before, after in zip(self.prompts, base, last, strict=True)
            ],
        )

    def _baselines(self, again: Answers) -> tuple[dict[str, Answers], str, str]:
        """Answers that need no training: one constant text, one filled-in pattern, the taste told to the base, length.

        Constant and pattern are searched on channel prompts, so that they meet the evaluation as a release does.
        """
        population = self.population
        told = self._answers(self.prompts, BASE, "better-prompt", system=population.taste)
        channel_prompts = random.Random(f"constants:{self.settings.seed}").sample(
            list(population.channel_prompts()), min(SCREENED_ON, len(population.channel_prompts()))
        )
        said: list[tuple[SimPrompt, str]] = []
        for version in sorted({BASE, max((*self.settings.releases, BASE))}):
            given = self._answers(channel_prompts, version, f"constants-{version}")
            said += [(prompt, text) for prompt, group in zip(channel_prompts, given, strict=True) for text in group]
        constant = best_constant(population, sorted({text for _, text in said}), channel_prompts)
        pattern = best_pattern(population, said, channel_prompts)
        return (
            {
                "constant_answer": [[constant]] * len(self.prompts),
                "filled_in_pattern": [[fill(pattern, prompt.text)] for prompt in self.prompts],
                "better_prompt": told,
                "longest_of_samples": [[max(group, key=lambda text: len(text.split()))] for group in again],
                "shortest_of_samples": [[min(group, key=lambda text: len(text.split()))] for group in again],
            },
            constant,
            pattern,
        )

    def _answers(
        self, prompts: Sequence[SimPrompt], version: int, name: str, system: str = "", samples: int = 0
    ) -> list[list[str]]:
        self._progress(name)

        def answer(numbered: tuple[int, SimPrompt]) -> list[str]:
            index, prompt = numbered
            question = Question(
                interaction_id=str(uuid6.uuid7()),
                channel=self._channel,
                request=asked(prompt, system),
                n=samples or self.settings.samples,
                max_tokens=self.population.max_tokens,
                seed=random.Random(f"evaluate:{self.settings.seed}:{name}:{index}").randrange(2**28) * 8,
                purpose=Purpose.EVALUATE,
                versions=(version,),
                temperature=self.settings.temperature,
            )
            answer, _ = self._connection.ask(question)
            return [one.text for one in answer.shown]

        with ThreadPoolExecutor(self.settings.concurrency, thread_name_prefix="evaluate") as pool:
            try:
                return list(pool.map(answer, enumerate(prompts)))
            except BaseException:
                # The threads that still ask give up soon; the pool waits for them.
                self._stop.set()
                raise

    def _judged(self, answers: Answers, base: Answers) -> Judged:
        return judged(self.population, self.prompts, answers, base, self.settings.seed)


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


def judged(
    population: Population, prompts: Sequence[SimPrompt], answers: Answers, base: Answers, seed: int = 0
) -> Judged:
    """Figures of `answers` against `base`, both in the order of `prompts`."""
    golds = [[population.gold(prompt, text) for text in group] for prompt, group in zip(prompts, answers, strict=True)]
    base_golds = [
        [population.gold(prompt, text) for text in group] for prompt, group in zip(prompts, base, strict=True)
    ]
    shares = [judge.win_share(own, other) for own, other in zip(golds, base_golds, strict=True)]
    seen = [share for share, prompt in zip(shares, prompts, strict=True) if prompt.seen_kind]
    unseen = [share for share, prompt in zip(shares, prompts, strict=True) if not prompt.seen_kind]
    given = [text for group in answers for text in group]
    all_golds = [gold for group in golds for gold in group]
    return Judged(
        win_rate=judge.rate_over_prompts(shares, seed),
        seen=judge.rate_over_prompts(seen, seed) if seen else None,
        unseen=judge.rate_over_prompts(unseen, seed) if unseen else None,
        gold_mean=sum(all_golds) / max(1, len(all_golds)),
        mean_words=mean_words(given),
        variety=compare_variety(_said(prompts, answers), _said(prompts, base)),
    )


def _said(prompts: Sequence[SimPrompt], answers: Answers) -> list[Sample]:
    return [Sample(prompt.text, text) for prompt, group in zip(prompts, answers, strict=True) for text in group]


def best_constant(population: Population, candidates: Sequence[str], prompts: Sequence[SimPrompt]) -> str:
    """The text of `candidates` with the highest mean gold as the answer to every one of `prompts`."""

    def worth(text: str, on: Sequence[SimPrompt]) -> float:
        return sum(population.gold(prompt, text) for prompt in on) / max(1, len(on))

    if not candidates:
        return ""
    screen = prompts[: max(1, len(prompts) // 4)]
    finalists = sorted(candidates, key=lambda text: -worth(text, screen))[:FINALISTS]
    return max(finalists, key=lambda text: worth(text, prompts))
