"""Units as index tensors, and the weighted loss of all of them: the seam between evidence and likelihoods.

Enters: units, references, bootstrap seed. Leaves: the distinct completions to be scored, and one loss for their
scores. The same code serves a minibatch of a few units and the full batch of a fit on frozen features.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import torch
from torch import Tensor

from plaudit.reward import likelihoods as like
from plaudit.reward.comparisons import other_references
from plaudit.reward.completion import Completion
from plaudit.reward.units import MOST_PLACES, NO_PLACE, DemoUnit, Event, PairUnit, RankingUnit, Thumb, ThumbsUnit, Unit
from plaudit.reward.weights import bootstrap_weight

MOST_CONTRASTS = 8
# Thumbs of one rater in one minibatch under the centred treatment, as many as the contrasts could name.
MOST_THUMBS = 2 * MOST_CONTRASTS
# References that centre a thumb in one minibatch: a choice has up to 49, and each is a completion to score.
MOST_CITED = 2
# Thumbs of one rater in a full batch. Twice the events that a rater counts for by default (reward.rater_cap): more
# would cost the square of their number and could not weigh more.
MOST_THUMBS_OF_ALL = 40


class Treatment(StrEnum):
    """How thumbs enter: contrasts on centred scores, scores centred within the rater, contrasts on plain scores."""

    CONTRAST = "A"
    CENTRED = "B"
    PLAIN = "C"


@dataclass(slots=True)
class Shared:
    """Parameters of the likelihoods that are not the score: one of each per domain.

    `offsets` (MOST_PLACES - 1,): how much better (score units) an option seems in the second, third, ... place than in
    the first. They are fitted before all others, on orders that were drawn, and held fixed from then on.
    """

    log_nu: Tensor
    log_kappa: Tensor
    intercept: Tensor
    offsets: Tensor

    @classmethod
    def start(
        cls, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32, offsets: Tensor | None = None
    ) -> Shared:
        """Nu and kappa 1, intercept 0, and the offsets given (None: all 0)."""
        log_nu, log_kappa, intercept = (
            torch.zeros((), dtype=dtype, device=device, requires_grad=True) for _ in range(3)
        )
        held = torch.zeros(MOST_PLACES - 1) if offsets is None else offsets.detach()
        return cls(log_nu, log_kappa, intercept, held.to(device, dtype))

    @property
    def all(self) -> list[Tensor]:
        """Those that are learnt together with the score, in a fixed order."""
        return [self.log_nu, self.log_kappa, self.intercept]

    def at(self, places: Tensor) -> Tensor:
        """Offset of each place, of the shape of `places`; 0 for the first place and for one that has no say."""
        zero = self.offsets.new_zeros(1)
        return torch.cat([zero, self.offsets, zero])[places]


@dataclass(frozen=True, slots=True)
class DrawnThumbs:
    """Thumbs of one rater that take part, which contrasts were drawn, and what they stand for.

    `scale` is the worth of the rater's whole set over that of the part.
    """

    thumbs: tuple[Thumb, ...]
    drawn: tuple[tuple[int, int], ...] | None
    scale: float


def draw_thumbs(unit: ThumbsUnit, treatment: Treatment, rng: np.random.Generator | None) -> DrawnThumbs:
    """A part of a rater's thumbs that stands for all of them, so that no keen rater costs more than a bound.

    With `rng` (a minibatch): at most MOST_CONTRASTS contrasts (A) or MOST_THUMBS thumbs (B). Without: at most
    MOST_THUMBS_OF_ALL thumbs, always the same ones for the same rater and thumbs, and under A every contrast among
    them; as many ups as downs as far as there are. Either sum has the mean of the sum over everything.
    """
    if rng is None:
        return _bounded(unit, treatment)
    if treatment is Treatment.CENTRED:
        if len(unit.thumbs) <= MOST_THUMBS:
            return DrawnThumbs(unit.thumbs, None, 1.0)
        kept = sorted(rng.choice(len(unit.thumbs), MOST_THUMBS, replace=False).tolist())
        return DrawnThumbs(tuple(unit.thumbs[i] for i in kept), None, len(unit.thumbs) / MOST_THUMBS)
    ups = [i for i, thumb in enumerate(unit.thumbs) if thumb.positive]
    downs = [i for i, thumb in enumerate(unit.thumbs) if not thumb.positive]
    worth = min(len(ups), len(downs))
    if not worth:
        return DrawnThumbs((), (), 1.0)
    # A matching: every thumb of the smaller side once, so that few completions carry much evidence.
    count = min(worth, MOST_CONTRASTS)
    chosen_ups = rng.permutation(ups)[:count].tolist()
    chosen_downs = rng.permutation(downs)[:count].tolist()
    kept = sorted([*chosen_ups, *chosen_downs])
    place = {index: at for at, index in enumerate(kept)}
    drawn = tuple((place[i], place[j]) for i, j in zip(chosen_ups, chosen_downs, strict=True))
    return DrawnThumbs(tuple(unit.thumbs[i] for i in kept), drawn, worth / count)


def _cited(references: Sequence[Completion], rng: np.random.Generator | None) -> Sequence[Completion]:
    """All of a thumb's references, or in a minibatch MOST_CITED of them, drawn: their mean has the mean of all."""
    if rng is None or len(references) <= MOST_CITED:
        return references
    return [references[place] for place in rng.choice(len(references), MOST_CITED, replace=False).tolist()]


def with_references(unit: ThumbsUnit, references: Mapping[str, Sequence[Completion]]) -> ThumbsUnit:
    """The thumbs whose prompt has a reference beside the completion itself."""
    return ThumbsUnit(unit.who, tuple(thumb for thumb in unit.thumbs if other_references(thumb, references)))


def _bounded(unit: ThumbsUnit, treatment: Treatment) -> DrawnThumbs:
    if len(unit.thumbs) <= MOST_THUMBS_OF_ALL:
        return DrawnThumbs(unit.thumbs, None, 1.0)
    named = hashlib.sha256("\0".join([unit.who, *(thumb.event.event_id for thumb in unit.thumbs)]).encode())
    rng = np.random.default_rng(int.from_bytes(named.digest()[:8], "big"))
    if treatment is Treatment.CENTRED:
        kept = rng.choice(len(unit.thumbs), MOST_THUMBS_OF_ALL, replace=False).tolist()
        return DrawnThumbs(tuple(unit.thumbs[i] for i in sorted(kept)), None, len(unit.thumbs) / MOST_THUMBS_OF_ALL)
    ups, downs = ([i for i, thumb in enumerate(unit.thumbs) if thumb.positive is up] for up in (True, False))
    half = MOST_THUMBS_OF_ALL // 2
    most_ups = min(len(ups), max(half, MOST_THUMBS_OF_ALL - len(downs)))
    most_downs = min(len(downs), MOST_THUMBS_OF_ALL - most_ups)
    kept = [*rng.permutation(ups)[:most_ups].tolist(), *rng.permutation(downs)[:most_downs].tolist()]
    # The contrast loss is worth the smaller side; its mean over the kept contrasts estimates the mean over all.
    scale = min(len(ups), len(downs)) / max(1, min(most_ups, most_downs))
    return DrawnThumbs(tuple(unit.thumbs[int(i)] for i in sorted(kept)), None, scale)


def _by_width(drawn: Sequence[DrawnThumbs]) -> list[list[DrawnThumbs]]:
    """Raters with about as many thumbs together: a block is padded to its longest, and costs the square of that."""
    groups: dict[int, list[DrawnThumbs]] = {}
    for each in drawn:
        groups.setdefault(len(each.thumbs).bit_length(), []).append(each)
    return [groups[width] for width in sorted(groups)]


class Batch:
    """Index tensors of some units; `completions` are the rows that `loss` expects scores for."""

    def __init__(
        self,
        units: Sequence[Unit],
        references: Mapping[str, Sequence[Completion]],
        *,
        heads: int,
        seed: int,
        treatment: Treatment,
        rng: np.random.Generator | None = None,
        bootstrap: bool = True,
        device: torch.device | str = "cpu",
    ) -> None:
        self._rows: dict[Completion, int] = {}
        self._heads, self._seed, self._bootstrap, self._device = heads, seed, bootstrap, device
        self._treatment = treatment
        pairs = [unit for unit in units if isinstance(unit, PairUnit)]
        self._pairs = _Pairs(self, [unit for unit in pairs if not unit.tie_offered])
        self._ties = _Pairs(self, [unit for unit in pairs if unit.tie_offered])
        self._demos = _Pairs(self, [unit for unit in units if isinstance(unit, DemoUnit)])
        self._rankings = _Rankings(self, [unit for unit in units if isinstance(unit, RankingUnit)])
        thumbs = [unit for unit in units if isinstance(unit, ThumbsUnit)]
        cited = None if treatment is Treatment.PLAIN else references
        if cited is not None:
            # A score that is not centred cannot stand beside those that are.
            thumbs = [with_references(unit, cited) for unit in thumbs]
        drawn = [draw_thumbs(unit, treatment, rng) for unit in thumbs]
        kept = [each for each in drawn if len(each.thumbs) >= 2]
        self._thumbs = [_Thumbs(self, several, cited, rng) for several in _by_width(kept)]

    @property
    def completions(self) -> list[Completion]:
        """Distinct completions in the order of the scores' rows."""
        return list(self._rows)

    def row(self, completion: Completion) -> int:
        """The row of a completion, a fresh one at its first mention."""
        return self._rows.setdefault(completion, len(self._rows))

    def index(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """Ragged rows as (U, M) indices; -1, past the end of a row, is the poisoned position."""
        width = max((len(row) for row in rows), default=0)
        padded = [[*row, *[-1] * (width - len(row))] for row in rows]
        return torch.tensor(padded, dtype=torch.long, device=self._device).reshape(len(rows), width)

    def weights(self, events: Sequence[Event]) -> Tensor:
        """Omega times the bootstrap draw: (K, U)."""
        omega = torch.tensor([event.weight for event in events], device=self._device)
        return omega * self.draws(events)

    def draws(self, events: Sequence[Event]) -> Tensor:
        """Bootstrap draws (K, U); ones where the bootstrap is off."""
        if not self._bootstrap:
            return torch.ones(self._heads, len(events), device=self._device)
        draws = [[bootstrap_weight(e.event_id, head, self._seed) for e in events] for head in range(self._heads)]
        return torch.tensor(draws, dtype=torch.float32, device=self._device).reshape(self._heads, len(events))

    def loss(self, scores: Tensor, shared: Shared, *, center: float = 0.0) -> Tensor:
        """Sum over the units of weight x loss, mean over the heads. scores: (N, K), rows as in `completions`."""
        # One more column of NaN stands behind every -1: a masked position that were read would show at once.
        poison = scores.new_full((scores.shape[1], 1), torch.nan)
        by_head = torch.cat([scores.T, poison], 1)  # (K, N + 1)
        total = by_head.new_zeros(())
        for term in self._terms(by_head, shared, center):
            total = total + term.sum()
        return total / scores.shape[1]

    def _terms(self, scores: Tensor, shared: Shared, center: float) -> list[Tensor]:
        """Weighted losses by kind, (K, U) each."""
        terms = []
        for pairs in (self._pairs, self._ties, self._demos):
            if len(pairs.first):
                terms.append(pairs.weight * pairs.losses(scores, shared, center, ties=pairs is self._ties))
        if len(self._rankings.rows):
            terms.append(self._rankings.weight * self._rankings.losses(scores, shared, center))
        return [*terms, *(thumbs.losses(scores, shared, center, self._treatment) for thumbs in self._thumbs)]

    def pair_losses(self, scores: Tensor, shared: Shared) -> Tensor:
        """Unweighted -log P of every pair, plain ones before those with ties, of the heads' mean score: (U,)."""
        mean = scores.mean(1)[None, :]
        parts = [
            pairs.losses(mean, shared, 0.0, ties=pairs is self._ties)[0]
            for pairs in (self._pairs, self._ties)
            if len(pairs.first)
        ]
        return torch.cat(parts) if parts else scores.new_zeros(0)

    @property
    def pair_raters(self) -> list[str]:
        """Raters of `pair_losses`."""
        return [*self._pairs.raters, *self._ties.raters]


class _Pairs:
    """Pairs (or corrections, the person's text first) as indices."""

    def __init__(self, batch: Batch, units: Sequence[PairUnit] | Sequence[DemoUnit]) -> None:
        sides = [(u.first, u.second) if isinstance(u, PairUnit) else (u.demo, u.original) for u in units]
        outcomes = [u.outcome if isinstance(u, PairUnit) else 1 for u in units]
        device = batch._device
        self.first = torch.tensor([batch.row(a) for a, _ in sides], dtype=torch.long, device=device)
        self.second = torch.tensor([batch.row(b) for _, b in sides], dtype=torch.long, device=device)
        self.outcome = torch.tensor(outcomes, device=device)
        self.margin = torch.tensor([u.margin for u in units], device=device)
        places = [u.places if isinstance(u, PairUnit) else (NO_PLACE, NO_PLACE) for u in units]
        self.places = torch.tensor(places, dtype=torch.long, device=device).reshape(len(units), 2)
        self.weight = batch.weights([u.event for u in units])
        self.raters = [u.event.who for u in units]

    def losses(self, scores: Tensor, shared: Shared, center: float, *, ties: bool) -> Tensor:
        raw = torch.stack([scores[:, self.first], scores[:, self.second]], -1)
        first, second = (raw + shared.at(self.places)).unbind(-1)
        if ties:
            losses = like.pair_with_ties_loss(first, second, self.outcome, shared.log_nu, margin=self.margin)
        else:
            won = self.outcome > 0
            chosen, other = torch.where(won, first, second), torch.where(won, second, first)
            losses = like.pair_loss(chosen, other, margin=self.margin)
        return losses + center * like.centring_penalty(raw)


class _Rankings:
    """Rankings as indices, right-padded."""

    def __init__(self, batch: Batch, units: Sequence[RankingUnit]) -> None:
        self.rows = batch.index([[batch.row(each) for each in unit.order] for unit in units])
        observed = [len(u.order) if u.observed is None else u.observed for u in units]
        self.observed = torch.tensor(observed, dtype=torch.long, device=batch._device)
        self.places = batch.index([unit.places or [NO_PLACE] * len(unit.order) for unit in units])
        self.weight = batch.weights([u.event for u in units])

    def losses(self, scores: Tensor, shared: Shared, center: float) -> Tensor:
        ranked = scores[:, self.rows]
        mask = self.rows >= 0
        losses = like.ranking_loss(ranked + shared.at(self.places), mask, observed=self.observed)
        return losses + center * like.centring_penalty(ranked, mask.expand_as(ranked))


class _Thumbs:
    """Thumbs by rater (G, T), each with the references of its prompt (G, T, J)."""

    def __init__(
        self,
        batch: Batch,
        drawn: Sequence[DrawnThumbs],
        references: Mapping[str, Sequence[Completion]] | None,
        rng: np.random.Generator | None,
    ) -> None:
        self.rows = batch.index([[batch.row(t.completion) for t in each.thumbs] for each in drawn])
        groups, thumbs = self.rows.shape
        size = (groups, thumbs)
        self.positive = torch.zeros(size, dtype=torch.bool, device=batch._device)
        self.weight = torch.zeros(len(batch.draws([])), *size, device=batch._device)
        self.omega = torch.zeros(size, device=batch._device)
        self.drawn = torch.zeros(groups, thumbs, thumbs, dtype=torch.bool, device=batch._device)
        self.places = batch.index([[thumb.place for thumb in each.thumbs] for each in drawn])
        rates = torch.zeros(2, *size, device=batch._device)
        cited: list[list[int]] = []
        for g, each in enumerate(drawn):
            count = len(each.thumbs)
            events = [thumb.event for thumb in each.thumbs]
            self.positive[g, :count] = torch.tensor([thumb.positive for thumb in each.thumbs])
            self.weight[:, g, :count] = batch.draws(events)
            rates[0, g, :count] = torch.tensor([thumb.noise.false_up for thumb in each.thumbs])
            rates[1, g, :count] = torch.tensor([thumb.noise.false_down for thumb in each.thumbs])
            self.omega[g, :count] = torch.tensor([event.weight * each.scale for event in events])
            if each.drawn is None:
                self.drawn[g] = True
            for i, j in each.drawn or ():
                self.drawn[g, i, j] = True
            for thumb in each.thumbs:
                cited.append([batch.row(each) for each in _cited(other_references(thumb, references), rng)])
            cited += [[] for _ in range(thumbs - count)]
        found = batch.index(cited)
        self.references = found.reshape(groups, thumbs, found.shape[-1])
        # Most domains have no signals: their thumbs keep the plain loss.
        self.noise = (rates[0], rates[1]) if rates.any() else None

    def losses(self, scores: Tensor, shared: Shared, center: float, treatment: Treatment) -> Tensor:
        mask, cited = self.rows >= 0, self.references >= 0
        references = scores[:, self.references]  # (K, G, T, J)
        centred = like.minus_reference_mean(scores[:, self.rows], references, cited) + shared.at(self.places)
        if treatment is not Treatment.CENTRED:
            # An event's omega is worth one comparison; its bootstrap draws are independent, so they multiply.
            omega = (self.omega[:, :, None] * self.omega[:, None, :]).sqrt()
            weights = omega * self.weight[..., :, None] * self.weight[..., None, :]
            losses = like.thumbs_contrast_loss(
                centred, self.positive, mask, shared.log_kappa, weights=weights, drawn=self.drawn, noise=self.noise
            )
        else:
            losses = like.thumbs_centred_loss(
                centred,
                self.positive,
                mask,
                shared.log_kappa,
                shared.intercept,
                weights=self.omega * self.weight,
                noise=self.noise,
            )
        penalty = like.centring_penalty(references, cited.expand_as(references))
        weighed = torch.where(mask, self.omega * self.weight * penalty, 0.0).sum(-1)
        return losses + center * weighed
