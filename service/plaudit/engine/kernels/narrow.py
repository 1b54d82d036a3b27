"""Kernel of a product with narrow weights: rows (N, in) in fp32 times weights of 8 or 16 bits, summed in fp32.

A weight is read as it is stored and widened in a register; in int8 it is multiplied by the scale that its 32 inputs
share. Of a few rows nearly all of the time is the reading of weights, so that what counts is their size.

Weights lie in strips of 64 outputs, (in, 64) each, sixteen outputs in a register. Each product is one sum over inputs
in their order, whatever number of rows is computed at once: a row's bits depend on nothing beside it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from llvmlite import ir
from numba import carray
from numba.core import cgutils, types
from numba.extending import intrinsic

from plaudit.engine.kernels.compiling import inlined, kernel, part, pointer, take
from plaudit.engine.narrow import GROUP, STRIP
from plaudit.engine.threads import share

Array = Any

LANES = 16
UNROLLED = 4
TASK, PARTS = 10, 4
WORTH_SHARING = 2**18  # weights times rows: fewer are done sooner by one thread

_FLOATS, _WHOLE = (ir.VectorType(kind, LANES) for kind in (ir.FloatType(), ir.IntType(32)))
_WORD, _INDEX = ir.IntType(64), ir.IntType(32)


def _splat(builder: Any, value: Any) -> Any:
    undefined = ir.Constant(_FLOATS, ir.Undefined)
    one = builder.insert_element(undefined, value, _INDEX(0))
    return builder.shuffle_vector(one, undefined, ir.Constant(_WHOLE, [0] * LANES))


def _loaded(builder: Any, kind: Any, address: Any, align: int) -> Any:
    found = builder.load(builder.inttoptr(address, kind.as_pointer()))
    found.align = align
    return found


def _halves(builder: Any, address: Any) -> Any:
    """Sixteen numbers in bfloat16 as floats."""
    bits = builder.zext(_loaded(builder, ir.VectorType(ir.IntType(16), LANES), address, 2), _WHOLE)
    return builder.bitcast(builder.shl(bits, ir.Constant(_WHOLE, [16] * LANES)), _FLOATS)


def _bytes(builder: Any, address: Any, scale: Any) -> Any:
    """Sixteen numbers of eight bits times their scales."""
    numbers = builder.sext(_loaded(builder, ir.VectorType(ir.IntType(8), LANES), address, 1), _WHOLE)
    return builder.fmul(builder.sitofp(numbers, _FLOATS), scale)


class _Loop:
    """A loop over 0, step, ... below `end`, which carries vectors."""

    def __init__(self, builder: Any, end: Any, step: int, carried: list[Any]) -> None:
        self._builder, self._end, self._step = builder, end, step
        before = builder.block
        self._body, self._after = builder.append_basic_block("loop"), builder.append_basic_block("after")
        builder.branch(self._body)
        builder.position_at_end(self._body)
        self.at = builder.phi(_WORD)
        self.at.add_incoming(_WORD(0), before)
        self.carried = [builder.phi(_FLOATS) for _ in carried]
        for phi, first in zip(self.carried, carried, strict=True):
            phi.add_incoming(first, before)

    def close(self, carried: list[Any]) -> list[Any]:
        """End the body; gives what is carried out of the loop."""
        builder, last = self._builder, self._builder.block
        following = builder.add(self.at, _WORD(self._step))
        self.at.add_incoming(following, last)
        for phi, new in zip(self.carried, carried, strict=True):
            phi.add_incoming(new, last)
        builder.cbranch(builder.icmp_unsigned("<", following, self._end), self._body, self._after)
        builder.position_at_end(self._after)
        return carried


def _tile(width: int, rows: int, vectors: int) -> Callable[..., Any]:
    """Products of `rows` rows with `vectors` times sixteen outputs, which stay in registers until they are complete.

    `width`: bytes of a weight. The intrinsic takes addresses of weights (in, STRIP), of scales (in / GROUP, STRIP) in
    bfloat16, of inputs (rows, in) and of what is written (rows, wide); in; wide.
    """

    def generate(context: Any, builder: Any, _: Any, arguments: Any) -> Any:
        weights, scales, inputs, into, size, wide = arguments
        kind = ir.FunctionType(_FLOATS, [_FLOATS] * 3)
        fused = cgutils.get_or_insert_function(builder.module, kind, "llvm.fmuladd.v16f32")
        row_bytes = builder.mul(size, _WORD(4))
        lines = [builder.add(inputs, builder.mul(row_bytes, _WORD(r))) for r in range(rows)]
        outer = _Loop(builder, size, GROUP, [ir.Constant(_FLOATS, [0.0] * LANES)] * (rows * vectors))
        of_group = builder.add(scales, builder.mul(outer.at, _WORD(2 * STRIP // GROUP)))
        scale = [
            _halves(builder, builder.add(of_group, _WORD(2 * LANES * v))) if width == 1 else None
            for v in range(vectors)
        ]
        inner = _Loop(builder, _WORD(GROUP), UNROLLED, outer.carried)
        sums, first = list(inner.carried), builder.add(outer.at, inner.at)
        for k in range(UNROLLED):
            place = builder.add(first, _WORD(k))
            line = builder.add(weights, builder.mul(place, _WORD(STRIP * width)))
            at = [builder.add(line, _WORD(LANES * width * v)) for v in range(vectors)]
            wide_weights = [
                _bytes(builder, each, scale[v]) if width == 1 else _halves(builder, each) for v, each in enumerate(at)
            ]
            offset = builder.mul(place, _WORD(4))
            for r in range(rows):
                own = _splat(builder, _loaded(builder, ir.FloatType(), builder.add(lines[r], offset), 4))
                for v in range(vectors):
                    sums[r * vectors + v] = builder.call(fused, [own, wide_weights[v], sums[r * vectors + v]])
        sums = outer.close(inner.close(sums))
        for r in range(rows):
            for v in range(vectors):
                place = builder.add(builder.mul(wide, _WORD(4 * r)), _WORD(4 * LANES * v))
                address = builder.inttoptr(builder.add(into, place), _FLOATS.as_pointer())
                builder.store(sums[r * vectors + v], address).align = 4
        return context.get_dummy_value()

    @intrinsic  # type: ignore[untyped-decorator]
    def tile(
        typing_context: Any, weights: Any, scales: Any, inputs: Any, into: Any, size: Any, wide: Any
    ) -> tuple[Any, Any]:
        return types.void(*[types.int64] * 6), generate

    return tile  # type: ignore[no-any-return]


_SHAPES = ((1, 4), (2, 4), (4, 4), (8, 2))
_byte_1, _byte_2, _byte_4, _byte_8 = (_tile(1, *shape) for shape in _SHAPES)
_half_1, _half_2, _half_4, _half_8 = (_tile(2, *shape) for shape in _SHAPES)


@inlined
def _bytes_by(weights: int, scales: int, inputs: int, into: int, rows: int, size: int, wide: int) -> None:
    """Products (rows, STRIP) of a strip in int8."""
    while rows >= 8:
        _byte_8(weights, scales, inputs, into, size, wide)
        _byte_8(weights + 32, scales + 64, inputs, into + 128, size, wide)
        rows, inputs, into = rows - 8, inputs + 32 * size, into + 32 * wide
    if rows >= 4:
        _byte_4(weights, scales, inputs, into, size, wide)
        rows, inputs, into = rows - 4, inputs + 16 * size, into + 16 * wide
    if rows >= 2:
        _byte_2(weights, scales, inputs, into, size, wide)
        rows, inputs, into = rows - 2, inputs + 8 * size, into + 8 * wide
    if rows:
        _byte_1(weights, scales, inputs, into, size, wide)


@inlined
def _halves_by(weights: int, inputs: int, into: int, rows: int, size: int, wide: int) -> None:
    """As _bytes_by, of a strip in bfloat16."""
    while rows >= 8:
        _half_8(weights, 0, inputs, into, size, wide)
        _half_8(weights + 64, 0, inputs, into + 128, size, wide)
        rows, inputs, into = rows - 8, inputs + 32 * size, into + 32 * wide
    if rows >= 4:
        _half_4(weights, 0, inputs, into, size, wide)
        rows, inputs, into = rows - 4, inputs + 16 * size, into + 16 * wide
    if rows >= 2:
        _half_2(weights, 0, inputs, into, size, wide)
        rows, inputs, into = rows - 2, inputs + 8 * size, into + 8 * wide
    if rows:
        _half_1(weights, 0, inputs, into, size, wide)


@inlined
def _strips(
    first: int,
    last: int,
    width: int,
    weights: int,
    scales: int,
    inputs: int,
    into: int,
    rows: int,
    size: int,
    wide: int,
) -> None:
    """Products of strips `first` to last - 1."""
    for strip in range(first, last):
        own, at = weights + strip * STRIP * size * width, into + strip * STRIP * 4
        if width == 1:
            _bytes_by(own, scales + strip * STRIP * (size // GROUP) * 2, inputs, at, rows, size, wide)
        else:
            _halves_by(own, inputs, at, rows, size, wide)


def _work(address: int) -> None:
    """A thread's part of `narrow`."""
    task = carray(pointer(address), (TASK,), np.int64)
    parts, width, weights, scales, inputs, into, rows, size, wide = task[1:]
    strips = wide // STRIP
    number = take(address)
    while number < parts:
        first, last = number * strips // parts, (number + 1) * strips // parts
        _strips(first, last, width, weights, scales, inputs, into, rows, size, wide)
        number = take(address)


_shared = part(_work, ordered=True)


@kernel("void(int64[::1])", ordered=True)
def _alone(task: Array) -> None:
    width, weights, scales, inputs, into, rows, size, wide = task[2:]
    _strips(0, wide // STRIP, width, weights, scales, inputs, into, rows, size, wide)


def narrow(weights: Array, scales: Array | None, rows: Array, out: Array) -> None:
    """Products of `rows` (N, in) with weights (out / STRIP, in, STRIP) into `out` (N, out), by torch's team of threads.

    Weights are int8, and scales the bits of bfloat16, (out / STRIP, in / GROUP, STRIP); or weights are such bits, and
    there are no scales. `in` is a multiple of GROUP.
    """
    threads, (strips, size, _) = torch.get_num_threads(), weights.shape
    at = [0 if each is None else each.ctypes.data for each in (weights, scales, rows, out)]
    parts = min(strips, PARTS * threads)
    task = np.array([0, parts, weights.itemsize, *at, len(rows), size, strips * STRIP], dtype=np.int64)
    if threads < 2 or weights.size * len(rows) < WORTH_SHARING or not share(_shared, task.ctypes.data, threads):
        _alone(task)
