"""The domain of slates: retrieved items enter, an order leaves of which the first five are shown.

What people take, like, skip and watch teaches. A team with a longer slate, or with items that may come again, inherits
`Recommendation`, changes the class's attributes and names its class under `plaudit.domains` (README). All is pure.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import ClassVar

from plaudit.acts import candidate_of, pair_of
from plaudit.domain import Declaration, DomainPlugin, GateProbe, OptionScore
from plaudit.errors import InvalidField, UndeclaredKind
from plaudit.types import (
    Action,
    Binary,
    Candidate,
    Choice,
    Comment,
    Evidence,
    Feedback,
    FeedbackKind,
    Interaction,
    Outcome,
    Prompt,
    RankingEvidence,
    Request,
    RewardTerms,
    Scalar,
    Scale,
    Signal,
    Thumbs,
)

from plaudit_recommendation.events import asked, group_of, known_words, words

# 1 / log2(1 + place), the discount of nDCG: what stands in a place is seen and taken that much less.
FIVE_PLACES = (1.0, 0.63, 0.5, 0.43, 0.39)
ON = 0.5  # A signal of yes or no is on above this.
FEW_EVENTS = 5
# Minutes of an item, as its text gives them: fractions watched are compared among items of like length.
_MINUTES = re.compile(r"\b(\d{1,4}) ?min\b")
LENGTHS = ((20, "short"), (60, "middle"))


class Recommendation(DomainPlugin):
    """Slates of retrieved items. A subclass may set every attribute below."""

    name: ClassVar[str] = "recommendation"
    place_weights: ClassVar[tuple[float, ...]] = FIVE_PLACES
    """What each place of the slate counts; as many places are shown."""
    option_score: ClassVar[OptionScore] = OptionScore.MEAN
    """Per token, since the length of an item's text says nothing about the item."""
    repeats: ClassVar[bool] = False
    """Whether an item may come again that is among the user's events."""
    newness: ClassVar[float] = 0.05
    """Most reward for an item of whose words the events have none: a guard against slates of more of the same."""
    probes: ClassVar[Sequence[GateProbe]] = ()

    @property
    def declaration(self) -> Declaration:
        """Frozen facts: slates, with likes, choices between two, and three signals."""
        one = Scale(low=0.0, high=1.0)
        return Declaration(
            name=self.name,
            version="0.1.0",
            action=Action.CHOICE,
            kinds=frozenset({FeedbackKind.THUMBS, FeedbackKind.CHOICE, FeedbackKind.SIGNAL, FeedbackKind.COMMENT}),
            signals=(("taken", one), ("skipped", one), ("watched", one)),
            option_score=self.option_score,
            place_weights=self.place_weights,
        )

    def render(self, request: Request) -> Prompt:
        """Events, a line each, and the wish; the items are the options. Events and wish are the group."""
        if len(request.options) < 2:
            raise InvalidField(
                f"a slate is made of two items or more and {len(request.options)} came; send the retrieved items",
                field="options",
            )
        return Prompt(
            messages=asked(request), options=request.options, passages=request.passages, group=group_of(request)
        )

    def parse(self, prompt: Prompt, output: str) -> Outcome:
        """An item is what it says. One that the user has had is invalid: it comes after all that are not."""
        item = next((option for option in prompt.options if option.text == output), None)
        if item is None:
            return Outcome(displayed=output, valid=False, why_invalid="the text is none of the items")
        if not self.repeats and any(event.passage_id == item.option_id for event in prompt.passages):
            return Outcome(displayed=output, valid=False, why_invalid="the user has had this item")
        return Outcome(displayed=output)

    def to_evidence(self, interaction: Interaction, feedback: Feedback) -> Sequence[Evidence]:
        """Likes as good or bad, choices as pairs, what was taken as a choice among the slate, and what was watched."""
        act = feedback.act
        match act:
            case Thumbs():
                return (Binary(candidate=self._shown(interaction, act.candidate_id).candidate_id, positive=act.up),)
            case Choice():
                return (pair_of(interaction, act, places=len(self.place_weights)),)
            case Signal():
                return self._signal(interaction, act)
            case Comment():
                return ()
        raise UndeclaredKind(f"the domain {self.name} takes no {feedback.kind} feedback", kind=feedback.kind)

    def reward(self, prompt: Prompt, outcome: Outcome, score: float) -> RewardTerms:
        """The score, and a little for words that the user's events lack; 0 for an invalid item."""
        if not outcome.valid:
            return RewardTerms(terms=(("score", 0.0),))
        item = words(outcome.displayed)
        new = len(item - known_words(prompt.passages)) / max(1, len(item)) if prompt.passages else 0.0
        return RewardTerms(terms=(("score", score), ("new", self.newness * new)))

    def gates(self) -> Sequence[GateProbe]:
        """By default none: what must never be offered depends on the catalogue."""
        return self.probes

    def slices(self, interaction: Interaction) -> Sequence[str]:
        """New users, those with few events, and the others."""
        events = len(interaction.passages)
        return ("new-user" if not events else "few-events" if events < FEW_EVENTS else "many-events",)

    def _signal(self, interaction: Interaction, act: Signal) -> Sequence[Evidence]:
        item = self._shown(interaction, act.candidate_id)
        match act.name:
            case "taken" if act.value > ON:
                others = [each.candidate_id for each in self._slate(interaction) if each is not item]
                return (RankingEvidence(order=(item.candidate_id, *others), observed=1),) if others else ()
            case "skipped" if act.value > ON:
                return (Binary(candidate=item.candidate_id, positive=False, source="skipped"),)
            case "watched":
                return (Scalar(candidate=item.candidate_id, value=act.value, source=f"watched{_length(item.text)}"),)
        return ()

    def _slate(self, interaction: Interaction) -> tuple[Candidate, ...]:
        return interaction.candidates[: len(self.place_weights)]

    def _shown(self, interaction: Interaction, candidate_id: str) -> Candidate:
        return candidate_of(interaction, candidate_id, places=len(self.place_weights))


def _length(text: str) -> str:
    """Suffix for the length of an item in minutes, empty if its text does not give it."""
    found = _MINUTES.search(text)
    if not found:
        return ""
    return next((f"-{name}" for limit, name in LENGTHS if int(found[1]) < limit), "-long")
