"""The verdict of the hidden gold on the decisions and slates of releases, and on baselines that cost no training.

A verdict (a domain in which the first place alone counts) is worth the gold of the option that was decided; a slate the
mean gold of its places under the domain's place weights. If the population knows the right label of a prompt, accuracy
and the cost of mistakes are counted beside. 95% intervals over prompts, apart for kinds that the channel never asked.
"""

from __future__ import annotations

import statistics
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from plaudit.deciding import cost_of, costs_of, labels_of
from plaudit.domain import Declaration, DomainPlugin
from plaudit.simulate import judge
from plaudit.simulate.asking import Answer, offered
from plaudit.simulate.judge import Golds, Split, split_over_prompts
from plaudit.simulate.panel import BASE, Evaluation, Panel
from plaudit.simulate.population import Population, SimPrompt
from plaudit.types import Option


@dataclass(frozen=True, slots=True)
class Ordered:
    """Places (in the request) of a prompt's options in the order shown, and the place of the one decided."""

    places: tuple[int, ...]
    decided: int

    @classmethod
    def by(cls, keys: Sequence[float]) -> Ordered:
        """By falling key; equal ones keep the request's order, and the first is decided."""
        places = tuple(sorted(range(len(keys)), key=lambda place: -keys[place]))
        return cls(places, places[0])


Orders = Sequence[Sequence[Ordered]]
"""For each prompt one order, or several that are equally likely."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A prompt with its options as people see them, what each is worth, its label, and the right label ("" if none)."""

    prompt: SimPrompt
    options: tuple[Option, ...]
    golds: tuple[float, ...]
    labels: tuple[str, ...]
    truth: str


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgedChoices(Golds):
    """Figures of one source of orders. `accuracy` and `cost` are None if no prompt has one right label.

    `cost`: mean cost of the decisions by the domain's own costs. `commonest`: share of the prompts in which the option
    that is decided most often (`commonest_text`) is decided.
    """

    accuracy: Split | None
    cost: Split | None
    commonest: float
    commonest_text: str

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types, under the names that the demo's report reads."""
        return {
            **Golds.to_json(self),
            **(self.accuracy.to_json("accuracy") if self.accuracy else {}),
            **(self.cost.to_json("cost") if self.cost else {}),
            "commonest_decision": self.commonest,
            "commonest_decision_text": self.commonest_text,
        }


def evaluate_choices(panel: Panel) -> Evaluation:
    """Asks every release once per prompt (scores are exact, nothing is sampled) and judges what it shows."""
    population, plugin = panel.population, panel.plugin
    asked = [_asked(population, plugin, prompt) for prompt in panel.prompts]
    base = _orders(asked, panel.answers(panel.prompts, BASE, "base"))
    orders: dict[int, Orders] = {BASE: _orders(asked, panel.answers(panel.prompts, BASE, "base-again"))}
    for version in panel.settings.releases:
        if version != BASE:
            orders[version] = _orders(asked, panel.answers(panel.prompts, version, f"release-{version}"))
    baselines: dict[str, Orders] = {}
    if panel.settings.baselines:
        baselines = _baselines(asked, [_asked(population, plugin, prompt) for prompt in population.channel_prompts()])
        if taste := panel.told():
            told = panel.answers(panel.prompts, BASE, "better-prompt", system=taste)
            baselines["better_prompt"] = _orders(asked, told)

    def judge_all(sources: Mapping[Any, Orders]) -> dict[Any, Golds]:
        return {
            name: judged(plugin.declaration, asked, given, base, panel.settings.seed) for name, given in sources.items()
        }

    return Evaluation(
        prompts=panel.prompts,
        releases=judge_all(orders),
        baselines=judge_all(baselines),
        # What was decided, and then everything in the order shown.
        base_answers=[
            [*_texts(one, given), *(one.options[place].text for place in given[0].places)]
            for one, given in zip(asked, base, strict=True)
        ],
        headline="gold",
        offered=[[option.text for option in one.options] for one in asked],
        picked_as="reward_model_alone",
        examples=[
            {
                "prompt": one.prompt.text,
                "before": _texts(one, before)[0],
                "after": _texts(one, after)[0],
                "gold_before": worth(one.golds, before[0], plugin.declaration.place_weights),
                "gold_after": worth(one.golds, after[0], plugin.declaration.place_weights),
            }
            for one, before, after in zip(asked, base, orders[max(orders)], strict=True)
        ],
    )


def judge_picked_options(
    population: Population,
    plugin: DomainPlugin,
    prompts: Sequence[SimPrompt],
    offered: Sequence[Sequence[str]],
    picks: Sequence[Sequence[int]],
    base: Sequence[Sequence[str]],
    seed: int = 0,
) -> JudgedChoices:
    """Figures of picked orders (places, best first) against the base's.

    `base`: what it decided, and then all options in the order that it showed.
    """
    asked = [_asked(population, plugin, prompt) for prompt in prompts]
    given = [[Ordered(tuple(places), places[0])] for places in picks]
    places_of = [{text: place for place, text in enumerate(texts)} for texts in offered]
    shown = [tuple(at[text] for text in texts[1:]) for at, texts in zip(places_of, base, strict=True)]
    bases = [[Ordered(places, at[texts[0]])] for at, places, texts in zip(places_of, shown, base, strict=True)]
    return judged(plugin.declaration, asked, given, bases, seed)


def judged(declared: Declaration, asked: Sequence[Asked], orders: Orders, base: Orders, seed: int = 0) -> JudgedChoices:
    """Figures of `orders` against `base`, both in the order of `asked`."""
    seen = [one.prompt.seen_kind for one in asked]
    costs = costs_of(declared)

    def golds(given: Orders) -> list[list[float]]:
        return [
            [worth(one.golds, each, declared.place_weights) for each in group]
            for one, group in zip(asked, given, strict=True)
        ]

    def over_decisions(value: Callable[[str, str], float]) -> Split | None:
        """Mean of a value of (right label, decided label) over the prompts that have a right label."""
        judgeable = [(one, group) for one, group in zip(asked, orders, strict=True) if one.truth and one.labels]
        values = [
            statistics.fmean(value(one.truth, one.labels[each.decided]) for each in group) for one, group in judgeable
        ]
        return split_over_prompts(values, [one.prompt.seen_kind for one, _ in judgeable], seed) if values else None

    decided = Counter(
        one.options[each.decided].text for one, group in zip(asked, orders, strict=True) for each in group
    )
    # The alphabet decides between equals, so that a report never depends on order.
    text, count = min(decided.items(), key=lambda item: (-item[1], item[0]))
    return JudgedChoices(
        **judge.golds_of(golds(orders), golds(base), seen, seed),
        accuracy=over_decisions(lambda true, label: float(true == label)),
        cost=over_decisions(lambda true, label: cost_of(costs, true, label)),
        commonest=count / decided.total(),
        commonest_text=text,
    )


def worth(golds: Sequence[float], order: Ordered, place_weights: Sequence[float]) -> float:
    """The gold of a verdict's decision, or the mean gold of a slate's places by their weights."""
    if len(place_weights) == 1:
        return golds[order.decided]
    pairs = list(zip(place_weights, order.places, strict=False))
    return sum(weight * golds[place] for weight, place in pairs) / sum(weight for weight, _ in pairs)


def _asked(population: Population, plugin: DomainPlugin, prompt: SimPrompt) -> Asked:
    options = offered(plugin, prompt.request)
    return Asked(
        prompt=prompt,
        options=options,
        golds=tuple(population.gold(prompt, option.text) for option in options),
        labels=labels_of(options, plugin.declaration.labels),
        truth=population.truth(prompt),
    )


def _orders(asked: Sequence[Asked], answers: Sequence[Answer]) -> list[list[Ordered]]:
    found = []
    for one, answer in zip(asked, answers, strict=True):
        place_of = {option.option_id: place for place, option in enumerate(one.options)}
        places = tuple(place_of[each.shown.option_id] for each in answer.candidates)
        found.append([Ordered(places, place_of[answer.decided.option_id])])
    return found


def _texts(one: Asked, group: Sequence[Ordered]) -> list[str]:
    """What each order decides, as people see it."""
    return [one.options[each.decided].text for each in group]


def _baselines(asked: Sequence[Asked], channel: Sequence[Asked]) -> dict[str, Orders]:
    """Orders that need no training.

    random_option: every option is as likely in every place. best_constant: by the mean gold of each option's text on
    channel prompts, beside the other options of the same prompt. commonest_label: the commonest right label there.
    """

    def by(key: Callable[[Asked, Option], float]) -> list[list[Ordered]]:
        return [[Ordered.by([key(one, option) for option in one.options])] for one in asked]

    worths: dict[str, list[float]] = defaultdict(list)
    for one in channel:
        mean = statistics.fmean(one.golds)
        for option, gold in zip(one.options, one.golds, strict=True):
            worths[option.text].append(gold - mean)
    means = {text: statistics.fmean(values) for text, values in worths.items()}
    found: dict[str, Orders] = {
        "random_option": [[_rotated(len(one.options), first) for first in range(len(one.options))] for one in asked],
        "first_listed": by(lambda one, option: 0.0),
        "shortest_option": by(lambda one, option: -len(option.text)),
        "longest_option": by(lambda one, option: len(option.text)),
        "best_constant": by(lambda one, option: means.get(option.text, 0.0)),
    }
    truths = Counter(one.truth for one in channel if one.truth)
    if truths:
        label = min(truths, key=lambda each: (-truths[each], each))
        found["commonest_label"] = [
            [Ordered.by([float(each == label) for each in one.labels or one.options])] for one in asked
        ]
    return found


def _rotated(count: int, first: int) -> Ordered:
    return Ordered(tuple((first + step) % count for step in range(count)), first)
