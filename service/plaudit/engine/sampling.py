"""Draws tokens from logits, each row by its own settings and its own random number.

Pure functions of tensors. Greedy, temperature, top-k and nucleus (Holtzman et al. 2020, arXiv:1904.09751).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from plaudit.types import Sampling

LARGEST_UNIFORM = 1.0 - 2.0**-22


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
    total = torch.logsumexp(scaled, dim=-1, keepdim=True)
    cumulative = torch.cumsum(torch.exp(scaled - total), dim=-1)
    # A number that rounds to 1 in fp32 would fall behind the last token.
    bounded = torch.tensor([min(u, LARGEST_UNIFORM) for u in uniforms], device=logits.device, dtype=cumulative.dtype)
    targets = bounded[:, None] * cumulative[:, -1:]
    tokens = torch.searchsorted(cumulative, targets, right=True).clamp_(max=logits.shape[-1] - 1)[:, 0]
    greedy = torch.tensor([s is not None and s.temperature == 0 for s in settings], device=logits.device)
    if bool(greedy.any()):
        tokens = torch.where(greedy, logits.argmax(dim=-1), tokens)
    picked = tokens[:, None]
    raw = (logits.gather(1, picked) - torch.logsumexp(logits, dim=-1, keepdim=True))[:, 0]
    sampled = torch.where(greedy, torch.zeros_like(raw), (scaled.gather(1, picked) - total)[:, 0])
    return tokens.tolist(), raw.tolist(), sampled.tolist()
