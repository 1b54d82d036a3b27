"""Likelihoods of evidence under the latent score r(x, y): pure functions of tensors.

Scores enter, losses in nats leave, one per event; weighting and reduction belong to `fit`. Leading dimensions
(written `...`; in practice one for the heads) are carried through. `mask` is True where an element counts; what
stands in other positions is never read, not even NaN. Nothing here knows raters, prompts or domains.

Symbols: r score, tau temperature, m margin, nu weight of a tie, kappa scale of thumbs against pairs.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, softplus


def pair_loss(chosen: Tensor, other: Tensor, *, margin: Tensor | float = 0.0, temperature: float = 1.0) -> Tensor:
    """-log sigmoid(tau (chosen - other - m)): Bradley-Terry, for pairs without the offer of a tie.

    chosen, other: (...). Bradley & Terry 1952; Ouyang et al. 2022, arXiv:2203.02155, eq. 1, with one pair a term.
    """
    return softplus(-temperature * (chosen - other - margin))


def pair_with_ties_loss(
    first: Tensor,
    second: Tensor,
    outcome: Tensor,
    log_nu: Tensor,
    *,
    margin: Tensor | float = 0.0,
    temperature: float = 1.0,
) -> Tensor:
    """-log P(outcome) of a pair in which a tie was offered; outcome is 1 (first), -1 (second) or 0 (tie).

    first, second: (...); outcome broadcasts against them; log_nu: scalar. With d = tau (winner - loser - m) and
    D = 2 cosh(d/2) + nu: -log P(win) = log D - d/2 and -log P(tie) = log D - log nu, at m = 0. Davidson 1970,
    JASA 65:317. Wins and ties share one likelihood: sigmoid for wins beside nu for ties would let nu run away.
    """
    tie = outcome == 0
    sign = torch.where(outcome < 0, -1.0, 1.0).to(first.dtype)
    lead = sign * (first - second)
    half = 0.5 * temperature * torch.where(tie, lead, lead - margin)
    log_total = torch.logaddexp(torch.logaddexp(half, -half), log_nu.expand_as(half))
    return log_total - torch.where(tie, log_nu, half)


def ranking_loss(scores: Tensor, mask: Tensor | None = None, *, observed: Tensor | int | None = None) -> Tensor:
    """Plackett-Luce loss of a ranking, a term a place: (1/m') sum_{j<=m'} [log sum_{l>=j} exp r_l - r_j].

    scores: (..., M), best first; the first `observed` places (one number, or (...)) are ordered and the rest only
    known to follow (None: all). m' = min(observed, K - 1) with K the number of elements that count; 0 if K < 2.
    Plackett 1975, Applied Statistics 24:193; Luce 1959.
    Differs: divided by m', so that a long ranking does not outvote a pair (its weight says what it is worth).
    """
    size = scores.shape[-1]
    mask = torch.ones_like(scores, dtype=torch.bool) if mask is None else mask.expand_as(scores)
    filled = torch.where(mask, scores, 0.0)
    place = torch.arange(size, device=scores.device)
    follows = place[None, :] > place[:, None]  # (M, M): element l stands behind place j
    present = (follows & mask[..., None, :]) | torch.eye(size, dtype=torch.bool, device=scores.device)
    # The diagonal keeps each row finite, so that a row that does not count has no NaN to send back.
    tails = filled[..., None, :].masked_fill(~present, -torch.inf).logsumexp(-1)  # (..., M)
    terms = (mask.sum(-1, keepdim=True) - 1).clamp(min=0)
    if observed is not None:
        limit = torch.as_tensor(observed, device=scores.device)
        terms = torch.minimum(terms, limit.unsqueeze(-1))
    counted = mask & (mask.cumsum(-1) <= terms)
    return torch.where(counted, tails - filled, 0.0).sum(-1) / terms.squeeze(-1).clamp(min=1)


def minus_reference_mean(scores: Tensor, references: Tensor, mask: Tensor | None = None) -> Tensor:
    """r(x, y) - mean_j r(x, y_ref,j), with gradient through the mean.

    scores: (...); references: (..., J), base samples of the same prompt; a row without any is left as it is.
    Stopping the gradient at the mean would let the difficulty of prompts leak into r.
    """
    if mask is None:
        return scores - references.mean(-1)
    filled = torch.where(mask, references, 0.0)
    return scores - filled.sum(-1) / mask.sum(-1).clamp(min=1)


def noisy_loss(logit: Tensor, false: Tensor, missed: Tensor) -> Tensor:
    """-log [false + (1 - false - missed) sigmoid(logit)]: the loss of what was observed of a truth that is not.

    logit: (...), of the truth that was observed; false, missed: (...), rates at which it is observed although it does
    not hold, and not observed although it does; their sum is below 1. Patrini et al. 2017, arXiv:1609.03683, section
    4.1 (forward correction). With both rates 0 it is the logistic loss.
    """
    return -torch.logaddexp(false.log(), torch.log1p(-false - missed) + logsigmoid(logit))


def turned(false_up: Tensor, false_down: Tensor) -> Tensor:
    """Probability that a down beside an up is observed as an up beside a down, if they are observed to differ: (...).

    false_up: (...), e of the first; false_down: (...), f of the second. Turned round e f, as they are (1 - e)(1 - f):
    e f / (e f + (1 - e)(1 - f)). As forward correction of a contrast it is exact if the score decides it, and for
    two of one source also if it says nothing: one half, as without noise.
    """
    wrong = false_up * false_down
    return wrong / (wrong + (1 - false_up) * (1 - false_down))


def thumbs_contrast_loss(
    scores: Tensor,
    positive: Tensor,
    mask: Tensor,
    log_kappa: Tensor,
    *,
    weights: Tensor | None = None,
    drawn: Tensor | None = None,
    noise: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Conditional likelihood of one rater's thumbs (treatment A): every up against every down of the same rater.

    scores: (..., T), reference-centred; positive, mask: (..., T) or (T,); drawn: (T, T), True at the (up, down)
    contrasts that were sampled (None: all); weights: (..., T, T), of the contrasts; noise: as `noisy_loss`, (..., T)
    each, of what is implicit; its contrasts are turned round with the probability `turned`. With P ups and N downs:
    min(|P|,|N|) / (|P||N|) sum_{i in P, j in N} -log sigmoid(kappa (r_i - r_j)), the sum over sampled contrasts
    scaled up to all of them. The rater's leniency cancels exactly, as in conditional logistic regression
    (Chamberlain 1980, Review of Economic Studies 47:225): no parameter a rater.
    """
    up = positive & mask
    down = ~positive & mask
    counted = up[..., :, None] & down[..., None, :]  # (..., T, T)
    if drawn is not None:
        counted = counted & drawn
    filled = torch.where(mask, scores, 0.0)
    lead = log_kappa.exp() * (filled[..., :, None] - filled[..., None, :])
    if noise is None:
        losses = softplus(-lead)
    else:
        false_up, false_down = noise
        false = turned(false_up[..., :, None], false_down[..., None, :])
        missed = turned(false_down[..., :, None], false_up[..., None, :])
        losses = noisy_loss(lead, false, missed)
    if weights is not None:
        losses = losses * torch.where(counted, weights, 0.0)
    worth = torch.minimum(up.sum(-1), down.sum(-1))
    total = torch.where(counted, losses, 0.0).sum((-2, -1))
    return worth * total / counted.sum((-2, -1)).clamp(min=1)


def thumbs_centred_loss(
    scores: Tensor,
    positive: Tensor,
    mask: Tensor,
    log_kappa: Tensor,
    intercept: Tensor,
    *,
    weights: Tensor | None = None,
    noise: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Logistic loss of one rater's thumbs, scores centred within the rater (treatment B); the sum over the thumbs.

    scores: (..., T), reference-centred; positive, mask: (..., T) or (T,); weights: (..., T). P(up) =
    sigmoid(kappa (r_i - mean of the rater's r) + b) with one kappa and one b a domain. A rater with a single thumb
    counts 0: uncentred it would bring its leniency with it. The gradient runs through the rater's mean. noise: as
    `noisy_loss`, (..., T) each.
    """
    mask = mask.expand_as(scores)
    filled = torch.where(mask, scores, 0.0)
    count = mask.sum(-1, keepdim=True)
    centred = filled - filled.sum(-1, keepdim=True) / count.clamp(min=1)
    logit = log_kappa.exp() * centred + intercept
    if noise is None:
        losses = softplus(torch.where(positive, -logit, logit))
    else:
        false_up, false_down = noise
        losses = torch.where(
            positive, noisy_loss(logit, false_up, false_down), noisy_loss(-logit, false_down, false_up)
        )
    if weights is not None:
        losses = losses * torch.where(mask, weights, 0.0)
    return torch.where(mask & (count >= 2), losses, 0.0).sum(-1)


def centring_penalty(scores: Tensor, mask: Tensor | None = None) -> Tensor:
    """(2 mean r)^2 over the completions of one prompt: (r_a + r_b)^2 for a pair.

    scores: (..., M). Comparisons leave a shift of each prompt free; this pins it, so that scores do not drift.
    Eisenstein et al. 2023, arXiv:2312.09244, eq. 2.
    """
    if mask is None:
        return (2.0 * scores.mean(-1)).square()
    filled = torch.where(mask, scores, 0.0)
    return (2.0 * filled.sum(-1) / mask.sum(-1).clamp(min=1)).square()
