"""The policy of a domain of verdicts, moved by labels as a turn moves it: the optimiser of choices on a real base.

Enters: a base, labels. Leaves: adapters, and probabilities of each category. Labels teach by cross-entropy alone:
no reward model is fitted, so that every option's reward is 0.
"""

from __future__ import annotations

import math
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import moderation_data as sets
import torch
from plaudit.engine import adapters
from plaudit.engine.base import Base
from plaudit.engine.targets import start_layer
from plaudit.policy.choose import ChoiceOptimizer, ChoiceTask, Judged
from plaudit.policy.optimizer import hold_out
from plaudit.policy.option_scores import OptionScorer
from plaudit.policy.rollout import TrainPrompt
from plaudit.settings import ModelSettings, PolicySettings
from plaudit.types import Channel, Message

JUDGE = "judged"  # Name on the base of the adapter that is measured.


class Loop:
    """One seed of a channel: `turn` makes a release of the labels so far, `probabilities` asks one."""

    def __init__(self, data: sets.DataSet, base: Base, seed: int, *, layers: int, epochs: int) -> None:
        self._data, self._base, self._seed, self._epochs = data, base, seed, epochs
        self._model = ModelSettings(adapter_layers=layers)
        self._settings = PolicySettings()
        self._folder = Path(tempfile.mkdtemp(prefix="plaudit-moderation-"))
        self._live: Path | None = None
        self._scorer = OptionScorer(
            base,
            start_layer(base, layers),
            temperature=self._settings.temperature,
            end_of_turn=base.end_of_turn,
            how=data.plugin.declaration.option_score,
        )

    def prompt(self, item: sets.Item) -> TrainPrompt:
        """The item as the domain asks it, under the data set's rules."""
        request = item.request
        rendered = self._data.plugin.render(
            type(request)(messages=(Message("system", self._data.rules), *request.messages))
        )
        options = tuple(self._base.encode_text(option.text) for option in rendered.options)
        return TrainPrompt(rendered=rendered, encoded=self._base.encode(rendered.messages), options=options)

    def probabilities(self, items: Sequence[sets.Item]) -> torch.Tensor:
        """Of each category for each item (N, C), under the newest release."""
        prompts = [self.prompt(item) for item in items]
        if self._live is None:
            return torch.softmax(torch.stack(self._scorer.scores(prompts, None)), dim=1)
        adapters.load(self._base, JUDGE, self._live)
        try:
            return torch.softmax(torch.stack(self._scorer.scores(prompts, JUDGE)), dim=1)
        finally:
            adapters.remove(self._base, JUDGE)

    def turn(self, labels: Sequence[sets.Labelled]) -> bool:
        """A release from the live one and all labels so far; False if nothing beat the live one on held-out prompts."""
        categories = self._data.plugin.categories
        weights: dict[str, torch.Tensor] = defaultdict(lambda: torch.zeros(len(categories)))
        prompts: dict[str, TrainPrompt] = {}
        for label in labels:
            prompt = self.prompt(label.item)
            prompts[prompt.group] = prompt
            weights[prompt.group][categories.index(label.value)] += 1.0
        train, held_out = hold_out(list(prompts.values()), self._settings)
        rounds = math.ceil(self._epochs * len(train) / self._settings.choice_prompts)
        found = ChoiceOptimizer().optimise(
            ChoiceTask(
                channel=Channel(self._data.plugin.name, "benchmark"),
                base=self._base,
                live=self._live,
                train=train,
                held_out=held_out,
                model=self._model,
                settings=self._settings.model_copy(
                    update={"iterations": max(self._settings.iterations, rounds), "held_out": len(held_out)}
                ),
                seed=self._seed,
                folder=self._folder / str(len(labels)),
                progress=lambda _: None,
                judge=_indifferent,
                labels={group: tuple((each / each.sum()).tolist()) for group, each in weights.items()},
                place_weights=self._data.plugin.declaration.place_weights,
                option_score=self._data.plugin.declaration.option_score,
                end_of_turn=self._base.end_of_turn,
                temperature=self._settings.temperature,
            )
        )
        if found.progressed:
            self._live = found.adapter
        return found.progressed


def _indifferent(prompts: Sequence[TrainPrompt]) -> list[Judged]:
    """No reward: all options are worth the same."""
    return [Judged(torch.zeros(len(prompt.options)), (True,) * len(prompt.options)) for prompt in prompts]
