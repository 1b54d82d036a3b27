"""What scores are centred on and what candidates are compared with: base samples of prompts, or their options.

Enters: frozen interactions, prompts. Leaves: completions of version 0, by prompt group: answers of the base that were
served are taken from the log first, and only what is missing is sampled. Of a choice all options, and nothing is.
"""

from __future__ import annotations

import dataclasses
import struct
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Protocol

from plaudit.domain import DomainPlugin
from plaudit.evidence.store import FrozenDataSet
from plaudit.learner.kept import Answer
from plaudit.policy.rollout import Sample, TrainPrompt
from plaudit.release import texts
from plaudit.reward.completion import Completion
from plaudit.reward.fit import FIT_REFERENCES
from plaudit.reward.shown import Text, shown_part, shown_tokens
from plaudit.types import Candidate, FinishReason, Outcome, Purpose, Sampling

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
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        """See that each prompt has `least` references, as far as its kind of action allows."""

    def of(self, prompt: TrainPrompt) -> list[tuple[Completion, str]]:
        """References of exactly this prompt, with their displayed texts."""

    def by_group(self) -> dict[str, list[tuple[tuple[int, ...], tuple[int, ...]]]]:
        """All references by prompt group, as (prompt tokens, shown tokens)."""


class BaseAnswers(Protocol):
    """Answers of version 0, as `learner.kept.Answers` draws them."""

    def of(
        self,
        prompts: Sequence[TrainPrompt],
        count: int,
        sampling: Sampling,
        *,
        progress: Callable[[int, int], None] | None = None,
    ) -> Sequence[Sequence[Answer]]:
        """The first `count` answers to each prompt."""


class SampledReferences:
    """Completions of the base by prompt group; grows as prompts are asked for."""

    def __init__(
        self,
        text: Text,
        plugin: DomainPlugin,
        answers: BaseAnswers,
        sampling: Sampling,
        *,
        most: int = FIT_REFERENCES,
    ) -> None:
        self.most = most
        self._text, self._plugin = text, plugin
        self._answers, self._sampling = answers, sampling
        # Equal answers stay: a policy that says one thing often must be seen to.
        self._found: dict[str, list[tuple[Completion, str]]] = {}
        self._drawn: Counter[tuple[int, ...]] = Counter()

    def take_from(self, data: FrozenDataSet) -> None:
        """Note the base's answers that were served, of exactly this sampling: others are answers of another policy.

        Interactions are read in the order of their ids, so that the same evidence gives the same references.
        """
        for _, interaction in sorted(data.interactions.items()):
            if interaction.purpose is Purpose.IMPORTED:
                continue  # no answers of ours
            for candidate in interaction.candidates:
                if candidate.release_version == 0 and interaction.prompt_tokens and self._is_ours(candidate):
                    completion = Completion(interaction.prompt_tokens, shown_tokens(self._text, candidate))
                    found = self._found.setdefault(interaction.prompt_group, [])
                    found.append((completion, candidate.displayed_text))

    def _is_ours(self, candidate: Candidate) -> bool:
        """Whether an answer was sampled as the channel's policy is, to its end; the log keeps numbers as float32."""
        if candidate.finish_reason is FinishReason.CANCELLED:
            return False  # somebody stopped it: the base would have gone on
        rounded = (
            dataclasses.replace(each, temperature=_as_float32(each.temperature), top_p=_as_float32(each.top_p))
            for each in (candidate.sampling, self._sampling)
        )
        return next(rounded) == next(rounded)

    def complete(
        self,
        prompts: Sequence[TrainPrompt],
        least: int,
        *,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        """Sample answers for each prompt that has fewer than `least`, as many as it lacks.

        A prompt's answers depend on the turn's draw of the base and on the prompt, not on which others are missing.
        """
        missing: dict[int, list[TrainPrompt]] = {}
        for each in {prompt.encoded.tokens: prompt for prompt in prompts}.values():
            if (lacks := least - len(self.of(each))) > 0:
                missing.setdefault(lacks + self._drawn[each.encoded.tokens], []).append(each)
        for count, several in sorted(missing.items()):
            for prompt, answers in zip(
                several, self._answers.of(several, count, self._sampling, progress=progress), strict=True
            ):
                for answer in answers[self._drawn[prompt.encoded.tokens] :]:
                    shown = shown_answer(self._text, self._plugin, prompt, answer.tokens, answer.text)
                    self._found.setdefault(prompt.group, []).append(shown)
                self._drawn[prompt.encoded.tokens] = count

    def of(self, prompt: TrainPrompt) -> list[tuple[Completion, str]]:
        """The base's answers to exactly this prompt, with their displayed texts."""
        answers = self._found.get(prompt.group, [])
        return [(c, text) for c, text in answers if c.prompt == prompt.encoded.tokens]

    def by_group(self) -> dict[str, list[tuple[tuple[int, ...], tuple[int, ...]]]]:
        """All answers as (prompt tokens, shown tokens)."""
        return {group: [(c.prompt, c.shown) for c, _ in answers] for group, answers in self._found.items()}


class OptionReferences:
    """All options of a prompt: scores of one option are centred on all of them, and nothing is sampled.

    Thumbs bring the options of their own request with them, which need not be today's (`reward.units.Thumb`).
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
    return shown_answer(text, plugin, made.prompt, made.generated.tokens, made.generated.text)


def shown_answer(
    text: Text, plugin: DomainPlugin, prompt: TrainPrompt, tokens: tuple[int, ...], written: str
) -> tuple[Completion, str]:
    """An answer as people would see it: its shown tokens, and the displayed text."""
    displayed = plugin.parse(prompt.rendered, written).displayed
    return Completion(prompt.encoded.tokens, shown_part(text, tokens, displayed)), displayed


def options_shown(text: Text, plugin: DomainPlugin, prompt: TrainPrompt) -> list[tuple[Completion, Outcome]]:
    """A prompt's options as people would see them, in the request's order, as evidence about them is read."""
    found = []
    for option, tokens in zip(prompt.rendered.options, prompt.options, strict=True):
        outcome = plugin.parse(prompt.rendered, option.text)
        found.append((Completion(prompt.encoded.tokens, shown_part(text, tokens, outcome.displayed)), outcome))
    return found


def said(prompt: TrainPrompt, text: str) -> texts.Sample:
    """An answer as the gate counts it: beside what was asked, without the passages, which an answer ought to quote."""
    asked = next((m.content for m in reversed(prompt.rendered.messages) if m.role == "user"), "")
    for passage in prompt.rendered.passages:
        asked = asked.replace(passage.text, "\n")
    return texts.Sample(asked, text, group=prompt.group)
