"""What scores are centred on and what candidates are compared with: base samples of prompts, or their options.

Enters: frozen interactions, prompts. Leaves: completions of version 0, by prompt group: answers of the base that were
served are taken from the log first, and only what is missing is sampled. Of a choice all options, and nothing is.
"""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Callable, Sequence
from typing import Protocol

from plaudit.domain import DomainPlugin
from plaudit.engine.protocol import Engine, ReleaseKey
from plaudit.evidence.store import FrozenDataSet
from plaudit.policy.rollout import Sample, TrainPrompt, sample
from plaudit.release import texts
from plaudit.reward.completion import Completion
from plaudit.reward.dataset import Text, shown_part, shown_tokens
from plaudit.reward.fit import FIT_REFERENCES
from plaudit.types import Outcome, Purpose, Sampling

# A request has no more; all of them centre its scores.
MOST_OPTIONS = 50


class References(Protocol):
    """Completions by prompt on whose mean the scores of that prompt are centred."""

    @property
    def most(self) -> int:
        """How many of a prompt's references a fit reads."""

    def complete(
        self,
        prompts: Sequence[TrainPrompt],
        least: int,
        *,
        seed: int,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        """See that each prompt has `least` references, as far as its kind of action allows."""

    def of(self, prompt: TrainPrompt) -> list[tuple[Completion, str]]:
        """References of exactly this prompt, with their displayed texts."""

    def by_group(self) -> dict[str, list[tuple[tuple[int, ...], tuple[int, ...]]]]:
        """All references by prompt group, as (prompt tokens, shown tokens)."""


class SampledReferences:
    """Completions of the base by prompt group; grows as prompts are asked for."""

    def __init__(
        self,
        text: Text,
        plugin: DomainPlugin,
        engine: Engine,
        base: ReleaseKey,
        sampling: Sampling,
        *,
        most: int = FIT_REFERENCES,
    ) -> None:
        self.most = most
        self._text, self._plugin = text, plugin
        self._engine, self._base, self._sampling = engine, base, sampling
        # Equal answers stay: a policy that says one thing often must be seen to.
        self._found: dict[str, list[tuple[Completion, str]]] = {}

    def take_from(self, data: FrozenDataSet) -> None:
        """Note the base's answers that were served, of exactly this sampling: others are answers of another policy.

        Interactions are read in the order of their ids, so that the same evidence gives the same references.
        """
        for _, interaction in sorted(data.interactions.items()):
            if interaction.purpose is Purpose.IMPORTED:
                continue  # no answers of ours
            for candidate in interaction.candidates:
                if candidate.release_version == 0 and interaction.prompt_tokens and self._is_ours(candidate.sampling):
                    completion = Completion(interaction.prompt_tokens, shown_tokens(self._text, candidate))
                    found = self._found.setdefault(interaction.prompt_group, [])
                    found.append((completion, candidate.displayed_text))

    def _is_ours(self, sampling: Sampling) -> bool:
        """Whether an answer was sampled as the channel's policy is; the log keeps numbers as float32."""
        rounded = (
            dataclasses.replace(each, temperature=_as_float32(each.temperature), top_p=_as_float32(each.top_p))
            for each in (sampling, self._sampling)
        )
        return next(rounded) == next(rounded)

    def complete(
        self,
        prompts: Sequence[TrainPrompt],
        least: int,
        *,
        seed: int,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        """Sample `least` answers for each prompt that has fewer.

        A prompt's answers hang on `seed` and the prompt alone, not on which others are missing.
        """
        missing = [p for p in prompts if len(self.of(p)) < least]
        if not missing:
            return
        for found in sample(
            self._engine,
            missing,
            self._base,
            self._sampling,
            samples=least,
            seed=seed,
            seeded_by_prompt=True,
            progress=progress,
        ):
            completion, displayed = as_shown(self._text, self._plugin, found)
            self._found.setdefault(found.prompt.group, []).append((completion, displayed))

    def of(self, prompt: TrainPrompt) -> list[tuple[Completion, str]]:
        """The base's answers to exactly this prompt, with their displayed texts."""
        answers = self._found.get(prompt.group, [])
        return [(c, text) for c, text in answers if c.prompt == prompt.encoded.tokens]

    def by_group(self) -> dict[str, list[tuple[tuple[int, ...], tuple[int, ...]]]]:
        """All answers as (prompt tokens, shown tokens)."""
        return {group: [(c.prompt, c.shown) for c, _ in answers] for group, answers in self._found.items()}


class OptionReferences:
    """All options of a prompt: scores of one option are centred on all of them, and nothing is sampled.

    Thumbs bring the options of their own request with them, which need not be today's (`reward.dataset.Thumb`).
    """

    most = MOST_OPTIONS

    def __init__(self, text: Text, plugin: DomainPlugin, prompts: Sequence[TrainPrompt]) -> None:
        self._prompts = list(prompts)
        self._own = {
            _key(prompt): [(each, outcome.displayed) for each, outcome in options_shown(text, plugin, prompt)]
            for prompt in prompts
        }

    def complete(
        self,
        prompts: Sequence[TrainPrompt],
        least: int,
        *,
        seed: int,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        """Nothing is missing."""

    def of(self, prompt: TrainPrompt) -> list[tuple[Completion, str]]:
        """The options of exactly this prompt, with their displayed texts."""
        return self._own.get(_key(prompt), [])

    def by_group(self) -> dict[str, list[tuple[tuple[int, ...], tuple[int, ...]]]]:
        """The options of each group's prompt as (prompt tokens, shown tokens)."""
        return {prompt.group: [(c.prompt, c.shown) for c, _ in self.of(prompt)] for prompt in self._prompts}


def _key(prompt: TrainPrompt) -> tuple[tuple[int, ...], tuple[tuple[int, ...], ...]]:
    return prompt.encoded.tokens, prompt.options


def _as_float32(value: float) -> float:
    return float(struct.unpack("<f", struct.pack("<f", value))[0])


def as_shown(text: Text, plugin: DomainPlugin, made: Sample) -> tuple[Completion, str]:
    """A sample as people would see it: its shown tokens, and the displayed text."""
    displayed = plugin.parse(made.prompt.rendered, made.generated.text).displayed
    return Completion(made.prompt.encoded.tokens, shown_part(text, made.generated.tokens, displayed)), displayed


def options_shown(text: Text, plugin: DomainPlugin, prompt: TrainPrompt) -> list[tuple[Completion, Outcome]]:
    """A prompt's options as people would see them, in the request's order, as evidence about them is read."""
    found = []
    for option, tokens in zip(prompt.rendered.options, prompt.options, strict=True):
        outcome = plugin.parse(prompt.rendered, option.text)
        found.append((Completion(prompt.encoded.tokens, shown_part(text, tokens, outcome.displayed)), outcome))
    return found


def said(prompt: TrainPrompt, text: str) -> texts.Sample:
    """An answer as the gate counts it: beside what was asked."""
    asked = next((m.content for m in reversed(prompt.rendered.messages) if m.role == "user"), "")
    return texts.Sample(asked, text, group=prompt.group)
