"""Draws tokens from logits, each row by its own settings and its own random number.

Pure functions of tensors. Greedy, temperature, top-k and nucleus (Holtzman et al. 2020, arXiv:1904.09751). The draw is
total: whatever the settings and the logits of one row are, every row gets an answer, and no row sees another's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from plaudit.errors import InvalidField
from plaudit.types import Sampling

LARGEST_UNIFORM = 1.0 - 2.0**-22
# Below it a temperature is greedy: logits that are a thousandth apart are then a whole nat apart, and much smaller ones
# leave the range of fp32.
SMALLEST_TEMPERATURE = 1e-3
# At it every kept token is equally likely; a larger one may be infinite in fp32.
LARGEST_TEMPERATURE = 1e30
BLOCK = 256


def truncate(logits: torch.Tensor, top_k: int, top_p: float) -> torch.Tensor:
    """Logits (V,) with everything outside the top k and the nucleus of mass p at -inf.

    The nucleus is the smallest set of most likely tokens whose mass reaches p; the most likely token always stays.
    """
    order = torch.argsort(logits, descending=True, stable=True)
    keep = logits.shape[0] if top_k == 0 else min(top_k, logits.shape[0])
    if top_p < 1.0:
        before = torch.softmax(logits[order], dim=0).cumsum(0).roll(1)
        before[0] = 0.0
        keep = min(keep, max(1, int((before < top_p).sum())))
    kept = torch.full_like(logits, -math.inf)
    kept[order[:keep]] = logits[order[:keep]]
    return kept


def is_greedy(temperature: float) -> bool:
    """Whether the most likely token is taken, without a draw."""
    return temperature < SMALLEST_TEMPERATURE


def check(sampling: Sampling) -> None:
    """Raise InvalidField for settings that no draw can follow."""
    limits = (
        ("temperature", sampling.temperature, 0.0 <= sampling.temperature < math.inf, "a finite number, at least 0"),
        ("top_p", sampling.top_p, 0.0 <= sampling.top_p <= 1.0, "0 to 1"),
        ("top_k", sampling.top_k, sampling.top_k >= 0, "at least 0"),
        ("max_tokens", sampling.max_tokens, sampling.max_tokens >= 1, "at least 1"),
    )
    for name, value, holds, limit in limits:
        if not holds:
            raise InvalidField(
                f"sampling.{name} is {value}; it must be {limit}", field=f"sampling.{name}", value=value, limit=limit
            )


def _inverse(weights: torch.Tensor, uniforms: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Index (W,) at which the running sum of weights (W, V) passes `uniforms` (W,) of the whole; the whole (W, 1).

    In two steps, among sums of blocks and then within one block: a running sum over a whole vocabulary costs more than
    all else here. An index of weight 0 is never chosen.
    """
    rows, size = weights.shape
    blocks = torch.nn.functional.pad(weights, (0, -size % BLOCK)).view(rows, -1, BLOCK)
    edges = blocks.sum(dim=-1).cumsum(dim=-1)
    mass = edges[:, -1:]
    # A number that rounds to 1 in fp32 would fall behind the last token.
    targets = uniforms[:, None].clamp(max=LARGEST_UNIFORM) * mass
    block = torch.searchsorted(edges, targets, right=True)
    before = torch.where(block > 0, edges.gather(1, (block - 1).clamp(min=0)), 0.0)
    inner = blocks[torch.arange(rows, device=weights.device), block[:, 0]].cumsum(dim=-1)
    # The block's own running sum may end a rounding error before its edge.
    rest = torch.minimum(targets - before, inner[:, -1:] * LARGEST_UNIFORM)
    return (block * BLOCK + torch.searchsorted(inner, rest, right=True))[:, 0], mass


def draw(
    logits: torch.Tensor, settings: Sequence[Sampling | None], uniforms: Sequence[float]
) -> tuple[list[int], list[float], list[float]]:
    """Tokens, raw log-probs (temperature 1, untruncated) and as-sampled log-probs (nats) of logits (W, V).

    `uniforms` are in [0, 1), one per row: the token is where the cumulative distribution passes it. Rows whose settings
    are None are idle; their values mean nothing. A greedy row has as-sampled log-prob 0. A row whose logits are not
    numbers, or all -inf, has raw log-prob NaN: its token means nothing.
    """
    broken = ~torch.isfinite(logits.amax(dim=-1))
    if bool(broken.any()):
        logits = torch.where(broken[:, None], 0.0, logits)
    drawn = [s is not None and not is_greedy(s.temperature) for s in settings]
    temperatures = torch.tensor(
        [min(s.temperature, LARGEST_TEMPERATURE) if s and d else 1.0 for s, d in zip(settings, drawn, strict=True)],
        device=logits.device,
    )
    scaled = logits / temperatures[:, None]
    for row, setting in enumerate(settings):
        if setting is not None and drawn[row] and (setting.top_k or setting.top_p < 1.0):
            scaled[row] = truncate(scaled[row], setting.top_k, setting.top_p)
    peak = scaled.amax(dim=-1, keepdim=True)
    weights = torch.exp(scaled - peak)
    tokens, mass = _inverse(weights, torch.tensor(uniforms, device=logits.device, dtype=weights.dtype))
    total = peak + torch.log(mass)
    greedy = torch.tensor([not d for d in drawn], device=logits.device)
    if bool(greedy.any()):
        tokens = torch.where(greedy, logits.argmax(dim=-1), tokens)
    picked = tokens[:, None]
    raw = (logits.gather(1, picked) - torch.logsumexp(logits, dim=-1, keepdim=True))[:, 0]
    sampled = torch.where(greedy, torch.zeros_like(raw), (scaled.gather(1, picked) - total)[:, 0])
    raw = raw.masked_fill(broken, math.nan)
    return tokens.tolist(), raw.tolist(), sampled.tolist()
