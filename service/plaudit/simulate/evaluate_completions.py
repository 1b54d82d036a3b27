"""The verdict of the hidden gold on the completions of releases, and on baselines that cost no training.

Golds of what people would see become win-rates against samples of the base, with 95% intervals over prompts, apart for
kinds that the channel saw and kinds that it never did.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from plaudit.domain import DomainPlugin
from plaudit.release.texts import Sample, VarietyCompared, compare_variety, mean_words
from plaudit.simulate import judge
from plaudit.simulate.judge import Golds
from plaudit.simulate.panel import BASE, Evaluation, Panel
from plaudit.simulate.population import Population, SimPrompt
from plaudit.simulate.templates import best_pattern, fill

# Texts that a constant answer is chosen from are tried on a part of the prompts first: gold is slow to compute.
SCREENED_ON = 48
FINALISTS = 12

Answers = Sequence[Sequence[str]]
"""For each prompt, in order, its displayed answers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged(Golds):
    """Figures of one source of texts. `variety` compares them with the base's, on equally many answers and words."""

    mean_words: float
    variety: VarietyCompared

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types, under the names that the demo's report reads."""
        own, bases = self.variety.candidate, self.variety.other
        return {
            **Golds.to_json(self),
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


@dataclass(frozen=True, slots=True, kw_only=True)
class CompletionEvaluation(Evaluation):
    """An evaluation of texts."""

    releases: Mapping[int, Judged]
    baselines: Mapping[str, Judged]


def evaluate_completions(panel: Panel) -> CompletionEvaluation:
    """Asks and judges. Every source answers with `samples` texts a prompt and is compared with as many of the base.

    The base's second set has `pool` texts; best of n and the length baselines pick among them.
    """
    settings = panel.settings
    base = _texts(panel, panel.prompts, BASE, "base")
    again = _texts(panel, panel.prompts, BASE, "base-again", samples=settings.pool)
    answers: dict[int, Answers] = {BASE: again}
    for version in settings.releases:
        if version != BASE:
            answers[version] = _texts(panel, panel.prompts, version, f"release-{version}")
    baselines: dict[str, Answers] = {}
    constant = pattern = ""
    if settings.baselines:
        baselines, constant, pattern = _baselines(panel, again)

    def judge_all(sources: Mapping[Any, Answers]) -> dict[Any, Judged]:
        return {
            name: judged(panel.population, panel.prompts, given, base, settings.seed) for name, given in sources.items()
        }

    return CompletionEvaluation(
        prompts=panel.prompts,
        releases=judge_all(answers),
        baselines=judge_all(baselines),
        base_answers=base,
        headline="gold_win_rate",
        offered=again,
        picked_as=f"best_of_{settings.pool}",
        examples=[
            {
                "prompt": prompt.text,
                "before": before[0],
                "after": after[0],
                "gold_before": panel.population.gold(prompt, before[0]),
                "gold_after": panel.population.gold(prompt, after[0]),
            }
            for prompt, before, after in zip(panel.prompts, base, answers[max(answers)], strict=True)
        ],
        notes={"constant_answer_text": constant, "filled_in_pattern": pattern},
    )


def _texts(
    panel: Panel, prompts: Sequence[SimPrompt], version: int, name: str, system: str = "", samples: int = 0
) -> list[list[str]]:
    answers = panel.answers(prompts, version, name, system=system, samples=samples)
    return [[one.text for one in answer.shown] for answer in answers]


def _baselines(panel: Panel, again: Answers) -> tuple[dict[str, Answers], str, str]:
    """Answers that need no training: one constant text, one filled-in pattern, the taste told to the base, length.

    Constant and pattern are searched on channel prompts, so that they meet the evaluation as a release does.
    """
    population, settings = panel.population, panel.settings
    channel_prompts = random.Random(f"constants:{settings.seed}").sample(
        list(population.channel_prompts()), min(SCREENED_ON, len(population.channel_prompts()))
    )
    said: list[tuple[SimPrompt, str]] = []
    for version in sorted({BASE, max((*settings.releases, BASE))}):
        given = _texts(panel, channel_prompts, version, f"constants-{version}")
        said += [(prompt, text) for prompt, group in zip(channel_prompts, given, strict=True) for text in group]
    constant = best_constant(population, sorted({text for _, text in said}), channel_prompts)
    pattern = best_pattern(population, said, channel_prompts)
    found: dict[str, Answers] = {
        "constant_answer": [[constant]] * len(panel.prompts),
        "filled_in_pattern": [[fill(pattern, prompt.text)] for prompt in panel.prompts],
        "longest_of_samples": [[max(group, key=lambda text: len(text.split()))] for group in again],
        "shortest_of_samples": [[min(group, key=lambda text: len(text.split()))] for group in again],
    }
    if taste := panel.told():
        found["better_prompt"] = _texts(panel, panel.prompts, BASE, "better-prompt", system=taste)
    return found, constant, pattern


def judged(
    population: Population, prompts: Sequence[SimPrompt], answers: Answers, base: Answers, seed: int = 0
) -> Judged:
    """Figures of `answers` against `base`, both in the order of `prompts`."""

    def golds(given: Answers) -> list[list[float]]:
        return [[population.gold(prompt, text) for text in group] for prompt, group in zip(prompts, given, strict=True)]

    return Judged(
        **judge.golds_of(golds(answers), golds(base), [prompt.seen_kind for prompt in prompts], seed),
        mean_words=mean_words([text for group in answers for text in group]),
        variety=compare_variety(_said(prompts, answers), _said(prompts, base)),
    )


def judge_picked_texts(
    population: Population,
    plugin: DomainPlugin,
    prompts: Sequence[SimPrompt],
    offered: Answers,
    picks: Sequence[Sequence[int]],
    base: Answers,
    seed: int = 0,
) -> Judged:
    """Figures of the first pick of each prompt against the base's answers."""
    given = [[texts[places[0]]] for texts, places in zip(offered, picks, strict=True)]
    return judged(population, prompts, given, base, seed)


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
