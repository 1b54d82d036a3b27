"""The layers of the Llama family on packed weights: products that share their input are one, and nothing else is done.

In: a base whose layers are norms, attention with rotary positions, and a gated MLP. Out: a Runner of the same numbers.
Which bases these are is seen from their modules (`family`); that the numbers are the same is tried out by
`runners.choose`. The weights are copied, so a base takes twice its memory in fp32; the learner's passes (`llama`) share
that copy.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import embedding, rms_norm, silu

from plaudit.engine.bank import AdapterBank, Correction, Mixture
from plaudit.engine.base import Base
from plaudit.engine.family import (
    LayerWeights,
    Norm,
    Side,
    Unfit,
    layer_weights,
    narrow_head,
    packed_head,
    require_plain,
)
from plaudit.engine.kernels import array
from plaudit.engine.narrow import Narrow
from plaudit.engine.packed import Linear, Packed, stand_alone
from plaudit.engine.runner import InPlaces, Past, shared_layers


@dataclass(frozen=True, slots=True)
class _Linear:
    """Linears that take the same input, with their adapters; `of_step` is the product for the rows of a step."""

    product: Linear
    of_step: Linear
    correction: Correction | None

    @classmethod
    def of(cls, side: Side, index: int, bank: AdapterBank, kernels: Any | None) -> _Linear:
        return cls(side.packed, side.packed.of_step(kernels), bank.correction(index, side.names, side.sizes))

    def __call__(self, rows: torch.Tensor, mixture: Mixture | None, *, step: bool = False) -> torch.Tensor:
        output = self.of_step(rows) if step else self.product(rows)
        if mixture is not None and self.correction is not None:
            mixture.add(self.correction, rows, output)
        return output


@dataclass(frozen=True, slots=True)
class _Layer:
    weights: LayerWeights
    qkv: _Linear
    out: _Linear
    gate_up: _Linear
    down: _Linear

    def attention(
        self,
        index: int,
        hidden: torch.Tensor,
        cos: torch.Tensor,
        sin: torch.Tensor,
        past: Past,
        mixture: Mixture | None,
    ) -> torch.Tensor:
        """What attention adds to hidden states (N, H); cos and sin are (N, 1, D)."""
        own = self.weights
        both = own.heads + own.groups
        rows = self.qkv(_normed(own.before_attention, hidden), mixture)
        qkv = rows.view(len(hidden), both + own.groups, own.size)
        qk = qkv[:, :both]
        turned = torch.addcmul(qk * cos, qk.roll(own.size // 2, -1), sin)
        mixed = past.attend(turned[:, : own.heads], turned[:, own.heads :], qkv[:, both:], index, own.scaling)
        return self.out(mixed.reshape(len(hidden), -1), mixture)

    def mlp(self, hidden: torch.Tensor, mixture: Mixture | None) -> torch.Tensor:
        """What the gated MLP adds to hidden states (N, H)."""
        gate, up = self.gate_up(_normed(self.weights.before_mlp, hidden), mixture).chunk(2, dim=-1)
        return self.down(silu(gate) * up, mixture)


class Fused:
    """Runs a base of the Llama family in fp32 on the CPU; raises Unfit for any other.

    `dtype` is the number format of the layers' linears. The head stays in fp32, and so do adapters, which are small.
    `kernels` (kernels.load) compute what lies between linears; None: torch's operators do.
    """

    def __init__(
        self,
        base: Base,
        bank: AdapterBank,
        capture_layer: int,
        dtype: torch.dtype = torch.float32,
        kernels: Any | None = None,
    ) -> None:
        if base.device.type != "cpu" or base.dtype != torch.float32:
            raise Unfit("packed weights are for fp32 on CPUs")
        require_plain(base)
        head = base.head
        if type(head) is not torch.nn.Linear or type(base.embedding) is not torch.nn.Embedding:
            raise Unfit(f"its head is a {type(head).__name__}, its embedding a {type(base.embedding).__name__}")
        self.device, self.dtype, self.format = base.device, base.dtype, dtype
        self.shared = shared_layers(bank, capture_layer)
        self._capture_layer = capture_layer
        self._bank = bank
        self._cos, self._sin = _angles(base)
        self._layers = [_layer(base, index, bank, dtype, kernels) for index in range(base.num_layers)]
        self._norm = Norm.of(base.final_norm)
        head_of: Packed | Narrow
        self._embed: Callable[[torch.Tensor], torch.Tensor]
        if dtype == torch.int8:
            head_of, narrow = narrow_head(base)
            self._embed = narrow.lines
        else:
            head_of, weight = packed_head(base), base.embedding.weight.detach()
            self._embed = lambda tokens: embedding(tokens, weight)
        self._head, self._head_of_step = head_of, head_of.of_step(kernels)
        linears = [each for layer in self._layers[:1] for each in (layer.qkv, layer.out, layer.gate_up, layer.down)]
        # Without kernels adapters are plain products, whose sums torch orders by the number of rows.
        self._stands_alone = kernels is not None and all(stand_alone(each.product) for each in linears)
        self._kernels = kernels
        of_step = [*(each.of_step for each in linears), self._head_of_step]
        self._takes_rows = kernels is not None and all(stand_alone(product) for product in of_step)

    @property
    def stands_alone(self) -> bool:
        """As Runner.stands_alone: seen from products of few and of many rows."""
        return self._stands_alone

    @property
    def compiled(self) -> bool:
        """Whether kernels compute what lies between linears."""
        return self._kernels is not None

    @property
    def takes_rows(self) -> bool:
        """As Runner.takes_rows: with kernels, whose rows are each by itself."""
        return self._takes_rows

    def run(
        self,
        tokens: torch.Tensor,
        positions: torch.Tensor,
        past: Past,
        slots: torch.Tensor | None,
        trunk: torch.Tensor | None = None,
        finals: bool = True,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """As Runner.run."""
        first = 0 if trunk is None else self._capture_layer
        hidden = self._embed(tokens) if trunk is None else trunk
        mixture = None if slots is None else self._bank.mixture(slots, self._kernels)
        if self._kernels is not None:
            return self._compiled(hidden if trunk is None else trunk.clone(), positions, past, mixture, first, finals)
        cos, sin = self._cos.index_select(0, positions), self._sin.index_select(0, positions)  # (N, 1, D)
        captured = hidden
        for index, layer in enumerate(self._layers[first:], start=first):
            if index == self._capture_layer:
                captured = hidden
            hidden = hidden + layer.attention(index, hidden, cos, sin, past, mixture)
            hidden = hidden + layer.mlp(hidden, mixture)
        if self._capture_layer == len(self._layers):
            captured = hidden
        return captured, _normed(self._norm, hidden)

    def _compiled(
        self,
        hidden: torch.Tensor,
        positions: torch.Tensor,
        past: Past,
        mixture: Mixture | None,
        first: int,
        finals: bool,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """As run, from layer `first`, with kernels between linears; `hidden` (N, H) is written over."""
        kernels: Any = self._kernels
        finals = finals or self._capture_layer == len(self._layers)
        steps, step = _Steps(kernels, past, positions, self._cos, self._sin), isinstance(past, InPlaces)
        total, captured = array(hidden), hidden
        normed = torch.empty_like(hidden)
        more: torch.Tensor | None = None  # what the layer before adds
        for index, layer in enumerate(self._layers[first:], start=first):
            own = layer.weights
            _add_norm(kernels, total, more, own.before_attention, normed)
            if index == self._capture_layer:
                captured = hidden.clone()
            mixed = steps.attention(index, layer, layer.qkv(normed, mixture, step=step))
            if not finals and index == len(self._layers) - 1:
                return captured, normed  # the past has the last layer's keys and values
            more = layer.out(mixed, mixture, step=step)
            _add_norm(kernels, total, more, own.before_mlp, normed)
            both = layer.gate_up(normed, mixture, step=step)
            gated = both.new_empty(len(both), both.shape[1] // 2)
            kernels.gate(array(both), array(gated))
            more = layer.down(gated, mixture, step=step)
        _add_norm(kernels, total, more, self._norm, normed)
        return hidden if self._capture_layer == len(self._layers) else captured, normed

    def logits(self, hidden: torch.Tensor, *, step: bool = False) -> torch.Tensor:
        """As Runner.logits."""
        return self._head_of_step(hidden) if step else self._head(hidden)


class _Steps:
    """Rotation and attention of the tokens of one pass, by kernels."""

    def __init__(self, kernels: Any, past: Past, positions: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> None:
        self._kernels, self._past = kernels, past
        self._positions = array(positions)
        self._cos, self._sin = array(cos[:, 0]), array(sin[:, 0])
        self._places = past.places() if isinstance(past, InPlaces) else None
        self._whole = sum(len(each.rows) for each in self._places or ()) == len(positions)

    def attention(self, index: int, layer: _Layer, rows: torch.Tensor) -> torch.Tensor:
        """Attention (N, Hq D) of queries, keys and values in rows (N, (Hq + 2 Hk) D), which are turned in place."""
        own = layer.weights
        qkv, both = array(rows), own.heads + own.groups
        self._kernels.turn(qkv, self._cos, self._sin, self._positions, both)
        if self._places is None:
            by_head = rows.view(len(rows), both + own.groups, own.size)
            query, key, value = by_head[:, : own.heads], by_head[:, own.heads : both], by_head[:, both:]
            return self._past.attend(query, key, value, index, own.scaling).reshape(len(rows), -1)
        # Nobody reads what a row has that is in no place, but it has to be a number.
        size = (len(rows), own.heads * own.size)
        mixed = rows.new_empty(size) if self._whole else rows.new_zeros(size)
        for at in self._places:
            self._kernels.attend(
                qkv, at.rows, at.places, self._positions, at.keys[index], at.values[index], own.scaling, array(mixed)
            )
        return mixed


def _add_norm(kernels: Any, total: Any, more: torch.Tensor | None, norm: Norm, out: torch.Tensor) -> None:
    """Add `more` to `total` (N, H); the norm of the sum into `out`."""
    if more is None:
        kernels.norm(total, array(norm.weight), norm.epsilon, array(out))
    else:
        kernels.add_norm(total, array(more), array(norm.weight), norm.epsilon, array(out))


def _angles(base: Base) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines (positions, 1, D) of the whole context; the sign of the half that turns is in the sines."""
    cos, sin = base.angles(torch.arange(base.context_length))
    half = sin.shape[-1] // 2
    signed = torch.cat([-sin[:, :half], sin[:, half:]], dim=-1)
    return cos[:, None].contiguous(), signed[:, None].contiguous()


def _normed(norm: Norm, rows: torch.Tensor) -> torch.Tensor:
    return rms_norm(rows, norm.weight.shape, norm.weight, norm.epsilon)


def _layer(base: Base, index: int, bank: AdapterBank, dtype: torch.dtype, kernels: Any | None) -> _Layer:
    weights = layer_weights(base, index, dtype)
    return _Layer(weights, *(_Linear.of(side, index, bank, kernels) for side in weights.sides))
