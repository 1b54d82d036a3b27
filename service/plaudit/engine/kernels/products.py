"""Kernel of products with packed weights: rows (N, in) in fp32 times weights (out, in) that lie as oneDNN packs them.

oneDNN's own kernels wait for the weights, which come out of memory anew in each decode step; here those of the next
block are asked for while the rows pass the present one. Each product is one sum over inputs in their order, however
many rows are computed: a row's bits depend on nothing beside it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numba import carray
from numba.core import types
from numba.extending import intrinsic

from plaudit.engine.kernels.compiling import inlined, kernel, part, pointer, prefetch_at, take
from plaudit.engine.kernels.vectors import BYTES, FLOAT, LANES, WORD, load, spread, store, summed
from plaudit.engine.threads import share

Array = Any

STRIP = 64  # outputs that lie side by side
# Inputs of a block of weights, which stays in the first level of cache while all rows pass it: 16 KiB.
DEPTH = 64
# Rows of a tile, and the vectors of outputs that it takes: as many as registers hold.
TILE, ACROSS = 4, 4 if LANES == 16 else 2
TASK, PARTS = 9, 4
WORTH_SHARING = 2**18  # weights times rows: fewer are done sooner by one thread


def _tile(rows: int, across: int) -> Any:
    """Products of some rows with a block of weights (depth, STRIP), behind `begin`, for `across` vectors of outputs.

    The intrinsic takes addresses of inputs, weights, `begin` and what is written, with the bytes from row to row of
    each but the weights, and an address from which a step is asked for with each input.
    """

    @intrinsic  # type: ignore[untyped-decorator]
    def made(
        _: Any,
        inputs: Any,
        apart: Any,
        weights: Any,
        depth: Any,
        begin: Any,
        begin_apart: Any,
        into: Any,
        into_apart: Any,
        ahead: Any,
        step: Any,
    ) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            inputs, apart, weights, depth, begin, begin_apart, into, into_apart, ahead, step = arguments

            def places(first: Any, stride: Any, vectors: int) -> list[Any]:
                lines = [builder.add(first, builder.mul(stride, WORD(i))) for i in range(rows)]
                return [builder.add(line, WORD(BYTES * v)) for line in lines for v in range(vectors)]

            own = places(inputs, apart, 1)

            def terms(number: Any) -> list[tuple[Any, Any]]:
                line = builder.add(weights, builder.mul(number, WORD(STRIP * 4)))
                found = [load(builder, builder.add(line, WORD(BYTES * v))) for v in range(across)]
                prefetch_at(builder, builder.add(ahead, builder.mul(number, step)))
                offset = builder.mul(number, WORD(4))
                numbers = [load(builder, builder.add(each, offset), FLOAT) for each in own]
                return [(one, other) for one in [spread(builder, each) for each in numbers] for other in found]

            firsts = [load(builder, place) for place in places(begin, begin_apart, across)]
            sums = summed(builder, firsts, depth, terms)
            for each, place in zip(sums, places(into, into_apart, across), strict=True):
                store(builder, each, place)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 10), generate

    return made


_tile_of_4, _tile_of_1 = _tile(TILE, ACROSS), _tile(1, STRIP // LANES)


@inlined
def _strip(weights: int, bias: int, rows: int, into: int, count: int, size: int, wide: int) -> None:
    """Products of `count` rows (size,) with one strip, behind its bias; `wide` outputs from row to row."""
    apart, into_apart = size * 4, wide * 4
    groups, alone = STRIP // (ACROSS * LANES), count % TILE
    step = STRIP * 4 // (count // TILE * groups + alone)
    begin, begin_apart = bias, 0
    for first in range(0, size, DEPTH):
        depth = min(DEPTH, size - first)
        own, of_rows = weights + first * STRIP * 4, rows + first * 4
        ahead = own + depth * STRIP * 4
        for i in range(0, count - alone, TILE):
            for g in range(groups):
                at = g * ACROSS * BYTES
                _tile_of_4(
                    of_rows + i * apart,
                    apart,
                    own + at,
                    depth,
                    begin + i * begin_apart + at,
                    begin_apart,
                    into + i * into_apart + at,
                    into_apart,
                    ahead,
                    step,
                )
                ahead += step * depth
        for i in range(count - alone, count):
            from_row, to_row = of_rows + i * apart, into + i * into_apart
            _tile_of_1(from_row, 0, own, depth, begin + i * begin_apart, 0, to_row, 0, ahead, step)
            ahead += step * depth
        begin, begin_apart = into, into_apart


@inlined
def _strips(
    first: int, last: int, weights: int, bias: int, rows: int, into: int, count: int, size: int, wide: int
) -> None:
    for strip in range(first, last):
        at = strip * STRIP * 4
        _strip(weights + at * size, bias + at, rows, into + at, count, size, wide)


def _work(address: int) -> None:
    """A thread's part of `product`."""
    task = carray(pointer(address), (TASK,), np.int64)
    parts, weights, bias, rows, into, count, size, wide = task[1:]
    strips = wide // STRIP
    number = take(address)
    while number < parts:
        first, last = number * strips // parts, (number + 1) * strips // parts
        _strips(first, last, weights, bias, rows, into, count, size, wide)
        number = take(address)


_shared = part(_work, ordered=True)


@kernel("void(int64, int64, int64, int64, int64, int64, int64)", ordered=True)
def _alone(weights: int, bias: int, rows: int, into: int, count: int, size: int, wide: int) -> None:
    _strips(0, wide // STRIP, weights, bias, rows, into, count, size, wide)


class Product:
    """Rows times weights (out / STRIP, in, STRIP), and a bias (out,): by the team of threads that torch computes with.

    All are contiguous and in fp32.
    """

    def __init__(self, weights: Array, bias: Array) -> None:
        self._keeps = weights, bias
        self._from = weights.ctypes.data, bias.ctypes.data
        self._size, self._wide = weights.shape[1], len(bias)

    def __call__(self, rows: torch.Tensor, out: torch.Tensor) -> None:
        """The products (N, out) of rows (N, in) into `out`."""
        threads, count = torch.get_num_threads(), len(rows)
        facts = (*self._from, rows.data_ptr(), out.data_ptr(), count, self._size, self._wide)
        if threads > 1 and self._size * self._wide * count >= WORTH_SHARING:
            task = np.array([0, min(self._wide // STRIP, PARTS * threads), *facts], dtype=np.int64)
            if share(_shared, task.ctypes.data, threads):
                return
        if count:
            _alone(*facts)
