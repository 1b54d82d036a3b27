"""Linears with an adapter in training passes: y = W x + s B A x, the low-rank part added in place, both ways.

In: the LoRA layers that PEFT put on a base. Out: the same layers, whose passes give the same numbers more quickly
wherever the base's linear is packed (`frozen`). PEFT's own way makes three more tensors of the product's size each way,
and multiplies tall matrices by eight columns in the order in which that is slowest: together as dear as the base's
products. Hu et al. 2021, arXiv:2106.09685, eq. 3.
"""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.lora import LoraLayer

from plaudit.engine.frozen import FrozenLinear


class _Adapted:
    """What a LoRA layer's `forward` is replaced by."""

    def __init__(self, layer: LoraLayer) -> None:
        self._layer = layer
        self._plain = layer.forward

    def __call__(self, inputs: torch.Tensor, *args: Any, **options: Any) -> torch.Tensor:
        """The product (..., out) with inputs (..., in), by the adapter in force if there is one."""
        layer = self._layer
        linear = vars(layer.base_layer).get("forward")
        active = [name for name in layer.active_adapters if name in layer.lora_A]
        if (
            layer.disable_adapters
            or len(active) != 1
            or not isinstance(linear, FrozenLinear)
            or inputs.dtype != torch.float32
            or args
            or options
        ):
            plain: torch.Tensor = self._plain(inputs, *args, **options)
            return plain
        (name,) = active
        down, up, scale = layer.lora_A[name].weight, layer.lora_B[name].weight, layer.scaling[name]
        product: torch.Tensor = _Product.apply(inputs, down, up, scale, linear)  # type: ignore[no-untyped-call]
        return product


class _Product(torch.autograd.Function):
    """Letters: N tokens, r rank. Weights are `down` (r, in) and `up` (out, r)."""

    @staticmethod
    def forward(
        ctx: Any, inputs: torch.Tensor, down: torch.Tensor, up: torch.Tensor, scale: float, linear: FrozenLinear
    ) -> torch.Tensor:
        rows = inputs.flatten(0, -2)
        low = rows @ down.T  # (N, r)
        ctx.save_for_backward(rows, low, down, up)
        ctx.scale, ctx.linear = scale, linear
        return linear.forth(rows).addmm_(low, up.T, alpha=scale).view(*inputs.shape[:-1], -1)

    @staticmethod
    def backward(
        ctx: Any, *gradients: torch.Tensor
    ) -> tuple[torch.Tensor | None, torch.Tensor, torch.Tensor, None, None]:
        rows, low, down, up = ctx.saved_tensors
        gradient = gradients[0].flatten(0, -2)
        # Transposed, the few rows stand first: several times as quick as the few columns last.
        back = (up.T @ gradient.T).mul_(ctx.scale)  # (r, N)
        of_down = back @ rows
        of_up = (low.T @ gradient).mul_(ctx.scale).T
        if not ctx.needs_input_grad[0]:
            return None, of_down, of_up, None, None
        of_inputs = ctx.linear.back(gradient).addmm_(back.T, down)
        return of_inputs.view(*gradients[0].shape[:-1], -1), of_down, of_up, None, None


def quicken(layer: LoraLayer) -> None:
    """Replace a LoRA layer's passes, once; adapters may come and go afterwards. They have no dropout."""
    if "forward" not in vars(layer):
        layer.forward = _Adapted(layer)
