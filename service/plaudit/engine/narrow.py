"""Linears whose weights are kept in 8 or 16 bits and multiplied in fp32: a base in a quarter or a half of its memory.

In: a weight as torch holds it. Out: the product with rows of activations, which are not rounded. In int8 a weight is a
whole number times a scale that it shares with 31 other inputs of the same output, the largest of them being 127 (the
block format Q8_0 of llama.cpp, but for scales in bfloat16). Weights that were published in bfloat16 lose nothing there.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import torch
from torch.nn.functional import pad

from plaudit.engine import kernels

GROUP = 32  # inputs that share a scale
STRIP = 64  # outputs that lie side by side
LEVELS = 127


class Narrow:
    """y = x W^T + b for x (N, in), both in fp32. The weight (out, in) is copied, in `dtype`: int8 or bfloat16.

    It needs its kernel: `usable`.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None = None, dtype: torch.dtype = torch.int8) -> None:
        self.outputs, self.inputs = weight.shape
        self._bias = None if bias is None else bias.detach().clone()
        self._missing = -self.inputs % GROUP
        plain = pad(weight.detach(), (0, self._missing, 0, -self.outputs % STRIP))
        strips, size = len(plain) // STRIP, plain.shape[1]
        if dtype == torch.int8:
            numbers, scales = rounded(plain)
            self._scales = scales.view(strips, STRIP, -1).transpose(1, 2).contiguous()
            self._weights = numbers.view(strips, STRIP, size).transpose(1, 2).contiguous()
        else:
            self._weights = plain.bfloat16().view(strips, STRIP, size).transpose(1, 2).contiguous()
        self._int8 = dtype == torch.int8
        self._arrays = _bits(self._weights), _bits(self._scales) if self._int8 else None
        kernel = kernels.load_narrow()
        assert kernel is not None
        self._kernel = kernel

    def __call__(self, rows: torch.Tensor) -> torch.Tensor:
        """The product (N, out) with rows (N, in)."""
        own = pad(rows, (0, self._missing)) if self._missing else rows.contiguous()
        product = torch.empty(len(own), len(self._weights) * STRIP)
        if len(own):
            self._kernel(*self._arrays, kernels.array(own), kernels.array(product))
        if product.shape[1] != self.outputs:
            product = product[:, : self.outputs].contiguous()
        return product if self._bias is None else product.add_(self._bias)

    def of_step(self, kernels: Any | None) -> Narrow:
        """As Packed.of_step: the same."""
        return self

    def add(self, rows: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        """`other` (N, out) with the product added."""
        return self(rows).add_(other)

    def lines(self, outputs: torch.Tensor) -> torch.Tensor:
        """The weights (N, in) of some outputs (N,), as they are multiplied."""
        strips, places = outputs // STRIP, outputs % STRIP
        found = self._weights[strips, :, places].float()
        if self._int8:
            found *= self._scales[strips, :, places].float().repeat_interleave(GROUP, 1)
        return found[:, : self.inputs].contiguous()


@functools.cache
def usable() -> bool:
    """Whether the kernel is compiled here, and gives what torch's product gives."""
    if kernels.load_narrow() is None:
        return False
    generator = torch.Generator().manual_seed(0)
    weight, rows = (torch.randn(*shape, generator=generator) for shape in ((70, 40), (9, 40)))
    for dtype in (torch.int8, torch.bfloat16):
        narrow = Narrow(weight, dtype=dtype)
        if not torch.allclose(narrow(rows), rows @ narrow.lines(torch.arange(len(weight))).T, atol=1e-4):
            return False
    return True


def rounded(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A weight (out, in) as whole numbers from -127 to 127 and their scales (out, in / GROUP) in bfloat16."""
    groups = weight.view(len(weight), -1, GROUP)
    scales = (groups.abs().amax(-1) / LEVELS).clamp_min(torch.finfo(torch.float32).tiny).bfloat16()
    numbers = (groups / scales.float()[..., None]).round_().clamp_(-LEVELS, LEVELS)
    return numbers.to(torch.int8).view_as(weight), scales


def _bits(tensor: torch.Tensor) -> np.ndarray[tuple[int, ...], np.dtype[np.int8 | np.uint16]]:
    if tensor.dtype == torch.int8:
        return tensor.numpy()
    return tensor.view(torch.int16).numpy().view(np.uint16)
