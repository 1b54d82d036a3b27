"""Training passes over the frozen base on packed weights: forward, and the gradient's way back to the inputs.

In: a base. Out: the same base, whose layers give the same numbers more quickly: those of the Llama family are written
out (`llama`), of others the linears are replaced. The weights take no gradient, so that the way back is a product with
the transposed weights, which are packed when first needed. There is a packed copy of the weights, and a second one of
those that gradients pass.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import structlog
import torch

from plaudit.engine.base import Base
from plaudit.engine.family import Unfit, packed_head
from plaudit.engine.fidelity import COARSE, EXACT, apart, probe
from plaudit.engine.llama import LlamaLayer
from plaudit.engine.packed import Packed, usable

log = structlog.get_logger(__name__)


class FrozenLinear:
    """What a frozen linear's `forward` is replaced by."""

    def __init__(self, linear: torch.nn.Linear, dtype: torch.dtype, packed: Packed | None = None) -> None:
        self._linear, self.dtype = linear, dtype
        self._forth = packed or Packed(linear.weight, linear.bias, dtype)
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
def quicken(base: Base, dtype: torch.dtype = torch.float32, *, layers: bool = True) -> bool:
    """Replace a base's products, unless that would change what it computes; whether they are replaced.

    `dtype`: of the layers' weights; the head stays in fp32, as in `fused`. `layers`: whether whole layers may be
    replaced, which anything that hooks their linears must not be. Adapters may come and go afterwards.
    """
    if base.device.type != "cpu" or base.dtype != torch.float32 or not usable():
        return False
    if next(_quick(base), None) is not None:
        if base.format != dtype:
            log.warning("the engine computes with the model's own layers, so the learner takes its format", asked=dtype)
        return True
    before = _logits(base)
    for replace in (_replace_layers, _replace_linears) if layers else (_replace_linears,):
        difference = apart(_logits(base), before, dtype) if replace(base, dtype) else math.inf
        if difference <= (EXACT if dtype == torch.float32 else COARSE):
            base.format = dtype
            return True
        for module in list(_quick(base)):
            del module.forward
        if difference < math.inf:
            log.warning("packed weights give other numbers", way=replace.__name__, difference=difference)
    return False


def _replace_layers(base: Base, dtype: torch.dtype) -> bool:
    """Write out all layers; whether they are of the family."""
    linear = base.head
    if type(linear) is not torch.nn.Linear:
        return False
    try:
        quick = [LlamaLayer(base, index, dtype) for index in range(base.num_layers)]
        head = packed_head(base)
    except Unfit:
        return False
    for index, each in enumerate(quick):
        # On the instance: whatever wraps or hooks the module goes on as before.
        base.layer(index).forward = each
    linear.forward = FrozenLinear(linear, torch.float32, head)  # type: ignore[assignment]
    return True


def _replace_linears(base: Base, dtype: torch.dtype) -> bool:
    for linear in _linears(base):
        own = torch.float32 if linear is base.head else dtype
        linear.forward = FrozenLinear(linear, own)  # type: ignore[assignment]
    return True


@contextlib.contextmanager
def exact(base: Base) -> Iterator[None]:
    """For a block, what `quicken` made coarser is the base's own again, in the format of its weights.

    What is computed there can be compared with what any engine computes. No other thread may use the base meanwhile.
    """
    coarse = [each for each in _quick(base) if each.forward.coarse]
    quick, dtype = [each.forward for each in coarse], base.format
    for module in coarse:
        del module.forward
    base.format = base.dtype
    try:
        yield
    finally:
        base.format = dtype
        for module, forward in zip(coarse, quick, strict=True):
            module.forward = forward


def _quick(base: Base) -> Iterator[Any]:
    """Modules whose passes are replaced."""
    for module in base.model.modules():
        if isinstance(vars(module).get("forward"), (FrozenLinear, LlamaLayer)):
            yield module


def _linears(base: Base) -> list[torch.nn.Linear]:
    named = base.model.named_modules()
    return [each for name, each in named if type(each) is torch.nn.Linear and ".lora_" not in name]


def _logits(base: Base) -> torch.Tensor:
    return base.logits(base.upper(base.trunk(probe(base), 0), 0))
