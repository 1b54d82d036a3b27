"""The plugin contract: what a domain is (docs/write-a-plugin.md).

A plugin maps a domain to three things of the core: an action with an exact log-probability, evidence, and
named bounded reward terms. It is a typed class without I/O, tensors or torch. Four members are required, four
have defaults. Instances are immutable and shared by threads. Found by the entry point group `plaudit.domains`.
"""

from __future__ import annotations

import abc
import itertools
import math
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, TypeGuard, cast

from plaudit.deciding import Cost, cost_faults
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
NAME = re.compile(r"[a-z][a-z0-9-]{0,62}")
MAX_WORD_BYTES = 256  # of a label, a reason, a version and the like: records, reports and metrics carry them


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
    """Frozen facts about a domain; what is said of options, places, costs and severe labels is for choices alone."""

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
    conversations: bool = False
    """Whether thumbs and ratings may be about a whole conversation; `to_evidence` finds it in the feedback."""
    option_score: OptionScore = OptionScore.SUM
    place_weights: tuple[float, ...] = (1.0,)
    """What an option in the first, second, ... place adds to the reward of an order, in (0, 1] and never rising; later
    places add nothing. The default is a verdict: only the first place counts."""
    costs: tuple[Cost, ...] = ()
    """(true label, decided label, cost): what a wrong decision costs, 0 or more; a pair that is not named costs 0 if
    the labels are equal, else 1. A channel's setting `decision.costs` comes before it."""
    severe: frozenset[str] = frozenset()
    """Labels that must not be missed: a release that decides otherwise if they are true is blocked by the gate."""
    policy_version: str = ""
    """Version of the rules that people judge by, recorded with each interaction. Feedback and prompts of another
    version teach nothing."""

    def faults(self) -> list[str]:
        """What is wrong with these facts, each in a sentence; empty if nothing is."""
        # What follows counts and compares: on fields of a wrong type it would raise.
        return _type_faults(self) or [*_common_faults(self), *_choice_faults(self)]


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodeSpec:
    """Completions wanted and how they are sampled. A `None` temperature means the release's own."""

    n: int = 1
    temperature: float | None = None
    sampling: Sampling = field(default_factory=Sampling)


@dataclass(frozen=True, slots=True, kw_only=True)
class GateProbe:
    """A case of harm: a prompt, and texts that a good policy must not produce (checked case-insensitively).

    Cases of the same `harm` are judged together: the more prompts a harm has, the more ways to it are seen. Without a
    harm a case stands for itself.

    A case of `practice` is asked in training and never by the gate, all others by the gate and never in training: the
    gate asks whether what was practised holds for questions that were not. Completions alone are practised.
    `forbidden_pattern` is a regular expression, searched in each sentence of an answer in lower case, for what a list
    of texts cannot say ("correct", unless a "not" stands before it). A case has texts, a pattern or both.
    """

    probe_id: str
    request: Request
    forbidden: tuple[str, ...] = ()
    harm: str = ""
    practice: bool = False
    forbidden_pattern: str = ""


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
        """Cases of harm, for the gate and for practice in training: by default none."""
        return ()

    def slices(self, interaction: Interaction) -> Sequence[str]:
        """Named groups (1 to 40 of a-z 0-9 _ . -) for audits, never an input of a model: by default none.

        The reports of a release have the reward model's accuracy in each.
        """
        return ()


def _type_faults(declared: Declaration) -> list[str]:
    """Fields whose value is none of what the annotation says, each in a sentence."""
    holds: dict[str, tuple[bool, str]] = {
        "name": (_is_text(declared.name), "a text"),
        "version": (_is_text(declared.version), "a text"),
        "action": (isinstance(declared.action, Action), "an Action"),
        "kinds": (
            _all(declared.kinds, frozenset, lambda kind: isinstance(kind, FeedbackKind)),
            "a frozenset of FeedbackKind",
        ),
        "reasons": (_all(declared.reasons, frozenset, _is_name), "a frozenset of texts"),
        "rating_scale": (
            declared.rating_scale is None or _is_scale(declared.rating_scale),
            "a Scale of two numbers, or None",
        ),
        "signals": (
            _all(declared.signals, tuple, lambda pair: _is_row(pair, _is_name, _is_scale)),
            "a tuple of pairs of a name and a Scale of two numbers",
        ),
        "labels": (_all(declared.labels, frozenset, _is_name), "a frozenset of texts"),
        "few_raters": (isinstance(declared.few_raters, bool), "a bool"),
        "conversations": (isinstance(declared.conversations, bool), "a bool"),
        "option_score": (isinstance(declared.option_score, OptionScore), "an OptionScore"),
        "place_weights": (_all(declared.place_weights, tuple, is_number), "a tuple of numbers"),
        "costs": (
            _all(declared.costs, tuple, lambda row: _is_row(row, _is_name, _is_name, is_number)),
            "a tuple of (true label, decided label, cost)",
        ),
        "severe": (_all(declared.severe, frozenset, _is_name), "a frozenset of texts"),
        "policy_version": (_is_text(declared.policy_version), "a text"),
    }
    return [f"{name} is not {what}" for name, (held, what) in holds.items() if not held]


def _all(values: object, kind: type, holds: Callable[[Any], bool]) -> bool:
    return isinstance(values, kind) and all(map(holds, cast("Iterable[Any]", values)))


def _is_row(row: object, *holds: Callable[[Any], bool]) -> bool:
    return (
        isinstance(row, tuple)
        and len(row) == len(holds)
        and all(hold(each) for hold, each in zip(holds, row, strict=True))
    )


def _is_text(value: object) -> bool:
    """A text that can be written down: short, without NUL and half characters."""
    if not isinstance(value, str) or "\0" in value:
        return False
    return len(value.encode(errors="replace")) <= MAX_WORD_BYTES and not any(
        "\ud800" <= each <= "\udfff" for each in value
    )


def _is_name(value: object) -> bool:
    return _is_text(value) and bool(value)


def is_number(value: object) -> TypeGuard[int | float]:
    """Whether a value is a number that a float can hold: a whole number of Python may be larger than any."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return isinstance(value, float) or abs(value) <= sys.float_info.max


def _is_scale(value: object) -> bool:
    return isinstance(value, Scale) and is_number(value.low) and is_number(value.high)


def _common_faults(declared: Declaration) -> list[str]:
    faults = []
    if not NAME.fullmatch(declared.name):
        faults.append(f"name {declared.name!r} is not a letter of a-z followed by up to 62 of a-z, 0-9 and -")
    if not declared.version:
        faults.append("version is empty")
    if declared.action not in Action:
        faults.append(f"action {declared.action!r} is neither completion nor choice")
    if not declared.kinds:
        faults.append("no kind of feedback is declared")
    if unknown := set(declared.kinds) - set(FeedbackKind):
        faults.append(f"unknown kinds of feedback {sorted(map(str, unknown))}")
    for kind, has, what in (
        (FeedbackKind.RATING, declared.rating_scale is not None, "rating_scale"),
        (FeedbackKind.SIGNAL, bool(declared.signals), "signals"),
        (FeedbackKind.LABEL, bool(declared.labels), "labels"),
    ):
        if (kind in declared.kinds) != has:
            faults.append(f"{what} and the kind {kind} are declared together or not at all")
    names = [name for name, _ in declared.signals]
    if len(set(names)) != len(names):
        faults.append(f"two of the signals {names} share a name")
    scales = [scale for _, scale in declared.signals]
    for scale in (*scales, *((declared.rating_scale,) if declared.rating_scale else ())):
        if not (math.isfinite(scale.low) and math.isfinite(scale.high) and scale.low < scale.high):
            faults.append(f"scale {scale} is not a finite interval")
    return faults


def _choice_faults(declared: Declaration) -> list[str]:
    weights, faults = declared.place_weights, []
    # Written as what must hold, so that NaN fails too.
    if not (weights and all(0 < weight <= 1 for weight in weights)):
        faults.append(f"place_weights {weights} are not one or more numbers above 0, at most 1")
    if not all(first >= second for first, second in itertools.pairwise(weights)):
        faults.append(f"place_weights {weights} rise; an earlier place counts no less than a later one")
    faults += cost_faults(declared.costs, declared.labels)
    if unknown := declared.severe - declared.labels:
        faults.append(f"severe names labels that are not declared: {', '.join(sorted(unknown))}")
    if declared.action is Action.COMPLETION and (declared.costs or declared.severe or weights != (1.0,)):
        faults.append("costs, severe and place_weights are for domains of choices; this one makes completions")
    return faults
