"""Linears whose weights are laid out once for oneDNN's kernels: on CPUs two to five times as quick as torch's own.

In: a weight as torch holds it. Out: the product with rows of activations. The layout is a copy, so the model keeps its
weights, and whatever trains on them knows nothing of this.

The two operators are private to torch (its compiler calls them), so nothing else in the package names them. Where they
are not there, or do not agree with `linear`, the plain product is taken.
"""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import torch

from plaudit.engine import narrow
from plaudit.engine.kernels import array
from plaudit.engine.threads import shares
from plaudit.errors import Misconfigured

# For how many rows oneDNN chooses the layout: the same kernels then take one row and a thousand, at the same speed.
LAYOUT_ROWS = 32
ONE_ROW = ((0, 1),)
FEW_ROWS = ((5, 2), (3, 17), (33, 64), (90, 7))

# For each size of product torch and oneDNN keep the code that they made, with memory for its work: 1,024 of each in
# every thread. Passes of a learner have ever new numbers of rows, so that its memory would grow from turn to turn; what
# a step needs again are a dozen sizes. Both read this when they first compute; what a user has set stays.
SIZES_KEPT = 64
for _cache in ("LRU_CACHE_CAPACITY", "ONEDNN_PRIMITIVE_CACHE_CAPACITY"):
    os.environ.setdefault(_cache, str(SIZES_KEPT))

# By (out, in, format): whether a single row is computed as two. For some sizes oneDNN sums a row that stands by itself
# in an order of its own, and all other counts in one.
_PAIRED: dict[tuple[int | torch.dtype, ...], bool] = {}


class Linear(Protocol):
    """y = x W^T + b for x (N, in)."""

    inputs: int

    def __call__(self, rows: torch.Tensor) -> torch.Tensor:
        """The product (N, out) with rows (N, in)."""


class Packed:
    """y = x W^T + b for x (N, in), both in fp32. The weight (out, in) is copied, in `dtype`.

    In bfloat16 inputs and products are rounded, too, and summed in fp32.
    """

    def __init__(
        self, weight: torch.Tensor, bias: torch.Tensor | None = None, dtype: torch.dtype = torch.float32
    ) -> None:
        self._bias = None if bias is None else bias.detach().clone()
        plain = weight.detach()
        self.outputs, self.inputs = plain.shape
        self._packed = usable() and plain.device.type == "cpu" and plain.dtype == torch.float32
        self._dtype = dtype if self._packed else plain.dtype
        self._weight = (
            torch.ops.mkldnn._reorder_linear_weight(plain.to(dtype).contiguous(), LAYOUT_ROWS)
            if self._packed
            else plain.clone()
        )
        self._paired = False
        if self._packed:
            shape = (*plain.shape, dtype)
            if shape not in _PAIRED:
                _PAIRED[shape] = not _same_bits(self, ONE_ROW) and _same_bits(self, FEW_ROWS)
            self._paired = _PAIRED[shape]

    def __call__(self, rows: torch.Tensor) -> torch.Tensor:
        """The product (N, out) with rows (N, in)."""
        return self._product(_twice(rows))[:1] if self._paired and len(rows) == 1 else self._product(rows)

    def _product(self, rows: torch.Tensor) -> torch.Tensor:
        if not self._packed:
            return torch.nn.functional.linear(rows, self._weight, self._bias)
        if self._dtype != torch.float32:
            rounded = self._rounded(rows)
            return rounded.float() if self._bias is None else rounded + self._bias
        product: torch.Tensor = torch.ops.mkldnn._linear_pointwise(rows, self._weight, self._bias, "none", [], "")
        return product

    def _rounded(self, rows: torch.Tensor) -> torch.Tensor:
        product: torch.Tensor = torch.ops.mkldnn._linear_pointwise(
            rows.to(self._dtype), self._weight, None, "none", [], ""
        )
        return product

    def add(self, rows: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        """`other` (N, out) with the product added."""
        if self._paired and len(rows) == 1:
            return self.add(_twice(rows), _twice(other))[:1]
        if not self._packed:
            return other + torch.nn.functional.linear(rows, self._weight, self._bias)
        if self._dtype != torch.float32:
            return other + self._product(rows)
        total: torch.Tensor = torch.ops.mkldnn._linear_pointwise.binary(rows, other, self._weight, self._bias, "add")
        return total

    def of_step(self, kernels: Any | None) -> Linear:
        """The product for a decode step: by a kernel (kernels.load) that reads the same memory, or by oneDNN.

        The kernel is taken if it gives the same numbers, and torch's team of threads shares it. With many rows, as in
        prompts, oneDNN is as quick.
        """
        if torch.get_num_threads() > 1 and not shares():
            return self
        if kernels is None or (weights := self._strips(kernels.strip)) is None:
            return self
        quick = _OfStep(self, kernels.product(weights, array(self._offset())))
        rows = torch.randn(5, self.inputs, generator=torch.Generator().manual_seed(0))
        wanted = self(rows)
        return quick if torch.allclose(quick(rows), wanted, atol=1e-4 * float(wanted.abs().max())) else self

    def _strips(self, strip: int) -> np.ndarray[Any, Any] | None:
        """The weights in fp32 as (out / strip, in, strip), if they can lie so: whether they do is seen by computing."""
        if not self._packed or self._dtype != torch.float32 or self.outputs % strip:
            return None
        try:
            address, size = torch.ops.mkldnn.data_ptr(self._weight), torch.ops.mkldnn._nbytes(self._weight)
        except (AttributeError, RuntimeError):
            return None
        if size != 4 * self.outputs * self.inputs:  # it is padded
            return None
        memory = (ctypes.c_float * (self.outputs * self.inputs)).from_address(address)
        return np.ctypeslib.as_array(memory).reshape(-1, self.inputs, strip)

    def _offset(self) -> torch.Tensor:
        return torch.zeros(self.outputs) if self._bias is None else self._bias


class _OfStep:
    """A Packed's product by a kernel that asks for weights before it needs them."""

    def __init__(self, packed: Packed, product: Callable[[torch.Tensor, torch.Tensor], None]) -> None:
        self.inputs, self._outputs = packed.inputs, packed.outputs
        self._keeps = packed  # its memory is read
        self._product = product

    def __call__(self, rows: torch.Tensor) -> torch.Tensor:
        own = rows.contiguous()
        product = own.new_empty(len(own), self._outputs)
        self._product(own, product)
        return product


@functools.cache
def usable() -> bool:
    """Whether torch has the operators here, and they agree with its own product on rows of several counts."""
    try:
        if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
            return False
        generator = torch.Generator().manual_seed(0)
        weight, bias, rows = (torch.randn(*shape, generator=generator) for shape in ((96, 80), (96,), (70, 80)))
        packed = torch.ops.mkldnn._reorder_linear_weight(weight, LAYOUT_ROWS)
        for count in (1, 8, 70):
            some = rows[:count]
            found = torch.ops.mkldnn._linear_pointwise(some, packed, bias, "none", [], "")
            found = torch.ops.mkldnn._linear_pointwise.binary(some, found, packed, bias, "add")
            if not torch.allclose(found, 2 * torch.nn.functional.linear(some, weight, bias), atol=1e-3):
                return False
    except (AttributeError, RuntimeError, NotImplementedError):
        return False
    return True


def number_format(name: str, setting: str = "engine.dtype") -> torch.dtype:
    """The format of packed weights that a setting names; raises Misconfigured for one that would be slow here."""
    if name == "int8":
        if not narrow.usable():
            raise Misconfigured(
                f"{setting} is int8, and its kernel is not compiled here (the log says why; it needs numba); "
                f"set {setting} to auto or float32",
                setting=setting,
            )
        return torch.int8
    if name == "bfloat16" and not multiplies_bfloat16():
        raise Misconfigured(
            f"{setting} is bfloat16, and this processor (or this torch) has no instructions for it, so that it would "
            f"be many times slower than float32; set {setting} to auto or float32",
            setting=setting,
        )
    return torch.bfloat16 if name != "float32" and multiplies_bfloat16() else torch.float32


@functools.cache
def multiplies_bfloat16() -> bool:
    """Whether this processor multiplies bfloat16, and torch's operators do."""
    if not (usable() and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())):
        return False
    generator = torch.Generator().manual_seed(0)
    weight, rows = torch.randn(96, 80, generator=generator), torch.randn(8, 80, generator=generator)
    wanted = torch.nn.functional.linear(rows, weight)
    try:
        found = Packed(weight, dtype=torch.bfloat16)(rows)
    except RuntimeError:
        return False
    return torch.allclose(found, wanted, atol=0.02 * float(wanted.abs().max()))


def _twice(row: torch.Tensor) -> torch.Tensor:
    return row.expand(2, -1).contiguous()


def stand_alone(linear: Linear) -> bool:
    """Whether each row's bits are its own, however many rows are beside it: tried out."""
    return _same_bits(linear, ONE_ROW) and _same_bits(linear, FEW_ROWS)


def _same_bits(linear: Linear, parts: Sequence[tuple[int, int]]) -> bool:
    """Whether products of parts (first row, rows) of 97 rows have the bits of the product of all of them."""
    rows = torch.randn(97, linear.inputs, generator=torch.Generator().manual_seed(1))
    wanted = linear(rows)
    return all(torch.equal(linear(rows[at : at + count].contiguous()), wanted[at : at + count]) for at, count in parts)
