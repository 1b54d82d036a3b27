"""Kernels of rows: a residual with its norm, the gate of an MLP, rotary positions.

The arrays that they write may not be those that they read, except as said.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from plaudit.engine.kernels.compiling import exp, kernel

Array = Any


@kernel("void(float32[:,::1], float32[:,::1])")
def add(hidden: Array, more: Array) -> None:
    """Add `more` (N, H) to `hidden` (N, H) in place."""
    for i in range(hidden.shape[0]):
        row, other = hidden[i], more[i]
        for j in range(row.shape[0]):
            row[j] += other[j]


@kernel("void(float32[:,::1], float32[::1], float64, float32[:,::1])")
def norm(hidden: Array, weight: Array, epsilon: float, out: Array) -> None:
    """Norm by root mean squares (Zhang and Sennrich 2019, arXiv:1910.07467, eq. 4) of `hidden` (N, H) into `out`."""
    for i in range(hidden.shape[0]):
        row, into = hidden[i], out[i]
        squares = np.float32(0)
        for j in range(row.shape[0]):
            squares += row[j] * row[j]
        scale = np.float32(1.0 / math.sqrt(squares / row.shape[0] + epsilon))
        for j in range(row.shape[0]):
            into[j] = row[j] * scale * weight[j]


@kernel("void(float32[:,::1], float32[:,::1], float32[::1], float64, float32[:,::1])")
def add_norm(hidden: Array, more: Array, weight: Array, epsilon: float, out: Array) -> None:
    """Add `more` (N, H) to `hidden` (N, H) in place; its norm, as `norm`, into `out`."""
    for i in range(hidden.shape[0]):
        row, other, into = hidden[i], more[i], out[i]
        squares = np.float32(0)
        for j in range(row.shape[0]):
            value = row[j] + other[j]
            row[j] = value
            squares += value * value
        scale = np.float32(1.0 / math.sqrt(squares / row.shape[0] + epsilon))
        for j in range(row.shape[0]):
            into[j] = row[j] * scale * weight[j]


@kernel("void(float32[:,::1], float32[:,::1])")
def gate(both: Array, out: Array) -> None:
    """silu(gate) * up into `out` (N, I), of gate and up side by side (N, 2 I)."""
    width = out.shape[1]
    for i in range(out.shape[0]):
        row, into = both[i], out[i]
        for j in range(width):
            into[j] = row[j] / (np.float32(1) + exp(-row[j])) * row[width + j]


@kernel("void(float32[:,::1], float32[:,::1], float32[:,::1], int64[::1], int64)")
def turn(qkv: Array, cos: Array, sin: Array, positions: Array, heads: int) -> None:
    """Rotate, in place, the first `heads` heads of rows (N, heads + rest) by the angles of their positions (N,).

    cos, sin: (positions, D), the sines with the sign of the half that turns (Su et al. 2021, arXiv:2104.09864, eq. 34).
    """
    size = cos.shape[1]
    half = size // 2
    for i in range(qkv.shape[0]):
        c, s = cos[positions[i]], sin[positions[i]]
        for head in range(heads):
            row = qkv[i, head * size : (head + 1) * size]
            for j in range(half):
                low, high = row[j], row[j + half]
                row[j] = low * c[j] + high * s[j]
                row[j + half] = high * c[j + half] + low * s[j + half]
