"""Loops of kernels written out as vectors, for sums whose order must not depend on what is computed beside them.

A compiler would order a plain loop anew for each number of rows. These are pieces of code for numba's intrinsics:
they take a builder of LLVM's, and addresses as whole numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import binding, ir

# Floats of a vector.
LANES = 16 if binding.get_host_cpu_features().get("avx512f") else 8
FLOAT, WORD, INDEX = ir.FloatType(), ir.IntType(64), ir.IntType(32)
VECTOR = ir.VectorType(FLOAT, LANES)
BYTES = 4 * LANES


def load(builder: Any, address: Any, kind: Any = VECTOR) -> Any:
    """What lies at an address."""
    loaded = builder.load(builder.inttoptr(address, kind.as_pointer()))
    loaded.align = 4
    return loaded


def store(builder: Any, value: Any, address: Any) -> None:
    """Write a value to an address."""
    builder.store(value, builder.inttoptr(address, value.type.as_pointer())).align = 4


def part_of(builder: Any, vector: Any, places: Sequence[int]) -> Any:
    """The floats of a vector at `places`, as a vector."""
    chosen = ir.Constant(ir.VectorType(INDEX, len(places)), list(places))
    return builder.shuffle_vector(vector, ir.Constant(vector.type, ir.Undefined), chosen)


def spread(builder: Any, number: Any) -> Any:
    """A vector of one float."""
    alone = builder.insert_element(ir.Constant(VECTOR, ir.Undefined), number, INDEX(0))
    return part_of(builder, alone, [0] * LANES)


def sum_of(builder: Any, vector: Any) -> Any:
    """The sum of a vector's floats: its halves, and again."""
    while (half := vector.type.count // 2) > 0:
        low, high = (part_of(builder, vector, range(first, first + half)) for first in (0, half))
        vector = builder.fadd(low, high)
    return builder.extract_element(vector, INDEX(0))


def _added(builder: Any, sums: Any, one: Any, other: Any) -> Any:
    return builder.fadd(builder.fmul(one, other, flags=("contract",)), sums, flags=("contract",))


def summed(
    builder: Any, firsts: Sequence[Any], count: Any, terms: Callable[[Any], Sequence[tuple[Any, Any]]]
) -> Sequence[Any]:
    """Sums of `count` (1 or more) products each, behind `firsts`; `terms` has the factors of a number of the loop."""
    before, body, behind = builder.block, builder.append_basic_block(), builder.append_basic_block()
    builder.branch(body)
    builder.position_at_end(body)
    number = builder.phi(WORD)
    sums = [builder.phi(VECTOR) for _ in firsts]
    grown = [_added(builder, each, *term) for each, term in zip(sums, terms(number), strict=True)]
    following = builder.add(number, WORD(1))
    for phi, first, then in ((number, WORD(0), following), *zip(sums, firsts, grown, strict=True)):
        phi.add_incoming(first, before)
        phi.add_incoming(then, body)
    builder.cbranch(builder.icmp_signed("<", following, count), body, behind)
    builder.position_at_end(behind)
    return grown
