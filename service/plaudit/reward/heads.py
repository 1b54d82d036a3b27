"""Heads on features that do not move: a penalised likelihood with one optimum, found in seconds.

Enters: a batch of units and the features of its completions. Leaves: weights of the heads and the likelihoods' own
parameters. It chooses between treatments of thumbs, and is where an adapter's training begins, or the whole fit
without one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import softplus

from plaudit.reward.batch import Batch, Shared, Treatment
from plaudit.reward.comparisons import Comparison, thumb_contrasts
from plaudit.reward.completion import Completion
from plaudit.reward.units import MOST_PLACES, NO_PLACE, PairUnit, RankingUnit, ThumbsUnit, Unit, Units, said_pairs

ITERATIONS = 60
# Precision of the prior of a weight, times F + 1. At 1 scores would have a spread of about 1 before any evidence;
# on the demo's model the weaker prior orders fresh answers better, and calibration raters prefer it too.
PRIOR_PRECISION = 0.1
# Standard deviations of Gaussian priors on log nu, log kappa and the intercept: weak, so that a domain without ties
# or thumbs stays at the start instead of drifting.
SHARED_SPREAD = (1.0, 0.5, 2.0)
# The same of a place's offset, and of what the policy's own leaning counts while offsets are fitted.
OFFSET_SPREAD = 1.0
# Pairs of calibration raters below which treatments are compared by thumbs.
LEAST_PAIRS = 50


@dataclass(frozen=True, slots=True)
class Heads:
    """Fitted heads: weight (K, F), bias (K,), and the shared parameters."""

    weight: Tensor
    bias: Tensor
    shared: Shared

    def score(self, features: Tensor) -> Tensor:
        """Scores (N, K) of features (N, F)."""
        return features @ self.weight.T + self.bias


def fit_heads(
    batch: Batch,
    features: Tensor,
    *,
    heads: int,
    center: float,
    offsets: Tensor | None = None,
    learn_offsets: bool = False,
) -> Heads:
    """Maximum a posteriori by L-BFGS, in double precision; deterministic.

    features: (N, F), rows as `batch.completions`. The prior of a weight is N(0, 1 / (PRIOR_PRECISION (F + 1))). K
    heads differ by their bootstrap draws alone. offsets: of places (`Shared`), held unless `learn_offsets`.
    """
    x = features.detach().double()
    weight = torch.zeros(heads, x.shape[1], dtype=torch.double, device=x.device, requires_grad=True)
    bias = torch.zeros(heads, dtype=torch.double, device=x.device, requires_grad=True)
    shared = Shared.start(x.device, torch.double, offsets)
    shared.offsets.requires_grad_(learn_offsets)
    parameters = [weight, bias, *shared.all, *([shared.offsets] if learn_offsets else [])]
    optimiser = torch.optim.LBFGS(parameters, max_iter=ITERATIONS, line_search_fn="strong_wolfe", history_size=20)

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = batch.loss(x @ weight.T + bias, shared, center=center)
        loss = loss + 0.5 * PRIOR_PRECISION * (x.shape[1] + 1) * weight.square().sum() / heads
        for parameter, spread in zip(shared.all, SHARED_SPREAD, strict=True):
            loss = loss + 0.5 * (parameter / spread).square()
        loss = loss + 0.5 * (shared.offsets / OFFSET_SPREAD).square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimiser.step(closure)  # type: ignore[no-untyped-call]
    fitted = [parameter.detach().float() for parameter in (weight, bias, *shared.all, shared.offsets)]
    return Heads(fitted[0], fitted[1], Shared(*fitted[2:]))


def fit_offsets(
    units: Units,
    features: Mapping[Completion, Tensor],
    references: Mapping[str, Sequence[Completion]],
    *,
    treatment: Treatment,
    center: float,
) -> Tensor:
    """How much better an option seems in the second, third, ... place than in the first: (MOST_PLACES - 1,).

    Of acts on orders that were drawn alone: there chance put an option where it stood, given the policy's leaning,
    which enters beside the features. Where the best always come first, no data tell their place from their worth.
    Zeros without such acts.
    """
    drawn = _drawn(units)
    if not drawn:
        return torch.zeros(MOST_PLACES - 1)
    batch = Batch(drawn, references, heads=1, seed=0, treatment=treatment, bootstrap=False)
    if not batch.completions:
        return torch.zeros(MOST_PLACES - 1)
    read = torch.stack([features[each] for each in batch.completions]).cpu()
    leaning = torch.tensor([units.leaning.get(each, 0.0) for each in batch.completions])
    # Scaled so that the common prior of weights gives the leaning's a spread of OFFSET_SPREAD.
    column = leaning * OFFSET_SPREAD * (PRIOR_PRECISION * (read.shape[1] + 2)) ** 0.5
    fitted = fit_heads(batch, torch.cat([read, column[:, None]], 1), heads=1, center=center, learn_offsets=True)
    return fitted.shared.offsets


def _drawn(units: Units) -> list[Unit]:
    """What was said of orders that were drawn, if places have a say."""
    compared: list[PairUnit | RankingUnit] = [*units.pairs, *units.rankings]
    found: list[Unit] = [
        unit
        for unit in compared
        if unit.event.event_id in units.drawn and any(place != NO_PLACE for place in unit.places)
    ]
    for unit in units.thumbs:
        thumbs = tuple(each for each in unit.thumbs if each.event.event_id in units.drawn and each.place != NO_PLACE)
        found += [ThumbsUnit(unit.who, thumbs)] if thumbs else []
    return found


@dataclass(frozen=True, slots=True)
class TreatmentChoice:
    """Each treatment's mean -log P of what calibration raters said, and which was taken.

    `nll` by treatment; empty if there was nothing to choose by. `difference` is A's less the best other's (positive if
    that one is better) with its standard error over raters. `judged_by` is "pairs" or "thumbs".
    """

    chosen: Treatment
    nll: dict[str, float]
    difference: float
    standard_error: float
    judged_by: str
    count: int
    why: str


def choose_treatment(
    train: Units,
    held_out: Units,
    features: Mapping[Completion, Tensor],
    references: Mapping[str, Sequence[Completion]],
    *,
    center: float,
    offsets: Tensor | None = None,
) -> TreatmentChoice:
    """Fit one head under each treatment and compare them on raters that trained none; ties keep A.

    Judged by pairs that people compared, or if there are fewer than LEAST_PAIRS by contrasts between one rater's
    thumbs. Another treatment is taken only if it is better than A by more than one standard error, raters being the
    unit.
    """
    pairs = said_pairs(held_out)
    by_pairs = len(pairs) >= LEAST_PAIRS
    judged_by = "pairs" if by_pairs else "thumbs"
    # Every treatment is judged on the same contrasts: those whose scores can be centred.
    contrasts = [] if by_pairs else thumb_contrasts(held_out, references)
    count = len(pairs) if by_pairs else len(contrasts)
    if not train.thumbs or not count:
        why = "no thumbs to treat" if not train.thumbs else "nothing of calibration raters to judge by"
        return TreatmentChoice(Treatment.CONTRAST, {}, 0.0, 0.0, judged_by, count, why)
    losses: dict[Treatment, Tensor] = {}
    raters: list[str] = []
    for treatment in Treatment:
        batch = Batch(train.all, references, heads=1, seed=0, treatment=treatment, bootstrap=False)
        x = torch.stack([features[each] for each in batch.completions]).cpu()
        heads = fit_heads(batch, x, heads=1, center=center, offsets=offsets)
        if by_pairs:
            losses[treatment], raters = _pair_losses(heads, pairs, features)
        else:
            losses[treatment], raters = _contrast_losses(heads, contrasts, features, treatment)
    nll = {treatment.value: loss.mean().item() for treatment, loss in losses.items()}
    best = min((each for each in Treatment if each is not Treatment.CONTRAST), key=lambda each: nll[each.value])
    difference = losses[Treatment.CONTRAST] - losses[best]
    error = _clustered_error(difference.tolist(), raters)
    better = difference.mean().item() > error
    return TreatmentChoice(
        best if better else Treatment.CONTRAST,
        nll,
        difference.mean().item(),
        error,
        judged_by,
        count,
        "better by more than one standard error" if better else "within one standard error, or better",
    )


def _pair_losses(
    heads: Heads, pairs: Sequence[PairUnit], features: Mapping[Completion, Tensor]
) -> tuple[Tensor, list[str]]:
    batch = Batch(pairs, {}, heads=1, seed=0, treatment=Treatment.CONTRAST, bootstrap=False)
    read = torch.stack([features[each] for each in batch.completions]).cpu()
    return batch.pair_losses(heads.score(read), heads.shared), batch.pair_raters


def _contrast_losses(
    heads: Heads, contrasts: Sequence[Comparison], features: Mapping[Completion, Tensor], treatment: Treatment
) -> tuple[Tensor, list[str]]:
    """-log P of each contrast, with the treatment's own kappa: (U,)."""

    def centred(completion: Completion, references: Sequence[Completion]) -> Tensor:
        cited = () if treatment is Treatment.PLAIN else references
        read = torch.stack([features[each] for each in (completion, *cited)]).cpu()
        scores = heads.score(read).mean(1)
        return scores[0] - (scores[1:].mean() if cited else 0.0)

    leads = [centred(c.better, c.better_references) - centred(c.worse, c.worse_references) for c in contrasts]
    losses = softplus(-heads.shared.log_kappa.exp() * torch.stack(leads))
    return losses, [contrast.who for contrast in contrasts]


def _clustered_error(values: Sequence[float], raters: Sequence[str]) -> float:
    """Standard error of the mean, events of one rater taken together; infinite with one rater."""
    centre = float(np.mean(values))
    sums: dict[str, float] = {}
    for value, who in zip(values, raters, strict=True):
        sums[who] = sums.get(who, 0.0) + value - centre
    if len(sums) < 2:
        return float("inf")
    scale = len(sums) / (len(sums) - 1)
    return float((scale * sum(each**2 for each in sums.values())) ** 0.5 / len(values))
