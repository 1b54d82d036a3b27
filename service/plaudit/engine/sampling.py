"""Draws tokens from logits, each row by its own settings and its own random number.

Pure functions of tensors. Greedy, temperature, top-k and nucleus (Holtzman et al. 2020, arXiv:1904.09751). The draw is
total: whatever the settings and the logits of one row are, every row gets an answer, and no row sees another's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from plaudit.engine import kernels
from plaudit.engine.kernels import array
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


class Memory:
    """Memory that draws of one shape use again: a block so large comes from the allocator as pages to be cleared."""

    def __init__(self) -> None:
        self._held = torch.zeros(0)

    def like(self, logits: torch.Tensor) -> torch.Tensor:
        """A tensor of the shape of `logits` that holds anything, good until the next call."""
        held = self._held
        if held.shape != logits.shape or held.dtype != logits.dtype or held.device != logits.device:
            self._held = torch.empty_like(logits)
        return self._held


def _blocks(weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights (W, V) in blocks (W, N, BLOCK), and the running sums (W, N) at the blocks' ends."""
    padding = -weights.shape[1] % BLOCK
    blocks = torch.nn.functional.pad(weights, (0, padding)) if padding else weights
    blocks = blocks.view(len(weights), -1, BLOCK)
    return blocks, blocks.sum(dim=-1).cumsum(dim=-1)


def _inverse(blocks: torch.Tensor, edges: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
    """Index (W,) at which the running sum of weights passes `uniforms` (W,) of the whole.

    In two steps, among sums of blocks and then within one block: a running sum over a whole vocabulary costs more than
    all else here. An index of weight 0 is never chosen.
    """
    # A number that rounds to 1 in fp32 would fall behind the last token.
    targets = uniforms[:, None].clamp(max=LARGEST_UNIFORM) * edges[:, -1:]
    block = torch.searchsorted(edges, targets, right=True)
    before = torch.where(block > 0, edges.gather(1, (block - 1).clamp(min=0)), 0.0)
    inner = blocks[torch.arange(len(blocks), device=blocks.device), block[:, 0]].cumsum(dim=-1)
    # The block's own running sum may end a rounding error before its edge.
    rest = torch.minimum(targets - before, inner[:, -1:] * LARGEST_UNIFORM)
    return (block * BLOCK + torch.searchsorted(inner, rest, right=True))[:, 0]


def _most_likely(logits: torch.Tensor) -> torch.Tensor:
    """The first index (W,) of the largest of logits (W, V): block by block, several times as quick as argmax."""
    if logits.shape[1] % BLOCK:
        return logits.argmax(dim=-1)
    blocks = logits.view(len(logits), -1, BLOCK)
    block = blocks.amax(dim=-1).argmax(dim=-1)
    return block * BLOCK + blocks[torch.arange(len(logits), device=logits.device), block].argmax(dim=-1)


def draw(
    logits: torch.Tensor,
    settings: Sequence[Sampling | None],
    uniforms: Sequence[float],
    memory: Memory | None = None,
) -> tuple[list[int], list[float], list[float]]:
    """Tokens, raw log-probs (temperature 1, untruncated) and as-sampled log-probs (nats) of logits (W, V).

    `uniforms` are in [0, 1), one per row: the token is where the cumulative distribution passes it. Rows whose settings
    are None are idle; their values mean nothing. A greedy row has as-sampled log-prob 0. A row whose logits are not
    numbers, or all -inf, has raw log-prob NaN: its token means nothing.
    """
    compiled = kernels.load() if logits.device.type == "cpu" and logits.dtype == torch.float32 else None
    if compiled is None or not logits.is_contiguous():
        return _by_torch(logits, settings, uniforms, memory)
    cut = [row for row, s in enumerate(settings) if s and not is_greedy(s.temperature) and (s.top_k or s.top_p < 1.0)]
    temperatures = np.array(
        [0.0 if s is None or is_greedy(s.temperature) else min(s.temperature, LARGEST_TEMPERATURE) for s in settings]
    )
    tokens = np.empty(len(settings), np.int64)
    raw, sampled = np.empty(len(settings)), np.empty(len(settings))
    drawn_by = np.minimum(np.array(uniforms, np.float64), LARGEST_UNIFORM)
    compiled.draw(array(logits), temperatures, drawn_by, tokens, raw, sampled)
    if cut:
        rows, own = [settings[row] for row in cut], [uniforms[row] for row in cut]
        tokens[cut], raw[cut], sampled[cut] = _by_torch(logits[cut], rows, own, None)
    return tokens.tolist(), raw.tolist(), sampled.tolist()


def _by_torch(
    logits: torch.Tensor, settings: Sequence[Sampling | None], uniforms: Sequence[float], memory: Memory | None
) -> tuple[list[int], list[float], list[float]]:
    """As draw, by torch's operators: for rows with a top k or a nucleus, and if there are no kernels."""
    peak = logits.amax(dim=-1, keepdim=True)
    broken = ~torch.isfinite(peak[:, 0])
    if bool(broken.any()):
        logits, peak = torch.where(broken[:, None], 0.0, logits), torch.where(broken[:, None], 0.0, peak)
    drawn = [s is not None and not is_greedy(s.temperature) for s in settings]
    temperatures = [
        min(s.temperature, LARGEST_TEMPERATURE) if s and d else 1.0 for s, d in zip(settings, drawn, strict=True)
    ]
    divisors = torch.tensor(temperatures, device=logits.device)[:, None]
    weights = torch.sub(logits, peak, out=(memory or Memory()).like(logits))
    if any(temperature != 1.0 for temperature in temperatures):
        weights.div_(divisors)
    # Rows whose distribution is another than that of the raw log-probs.
    others = [temperature != 1.0 for temperature in temperatures]
    for row, setting in enumerate(settings):
        if setting is not None and drawn[row] and (setting.top_k or setting.top_p < 1.0):
            weights[row] = truncate(weights[row], setting.top_k, setting.top_p)
            others[row] = True
    blocks, edges = _blocks(weights.exp_())
    total = edges[:, -1].log()
    if all(drawn):
        tokens = _inverse(blocks, edges, torch.tensor(uniforms, device=logits.device, dtype=weights.dtype))
    elif any(drawn):
        found = _inverse(blocks, edges, torch.tensor(uniforms, device=logits.device, dtype=weights.dtype))
        tokens = torch.where(torch.tensor(drawn, device=logits.device), found, _most_likely(logits))
    else:
        tokens = _most_likely(logits)
    below = (logits.gather(1, tokens[:, None]) - peak)[:, 0]
    sampled = (below / divisors[:, 0] - total).masked_fill(torch.tensor(drawn, device=logits.device).logical_not(), 0.0)
    if any(others):
        # Written over the weights, which are drawn from by now.
        plain = _blocks(torch.sub(logits, peak, out=weights).exp_())[1][:, -1].log()
        total = torch.where(torch.tensor(others, device=logits.device), plain, total)
    raw = (below - total).masked_fill(broken, math.nan)
    return tokens.tolist(), raw.tolist(), sampled.tolist()
