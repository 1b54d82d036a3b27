"""Turns a frozen data set into weighted units for the likelihoods.

Enters: evidence rows with their splits. Leaves: units (a pair, a ranking, a correction, or all thumbs of one rater)
with completions as token ids and weights. Rows are never altered, and what is not used is counted by reason.
"""

from __future__ import annotations

import bisect
import hashlib
import math
import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import TYPE_CHECKING, Protocol, TypeAlias

from plaudit.evidence.splits import Split
from plaudit.reward.completion import Completion
from plaudit.reward.implicit import CERTAIN, Noise, noise_rates, positions
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
PICK_WEIGHT = 0.3  # Behaviour that took one among those shown: of a slate, or of two answers.
# Most of the total weight that a kind may hold: a person's prose must not teach "written by a person", and
# implicit behaviour must not outvote what people said.
MOST_SHARE = {FeedbackKind.CORRECTION: 0.2, FeedbackKind.SIGNAL: 0.3}
SECONDS_A_DAY = 86_400.0
# Kinds of act whose outcome depends on where an option stood: people see the first more, and take it more readily.
PLACED_KINDS = frozenset({FeedbackKind.CHOICE, FeedbackKind.SIGNAL})
# Places that are told apart; further down all count as the last of these.
MOST_PLACES = 10
NO_PLACE = -1
LEAST_PROBABILITY = 1e-30  # Of an option to be first; below it a log-prob says no more than "never".
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
    """Two completions compared; outcome is 1 (first), 0 (tie) or -1 (second). `places`: where they stood."""

    event: Event
    first: Completion
    second: Completion
    outcome: int
    tie_offered: bool
    margin: float
    places: tuple[int, int] = (NO_PLACE, NO_PLACE)


@dataclass(frozen=True, slots=True)
class RankingUnit:
    """Completions best first; only the first `observed` are ordered (None: all). `places`: where they stood, or ()."""

    event: Event
    order: tuple[Completion, ...]
    observed: int | None = None
    places: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class DemoUnit:
    """A person's text, better than the completion that it corrects."""

    event: Event
    demo: Completion
    original: Completion
    margin: float


@dataclass(frozen=True, slots=True)
class Thumb:
    """One completion found good or bad. `source`: the signal it was read from, which errs as `noise` says.

    `among`: all options of its request, in the request's order; empty for what was generated.
    """

    event: Event
    completion: Completion
    positive: bool
    source: str = ""
    place: int = NO_PLACE
    noise: Noise = CERTAIN
    among: tuple[Completion, ...] = ()


@dataclass(frozen=True, slots=True)
class ThumbsUnit:
    """All thumbs of one rater: they are only ever compared with each other."""

    who: str
    thumbs: tuple[Thumb, ...]


Unit: TypeAlias = PairUnit | RankingUnit | DemoUnit | ThumbsUnit
Weighed: TypeAlias = PairUnit | RankingUnit | DemoUnit | Thumb


@dataclass(frozen=True, slots=True)
class Units:
    """Units of one split; `left_out` counts rows by the reason that kept them out.

    `noise`: rates of error of each source of signals. `drawn`: events in which places have a say, about an order that
    was drawn. `leaning`: log-prob (nats) of each option of such an order to be first, less its mean over the order.
    `served`: events about the policy's own order of options, the most probable first.
    """

    pairs: tuple[PairUnit, ...]
    rankings: tuple[RankingUnit, ...]
    demos: tuple[DemoUnit, ...]
    thumbs: tuple[ThumbsUnit, ...]
    left_out: Mapping[str, int]
    noise: Mapping[str, Noise] = field(default_factory=dict)
    drawn: frozenset[str] = frozenset()
    leaning: Mapping[Completion, float] = field(default_factory=dict)
    served: frozenset[str] = frozenset()

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

    If none does (a rewrite, a redaction) the displayed text is tokenised again. Never ends in EOS.
    """
    if candidate.redacted:
        return text.encode_text(candidate.displayed_text)
    return shown_part(text, candidate.tokens, candidate.displayed_text)


def shown_part(text: Text, tokens: tuple[int, ...], displayed: str) -> tuple[int, ...]:
    """The same of tokens that nothing was redacted in."""
    if displayed in text.decode(tokens):
        # Text once complete stays complete as tokens follow, so the shortest prefix is found by bisection.
        lengths = range(len(tokens) + 1)
        return tokens[: bisect.bisect_left(lengths, True, key=lambda n: displayed in text.decode(tokens[:n]))]
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
            2.0 ** (-age / settings.half_life_days),
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
    weighed = _weigh(found, settings.rater_cap)
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
                return DemoUnit(_times(event, DEMO_WEIGHT), demo, original, margin)
            case Binary(candidate=candidate, positive=positive, source=source):
                worth = SIGNAL_WEIGHT if event.kind is FeedbackKind.SIGNAL else THUMB_WEIGHT
                return self._thumb(_times(event, worth), row.interaction_id, candidate, positive, source)
            case Scalar(candidate=candidate, value=value, source=source):
                worth = SIGNAL_WEIGHT if event.kind is FeedbackKind.SIGNAL else SCALAR_WEIGHT
                thumb = self._thumb(_times(event, worth), row.interaction_id, candidate, True, source)
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
            _times(event, worth),
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
        return RankingUnit(_times(event, worth), order, ranking.observed, places)

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
        return RankingUnit(_times(event, LABEL_WEIGHT), order, observed=1)


def _times(event: Event, worth: float) -> Event:
    return replace(event, weight=event.weight * worth)


def _about_the_middle(scalars: Sequence[tuple[Thumb, float]]) -> list[Thumb]:
    """Values as thumbs about the middle of their rater's own, and the further from it the weightier (1 on average).

    What lies on the middle says nothing and is left out.
    """
    keys = [(thumb.event.who, thumb.event.kind, thumb.source) for thumb, _ in scalars]
    found = positions([(key, value) for key, (_, value) in zip(keys, scalars, strict=True)])
    return [
        replace(thumb, event=_times(thumb.event, 4 * abs(position - 0.5)), positive=position > 0.5)
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


def _weigh(units: Sequence[Weighed], rater_cap: float) -> list[Weighed]:
    """Caps each rater's total weight, then each kind's share, then scales the mean weight to 1, once for the set."""
    totals: defaultdict[str, float] = defaultdict(float)
    for unit in units:
        totals[unit.event.who] += unit.event.weight
    weights = [unit.event.weight * min(1.0, rater_cap / totals[unit.event.who]) for unit in units]
    of_kind: defaultdict[FeedbackKind, float] = defaultdict(float)
    for unit, w in zip(units, weights, strict=True):
        of_kind[unit.event.kind] += w
    scales = _shares_kept(of_kind)
    weights = [w * scales.get(unit.event.kind, 1.0) for unit, w in zip(units, weights, strict=True)]
    mean = sum(weights) / len(weights) if weights else 1.0
    return [replace(unit, event=replace(unit.event, weight=w / mean)) for unit, w in zip(units, weights, strict=True)]


def _shares_kept(of_kind: Mapping[FeedbackKind, float]) -> dict[FeedbackKind, float]:
    """Factors of the kinds that would hold more than MOST_SHARE of the whole: with them none does.

    Cutting one kind makes the others' shares larger, so those that are cut are found together. With no other kind
    there corrections are what people said, and signals alone are cut; of one kind alone nothing is outvoted.
    """
    bounds = {kind: share for kind, share in MOST_SHARE.items() if of_kind.keys() - {kind}}
    if of_kind.keys() <= bounds.keys():
        bounds.pop(FeedbackKind.CORRECTION, None)
    cut: set[FeedbackKind] = set()
    while True:
        rest = math.fsum(weight for kind, weight in of_kind.items() if kind not in cut)
        whole = rest / (1 - math.fsum(bounds[kind] for kind in cut))
        more = {kind for kind in bounds.keys() - cut if of_kind.get(kind, 0.0) > bounds[kind] * whole}
        if not more:
            return {kind: bounds[kind] * whole / of_kind[kind] for kind in cut}
        cut |= more


def bootstrap_weight(event_id: str, head: int, seed: int) -> int:
    """A draw of Binomial(3, 1/3) that depends on event, head and seed alone, so that a replay draws the same."""
    digest = hashlib.sha256(f"{seed}\0{head}\0{event_id}".encode()).digest()
    return bisect.bisect_right(BOOTSTRAP_STEPS, int.from_bytes(digest[:8], "big") / 2**64)


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


def said_pairs(units: Units) -> tuple[PairUnit, ...]:
    """Pairs that people compared, without those that their behaviour made."""
    return tuple(pair for pair in units.pairs if pair.event.kind is not FeedbackKind.SIGNAL)


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
