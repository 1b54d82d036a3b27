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

from plaudit.reward.batch import Batch, Shared, Treatment
from plaudit.reward.dataset import Units
from plaudit.reward.trunk import Completion

ITERATIONS = 60
# Precision of the prior of a weight, times F + 1. At 1 scores would have a spread of about 1 before any evidence;
# on the demo's model the weaker prior orders fresh answers better, and calibration raters prefer it too.
PRIOR_PRECISION = 0.1
# Standard deviations of Gaussian priors on log nu, log kappa and the intercept: weak, so that a domain without ties
# or thumbs stays at the start instead of drifting.
SHARED_SPREAD = (1.0, 0.5, 2.0)


@dataclass(frozen=True, slots=True)
class Heads:
    """Fitted heads: weight (K, F), bias (K,), and the shared parameters."""

    weight: Tensor
    bias: Tensor
    shared: Shared

    def score(self, features: Tensor) -> Tensor:
        """Scores (N, K) of features (N, F)."""
        return features @ self.weight.T + self.bias


def fit_heads(batch: Batch, features: Tensor, *, heads: int, center: float) -> Heads:
    """Maximum a posteriori by L-BFGS, in double precision; deterministic.

    features: (N, F), rows as `batch.completions`. The prior of a weight is N(0, 1 / (PRIOR_PRECISION (F + 1))). K
    heads differ by their bootstrap draws alone.
    """
    x = features.detach().double()
    weight = torch.zeros(heads, x.shape[1], dtype=torch.double, device=x.device, requires_grad=True)
    bias = torch.zeros(heads, dtype=torch.double, device=x.device, requires_grad=True)
    shared = Shared(*(torch.zeros((), dtype=torch.double, device=x.device, requires_grad=True) for _ in range(3)))
    parameters = [weight, bias, *shared.all]
    optimiser = torch.optim.LBFGS(parameters, max_iter=ITERATIONS, line_search_fn="strong_wolfe", history_size=20)

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = batch.loss(x @ weight.T + bias, shared, center=center)
        loss = loss + 0.5 * PRIOR_PRECISION * (x.shape[1] + 1) * weight.square().sum() / heads
        for parameter, spread in zip(shared.all, SHARED_SPREAD, strict=True):
            loss = loss + 0.5 * (parameter / spread).square()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimiser.step(closure)  # type: ignore[no-untyped-call]
    fitted = [parameter.detach().float() for parameter in parameters]
    return Heads(fitted[0], fitted[1], Shared(*fitted[2:]))


@dataclass(frozen=True, slots=True)
class TreatmentChoice:
    """Both treatments' mean -log P of calibration raters' pairs, and which was taken.

    `difference` is A - B (positive where B is better) with its standard error over raters.
    """

    chosen: Treatment
    nll_contrast: float | None
    nll_centred: float | None
    difference: float
    standard_error: float
    pairs: int
    why: str


def choose_treatment(
    train: Units,
    held_out: Units,
    features: Mapping[Completion, Tensor],
    references: Mapping[str, Sequence[Completion]],
    *,
    center: float,
) -> TreatmentChoice:
    """Fit one head under each treatment and compare on the pairs of raters that trained neither; ties keep A.

    B is taken only where it is better by more than one standard error, raters being the unit.
    """
    pairs = Batch(held_out.pairs, {}, heads=1, seed=0, treatment=Treatment.CONTRAST, bootstrap=False)
    if not train.thumbs or not held_out.pairs:
        why = "no thumbs to treat" if not train.thumbs else "no pairs of calibration raters to judge by"
        return TreatmentChoice(Treatment.CONTRAST, None, None, 0.0, 0.0, len(held_out.pairs), why)
    held_features = torch.stack([features[each] for each in pairs.completions]).cpu()
    losses: dict[Treatment, Tensor] = {}
    for treatment in Treatment:
        batch = Batch(train.all, references, heads=1, seed=0, treatment=treatment, bootstrap=False)
        x = torch.stack([features[each] for each in batch.completions]).cpu()
        heads = fit_heads(batch, x, heads=1, center=center)
        losses[treatment] = pairs.pair_losses(heads.score(held_features), heads.shared)
    difference = losses[Treatment.CONTRAST] - losses[Treatment.CENTRED]
    mean = difference.mean().item()
    error = _clustered_error(difference.tolist(), pairs.pair_raters)
    better = mean > error
    return TreatmentChoice(
        Treatment.CENTRED if better else Treatment.CONTRAST,
        losses[Treatment.CONTRAST].mean().item(),
        losses[Treatment.CENTRED].mean().item(),
        mean,
        error,
        len(held_out.pairs),
        "better by more than one standard error" if better else "within one standard error, or better",
    )


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
