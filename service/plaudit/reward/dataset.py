"""Turns a frozen data set into weighted units for the likelihoods.

Enters: evidence rows with their splits. Leaves: units (a pair, a ranking, a correction, or all thumbs of one rater)
with completions as token ids and weights. Rows are never altered, and what is not used is counted by reason.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from statistics import fmean
from typing import TYPE_CHECKING

from plaudit.evidence.splits import Split
from plaudit.reward.completion import Completion
from plaudit.reward.implicit import CERTAIN, Noise, noise_rates, positions
from plaudit.reward.shown import Text, shown_tokens
from plaudit.reward.units import (
    MOST_PLACES,
    NO_PLACE,
    DemoUnit,
    Event,
    PairUnit,
    RankingUnit,
    Thumb,
    ThumbsUnit,
    Units,
    Weighed,
)
from plaudit.reward.weights import (
    DEMO_WEIGHT,
    LABEL_WEIGHT,
    MOST_RANKING_WEIGHT,
    PAIR_WEIGHT,
    PICK_WEIGHT,
    SCALAR_WEIGHT,
    SIGNAL_WEIGHT,
    THUMB_WEIGHT,
    times,
    weigh,
)
from plaudit.settings import RewardSettings
from plaudit.types import (
    Binary,
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

SECONDS_A_DAY = 86_400.0
# Older evidence weighs as if it were this old: with weights of 0 the total of a rater, or of the whole set, would be 0.
MOST_HALF_LIVES = 64.0
# Kinds of act whose outcome depends on where an option stood: people see the first more, and take it more readily.
PLACED_KINDS = frozenset({FeedbackKind.CHOICE, FeedbackKind.SIGNAL})
LEAST_PROBABILITY = 1e-30  # Of an option to be first; below it a log-prob says no more than "never".


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
    reader = _Reader(text, data.interactions, placed=settings.place_offsets)
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
            2.0 ** -min(age / settings.half_life_days, MOST_HALF_LIVES),
            row.interaction_id,
        )
        try:
            unit = reader.read(event, row)
        except _LeftOut as reason:
            left_out[str(reason)] += 1
        else:
            found += [unit] if unit is not None else []
    ratings = _about_the_middle(reader.scalars)
    left_out["on_the_raters_median"] += len(reader.scalars) - len(ratings)
    found += ratings
    noise = _noise(found, settings.signal_noise)
    found = [_noisy(unit, noise) for unit in found]
    weighed = weigh(found, settings.rater_cap)
    thumbs = _by_rater(unit for unit in weighed if isinstance(unit, Thumb))
    return Units(
        tuple(unit for unit in weighed if isinstance(unit, PairUnit)),
        tuple(unit for unit in weighed if isinstance(unit, RankingUnit)),
        tuple(unit for unit in weighed if isinstance(unit, DemoUnit)),
        tuple(thumbs),
        dict(+left_out),
        noise,
        frozenset(reader.drawn),
        reader.leaning,
        frozenset(reader.served),
    )


class _LeftOut(Exception):
    """A row without use for the likelihoods; the message is the reason that is counted."""


class _Reader:
    """Reads rows into units; keeps values aside for their position among their rater's others."""

    def __init__(self, text: Text, interactions: Mapping[str, Interaction], *, placed: bool) -> None:
        self._text = text
        self._interactions = interactions
        self._placed = placed
        self._completions: dict[tuple[str, str], Completion] = {}
        self.scalars: list[tuple[Thumb, float]] = []
        self._among: dict[str, tuple[Completion, ...]] = {}
        self.drawn: set[str] = set()
        self.served: set[str] = set()
        self.leaning: dict[Completion, float] = {}

    def completion(self, interaction_id: str, candidate_id: str) -> Completion:
        """The candidate as the reward model reads it."""
        key = (interaction_id, candidate_id)
        if key not in self._completions:
            interaction = self._interactions[interaction_id]
            candidate = next(c for c in interaction.candidates if c.candidate_id == candidate_id)
            self._completions[key] = Completion(interaction.prompt_tokens, shown_tokens(self._text, candidate))
        return self._completions[key]

    def among(self, interaction_id: str) -> tuple[Completion, ...]:
        """All options of a request, in its order; empty if it asked for completions."""
        if interaction_id not in self._among:
            interaction = self._interactions[interaction_id]
            places = sorted(interaction.candidates, key=lambda each: each.place) if interaction.options else []
            self._among[interaction_id] = tuple(self.completion(interaction_id, each.candidate_id) for each in places)
        return self._among[interaction_id]

    def place(self, event: Event, interaction_id: str, candidate_id: str) -> int:
        """Where the option stood when the act was made; NO_PLACE if that has no say."""
        interaction = self._interactions[interaction_id]
        if not self._placed or event.kind not in PLACED_KINDS or not interaction.options:
            return NO_PLACE
        if interaction.order_logprob < 0 and event.event_id not in self.drawn:
            self.drawn.add(event.event_id)
            logs = [math.log(max(each.probability, LEAST_PROBABILITY)) for each in interaction.candidates]
            for each, log in zip(interaction.candidates, logs, strict=True):
                self.leaning[self.completion(interaction_id, each.candidate_id)] = log - fmean(logs)
        ids = [each.candidate_id for each in interaction.candidates]
        return min(ids.index(candidate_id), MOST_PLACES - 1)

    def read(self, event: Event, row: EvidenceRow) -> Weighed | None:
        """The unit of a row, or None if it is kept for later; raises _LeftOut."""
        interaction = self._interactions[row.interaction_id]
        if interaction.options and interaction.order_logprob >= 0:
            self.served.add(event.event_id)
        match row.evidence:
            case Pair() as pair:
                return self._pair(event, row.interaction_id, pair)
            case RankingEvidence() as ranking:
                return self._ranking(event, row.interaction_id, ranking)
            case Demo(candidate=candidate, text=better, margin=margin):
                original = self.completion(row.interaction_id, candidate)
                demo = Completion(original.prompt, self._text.encode_text(better))
                if demo == original:
                    raise _LeftOut("same_text")
                return DemoUnit(times(event, DEMO_WEIGHT), demo, original, margin)
            case Binary(candidate=candidate, positive=positive, source=source):
                worth = SIGNAL_WEIGHT if event.kind is FeedbackKind.SIGNAL else THUMB_WEIGHT
                return self._thumb(times(event, worth), row.interaction_id, candidate, positive, source)
            case Scalar(candidate=candidate, value=value, source=source):
                worth = SIGNAL_WEIGHT if event.kind is FeedbackKind.SIGNAL else SCALAR_WEIGHT
                thumb = self._thumb(times(event, worth), row.interaction_id, candidate, True, source)
                self.scalars.append((thumb, value))
                return None
            case Label() as label:
                return self._label(event, row.interaction_id, label)
        raise AssertionError(f"evidence {row.evidence!r} has no likelihood")

    def _pair(self, event: Event, interaction_id: str, pair: Pair) -> PairUnit:
        first, second = (self.completion(interaction_id, each) for each in (pair.first, pair.second))
        if first == second:
            raise _LeftOut("same_text")
        outcome = {PairOutcome.FIRST: 1, PairOutcome.TIE: 0, PairOutcome.SECOND: -1}[pair.outcome]
        worth = PICK_WEIGHT if event.kind is FeedbackKind.SIGNAL else PAIR_WEIGHT
        return PairUnit(
            times(event, worth),
            first,
            second,
            outcome,
            pair.tie_offered or outcome == 0,
            pair.margin,
            (self.place(event, interaction_id, pair.first), self.place(event, interaction_id, pair.second)),
        )

    def _ranking(self, event: Event, interaction_id: str, ranking: RankingEvidence) -> RankingUnit:
        order = tuple(self.completion(interaction_id, each) for each in ranking.order)
        observed = min(len(order) - 1, ranking.observed or len(order))
        if observed < 1:
            raise _LeftOut("ranking_of_one")
        implicit = event.kind is FeedbackKind.SIGNAL
        worth = min(observed, MOST_RANKING_WEIGHT) * (PICK_WEIGHT if implicit else 1.0)
        places = tuple(self.place(event, interaction_id, each) for each in ranking.order)
        return RankingUnit(times(event, worth), order, ranking.observed, places)

    def _thumb(self, event: Event, interaction_id: str, candidate: str, positive: bool, source: str) -> Thumb:
        completion = self.completion(interaction_id, candidate)
        place, among = self.place(event, interaction_id, candidate), self.among(interaction_id)
        return Thumb(event, completion, positive, source, place, among=among)

    def _label(self, event: Event, interaction_id: str, label: Label) -> RankingUnit:
        """The true class as a choice of one among the options: cross-entropy is Plackett-Luce with one place."""
        candidates = self._interactions[interaction_id].candidates
        true = [c for c in candidates if label.value in (c.option_id, c.displayed_text)]
        others = [c for c in candidates if c not in true]
        if not true or not others:
            raise _LeftOut("label_without_options")
        order = tuple(self.completion(interaction_id, c.candidate_id) for c in (true[0], *others))
        return RankingUnit(times(event, LABEL_WEIGHT), order, observed=1)


def _about_the_middle(scalars: Sequence[tuple[Thumb, float]]) -> list[Thumb]:
    """Values as thumbs about the middle of their rater's own, and the further from it the weightier (1 on average).

    What lies on the middle says nothing and is left out.
    """
    keys = [(thumb.event.who, thumb.event.kind, thumb.source) for thumb, _ in scalars]
    found = positions([(key, value) for key, (_, value) in zip(keys, scalars, strict=True)])
    return [
        replace(thumb, event=times(thumb.event, 4 * abs(position - 0.5)), positive=position > 0.5)
        for (thumb, _), position in zip(scalars, found, strict=True)
        if position != 0.5
    ]


def _noise(units: Sequence[Weighed], initial: float) -> dict[str, Noise]:
    """How often signals err, learnt from raters who also gave a thumb or rating; none if `initial` is 0."""
    thumbs = [unit for unit in units if isinstance(unit, Thumb)]
    if not initial:
        return {}
    said = {(t.event.who, t.completion): t.positive for t in thumbs if t.event.kind is not FeedbackKind.SIGNAL}
    done = [(t.source, (t.event.who, t.completion), t.positive) for t in thumbs if t.event.kind is FeedbackKind.SIGNAL]
    return noise_rates(said, done, initial)


def _noisy(unit: Weighed, noise: Mapping[str, Noise]) -> Weighed:
    if isinstance(unit, Thumb) and unit.event.kind is FeedbackKind.SIGNAL:
        return replace(unit, noise=noise.get(unit.source, CERTAIN))
    return unit


def _by_rater(thumbs: Iterable[Thumb]) -> list[ThumbsUnit]:
    """Thumbs, ratings and signals apart: a rater's scales differ from kind to kind."""
    by_rater: dict[tuple[str, FeedbackKind], list[Thumb]] = defaultdict(list)
    for thumb in thumbs:
        by_rater[thumb.event.who, thumb.event.kind].append(thumb)
    return [ThumbsUnit(who, tuple(several)) for (who, _), several in sorted(by_rater.items())]
