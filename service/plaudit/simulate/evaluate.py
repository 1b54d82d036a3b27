"""The verdict of the hidden gold on releases and on baselines that cost no training.

Questions that nobody asked in the channel go to named releases with purpose EVALUATE, so that they are never joined
or replayed; what they answer is judged beside the base's answers to the same questions. Nothing here reaches the
learner.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from plaudit.errors import Misconfigured
from plaudit.simulate.asking import by_action, plugin_of
from plaudit.simulate.evaluate_choices import evaluate_choices, judge_picked_options
from plaudit.simulate.evaluate_completions import evaluate_completions, judge_picked_texts
from plaudit.simulate.judge import Golds
from plaudit.simulate.panel import EvaluateSettings, Evaluation, Panel
from plaudit.simulate.population import load_population
from plaudit.types import Request


def evaluate(settings: EvaluateSettings, *, progress: Callable[[str], None] | None = None) -> Evaluation:
    """Asks and judges; `progress` hears what is asked next. Raises Refused if a request fails."""
    for name, value in (("samples", settings.samples), ("pool", settings.pool)):
        if not 1 <= value <= 8:
            raise Misconfigured(f"{name} is {value}; it must be from 1 to 8", field=name)
    panel = Panel(settings, progress or (lambda _: None))
    try:
        judge_all: Callable[[Panel], Evaluation] = by_action(
            panel.plugin, completion=evaluate_completions, choice=evaluate_choices
        )
        return judge_all(panel)
    finally:
        panel.close()


def judge_picks(population: str, answers: Mapping[str, Any], picks: Sequence[Sequence[int]], seed: int = 0) -> Golds:
    """Figures of what something else picked among the texts of an evaluation.

    answers: `Evaluation.answers_to_json`. picks: per prompt the places of its texts, best first. Raises Misconfigured
    if they are not of the same prompts.
    """
    offered: list[list[str]] = answers["offered"]
    if len(picks) != len(offered):
        raise Misconfigured(f"there are {len(picks)} picks for {len(offered)} prompts; pick among each prompt's texts")
    people = load_population(population)
    plugin = plugin_of(people.domain)
    by_request = {prompt.request: prompt for prompt in people.evaluation_prompts()}
    prompts = [by_request[Request.of_plain(each)] for each in answers["prompts"]]
    judge_them = by_action(plugin, completion=judge_picked_texts, choice=judge_picked_options)
    return judge_them(people, plugin, prompts, offered, picks, answers["base"], seed)
