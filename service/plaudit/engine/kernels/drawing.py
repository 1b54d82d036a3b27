"""Kernel of the draw: a row's token and its log-probs, in two passes over the vocabulary that write nothing.

Weights are summed in blocks; the draw looks for its block among their sums, and computes that block's weights again.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from plaudit.engine.kernels.compiling import exp, inlined, kernel

Array = Any

BLOCK = 256
# The bits of the largest number of 31 bits, and of infinity.
HIGHEST, INFINITE = 0x7FFFFFFF, 0x7F800000


@inlined
def _sums(row: Array, peak: Any, inverse: Any, sums: Array) -> Any:
    """The sum of exp((x - peak) * inverse) of logits (V,), and those of its blocks into `sums`."""
    total: Any = 0.0
    for block in range(sums.shape[0]):
        part, some = row[block * BLOCK : (block + 1) * BLOCK], np.float32(0)
        for j in range(part.shape[0]):
            some += exp((part[j] - peak) * inverse)
        sums[block] = some
        total += some
    return total


@inlined
def _largest(row: Array) -> Any:
    """The first place of the largest logit (V,); -1 if one is not a number, or none is finite.

    As whole numbers, whose order is that of the floats once the negative ones are turned round: what is not a number
    stands beyond the infinite ones, and the largest of whole numbers is found sixteen at a time.
    """
    bits = row.view(np.int32)
    highest: Any = -HIGHEST - 1
    lowest: Any = HIGHEST
    best = 0
    for first in range(0, bits.shape[0], BLOCK):
        part = bits[first : first + BLOCK]
        upper: Any = np.int32(-HIGHEST - 1)
        lower: Any = np.int32(HIGHEST)
        for j in range(part.shape[0]):
            ordered = part[j] ^ ((part[j] >> np.int32(31)) & np.int32(HIGHEST))
            upper, lower = max(upper, ordered), min(lower, ordered)
        lowest = min(lowest, lower)
        if upper > highest:
            highest, best = upper, first
    if lowest < -INFINITE - 1 or not -INFINITE - 1 < highest < INFINITE:
        return -1
    largest = row[best]
    for j in range(best + 1, min(best + BLOCK, row.shape[0])):
        if row[j] > largest:
            largest, best = row[j], j
    return best


@inlined
def _pass(row: Array, peak: Any, inverse: Any, sums: Array, target: float) -> Any:
    """The place at which the running sum of weights passes `target`; one of weight 0 is never chosen."""
    block, before = 0, 0.0
    while block + 1 < sums.shape[0] and before + sums[block] <= target:
        before += sums[block]
        block += 1
    part, found = row[block * BLOCK : (block + 1) * BLOCK], -1
    for j in range(part.shape[0]):
        weight = exp((part[j] - peak) * inverse)
        if weight > 0.0:
            found = block * BLOCK + j
            before += weight
            if before > target:
                break
    return found


@kernel("void(float32[:,::1], float64[::1], float64[::1], int64[::1], float64[::1], float64[::1])")
def draw(logits: Array, temperatures: Array, uniforms: Array, tokens: Array, raw: Array, sampled: Array) -> None:
    """Tokens, raw and as-sampled log-probs (W,) of logits (W, V), as `sampling.draw`; temperature 0 is greedy."""
    sums = np.empty((logits.shape[1] + BLOCK - 1) // BLOCK, np.float64)
    for i in range(logits.shape[0]):
        row = logits[i]
        best = _largest(row)
        tokens[i], raw[i], sampled[i] = max(best, 0), math.nan, 0.0
        if best < 0:
            continue
        peak, temperature = row[best], temperatures[i]
        total = _sums(row, peak, np.float32(1), sums)
        if temperature > 0.0:
            own, inverse = total, np.float32(1.0 / temperature)
            if temperature != 1.0:
                own = _sums(row, peak, inverse, sums)
            found = _pass(row, peak, inverse, sums, uniforms[i] * own)
            # Behind the last block's last token of any weight only if the sums round so.
            tokens[i] = found if found >= 0 else best
            # Rounded as records keep them: an answer that is told again is the same to the bit.
            sampled[i] = np.float32((float(row[tokens[i]]) - peak) / temperature - math.log(own))
        raw[i] = np.float32(float(row[tokens[i]]) - peak - math.log(total))
