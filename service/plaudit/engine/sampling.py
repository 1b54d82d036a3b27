"""Draws tokens from logits, each row by its own settings and its own random number.

Pure functions of tensors. Greedy, temperature, top-k and nucleus (Holtzman et al. 2020, arXiv:1904.09751).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from plaudit.types import Sampling

LARGEST_UNIFORM = 1.0 - 2.0**-22
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

    `uniforms` are in [0, 1), one a row: the token is where the cumulative distribution passes it. Rows whose
    settings are None are idle; their values mean nothing. A greedy row (temperature 0) has as-sampled log-prob 0.
    """
    temperatures = torch.tensor(
        [s.temperature if s is not None and s.temperature > 0 else 1.0 for s in settings], device=logits.device
    )
    scaled = logits / temperatures[:, None]
    for row, setting in enumerate(settings):
        if setting is not None and setting.temperature > 0 and (setting.top_k or setting.top_p < 1.0):
            scaled[row] = truncate(scaled[row], setting.top_k, setting.top_p)
    peak = scaled.amax(dim=-1, keepdim=True)
    weights = torch.exp(scaled - peak)
    tokens, mass = _inverse(weights, torch.tensor(uniforms, device=logits.device, dtype=weights.dtype))
    total = peak + torch.log(mass)
    greedy = torch.tensor([s is not None and s.temperature == 0 for s in settings], device=logits.device)
    if bool(greedy.any()):
        tokens = torch.where(greedy, logits.argmax(dim=-1), tokens)
    picked = tokens[:, None]
    raw = (logits.gather(1, picked) - torch.logsumexp(logits, dim=-1, keepdim=True))[:, 0]
    sampled = torch.where(greedy, torch.zeros_like(raw), (scaled.gather(1, picked) - total)[:, 0])
    return tokens.tolist(), raw.tolist(), sampled.tolist()
