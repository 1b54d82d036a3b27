"""The domain of verdicts: a text enters, one of several ordered categories leaves, with the probability of each.

Callers send the item alone; `render` makes the options. A team with its own categories inherits `Moderation`, changes
the class's attributes and names its class under `plaudit.domains` (README, "Your own rules"). Everything is pure.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import ClassVar

from plaudit.acts import known
from plaudit.deciding import Cost
from plaudit.domain import Declaration, DomainPlugin, GateProbe, OptionScore
from plaudit.errors import OutOfScale, UndeclaredKind
from plaudit.types import (
    Action,
    Comment,
    Evidence,
    Feedback,
    FeedbackKind,
    Interaction,
    Label,
    LabelAct,
    Message,
    Option,
    Outcome,
    Prompt,
    Request,
)

from plaudit_moderation.items import group_of, item_of, quoted, rules_of
from plaudit_moderation.probes import PROBES

CATEGORIES = ("allowed", "borderline", "mild", "strong", "severe")
LONG_CHARS = 200  # From here on an item counts as long, for audits.
# What a verdict costs per category that it is too strict, or too mild; a severe item is missed at twice the price.
TOO_STRICT, TOO_MILD, MISSED_SEVERE = 0.25, 0.5, 2.0


class Moderation(DomainPlugin):
    """Verdicts among ordered categories, mildest first. A subclass may set every attribute below."""

    name: ClassVar[str] = "moderation"
    categories: ClassVar[tuple[str, ...]] = CATEGORIES
    """The verdicts, mildest first; labels, option ids and option texts are these words."""
    severe: ClassVar[frozenset[str]] = frozenset({"severe"})
    """Verdicts that must not be missed: a candidate that misses more of them is not released."""
    policy_version: ClassVar[str] = "1"
    """Change it if a category changes its meaning: what was labelled under another version stops teaching."""
    probes: ClassVar[Sequence[GateProbe]] = PROBES

    def costs(self) -> tuple[Cost, ...]:
        """(true, decided, cost): by distance, mildness dearer than strictness, and missed severe items dearest.

        A channel's setting `decision.costs` names pairs over these.
        """
        return ordered_costs(self.categories, self.severe)

    @property
    def declaration(self) -> Declaration:
        """Frozen facts: choices among the categories, labelled by few people."""
        return Declaration(
            name=self.name,
            version="0.1.0",
            action=Action.CHOICE,
            kinds=frozenset({FeedbackKind.LABEL, FeedbackKind.COMMENT}),
            labels=frozenset(self.categories),
            costs=self.costs(),
            severe=self.severe,
            policy_version=self.policy_version,
            few_raters=True,
            # The length of a category's name says nothing about an item.
            option_score=OptionScore.MEAN,
        )

    def render(self, request: Request) -> Prompt:
        """Rules, item and question, with a category per option; the item is the group."""
        options = tuple(Option(category, category) for category in self.categories)
        said = item_of(request, options)
        return Prompt(
            messages=(*rules_of(request), asked(said, self.categories)),
            options=options,
            group=group_of(said),
        )

    def parse(self, prompt: Prompt, output: str) -> Outcome:
        """A category is what it says; any other text is invalid."""
        known = any(option.text == output for option in prompt.options)
        return Outcome(displayed=output, valid=known, why_invalid="" if known else "the text is no category")

    def to_evidence(self, interaction: Interaction, feedback: Feedback) -> Sequence[Evidence]:
        """A moderator's verdict as the item's label, whether it confirms or overrides; nothing of anyone else's."""
        act = feedback.act
        match act:
            case LabelAct():
                known(interaction, act.candidate_id)
                if act.value not in self.categories:
                    categories = ", ".join(self.categories)
                    raise OutOfScale(f"a label must be one of {categories}", value=act.value[:64], scale=categories)
                label = Label(candidate=act.candidate_id, value=act.value)
                return (label,) if may_judge(interaction, feedback) else ()
            case Comment():
                return ()  # Appeals and notes: for people to read.
        raise UndeclaredKind(f"the domain {self.name} takes no {feedback.kind} feedback", kind=feedback.kind)

    def gates(self) -> Sequence[GateProbe]:
        """Items with verdicts that no release may give them."""
        return self.probes

    def slices(self, interaction: Interaction) -> Sequence[str]:
        """Items within a conversation, and long ones."""
        said = [message for message in interaction.messages if message.role != "system"]
        conversation = ("conversation",) if len(said) > 1 else ()
        long = ("long",) if said and len(said[-1].content) >= LONG_CHARS else ()
        return (*conversation, *long)


def ordered_costs(categories: Sequence[str], severe: Collection[str]) -> tuple[Cost, ...]:
    """Costs of every pair of different categories, which stand mildest first."""
    found = []
    for place, true in enumerate(categories):
        mild = TOO_MILD * (MISSED_SEVERE if true in severe else 1.0)
        for other, decided in enumerate(categories):
            if other != place:
                found.append((true, decided, TOO_STRICT * (other - place) if other > place else mild * (place - other)))
    return tuple(found)


def asked(said: Sequence[Message], categories: Sequence[str]) -> Message:
    """The turn that asks for a verdict. The question stands behind the item: the model has then read all of it."""
    return Message("user", f"{quoted(said)}\n\n{', '.join(categories[:-1])} or {categories[-1]}?")


def may_judge(interaction: Interaction, feedback: Feedback) -> bool:
    """Whether an act weighs anything: its rater is named, and did not write what is moderated.

    Both names are pseudonyms of one key, so that one person has one. Who names nobody may be the author.
    """
    return bool(feedback.rater) and feedback.rater != interaction.end_user
