"""Training passes over the frozen base on packed weights: forward, and the gradient's way back to the inputs.

In: a base. Out: the same base, whose linears give the same numbers more quickly. The weights take no gradient, so
that the way back is a product with the transposed weights, which are packed when first needed. Each linear keeps a
copy of its weights, and those that gradients pass a second one.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import structlog
import torch

from plaudit.engine.base import Base
from plaudit.engine.fidelity import COARSE, EXACT, apart, probe
from plaudit.engine.packed import Packed, usable

log = structlog.get_logger(__name__)


class FrozenLinear:
    """What a frozen linear's `forward` is replaced by."""

    def __init__(self, linear: torch.nn.Linear, dtype: torch.dtype) -> None:
        self._linear, self.dtype = linear, dtype
        self._forth = Packed(linear.weight, linear.bias, dtype)
        self._back: Packed | None = None

    @property
    def coarse(self) -> bool:
        """Whether it computes in another format than its weights'."""
        return self.dtype != self._linear.weight.dtype

    def __call__(self, inputs: torch.Tensor) -> torch.Tensor:
        """The product (..., out) with inputs (..., in)."""
        if inputs.requires_grad and torch.is_grad_enabled():
            product: torch.Tensor = _Product.apply(inputs, self)  # type: ignore[no-untyped-call]
            return product
        return self.forth(inputs)

    def forth(self, inputs: torch.Tensor) -> torch.Tensor:
        """The product, without gradient."""
        return self._forth(inputs.flatten(0, -2)).view(*inputs.shape[:-1], -1)

    def back(self, gradient: torch.Tensor) -> torch.Tensor:
        """The gradient (..., in) of the inputs, of the product's (..., out)."""
        if self._back is None:
            self._back = Packed(self._linear.weight.detach().T, dtype=self.dtype)
        return self._back(gradient.flatten(0, -2)).view(*gradient.shape[:-1], -1)


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inputs: torch.Tensor, linear: FrozenLinear) -> torch.Tensor:
        ctx.linear = linear
        return linear.forth(inputs)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        return ctx.linear.back(gradients[0]), None


@torch.no_grad()
def quicken(base: Base, dtype: torch.dtype = torch.float32) -> bool:
    """Replace the products of a base's linears, unless that would change what it computes; whether they are replaced.

    `dtype`: of the layers' weights; the head stays in fp32, as in `fused`. Adapters may come and go afterwards.
    """
    if base.device.type != "cpu" or base.dtype != torch.float32 or not usable():
        return False
    linears = _linears(base)
    if all("forward" in vars(linear) for linear in linears):
        if base.format != dtype:
            log.warning("the engine computes with the model's own layers, so the learner takes its format", asked=dtype)
        return True
    before = _logits(base)
    for linear in linears:
        # On the instance: whatever wraps or hooks the module goes on as before.
        own = torch.float32 if linear is base.model.lm_head else dtype
        linear.forward = FrozenLinear(linear, own)  # type: ignore[assignment]
    difference = apart(_logits(base), before, dtype)
    if difference <= (EXACT if dtype == torch.float32 else COARSE):
        base.format = dtype
        return True
    log.warning("packed linears give other numbers, the plain ones stay", difference=difference)
    for linear in linears:
        del linear.forward
    return False


@contextlib.contextmanager
def exact(base: Base) -> Iterator[None]:
    """For a block, linears that `quicken` made coarser are the base's own again, in the format of its weights.

    What is computed there can be compared with what any engine computes. No other thread may use the base meanwhile.
    """
    coarse = [
        each for each in _linears(base) if isinstance(own := vars(each).get("forward"), FrozenLinear) and own.coarse
    ]
    quick, dtype = [each.forward for each in coarse], base.format
    for linear in coarse:
        del linear.forward
    base.format = base.dtype
    try:
        yield
    finally:
        base.format = dtype
        for linear, forward in zip(coarse, quick, strict=True):
            linear.forward = forward  # type: ignore[method-assign]


def _linears(base: Base) -> list[torch.nn.Linear]:
    named = base.model.named_modules()
    return [each for name, each in named if type(each) is torch.nn.Linear and ".lora_" not in name]


def _logits(base: Base) -> torch.Tensor:
    return base.logits(base.upper(base.trunk(probe(base), 0), 0))
