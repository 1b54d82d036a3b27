"""The learner's own code on choices of a log: a reward model, then the policy under its rewards, labels or both.

Enters: prompts with options, and which option was taken by whom. Leaves: scores of options as serving reckons them.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from plaudit.domain import DomainPlugin
from plaudit.engine import adapters
from plaudit.engine.base import Base
from plaudit.engine.targets import start_layer
from plaudit.evidence.splits import Split
from plaudit.evidence.store import EvidenceRow, FrozenDataSet
from plaudit.learner.rewards import OptionRewards
from plaudit.policy.choose import ChoiceOptimizer, ChoiceTask, Judged
from plaudit.policy.option_scores import OptionScorer
from plaudit.policy.rollout import TrainPrompt
from plaudit.reward.fit import fit_reward
from plaudit.reward.model import RewardModel
from plaudit.settings import Settings
from plaudit.types import (
    Action,
    Candidate,
    Channel,
    Evidence,
    FeedbackKind,
    Interaction,
    Purpose,
    Request,
    Sampling,
)

ROUTES = ("reward", "labels", "both")
Evident = Callable[[Sequence[str], int], Evidence]


@dataclass(frozen=True, slots=True)
class Taken:
    """One prompt, the place of the option that was taken, and who took it."""

    prompt: TrainPrompt
    place: int
    who: str


def prompt_of(base: Base, plugin: DomainPlugin, request: Request, number: int) -> TrainPrompt:
    """The prompt that training reads; every request is a group of its own."""
    rendered = plugin.render(request)
    rendered = dataclasses.replace(rendered, group=f"{number:05}")
    options = tuple(base.encode_text(option.text) for option in rendered.options)
    return TrainPrompt(rendered=rendered, encoded=base.encode(rendered.messages), options=options)


def frozen(channel: Channel, kind: FeedbackKind, taken: Sequence[Taken], evident: Evident) -> FrozenDataSet:
    """What the log would hold: each list in an order drawn evenly, and the evidence that one of it was taken."""
    now = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
    interactions, rows = {}, []
    for one in taken:
        prompt = one.prompt
        name = f"interaction-{prompt.group}"
        ids = [f"{name}/{n}" for n in range(len(prompt.options))]
        candidates = tuple(
            Candidate(
                candidate_id=ids[n],
                release_version=0,
                release_digest="",
                tokens=tokens,
                logprobs_raw=(),
                logprobs_sampled=(),
                text=option.text,
                displayed_text=option.text,
                finish_reason=None,
                sampling=Sampling(),
                seed=0,
                width=1,
                probability=1 / len(ids),
                option_id=option.option_id,
            )
            for n, (option, tokens) in enumerate(zip(prompt.rendered.options, prompt.options, strict=True))
        )
        interactions[name] = Interaction(
            interaction_id=name,
            channel=channel,
            purpose=Purpose.EXPLORE,
            action=Action.CHOICE,
            messages=prompt.rendered.messages,
            prompt_group=prompt.group,
            candidates=candidates,
            completed_at=now,
            prompt_tokens=prompt.encoded.tokens,
            order_logprob=-math.lgamma(len(ids) + 1),
            passages=prompt.rendered.passages,
        )
        rows.append(
            EvidenceRow(
                interaction_id=name,
                feedback_id=name,
                index=0,
                kind=kind,
                evidence=evident(ids, one.place),
                who=one.who,
                accepted_at=now,
                rater_split=Split.TRAIN,
                group_split=Split.TRAIN,
                prompt_group=prompt.group,
            )
        )
    return FrozenDataSet(channel=channel, as_of=now, digest="", offsets=(), rows=tuple(rows), interactions=interactions)


class Loop:
    """One seed of a channel of choices. `seconds`: what each part took."""

    def __init__(
        self, base: Base, plugin: DomainPlugin, settings: Settings, seed: int, folder: Path, *, kind: FeedbackKind
    ) -> None:
        self.base, self.plugin, self.settings, self.seed, self.folder = base, plugin, settings, seed, folder
        self.channel, self.kind = Channel(plugin.declaration.name, "default"), kind
        self.seconds: dict[str, float] = {}

    def prompts(self, requests: Sequence[Request], first: int) -> list[TrainPrompt]:
        """Prompts of requests, numbered from `first`."""
        return [prompt_of(self.base, self.plugin, each, first + n) for n, each in enumerate(requests)]

    def learnt(
        self, taken: Sequence[Taken], held: Sequence[TrainPrompt], routes: Sequence[str], evident: Evident
    ) -> dict[str, list[list[float]]]:
        """Scores of the options of `held` by each route, and by the reward model if a route needs it."""
        prompts = [one.prompt for one in taken]
        found: dict[str, list[list[float]]] = {}
        nothing = [Judged(torch.zeros(len(p.options), dtype=torch.float64), (True,) * len(p.options)) for p in prompts]
        by_group = {prompt.group: each for prompt, each in zip(prompts, nothing, strict=True)}
        labels = {
            one.prompt.group: tuple(float(n == one.place) for n in range(len(one.prompt.options))) for one in taken
        }
        if "labels" in routes:
            found["labels"] = self.scores(held, self._policy(by_group, prompts, labels, "labels"))
        if {"reward", "both"} & set(routes):
            model = self._reward(taken, evident)
            judge = OptionRewards(model, self.plugin, most_tokens=self.settings.policy.trunk_tokens)
            by_group |= {prompt.group: each for prompt, each in zip(prompts, judge(prompts), strict=True)}
            found["reward model"] = [each.rewards.tolist() for each in judge(held)]
            model.close()
            for name, targets in (("reward", {}), ("both", labels)):
                if name in routes:
                    found[name] = self.scores(held, self._policy(by_group, prompts, targets, name))
        return found

    def scores(self, prompts: Sequence[TrainPrompt], adapter: Path | None) -> list[list[float]]:
        """Scores of the options as serving reckons them, under an adapter or the base."""
        model = self.settings.model
        scorer = OptionScorer(
            self.base,
            start_layer(self.base, model.adapter_layers),
            temperature=self.settings.policy.temperature,
            end_of_turn=self.base.end_of_turn,
            how=self.plugin.declaration.option_score,
        )
        if adapter is None:
            return [each.tolist() for each in scorer.scores(prompts, None)]
        adapters.load(self.base, "asked", adapter)
        try:
            return [each.tolist() for each in scorer.scores(prompts, "asked")]
        finally:
            adapters.remove(self.base, "asked")

    def _reward(self, taken: Sequence[Taken], evident: Evident) -> RewardModel:
        started = time.perf_counter()
        references = {
            one.prompt.group: [(one.prompt.encoded.tokens, option) for option in one.prompt.options] for one in taken
        }
        data = frozen(self.channel, self.kind, taken, evident)
        reward, model = self.settings.reward, self.settings.model
        made = fit_reward(self.base, data, references, reward, model, seed=self.seed, split=Split.TRAIN)
        self.seconds["reward model"] = time.perf_counter() - started
        return made

    def _policy(
        self,
        judged: Mapping[str, Judged],
        prompts: Sequence[TrainPrompt],
        labels: Mapping[str, tuple[float, ...]],
        name: str,
    ) -> Path:
        """The adapter that the optimiser makes; an eighth of the prompts is held out for it to choose by."""
        started = time.perf_counter()
        declared = self.plugin.declaration
        count = max(1, len(prompts) // 8)
        (self.folder / name).mkdir(parents=True)
        task = ChoiceTask(
            channel=self.channel,
            base=self.base,
            live=None,
            train=tuple(prompts[count:]),
            held_out=tuple(prompts[:count]),
            model=self.settings.model,
            settings=self.settings.policy,
            seed=self.seed,
            folder=self.folder / name,
            progress=lambda line: None,
            judge=lambda several: [judged[each.group] for each in several],
            labels=labels,
            place_weights=declared.place_weights,
            option_score=declared.option_score,
            end_of_turn=self.base.end_of_turn,
            temperature=self.settings.policy.temperature,
        )
        made = ChoiceOptimizer().optimise(task)
        self.seconds[name] = time.perf_counter() - started
        return made.adapter
