"""The maths of ordered choices as pure functions of tensors: Plackett-Luce over the options' scores.

Letters: P prompts, K options (right-padded), S orders of a prompt, M places that are shown and count. `scores` (P, K)
are nats, one per option, the temperature already in them; `ordering` draws and shows by the same rule. An option is in
a tier: 0 the valid ones, 1 those that the domain finds invalid, which come after all valid ones whatever their scores,
and ABSENT the padding, whose scores may hold anything finite. A place is filled by a softmax over the best tier that
is left, so that the log-probability of an order is a sum over its places (Luce 1959; Plackett 1975, eq. 1), and the
first M places of it are the sum of the first M: what stands below does not enter.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from plaudit.policy import ppo

ABSENT = 2
NONE = -1  # Place of an order that no option is left for.


def tiers_of(valid: Sequence[Sequence[bool]]) -> torch.Tensor:
    """Tiers (P, K) of the options of several prompts, each told by which of its options are valid."""
    longest = max(len(each) for each in valid)
    tiers = torch.full((len(valid), longest), ABSENT)
    for row, each in enumerate(valid):
        tiers[row, : len(each)] = (~torch.tensor(each)).long()
    return tiers


def open_options(tiers: torch.Tensor, orders: torch.Tensor) -> torch.Tensor:
    """Which options may fill each place of orders (P, S, M), given those before it: (P, S, M, K) of bool.

    Nothing may, behind the last option.
    """
    count = tiers.shape[1]
    shown = torch.nn.functional.one_hot(orders.clamp(min=0), count) * (orders != NONE)[..., None]  # (P, S, M, K)
    before = shown.cumsum(dim=2) - shown > 0
    left = ~before & (tiers != ABSENT)[:, None, None]
    best = torch.where(left, tiers[:, None, None], ABSENT).amin(dim=-1, keepdim=True)
    return left & (tiers[:, None, None] == best)


def first_options(tiers: torch.Tensor) -> torch.Tensor:
    """Which options may be the first (P, 1, 1, K)."""
    return open_options(tiers, torch.full((len(tiers), 1, 1), NONE))


def place_logprobs(scores: torch.Tensor, may: torch.Tensor) -> torch.Tensor:
    """Log-prob of each option to fill each place, of those that may: (P, S, M, K) in fp64; -inf for the others."""
    values = scores.double()[:, None, None].expand(may.shape)
    # If nothing may fill a place, any finite total will do: a softmax of nothing has no gradient but NaN.
    counted = may | ~may.any(dim=-1, keepdim=True)
    total = torch.logsumexp(values.masked_fill(~counted, -torch.inf), dim=-1, keepdim=True)
    return torch.where(may, values - total, -torch.inf)


def first_logprobs(scores: torch.Tensor, tiers: torch.Tensor) -> torch.Tensor:
    """Log-prob (P, K) of each option to be the first; -inf for one that cannot be."""
    return place_logprobs(scores, first_options(tiers))[:, 0, 0]


def draw_orders(
    scores: torch.Tensor, tiers: torch.Tensor, *, samples: int, places: int, generator: torch.Generator
) -> torch.Tensor:
    """The first `places` of orders (P, S, M) drawn by Plackett-Luce; NONE if no option is left.

    Scores plus standard Gumbel noise, sorted, are such a draw: Yellott 1977, "The relationship between Luce's choice
    axiom, ..."; Kool et al. 2019, arXiv:1903.06059, eq. 6. The same generator and padding give the same noise, so that
    two policies can be compared under common draws.
    """
    prompts, count = tiers.shape
    uniform = torch.rand(prompts, samples, count, dtype=torch.float64, generator=generator).clamp(min=1e-300)
    noisy = scores.detach().double()[:, None] - torch.log(-torch.log(uniform))
    by_score = noisy.argsort(dim=-1, descending=True, stable=True)
    # A stable sort by tier keeps the drawn order within each tier.
    of_tier = tiers[:, None].expand(prompts, samples, count).gather(-1, by_score)
    orders = by_score.gather(-1, of_tier.argsort(dim=-1, stable=True))[..., :places]
    missing = tiers[:, None].expand(prompts, samples, count).gather(-1, orders) == ABSENT
    return torch.where(missing, NONE, orders)


def order_logprobs(logprobs: torch.Tensor, orders: torch.Tensor) -> torch.Tensor:
    """Log-prob (P, S) of orders (P, S, M) from the log-probs of their places (P, S, M, K)."""
    filled = orders != NONE
    taken = logprobs.gather(-1, orders.clamp(min=0)[..., None])[..., 0]
    return torch.where(filled, taken, 0.0).sum(dim=-1)


def order_rewards(rewards: torch.Tensor, orders: torch.Tensor, weights: Sequence[float]) -> torch.Tensor:
    """Reward (P, S) of orders: sum_k weights[k] r(option in place k), from rewards (P, K) of the options."""
    held = torch.tensor(weights, dtype=torch.float64)[: orders.shape[2]]
    taken = rewards.double()[:, None].expand(*orders.shape[:2], -1).gather(-1, orders.clamp(min=0))
    return (torch.where(orders != NONE, taken, 0.0) * held).sum(dim=-1)


def expected_rewards(first: torch.Tensor, rewards: torch.Tensor) -> torch.Tensor:
    """Exact expectation (P,) of the reward of the first option: sum_i p_i r_i, of log-probs and rewards (P, K).

    Its gradient is that of the sampled first place in expectation, without the noise of the draw.
    """
    return (first.exp() * torch.where(first > -torch.inf, rewards.double(), 0.0)).sum(dim=-1)


def place_kl(logprobs: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """KL(pi || other) in nats of each place's softmax (P, S, M, K), given the options before it, summed over places.

    (P, S). For one place this is the exact KL of the first option; over orders drawn from pi its mean is the KL of
    the orders, with less variance than log pi - log other of the same draws, and never below 0.
    """
    may = logprobs > -torch.inf
    lead = torch.where(may, logprobs, 0.0) - torch.where(may, others, 0.0)
    return (logprobs.exp() * lead).sum(dim=(-2, -1))


def label_cross_entropy(first: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """-sum_i t_i log p_i (P,), nats, of log-probs (P, K) to be first and weights t (P, K) that people gave.

    An option that cannot be the first is left out: no policy could agree with that label.
    """
    may = first > -torch.inf
    return -(torch.where(may, targets.double(), 0.0) * torch.where(may, first, 0.0)).sum(dim=-1)


def order_loss(
    logprobs: torch.Tensor, old_logprobs: torch.Tensor, advantages: torch.Tensor, clip_range: float
) -> ppo.PolicyLoss:
    """PPO's clipped surrogate on the orders' log-probs, all (P, S): an order is one action.

    Schulman et al. 2017, arXiv:1707.06347, eq. 7.
    """
    counts = torch.ones_like(advantages, dtype=torch.bool)
    return ppo.policy_loss(logprobs, old_logprobs, advantages, counts, clip_range)
