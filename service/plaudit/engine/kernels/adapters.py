"""Kernel of low-rank adapters: each token of a pass takes its own, and nothing is computed of any other.

Tokens of one adapter go together in tiles of four, two or one, so that its weights are read once for up to four; while
one adapter is computed the next one's weights are asked for. A token's sums have one order, whatever tile it is in: the
innermost loops are written out as vectors, since a compiler would order them anew for each number of tokens.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from llvmlite import ir
from numba import carray
from numba.core import types
from numba.extending import intrinsic

from plaudit.engine.kernels.compiling import inlined, kernel, part, pointer, prefetch_at, take
from plaudit.engine.kernels.vectors import BYTES, FLOAT, LANES, VECTOR, WORD, load, spread, store, sum_of, summed
from plaudit.engine.threads import share

Array = Any

# Vectors of weights that a tile of four tokens takes at once: as many as registers hold.
ACROSS = 4 if LANES == 16 else 2
# Tokens of a tile.
TILE = 4
# Numbers that tell a team what to do, and parts of the work for each of its threads: some may be late.
TASK, PARTS = 9, 2


def _downs(tokens: int, across: int) -> Any:
    """For some tokens (addresses of their inputs at `rows`) and rows of a matrix: products into `low` (tokens, R)."""

    @intrinsic  # type: ignore[untyped-decorator]
    def made(_: Any, rows: Any, matrix: Any, stride: Any, count: Any, low: Any, rank: Any, ahead: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            rows, matrix, stride, count, low, rank, ahead = arguments
            inputs = [load(builder, builder.add(rows, WORD(8 * i)), WORD) for i in range(tokens)]
            weights = [builder.add(matrix, builder.mul(stride, WORD(i))) for i in range(across)]

            def terms(number: Any) -> list[tuple[Any, Any]]:
                offset = builder.mul(number, WORD(BYTES))
                places = [builder.add(each, offset) for each in weights]
                found = [load(builder, place) for place in places]
                for place in places:
                    prefetch_at(builder, builder.add(place, ahead))
                own = [load(builder, builder.add(each, offset)) for each in inputs]
                return [(one, other) for one in own for other in found]

            none = [ir.Constant(VECTOR, None)] * (tokens * across)
            for i, each in enumerate(summed(builder, none, count, terms)):
                place = builder.add(builder.mul(rank, WORD(4 * (i // across))), WORD(4 * (i % across)))
                store(builder, sum_of(builder, each), builder.add(low, place))
            return context.get_dummy_value()

        return types.void(*[types.int64] * 7), generate

    return made


def _ups(tokens: int, across: int) -> Any:
    """For some tokens: columns of a matrix (R, columns) by `low` (tokens, R), added to what `outs` points to."""

    @intrinsic  # type: ignore[untyped-decorator]
    def made(_: Any, low: Any, rank: Any, matrix: Any, stride: Any, outs: Any, ahead: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            low, rank, matrix, stride, outs, ahead = arguments
            into = [load(builder, builder.add(outs, WORD(8 * i)), WORD) for i in range(tokens)]
            places = [builder.add(each, WORD(BYTES * i)) for each in into for i in range(across)]

            def terms(number: Any) -> list[tuple[Any, Any]]:
                first = builder.add(matrix, builder.mul(number, stride))
                weights = [builder.add(first, WORD(BYTES * i)) for i in range(across)]
                found = [load(builder, place) for place in weights]
                for place in weights:
                    prefetch_at(builder, builder.add(place, ahead))
                of_token = [builder.mul(rank, WORD(4 * i)) for i in range(tokens)]
                offset = builder.add(low, builder.mul(number, WORD(4)))
                scales = [load(builder, builder.add(offset, each), FLOAT) for each in of_token]
                own = [spread(builder, scale) for scale in scales]
                return [(one, other) for one in own for other in found]

            found = summed(builder, [load(builder, place) for place in places], rank, terms)
            for each, place in zip(found, places, strict=True):
                store(builder, each, place)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 6), generate

    return made


_downs_of_4, _downs_of_2, _downs_of_1 = _downs(4, ACROSS), _downs(2, ACROSS), _downs(1, 2 * ACROSS)
_ups_of_4, _ups_of_2, _ups_of_1 = _ups(4, ACROSS), _ups(2, ACROSS), _ups(1, 2 * ACROSS)
_down, _up = _downs(1, 1), _ups(1, 1)


@inlined
def _go_down(rows: Array, tokens: int, matrix: int, inputs: int, rank: int, low: Array, ahead: int) -> None:
    """Low-rank activations (tokens, R) of tokens' inputs, at the addresses `rows`, by a matrix (R, inputs)."""
    at, into, count, stride = rows.ctypes.data, low.ctypes.data, inputs // LANES, inputs * 4
    together = ACROSS if tokens > 1 else 2 * ACROSS
    whole = rank - rank % together if count else 0
    for r in range(0, whole, together):
        if tokens == 4:
            _downs_of_4(at, matrix + r * stride, stride, count, into + 4 * r, rank, ahead)
        elif tokens == 2:
            _downs_of_2(at, matrix + r * stride, stride, count, into + 4 * r, rank, ahead)
        else:
            _downs_of_1(at, matrix + r * stride, stride, count, into + 4 * r, rank, ahead)
    for i in range(tokens):
        for r in range(whole, rank):
            if count:
                _down(at + 8 * i, matrix + r * stride, stride, count, into + 4 * (i * rank + r), rank, ahead)
            else:
                low[i, r] = np.float32(0)
    if inputs % LANES:
        weights = carray(pointer(matrix), (rank, inputs), np.float32)
        for i in range(tokens):
            row = carray(pointer(rows[i]), (inputs,), np.float32)
            for r in range(rank):
                rest = np.float32(0)
                for j in range(count * LANES, inputs):
                    rest += row[j] * weights[r, j]
                low[i, r] += rest


@inlined
def _go_up(low: Array, tokens: int, matrix: int, rank: int, columns: int, outs: Array, ahead: int) -> None:
    """Add to tokens' outputs, at the addresses `outs` (which go on), a matrix (R, columns) by `low` (tokens, R)."""
    at, into, stride = low.ctypes.data, outs.ctypes.data, columns * 4
    together = (ACROSS if tokens > 1 else 2 * ACROSS) * LANES
    whole = columns - columns % together
    for j in range(0, whole, together):
        if tokens == 4:
            _ups_of_4(at, rank, matrix + 4 * j, stride, into, ahead)
        elif tokens == 2:
            _ups_of_2(at, rank, matrix + 4 * j, stride, into, ahead)
        else:
            _ups_of_1(at, rank, matrix + 4 * j, stride, into, ahead)
        for i in range(tokens):
            outs[i] += 4 * together
    most = columns - columns % LANES
    for i in range(tokens):
        for j in range(whole, most, LANES):
            _up(at + 4 * i * rank, rank, matrix + 4 * j, stride, into + 8 * i, ahead)
            outs[i] += BYTES
    if columns % LANES:
        weights = carray(pointer(matrix), (rank, columns), np.float32)
        for i in range(tokens):
            rest = carray(pointer(outs[i]), (columns - most,), np.float32)
            for j in range(most, columns):
                for r in range(rank):
                    rest[j - most] += low[i, r] * weights[r, j]


@part
def _shared(address: int) -> None:
    """A thread's part of Arranged.add."""
    task = carray(pointer(address), (TASK,), np.int64)
    rows, out, parts, count = task[1], task[2], task[4], task[5]
    tiles = carray(pointer(task[6]), (count, 3), np.int64)
    order = carray(pointer(task[7]), (task[8],), np.int64)
    facts = carray(pointer(task[3]), (4,), np.int64)
    many, rank, inputs, width = facts[0], facts[1], facts[2], facts[3]
    linears = carray(pointer(task[3] + 32), (many, 4), np.int64)
    low = np.empty((TILE, rank), np.float32)
    inputs_at, outs_at = np.empty(TILE, np.int64), np.empty(TILE, np.int64)
    number = take(address)
    while number < parts:
        tile, end = number * count // parts, (number + 1) * count // parts
        while tile < end:
            slot, last = tiles[tile, 2], tile + 1
            while last < end and tiles[last, 2] == slot:
                last += 1
            following = tiles[last, 2] if last < end else slot
            for linear in range(many):
                columns, ahead, of_next = linears[linear, 3], linear + 1, slot
                if ahead == many:
                    ahead, of_next = 0, following
                down = linears[linear, 0] + slot * rank * inputs * 4
                up = linears[linear, 1] + slot * rank * columns * 4
                next_down = linears[ahead, 0] + of_next * rank * inputs * 4
                next_up = linears[ahead, 1] + of_next * rank * linears[ahead, 3] * 4
                for t in range(tile, last):
                    tokens = tiles[t, 1]
                    for i in range(tokens):
                        token = order[tiles[t, 0] + i]
                        inputs_at[i] = rows + token * inputs * 4
                        outs_at[i] = out + (token * width + linears[linear, 2]) * 4
                    _go_down(inputs_at, tokens, down, inputs, rank, low, next_down - down)
                    _go_up(low, tokens, up, rank, columns, outs_at, next_up - up)
            tile = last
        number = take(address)


@kernel("int64(int64[::1], int64[::1], int64[:,::1])")
def _arrange(slots: Array, order: Array, tiles: Array) -> Any:
    """As Arranged, into `order` (N,) and `tiles` (N, 3); gives the number of tiles."""
    counts = np.zeros(slots.max() + 2, np.int64)
    for slot in slots:
        counts[slot + 1] += 1
    # Those on the base have no place.
    at = np.zeros(len(counts), np.int64)
    for slot in range(1, len(counts) - 1):
        at[slot + 1] = at[slot] + counts[slot + 1]
    number = 0
    for slot in range(1, len(counts) - 1):
        first = at[slot]
        while first < at[slot + 1]:
            together = at[slot + 1] - first
            together = TILE if together >= TILE else min(together, 2)
            tiles[number, 0], tiles[number, 1], tiles[number, 2] = first, together, slot - 1
            first += together
            number += 1
    for token in range(len(slots)):
        if slots[token]:
            order[at[slots[token]]] = token
            at[slots[token]] += 1
    return number


_alone = ctypes.CFUNCTYPE(None, ctypes.c_int64)(_shared)


class Linears:
    """Where the adapters of linears that take the same input lie, for a kernel; they must outlive it.

    `pairs` has a linear's matrices (slots, R, inputs) and (slots, R, columns), and its first column in the output of
    `width` columns.
    """

    def __init__(self, pairs: Sequence[tuple[torch.Tensor, torch.Tensor, int]], width: int) -> None:
        _, rank, inputs = pairs[0][0].shape
        self.inputs, self.width = inputs, width
        facts = [len(pairs), rank, inputs, width]
        for down, up, first in pairs:
            facts += [down.data_ptr(), up.data_ptr(), first, up.shape[2]]
        self._facts = np.array(facts, dtype=np.int64)
        self.address = self._facts.ctypes.data


class Arranged:
    """Tokens of a pass by their slots (N,), of which 1 is the first: those of one adapter in tiles. 0 is the base."""

    def __init__(self, slots: Array) -> None:
        self._order, self._tiles = np.empty(len(slots), np.int64), np.empty((len(slots), 3), np.int64)
        count = _arrange(slots, self._order, self._tiles)
        self._threads = min(torch.get_num_threads(), count)
        parts = PARTS * self._threads if self._threads > 1 else 1
        places = (self._tiles.ctypes.data, self._order.ctypes.data)
        self._task = (ctypes.c_int64 * TASK)(0, 0, 0, 0, min(count, parts), count, *places, len(slots))
        self._address = ctypes.addressof(self._task)
        self._tokens = len(slots)

    def add(self, linears: Linears, rows: torch.Tensor, out: torch.Tensor) -> None:
        """Add to `out` (N, width) what each token's adapter gives for its input in `rows` (N, inputs).

        By the team of threads that torch computes with, or by this thread alone. Raises ValueError unless both are
        contiguous, in fp32 and of these sizes: they are written to by address.
        """
        if (*rows.shape, *out.shape) != (self._tokens, linears.inputs, self._tokens, linears.width):
            raise ValueError(
                f"the kernel of adapters was made for {self._tokens} tokens; its input is {tuple(rows.shape)}, "
                f"its output {tuple(out.shape)}"
            )
        if not (rows.dtype == out.dtype == torch.float32 and rows.is_contiguous() and out.is_contiguous()):
            raise ValueError(
                f"the kernel of adapters takes contiguous float32; its input is {rows.dtype}, its output {out.dtype}"
            )
        self._task[:4] = [0, rows.data_ptr(), out.data_ptr(), linears.address]
        if self._threads < 2 or not share(_shared, self._address, self._threads):
            _alone(self._address)
