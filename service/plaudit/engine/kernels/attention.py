"""Kernel of attention in a decode step: each row has one new token, and sees its own past and nothing else.

A group's keys and values are read once for all heads that share them, straight from where they lie, over the row's own
length: no mask, no padding, no copy. Out of 25 MB of keys and values that a step of 32 rows reads no cache holds much,
so that half of the time would be waiting: what comes next is asked for while the present is computed.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from plaudit.engine.kernels.compiling import exp, inlined, kernel, prefetch

Array = Any

LINE = 64  # bytes that come at once
# Tokens whose values are added in one pass over a head's output.
TOGETHER = 8


@inlined
def _weigh(query: Array, keys: Array, span: int, scores: Array, upcoming: int) -> None:
    """Attention weights (heads, span) of scaled queries (heads, D) for keys (capacity, D), into `scores`."""
    size = query.shape[1]
    for t in range(span):
        for byte in range(0, size * 4, LINE):
            prefetch(upcoming + t * size * 4 + byte)
        for h in range(query.shape[0]):
            score = np.float32(0)
            for j in range(size):
                score += query[h, j] * keys[t, j]
            scores[h, t] = score
    for h in range(query.shape[0]):
        largest = scores[h, 0]
        for t in range(span):
            largest = max(largest, scores[h, t])
        total = np.float32(0)
        for t in range(span):
            weight = exp(scores[h, t] - largest)
            scores[h, t] = weight
            total += weight
        inverse = np.float32(1) / total
        for t in range(span):
            scores[h, t] *= inverse


@inlined
def _mix(weights: Array, values: Array, span: int, into: Array, upcoming: int) -> None:
    """Values (capacity, D) by their weights (heads, span), summed into `into` (heads, D)."""
    heads, size = into.shape
    into[:] = np.float32(0)
    whole = span - span % TOGETHER
    for t in range(0, whole, TOGETHER):
        for byte in range(0, TOGETHER * size * 4, LINE):
            prefetch(upcoming + t * size * 4 + byte)
        for h in range(heads):
            mixed = into[h]
            w0, w1, w2, w3 = weights[h, t], weights[h, t + 1], weights[h, t + 2], weights[h, t + 3]
            w4, w5, w6, w7 = weights[h, t + 4], weights[h, t + 5], weights[h, t + 6], weights[h, t + 7]
            for j in range(size):
                mixed[j] += (
                    (w0 * values[t, j] + w1 * values[t + 1, j]) + (w2 * values[t + 2, j] + w3 * values[t + 3, j])
                ) + ((w4 * values[t + 4, j] + w5 * values[t + 5, j]) + (w6 * values[t + 6, j] + w7 * values[t + 7, j]))
    for t in range(whole, span):
        for h in range(heads):
            weight, mixed = weights[h, t], into[h]
            for j in range(size):
                mixed[j] += weight * values[t, j]


@kernel(
    "void(float32[:,::1], int64[::1], int64[::1], int64[::1],"
    " float32[:,:,:,::1], float32[:,:,:,::1], float64, float32[:,::1])"
)
def attend(
    qkv: Array, rows: Array, places: Array, positions: Array, keys: Array, values: Array, scaling: float, out: Array
) -> None:
    """Take the keys and values of `rows` (R,) of a step into their `places` (R,); attention into `out` (N, Hq D).

    qkv (N, (Hq + 2 Hk) D) are turned queries, turned keys, values; positions (N,) of the tokens; keys, values
    (places, Hk, capacity, D).
    """
    groups, size = keys.shape[1], keys.shape[3]
    heads = out.shape[1] // size
    shared = heads // groups
    scores = np.empty((shared, keys.shape[2]), np.float32)
    query = np.empty((shared, size), np.float32)
    scale = np.float32(scaling)
    for i in range(rows.shape[0]):
        at, fresh = positions[rows[i]], qkv[rows[i]]
        for g in range(groups):
            own_keys, own_values = keys[places[i], g], values[places[i], g]
            for j in range(size):
                own_keys[at, j] = fresh[(heads + g) * size + j]
                own_values[at, j] = fresh[(heads + groups + g) * size + j]
            for h in range(shared):
                for j in range(size):
                    query[h, j] = fresh[(g * shared + h) * size + j] * scale
            _weigh(query, own_keys, at + 1, scores, own_values.ctypes.data)
            # The keys that are read next.
            following = i if g + 1 < groups else min(i + 1, rows.shape[0] - 1)
            upcoming = keys[places[following], (g + 1) % groups].ctypes.data
            into = out[rows[i], g * shared * size : (g + 1) * shared * size].reshape(shared, size)
            _mix(scores, own_values, at + 1, into, upcoming)
