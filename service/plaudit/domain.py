"""The plugin contract: what a domain is (docs/write-a-plugin.md).

A plugin maps a domain to three things of the core: an action with an exact log-probability, evidence, and
named bounded reward terms. It is a typed class without I/O, tensors or torch. Four members are required, four
have defaults. Instances are immutable and shared by threads. Found by the entry point group `plaudit.domains`.
"""

from __future__ import annotations

import abc
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from plaudit.types import (
    Action,
    Evidence,
    Feedback,
    FeedbackKind,
    Interaction,
    Outcome,
    Prompt,
    Request,
    RewardTerms,
    Sampling,
    Scale,
)

CONTRACT_VERSION = 1
ENTRY_POINT_GROUP = "plaudit.domains"


class Mode(StrEnum):
    """For what completions are sampled."""

    SERVE = "serve"
    EXPLORE = "explore"


class OptionScore(StrEnum):
    """How the score of an option is made of the log-probs of its tokens, its end of turn included.

    SUM is the log-probability that the policy writes the option and nothing else: a longer text has more factors. MEAN
    is that sum per token, for options whose length says nothing about them.
    """

    SUM = "sum"
    MEAN = "mean"


@dataclass(frozen=True, slots=True, kw_only=True)
class Declaration:
    """Frozen facts about a domain. `option_score` matters to domains of choices alone."""

    name: str
    version: str
    action: Action
    kinds: frozenset[FeedbackKind]
    reasons: frozenset[str] = frozenset()
    rating_scale: Scale | None = None
    signals: tuple[tuple[str, Scale], ...] = ()
    labels: frozenset[str] = frozenset()
    contract_version: int = CONTRACT_VERSION
    few_raters: bool = False
    option_score: OptionScore = OptionScore.SUM


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodeSpec:
    """Completions wanted and how they are sampled. A `None` temperature means the release's own."""

    n: int = 1
    temperature: float | None = None
    sampling: Sampling = field(default_factory=Sampling)


@dataclass(frozen=True, slots=True, kw_only=True)
class GateProbe:
    """A gate case: a prompt, and texts that a good policy must not produce (checked case-insensitively).

    Cases of the same `harm` are judged together: the more prompts a harm has, the more ways to it are seen. Without a
    harm a case stands for itself.
    """

    probe_id: str
    request: Request
    forbidden: tuple[str, ...]
    harm: str = ""


class DomainPlugin(abc.ABC):
    """A domain. `render`, `parse` and `to_evidence` are pure and deterministic."""

    @property
    @abc.abstractmethod
    def declaration(self) -> Declaration:
        """Frozen facts: name, version, action, feedback kinds with scales and reasons."""

    @abc.abstractmethod
    def render(self, request: Request) -> Prompt:
        """The prompt that the model reads, and its group for the splits; raises InvalidField for a bad request."""

    @abc.abstractmethod
    def parse(self, prompt: Prompt, output: str) -> Outcome:
        """What people see of `output`, or why it is invalid. Total: any text has an outcome."""

    @abc.abstractmethod
    def to_evidence(self, interaction: Interaction, feedback: Feedback) -> Sequence[Evidence]:
        """Evidence of one act, replayable from the log."""

    def decode_spec(self, prompt: Prompt, mode: Mode) -> DecodeSpec:
        """How completions are sampled: by default one, plain, at the release's temperature."""
        return DecodeSpec()

    def reward(self, prompt: Prompt, outcome: Outcome, score: float) -> RewardTerms:
        """Reward terms from the shaped score in (0, 1): by default the score alone, 0 for an invalid outcome."""
        return RewardTerms(terms=(("score", score if outcome.valid else 0.0),))

    def gates(self) -> Sequence[GateProbe]:
        """Further gate cases: by default none beside the core's."""
        return ()

    def slices(self, interaction: Interaction) -> Sequence[str]:
        """Named groups for audits, never an input of a model: by default none."""
        return ()
