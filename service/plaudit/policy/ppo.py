"""PPO's maths as pure functions of tensors.

Letters: B sequences, C completion tokens (right-padded), V vocabulary. `mask` (B, C) is True where a token counts;
masked positions may hold anything, NaN included, and never reach a result or a gradient. Schulman et al. 2017,
arXiv:1707.06347; with the KL penalty in the reward as in Ziegler et al. 2019, arXiv:1909.08593, section 2.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import torch

MOST_RATIO = 2.0  # Weight of one token in an estimate of the KL.
LOGIT_ROWS = 64  # Rows of logits that are worked on at once: what a processor's cache holds.
LEAST_SPREAD = 1e-5  # Advantages that differ by less, in rewards of about 1, are rounding.


def masked_mean(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mean of the values that count, over the whole batch; 0 if none does."""
    return torch.where(mask, values, 0.0).sum() / mask.sum().clamp(min=1)


def terminal_rewards(scores: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Rewards (B, C): the score (B,) on the last token that counts, be it EOS or where the limit fell; 0 elsewhere."""
    rewards = torch.zeros(mask.shape, dtype=torch.float64)
    rewards[torch.arange(len(scores)), mask.sum(dim=1) - 1] = scores.double()
    return rewards


def token_kl(logprobs: torch.Tensor, other: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """k1 of each token (B, C): log pi - log other, nats, on the policy's own samples; 0 if it does not count."""
    return torch.where(mask, logprobs.double() - other.double(), 0.0)


def gae(
    rewards: torch.Tensor, values: torch.Tensor, mask: torch.Tensor, gamma: float, lam: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Advantages and returns (B, C) by generalised advantage estimation; the value after the last token is 0.

    delta_t = r_t + gamma V_(t+1) - V_t;  A_t = sum_l (gamma lambda)^l delta_(t+l);  return = V + A.
    Schulman et al. 2015, arXiv:1506.02438, eq. 16.
    """
    values = torch.where(mask, values, 0.0)
    rewards = torch.where(mask, rewards, 0.0)
    following = torch.zeros_like(values[:, 0])
    advantage = torch.zeros_like(following)
    steps: list[torch.Tensor] = []
    for t in range(values.shape[1] - 1, -1, -1):
        delta = rewards[:, t] + gamma * following - values[:, t]
        # Behind the end of a sequence delta is 0, so that nothing flows back from there.
        advantage = delta + gamma * lam * advantage
        following = values[:, t]
        steps.append(advantage)
    advantages = torch.where(mask, torch.stack(steps[::-1], dim=1), 0.0)
    return advantages, advantages + values


def leave_one_out(returns: torch.Tensor, samples: int) -> torch.Tensor:
    """RLOO advantages (B,): each return less the mean of the other samples of its prompt.

    `returns` (B,) holds the `samples` >= 2 completions of a prompt next to each other. Ahmadian et al. 2024,
    arXiv:2402.14740, eq. 8.
    """
    assert samples >= 2, "leave-one-out needs two completions of a prompt"
    groups = returns.view(-1, samples)
    others = (groups.sum(dim=1, keepdim=True) - groups) / (samples - 1)
    return (groups - others).view(-1)


def whiten(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Values shifted to mean 0 and scaled to variance 1 over what counts; 0 elsewhere.

    All 0 if they differ by rounding alone: scaled up it would move the policy as far as any signal does.
    """
    mean = masked_mean(values, mask)
    variance = masked_mean((values - mean) ** 2, mask)
    if variance < LEAST_SPREAD**2:
        return torch.zeros_like(values)
    return torch.where(mask, (values - mean) * torch.rsqrt(variance + 1e-8), 0.0)


class PolicyLoss(NamedTuple):
    """The loss and what to watch beside it."""

    loss: torch.Tensor
    approx_kl: torch.Tensor
    clip_fraction: torch.Tensor


def policy_loss(
    logprobs: torch.Tensor, old_logprobs: torch.Tensor, advantages: torch.Tensor, mask: torch.Tensor, clip_range: float
) -> PolicyLoss:
    """PPO's clipped surrogate, mean over the tokens that count: -min(rho A, clip(rho, 1 +- eps) A).

    All (B, C) or (N,). Also k3 of new against old (nats per token) and the share of clipped tokens.
    Schulman et al. 2017, eq. 7.
    """
    log_ratio = torch.where(mask, logprobs - old_logprobs, 0.0)
    ratio = torch.exp(log_ratio)
    advantages = torch.where(mask, advantages, 0.0)
    # An update this far from the sampling policy is no longer covered by the estimate: stop its gradient.
    clipped = torch.clamp(ratio, 1.0 - clip_range, 1.0 + clip_range)
    loss = -masked_mean(torch.minimum(ratio * advantages, clipped * advantages), mask)
    with torch.no_grad():
        approx_kl = masked_mean(ratio - 1.0 - log_ratio, mask)
        outside = masked_mean(((ratio - 1.0).abs() > clip_range).float(), mask)
    return PolicyLoss(loss, approx_kl, outside)


def sequence_kl(logprobs: torch.Tensor, other: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """k1 summed over each sequence's tokens (B,): sum_t (log pi - log other), nats, on the policy's own samples."""
    return torch.where(mask, logprobs - other, 0.0).sum(dim=1)


def explained_variance(returns: torch.Tensor, values: torch.Tensor, mask: torch.Tensor) -> float:
    """Share of the returns' variance that values (B, C) foresaw: 1 - Var(return - value) / Var(return), else 0."""
    spread = float(returns[mask].var(correction=0))
    return 1.0 - float((returns - values)[mask].var(correction=0)) / spread if spread > 0 else 0.0


def moved_kl(logprobs: torch.Tensor, sampled: torch.Tensor, other: torch.Tensor) -> float:
    """Sum over tokens (N,) of rho (log pi - log other), rho = pi / sampled: nats, of a policy that has moved since.

    Without rho the estimate would fall as the policy moves away from both. The weight is each token's own, at most 2.
    """
    ratio = torch.exp(logprobs - sampled).clamp(max=MOST_RATIO)
    return float((ratio * (logprobs - other)).sum())


def next_kl_coef(kl_coef: float, kl: float, target: float, *, gain: float, low: float, high: float) -> float:
    """Proportional controller: beta (1 + gain clip(KL / target - 1, -1, 1)), kept within [low, high].

    Ziegler et al. 2019, section 2.2. Asked at every update, with a gain that stands for their horizon.
    """
    error = min(1.0, max(-1.0, kl / target - 1.0))
    return min(high, max(low, kl_coef * (1.0 + gain * error)))


class Head(Protocol):
    """The product that makes logits (N, V) in fp32 of states (N, H)."""

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """The logits."""

    def logits_back(self, gradient: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        """The gradient (N, H) of the states (N, H), of the logits' (N, V)."""


def token_logprobs(head: Head, states: torch.Tensor, tokens: torch.Tensor, temperature: float) -> torch.Tensor:
    """Log-probs (N,) of tokens (N,) under softmax(logits / T) of states (N, H); the head takes no gradient."""
    found: torch.Tensor = _TokenLogprobs.apply(states, tokens, temperature, head)  # type: ignore[no-untyped-call]
    return found


class _TokenLogprobs(torch.autograd.Function):
    """Logits of LOGIT_ROWS rows at once: (N, V) never lives whole, nor does its gradient.

    A log-prob's gradient is its own row's alone, (onehot - softmax) / T times the head's weights, times a number that
    comes later: so it is made at once, while the logits are there.
    """

    @staticmethod
    @torch.no_grad()
    def forward(ctx: Any, states: torch.Tensor, tokens: torch.Tensor, temperature: float, head: Head) -> torch.Tensor:
        found, slopes = [], []
        for rows, own in zip(torch.split(states, LOGIT_ROWS), torch.split(tokens[:, None], LOGIT_ROWS), strict=True):
            logits = head.logits(rows).div_(temperature)
            totals = torch.logsumexp(logits, dim=-1, keepdim=True)
            found.append((logits.gather(1, own) - totals)[:, 0])
            if ctx.needs_input_grad[0]:
                slope = logits.sub_(totals).exp_().neg_()
                slope.scatter_add_(1, own, torch.ones_like(totals))
                slopes.append(head.logits_back(slope.div_(temperature), rows))
        if slopes:
            ctx.save_for_backward(torch.cat(slopes))
        return torch.cat(found)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        (slopes,) = ctx.saved_tensors
        return slopes * gradients[0][:, None], None, None, None
