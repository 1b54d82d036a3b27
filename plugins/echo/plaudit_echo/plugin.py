"""Two small domains: `echo` shows text as it was generated, `echo-choice` ranks the options it is given.

Doubles for tests of the core, and the shortest plugins that keep the contract. Pure.
"""

from __future__ import annotations

from collections.abc import Sequence

from plaudit.acts import known, pair_of
from plaudit.domain import Declaration, DomainPlugin
from plaudit.errors import EmptyPrompt, InvalidField, UndeclaredKind
from plaudit.types import (
    Action,
    Binary,
    Choice,
    Evidence,
    Feedback,
    FeedbackKind,
    Interaction,
    Label,
    LabelAct,
    Outcome,
    Prompt,
    Ranking,
    RankingEvidence,
    Rating,
    Request,
    Scalar,
    Scale,
    Signal,
    Thumbs,
)


class Echo(DomainPlugin):
    """Completions shown as they were generated."""

    @property
    def declaration(self) -> Declaration:
        """Frozen facts: completions with thumbs, choices, rankings and ratings from 0 to 1."""
        return Declaration(
            name="echo",
            version="0.1.0",
            action=Action.COMPLETION,
            kinds=frozenset({FeedbackKind.THUMBS, FeedbackKind.CHOICE, FeedbackKind.RANKING, FeedbackKind.RATING}),
            reasons=frozenset({"dull"}),
            rating_scale=Scale(low=0.0, high=1.0),
        )

    def render(self, request: Request) -> Prompt:
        """The conversation as it is; its last text is its group."""
        if request.options:
            raise InvalidField("the echo domain takes no options; leave them out", field="options")
        return Prompt(messages=request.messages, group=_last_text(request))

    def parse(self, prompt: Prompt, output: str) -> Outcome:
        """People see the text as it was generated; white space alone is invalid."""
        if not output.strip():
            return Outcome(displayed="", valid=False, why_invalid="the completion has no text")
        return Outcome(displayed=output.strip())

    def to_evidence(self, interaction: Interaction, feedback: Feedback) -> Sequence[Evidence]:
        """One item of evidence for each act."""
        act = feedback.act
        match act:
            case Thumbs():
                return (Binary(candidate=known(interaction, act.candidate_id), positive=act.up),)
            case Choice():
                return (pair_of(interaction, act),)
            case Ranking():
                return (RankingEvidence(order=tuple(known(interaction, one) for one in act.candidate_ids)),)
            case Rating():
                return (Scalar(candidate=known(interaction, act.candidate_id), value=act.value),)
        raise UndeclaredKind(f"the echo domain takes no {feedback.kind} feedback", kind=feedback.kind)


class EchoChoice(DomainPlugin):
    """Options ranked as they are given."""

    @property
    def declaration(self) -> Declaration:
        """Frozen facts: choices with verdicts "yes" and "no", choices between options, and likes."""
        return Declaration(
            name="echo-choice",
            version="0.1.0",
            action=Action.CHOICE,
            kinds=frozenset({FeedbackKind.LABEL, FeedbackKind.CHOICE, FeedbackKind.SIGNAL}),
            signals=(("like", Scale(low=0.0, high=1.0)),),
            labels=frozenset({"yes", "no"}),
            few_raters=True,
        )

    def render(self, request: Request) -> Prompt:
        """The conversation and its options; the last text is the group."""
        if len(request.options) < 2:
            raise InvalidField(
                f"a choice needs two options or more and {len(request.options)} came; send the options", field="options"
            )
        return Prompt(messages=request.messages, options=request.options, group=_last_text(request))

    def parse(self, prompt: Prompt, output: str) -> Outcome:
        """An option is what it says; a text that is no option of the prompt is invalid."""
        known = any(option.text == output for option in prompt.options)
        return Outcome(displayed=output, valid=known, why_invalid="" if known else "the text is none of the options")

    def to_evidence(self, interaction: Interaction, feedback: Feedback) -> Sequence[Evidence]:
        """A label, a pair, or a good or bad option for a like above or below one half."""
        act = feedback.act
        match act:
            case LabelAct():
                return (Label(candidate=known(interaction, act.candidate_id), value=act.value),)
            case Choice():
                return (pair_of(interaction, act),)
            case Signal():
                return (Binary(candidate=known(interaction, act.candidate_id), positive=act.value > 0.5),)
        raise UndeclaredKind(f"the echo-choice domain takes no {feedback.kind} feedback", kind=feedback.kind)


def _last_text(request: Request) -> str:
    if not request.messages or not request.messages[-1].content.strip():
        raise EmptyPrompt()
    return " ".join(request.messages[-1].content.split())
