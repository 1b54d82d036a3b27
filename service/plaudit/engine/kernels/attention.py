"""Kernel of attention in a decode step: each row has one new token, and sees its own past and nothing else.

A group's keys and values are read once for all heads that share them, straight from where they lie, over the row's own
length: no mask, no padding, no copy. Out of 25 MB of keys and values that a step of 32 rows reads no cache holds much,
so that half of the time would be waiting: what comes next is asked for while the present is computed.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numba import carray

from plaudit.engine.kernels.compiling import exp, inlined, kernel, part, pointer, prefetch, take
from plaudit.engine.threads import share

Array = Any

LINE = 64  # bytes that come at once
# Tokens whose values are added in one pass over a head's output.
TOGETHER = 8
# Numbers that tell a team what to do, and parts of the work for each of its threads: some may be late.
TASK, PARTS = 18, 2
FEW = 4  # rows that a thread alone has done sooner


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


@inlined
def _attend(
    first: int,
    last: int,
    qkv: Array,
    rows: Array,
    places: Array,
    positions: Array,
    keys: Array,
    values: Array,
    scaling: float,
    out: Array,
) -> None:
    """As attend, of `rows` first to last - 1."""
    groups, size = keys.shape[1], keys.shape[3]
    heads = out.shape[1] // size
    shared = heads // groups
    scores = np.empty((shared, keys.shape[2]), np.float32)
    query = np.empty((shared, size), np.float32)
    scale = np.float32(scaling)
    for i in range(first, last):
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
            following = i if g + 1 < groups else min(i + 1, last - 1)
            upcoming = keys[places[following], (g + 1) % groups].ctypes.data
            into = out[rows[i], g * shared * size : (g + 1) * shared * size].reshape(shared, size)
            _mix(scores, own_values, at + 1, into, upcoming)


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
    _attend(0, rows.shape[0], qkv, rows, places, positions, keys, values, scaling, out)


@part
def _shared(address: int) -> None:
    """A thread's part of `attend_together`."""
    task = carray(pointer(address), (TASK,), np.int64)
    parts, tokens, count, places_there, groups, capacity, size, wide, heads = task[1:10]
    qkv = carray(pointer(task[10]), (tokens, wide), np.float32)
    rows = carray(pointer(task[11]), (count,), np.int64)
    places = carray(pointer(task[12]), (count,), np.int64)
    positions = carray(pointer(task[13]), (tokens,), np.int64)
    keys = carray(pointer(task[14]), (places_there, groups, capacity, size), np.float32)
    values = carray(pointer(task[15]), (places_there, groups, capacity, size), np.float32)
    out = carray(pointer(task[16]), (tokens, heads * size), np.float32)
    scaling = carray(pointer(address), (TASK,), np.float64)[17]
    number = take(address)
    while number < parts:
        first, last = number * count // parts, (number + 1) * count // parts
        _attend(first, last, qkv, rows, places, positions, keys, values, scaling, out)
        number = take(address)


def attend_together(
    qkv: Array, rows: Array, places: Array, positions: Array, keys: Array, values: Array, scaling: float, out: Array
) -> None:
    """As attend, by the team of threads that torch computes with; by this thread alone if there is none."""
    threads = torch.get_num_threads()
    if len(rows) < FEW or threads < 2:
        attend(qkv, rows, places, positions, keys, values, scaling, out)
        return
    there, groups, capacity, size = keys.shape
    shapes = (len(qkv), len(rows), there, groups, capacity, size, qkv.shape[1], out.shape[1] // size)
    at = [each.ctypes.data for each in (qkv, rows, places, positions, keys, values, out)]
    task = np.array([0, min(len(rows), PARTS * threads), *shapes, *at, 0], dtype=np.int64)
    task.view(np.float64)[-1] = scaling
    if not share(_shared, task.ctypes.data, threads):
        attend(qkv, rows, places, positions, keys, values, scaling, out)
