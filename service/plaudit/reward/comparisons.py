"""Comparisons that a reward model is judged by.

Enters: units of raters that it was not fitted to. Leaves: completions, the better one first.
"""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from plaudit.reward.completion import Completion
from plaudit.reward.shown import Text, shown_tokens
from plaudit.reward.units import Event, Thumb, Units
from plaudit.types import FeedbackKind

if TYPE_CHECKING:
    from plaudit.evidence.store import FrozenDataSet

# Contrasts between thumbs of one rater that a reward model is judged by: as many as a rater counts for (rater_cap).
MOST_CONTRASTS_OF_ONE = 20


@dataclass(frozen=True, slots=True)
class Comparison:
    """One completion preferred over another by one rater.

    Of the same prompt without references. With them the two may belong to different prompts (a thumb up and a thumb
    down of one rater), and each score counts less the mean of its references'. `interactions`: ids of those that the
    two belong to.
    """

    who: str
    better: Completion
    worse: Completion
    better_references: tuple[Completion, ...] = ()
    worse_references: tuple[Completion, ...] = ()
    interactions: frozenset[str] = frozenset()


def comparisons(units: Units, *, behaviour: bool = False) -> list[Comparison]:
    """Every decided comparison that people made: pairs that are no ties, and all pairs inside rankings.

    With `behaviour` also what they did (kind SIGNAL): it is pulled by places too, and even a perfect model orders it
    rightly little more often than not. What behaviour took from the policy's own order of options is always left out:
    it says as much of the order as of the options. Answers that were generated stand in no such order.
    """

    def counts(event: Event) -> bool:
        return event.kind is not FeedbackKind.SIGNAL or (behaviour and event.event_id not in units.served)

    found = []
    for pair in units.pairs:
        if pair.outcome and counts(pair.event):
            better, worse = (pair.first, pair.second) if pair.outcome > 0 else (pair.second, pair.first)
            of = frozenset([pair.event.interaction_id])
            found.append(Comparison(pair.event.who, better, worse, interactions=of))
    for ranking in units.rankings:
        if not counts(ranking.event):
            continue
        places = len(ranking.order) if ranking.observed is None else ranking.observed
        of = frozenset([ranking.event.interaction_id])
        for index, better in enumerate(ranking.order[:places]):
            found += [
                Comparison(ranking.event.who, better, worse, interactions=of)
                for worse in ranking.order[index + 1 :]
                if worse != better
            ]
    return found


def thumb_contrasts(units: Units, references: Mapping[str, Sequence[Completion]] | None) -> list[Comparison]:
    """Thumbs up against thumbs down of the same rater, at most MOST_CONTRASTS_OF_ONE per rater, always the same ones.

    Where nobody compares two answers to one prompt, this is what a reward model can be judged by: the share of them
    that it orders rightly is its AUC within raters. Of thumbs and ratings that people gave: behaviour judges nothing
    here. `references` as in `other_references`.
    """
    found = []
    for unit in units.thumbs:
        if any(thumb.event.kind is FeedbackKind.SIGNAL for thumb in unit.thumbs):  # a unit is of one kind
            continue
        ups = [thumb for thumb in unit.thumbs if thumb.positive]
        downs = [thumb for thumb in unit.thumbs if not thumb.positive]
        every = len(ups) * len(downs)
        named = hashlib.sha256("\0".join([unit.who, *(thumb.event.event_id for thumb in unit.thumbs)]).encode())
        draw = random.Random(named.digest())
        for place in sorted(draw.sample(range(every), min(every, MOST_CONTRASTS_OF_ONE))):
            up, down = ups[place // len(downs)], downs[place % len(downs)]
            for_up, for_down = (other_references(thumb, references) for thumb in (up, down))
            # A score that is not centred cannot stand beside one that is.
            if up.completion != down.completion and ((for_up and for_down) or references is None):
                of = frozenset([up.event.interaction_id, down.event.interaction_id])
                found.append(Comparison(unit.who, up.completion, down.completion, for_up, for_down, of))
    return found


def other_references(thumb: Thumb, references: Mapping[str, Sequence[Completion]] | None) -> tuple[Completion, ...]:
    """What a thumb's score is centred on, but for the completion itself: it must not be compared with itself.

    The other options of its very request; another slate of the same prompt may be a better or a worse one. Of what was
    generated the `references` (by prompt group) of exactly its prompt: prompts of one group may differ (a system text,
    passages), and answers to another prompt do not centre this one's. None compares scores as they are: no references.
    """
    mine = thumb.completion
    if references is None:
        return ()
    if thumb.among:
        return tuple(each for each in thumb.among if each != mine)
    return tuple(each for each in references.get(thumb.event.group, ()) if each.prompt == mine.prompt and each != mine)


References: TypeAlias = Mapping[str, Sequence[tuple[tuple[int, ...], tuple[int, ...]]]]


def complete_references(
    data: FrozenDataSet, text: Text, references: References, *, groups: Iterable[str], most: int
) -> dict[str, tuple[Completion, ...]]:
    """At most `most` reference completions of each prompt of each group.

    A group that `references` lacks takes its own candidates made by the base (version 0), else all its candidates.
    """
    wanted = sorted(set(groups))
    found = {
        group: _of_each_prompt((_without_end(text, each) for each in references[group]), most)
        for group in wanted
        if references.get(group)
    }
    missing = {group for group in wanted if group not in found}
    own: dict[str, dict[bool, dict[Completion, None]]] = {group: {True: {}, False: {}} for group in missing}
    for _, interaction in sorted(data.interactions.items()):
        if interaction.prompt_group in missing:
            for candidate in interaction.candidates:
                completion = Completion(interaction.prompt_tokens, shown_tokens(text, candidate))
                own[interaction.prompt_group][candidate.release_version == 0][completion] = None
    for group in missing:
        found[group] = _of_each_prompt(own[group][True] or own[group][False], most)
    return found


def _of_each_prompt(completions: Iterable[Completion], most: int) -> tuple[Completion, ...]:
    taken: Counter[tuple[int, ...]] = Counter()
    kept = []
    for each in completions:
        if taken[each.prompt] < most:
            taken[each.prompt] += 1
            kept.append(each)
    return tuple(kept)


def _without_end(text: Text, reference: tuple[tuple[int, ...], tuple[int, ...]]) -> Completion:
    prompt, shown = (tuple(each) for each in reference)
    while shown and shown[-1] in text.eos_ids:
        shown = shown[:-1]
    return Completion(prompt, shown)
