"""Turns a frozen data set into weighted units for the likelihoods.

Enters: evidence rows with their splits. Leaves: units (a pair, a ranking, a correction, or all thumbs of one rater)
with completions as token ids and weights. Rows are never altered, and what is not used is counted by reason.
"""

from __future__ import annotations

import bisect
import hashlib
import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import TYPE_CHECKING, Protocol, TypeAlias

from plaudit.evidence.splits import Split
from plaudit.reward.trunk import Completion
from plaudit.settings import RewardSettings
from plaudit.types import (
    Binary,
    Candidate,
    Demo,
    FeedbackKind,
    Interaction,
    Label,
    Pair,
    PairOutcome,
    RankingEvidence,
    Scalar,
    is_rater,
)

if TYPE_CHECKING:
    from plaudit.evidence.store import EvidenceRow, FrozenDataSet

# Contrasts between thumbs of one rater that a reward model is judged by: as many as a rater counts for (rater_cap).
MOST_CONTRASTS_OF_ONE = 20
# What one event of a kind is worth (docs/reward.md); a ranking is worth one a place.
PAIR_WEIGHT = 1.0
MOST_RANKING_WEIGHT = 3.0
LABEL_WEIGHT = 1.0
DEMO_WEIGHT = 0.5
THUMB_WEIGHT = 0.4
SCALAR_WEIGHT = 0.2
SIGNAL_WEIGHT = 0.15
# Most of the total weight that a kind may hold: a person's prose must not teach "written by a person", and
# implicit behaviour must not outvote what people said.
MOST_SHARE = {FeedbackKind.CORRECTION: 0.2, FeedbackKind.SIGNAL: 0.3}
SECONDS_A_DAY = 86_400.0
# Cumulative Binomial(3, 1/3): 8/27, 12/27, 6/27, 1/27.
BOOTSTRAP_STEPS = (8 / 27, 20 / 27, 26 / 27)


class Text(Protocol):
    """The part of a base that turns text to tokens and back."""

    @property
    def eos_ids(self) -> frozenset[int]:
        """Tokens that end a turn."""

    def encode_text(self, text: str) -> tuple[int, ...]:
        """Token ids of plain text."""

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of token ids, special tokens left out."""


@dataclass(frozen=True, slots=True)
class Event:
    """What a unit owes to one row of evidence; `weight` is omega."""

    event_id: str
    who: str
    group: str
    kind: FeedbackKind
    weight: float
    interaction_id: str = ""


@dataclass(frozen=True, slots=True)
class PairUnit:
    """Two completions compared; outcome is 1 (first), 0 (tie) or -1 (second)."""

    event: Event
    first: Completion
    second: Completion
    outcome: int
    tie_offered: bool
    margin: float


@dataclass(frozen=True, slots=True)
class RankingUnit:
    """Completions best first; only the first `observed` are ordered (None: all)."""

    event: Event
    order: tuple[Completion, ...]
    observed: int | None = None


@dataclass(frozen=True, slots=True)
class DemoUnit:
    """A person's text, better than the completion that it corrects."""

    event: Event
    demo: Completion
    original: Completion
    margin: float


@dataclass(frozen=True, slots=True)
class Thumb:
    """One completion found good or bad."""

    event: Event
    completion: Completion
    positive: bool


@dataclass(frozen=True, slots=True)
class ThumbsUnit:
    """All thumbs of one rater: they are only ever compared with each other."""

    who: str
    thumbs: tuple[Thumb, ...]


Unit: TypeAlias = PairUnit | RankingUnit | DemoUnit | ThumbsUnit
Weighed: TypeAlias = PairUnit | RankingUnit | DemoUnit | Thumb


@dataclass(frozen=True, slots=True)
class Units:
    """Units of one split; `left_out` counts rows by the reason that kept them out."""

    pairs: tuple[PairUnit, ...]
    rankings: tuple[RankingUnit, ...]
    demos: tuple[DemoUnit, ...]
    thumbs: tuple[ThumbsUnit, ...]
    left_out: Mapping[str, int]

    @property
    def all(self) -> tuple[Unit, ...]:
        """Every unit, in a fixed order."""
        return (*self.pairs, *self.rankings, *self.demos, *self.thumbs)

    @property
    def events(self) -> int:
        """Rows of evidence in use."""
        return len(self.pairs) + len(self.rankings) + len(self.demos) + sum(len(u.thumbs) for u in self.thumbs)


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


def shown_tokens(text: Text, candidate: Candidate) -> tuple[int, ...]:
    """The shortest prefix of the candidate's tokens whose decoding contains the displayed text.

    Where none does (a rewrite, a redaction) the displayed text is tokenised anew. Never ends in EOS.
    """
    displayed = candidate.displayed_text
    if not candidate.redacted and displayed in text.decode(candidate.tokens):
        # Text once complete stays complete as tokens follow, so the shortest prefix is found by bisection.
        lengths = range(len(candidate.tokens) + 1)
        length = bisect.bisect_left(lengths, True, key=lambda n: displayed in text.decode(candidate.tokens[:n]))
        return candidate.tokens[:length]
    return text.encode_text(displayed)


def select(data: FrozenDataSet, split: Split) -> list[EvidenceRow]:
    """Rows that a split may use, in the order of the data set's digest.

    TRAIN: train raters on train groups. GATE and CALIBRATION: their raters on every group. In a domain of few raters
    the data set gives each row its group's split for its rater's, and the same rule holds.
    """
    rows = [
        row
        for row in data.rows
        if row.rater_split is split and (split is not Split.TRAIN or row.group_split is Split.TRAIN)
    ]
    return sorted(rows, key=lambda row: (row.interaction_id, row.feedback_id, row.index))


def collect(data: FrozenDataSet, split: Split, text: Text, settings: RewardSettings) -> Units:
    """Units of a split, weighed so that the mean weight of an event is 1."""
    reader = _Reader(text, data.interactions)
    found: list[Weighed] = []
    left_out: Counter[str] = Counter()
    for row in select(data, split):
        # A shared name may be of many people or of one: nothing is judged by it.
        if split is Split.CALIBRATION and not is_rater(row.who):
            left_out["nameless"] += 1
            continue
        age = max((data.as_of - row.accepted_at).total_seconds(), 0.0) / SECONDS_A_DAY
        event = Event(
            f"{row.interaction_id}/{row.feedback_id}/{row.index}",
            row.who,
            row.prompt_group,
            row.kind,
            2.0 ** (-age / settings.half_life_days),
            row.interaction_id,
        )
        try:
            unit = reader.read(event, row)
        except _LeftOut as reason:
            left_out[str(reason)] += 1
        else:
            found += [unit] if unit is not None else []
    ratings = _scalars(reader.scalars)
    left_out["on_the_raters_median"] += len(reader.scalars) - len(ratings)
    found += ratings
    weighed = _weigh(found, settings.rater_cap)
    thumbs = _by_rater(unit for unit in weighed if isinstance(unit, Thumb))
    return Units(
        tuple(unit for unit in weighed if isinstance(unit, PairUnit)),
        tuple(unit for unit in weighed if isinstance(unit, RankingUnit)),
        tuple(unit for unit in weighed if isinstance(unit, DemoUnit)),
        tuple(thumbs),
        dict(+left_out),
    )


class _LeftOut(Exception):
    """A row without use for the likelihoods; the message is the reason that is counted."""


class _Reader:
    """Reads rows into units; keeps scalars aside for their rater's median."""

    def __init__(self, text: Text, interactions: Mapping[str, Interaction]) -> None:
        self._text = text
        self._interactions = interactions
        self._completions: dict[tuple[str, str], Completion] = {}
        self.scalars: list[tuple[Event, Completion, float]] = []

    def completion(self, interaction_id: str, candidate_id: str) -> Completion:
        """The candidate as the reward model reads it."""
        key = (interaction_id, candidate_id)
        if key not in self._completions:
            interaction = self._interactions[interaction_id]
            candidate = next(c for c in interaction.candidates if c.candidate_id == candidate_id)
            self._completions[key] = Completion(interaction.prompt_tokens, shown_tokens(self._text, candidate))
        return self._completions[key]

    def read(self, event: Event, row: EvidenceRow) -> Weighed | None:
        """The unit of a row, or None where it is kept for later; raises _LeftOut."""
        match row.evidence:
            case Pair() as pair:
                return self._pair(event, row.interaction_id, pair)
            case RankingEvidence(order=order):
                places = tuple(self.completion(row.interaction_id, each) for each in order)
                worth = min(len(places) - 1, MOST_RANKING_WEIGHT)
                if worth < 1:
                    raise _LeftOut("ranking_of_one")
                return RankingUnit(_times(event, worth), places)
            case Demo(candidate=candidate, text=better, margin=margin):
                original = self.completion(row.interaction_id, candidate)
                demo = Completion(original.prompt, self._text.encode_text(better))
                if demo == original:
                    raise _LeftOut("same_text")
                return DemoUnit(_times(event, DEMO_WEIGHT), demo, original, margin)
            case Binary(candidate=candidate, positive=positive):
                worth = SIGNAL_WEIGHT if event.kind is FeedbackKind.SIGNAL else THUMB_WEIGHT
                return Thumb(_times(event, worth), self.completion(row.interaction_id, candidate), positive)
            case Scalar(candidate=candidate, value=value):
                self.scalars.append((event, self.completion(row.interaction_id, candidate), value))
                return None
            case Label() as label:
                return self._label(event, row.interaction_id, label)
        raise AssertionError(f"evidence {row.evidence!r} has no likelihood")

    def _pair(self, event: Event, interaction_id: str, pair: Pair) -> PairUnit:
        first, second = (self.completion(interaction_id, each) for each in (pair.first, pair.second))
        if first == second:
            raise _LeftOut("same_text")
        outcome = {PairOutcome.FIRST: 1, PairOutcome.TIE: 0, PairOutcome.SECOND: -1}[pair.outcome]
        return PairUnit(
            _times(event, PAIR_WEIGHT), first, second, outcome, pair.tie_offered or outcome == 0, pair.margin
        )

    def _label(self, event: Event, interaction_id: str, label: Label) -> RankingUnit:
        """The true class as a choice of one among the options: cross-entropy is Plackett-Luce with one place."""
        candidates = self._interactions[interaction_id].candidates
        true = [c for c in candidates if label.value in (c.option_id, c.displayed_text)]
        others = [c for c in candidates if c not in true]
        if not true or not others:
            raise _LeftOut("label_without_options")
        order = tuple(self.completion(interaction_id, c.candidate_id) for c in (true[0], *others))
        return RankingUnit(_times(event, LABEL_WEIGHT), order, observed=1)


def _times(event: Event, worth: float) -> Event:
    return replace(event, weight=event.weight * worth)


def _scalars(scalars: Sequence[tuple[Event, Completion, float]]) -> list[Thumb]:
    """Ratings as thumbs about the rater's own median; what lies on the median says nothing and is left out."""
    values = defaultdict(list)
    for event, _, value in scalars:
        values[event.who, event.kind].append(value)
    middles = {key: median(each) for key, each in values.items()}
    thumbs = []
    for event, completion, value in scalars:
        middle = middles[event.who, event.kind]
        worth = SIGNAL_WEIGHT if event.kind is FeedbackKind.SIGNAL else SCALAR_WEIGHT
        if value != middle:
            thumbs.append(Thumb(_times(event, worth), completion, value > middle))
    return thumbs


def _by_rater(thumbs: Iterable[Thumb]) -> list[ThumbsUnit]:
    """Thumbs, ratings and signals apart: a rater's scales differ from kind to kind."""
    by_rater: dict[tuple[str, FeedbackKind], list[Thumb]] = defaultdict(list)
    for thumb in thumbs:
        by_rater[thumb.event.who, thumb.event.kind].append(thumb)
    return [ThumbsUnit(who, tuple(several)) for (who, _), several in sorted(by_rater.items())]


def _weigh(units: Sequence[Weighed], rater_cap: float) -> list[Weighed]:
    """Caps each rater's total weight, then each kind's share, then scales the mean weight to 1, once for the set."""
    totals: defaultdict[str, float] = defaultdict(float)
    for unit in units:
        totals[unit.event.who] += unit.event.weight
    weights = [unit.event.weight * min(1.0, rater_cap / totals[unit.event.who]) for unit in units]
    for kind, share in MOST_SHARE.items():
        of_kind = sum(w for unit, w in zip(units, weights, strict=True) if unit.event.kind is kind)
        rest = sum(weights) - of_kind
        # Share s of the whole is s / (1 - s) of the rest; with no rest there is nothing to be outvoted.
        if rest > 0 and of_kind > rest * share / (1 - share):
            scale = rest * share / (1 - share) / of_kind
            weights = [w * scale if unit.event.kind is kind else w for unit, w in zip(units, weights, strict=True)]
    mean = sum(weights) / len(weights) if weights else 1.0
    return [replace(unit, event=replace(unit.event, weight=w / mean)) for unit, w in zip(units, weights, strict=True)]


def bootstrap_weight(event_id: str, head: int, seed: int) -> int:
    """A draw of Binomial(3, 1/3) that depends on event, head and seed alone, so that a replay draws the same."""
    digest = hashlib.sha256(f"{seed}\0{head}\0{event_id}".encode()).digest()
    return bisect.bisect_right(BOOTSTRAP_STEPS, int.from_bytes(digest[:8], "big") / 2**64)


def comparisons(units: Units) -> list[Comparison]:
    """Every decided comparison: pairs that are no ties, and all pairs inside rankings."""
    found = []
    for pair in units.pairs:
        if pair.outcome:
            better, worse = (pair.first, pair.second) if pair.outcome > 0 else (pair.second, pair.first)
            of = frozenset([pair.event.interaction_id])
            found.append(Comparison(pair.event.who, better, worse, interactions=of))
    for ranking in units.rankings:
        places = len(ranking.order) if ranking.observed is None else ranking.observed
        of = frozenset([ranking.event.interaction_id])
        for index, better in enumerate(ranking.order[:places]):
            found += [
                Comparison(ranking.event.who, better, worse, interactions=of)
                for worse in ranking.order[index + 1 :]
                if worse != better
            ]
    return found


def thumb_contrasts(units: Units, references: Mapping[str, Sequence[Completion]]) -> list[Comparison]:
    """Thumbs up against thumbs down of the same rater, at most MOST_CONTRASTS_OF_ONE per rater, always the same ones.

    Where nobody compares two answers to one prompt, this is what a reward model can be judged by: the share of them
    that it orders rightly is its AUC within raters. `references` by prompt group; empty compares scores as they are.
    """
    found = []
    for unit in units.thumbs:
        ups = [thumb for thumb in unit.thumbs if thumb.positive]
        downs = [thumb for thumb in unit.thumbs if not thumb.positive]
        every = len(ups) * len(downs)
        named = hashlib.sha256("\0".join([unit.who, *(thumb.event.event_id for thumb in unit.thumbs)]).encode())
        draw = random.Random(named.digest())
        for place in sorted(draw.sample(range(every), min(every, MOST_CONTRASTS_OF_ONE))):
            up, down = ups[place // len(downs)], downs[place % len(downs)]
            for_up, for_down = (other_references(thumb, references) for thumb in (up, down))
            # A score that is not centred cannot stand beside one that is.
            if up.completion != down.completion and ((for_up and for_down) or not references):
                of = frozenset([up.event.interaction_id, down.event.interaction_id])
                found.append(Comparison(unit.who, up.completion, down.completion, for_up, for_down, of))
    return found


def other_references(thumb: Thumb, references: Mapping[str, Sequence[Completion]]) -> tuple[Completion, ...]:
    """The references of exactly a thumb's prompt but for the completion itself: it must not be compared with itself.

    Prompts of one group may differ (a system text, passages), and answers to another prompt do not centre this one's.
    """
    mine = thumb.completion
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
