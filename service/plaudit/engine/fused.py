"""The layers of the Llama family on packed weights: products that share their input are one, and nothing else is done.

In: a base whose layers are norms, attention with rotary positions, and a gated MLP. Out: a Runner of the same numbers.
Which bases these are is seen from their modules (`family`); that the numbers are the same is tried out by
`runners.choose`. The weights are copied, so a base takes twice its memory in fp32; the learner's passes (`llama`) share
that copy.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn.functional import embedding, rms_norm, silu

from plaudit.engine.bank import AdapterBank, Correction, Gathered, Mixture
from plaudit.engine.base import Base
from plaudit.engine.family import LayerWeights, Norm, Side, Unfit, layer_weights, packed_head
from plaudit.engine.packed import Packed, stand_alone
from plaudit.engine.runner import Past, shared_layers


@dataclass(frozen=True, slots=True)
class _Linear:
    """Linears that take the same input, with their adapters."""

    packed: Packed
    correction: Correction | None

    @classmethod
    def of(cls, side: Side, index: int, bank: AdapterBank) -> _Linear:
        return cls(side.packed, bank.correction(index, side.names, side.sizes))

    def __call__(self, rows: torch.Tensor, mixture: Mixture | None) -> torch.Tensor:
        output = self.packed(rows)
        if mixture is None or self.correction is None:
            return output
        return mixture.add(self.correction, rows, output)


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
    """

    def __init__(self, base: Base, bank: AdapterBank, capture_layer: int, dtype: torch.dtype = torch.float32) -> None:
        if base.device.type != "cpu" or base.dtype != torch.float32:
            raise Unfit("packed weights are for fp32 on CPUs")
        head = base.model.lm_head
        if type(head) is not torch.nn.Linear or type(base.embedding) is not torch.nn.Embedding:
            raise Unfit(f"its head is a {type(head).__name__}, its embedding a {type(base.embedding).__name__}")
        self.device, self.dtype, self.format = base.device, base.dtype, dtype
        self.shared = shared_layers(bank, capture_layer)
        self._capture_layer = capture_layer
        self._bank = bank
        self._embedding = base.embedding.weight.detach()
        self._cos, self._sin = _angles(base)
        self._layers = [_layer(base, index, bank, dtype) for index in range(base.num_layers)]
        self._norm = Norm.of(base.final_norm)
        self._head = packed_head(base)
        linears = (
            each.packed for layer in self._layers[:1] for each in (layer.qkv, layer.out, layer.gate_up, layer.down)
        )
        self._stands_alone = all(stand_alone(packed) for packed in linears)

    @property
    def stands_alone(self) -> bool:
        """As Runner.stands_alone: seen from products of few and of many rows."""
        return self._stands_alone

    def run(
        self,
        tokens: torch.Tensor,
        positions: torch.Tensor,
        past: Past,
        slots: torch.Tensor | None,
        trunk: torch.Tensor | None = None,
        copies: Gathered | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """As Runner.run."""
        first = 0 if trunk is None else self._capture_layer
        hidden = embedding(tokens, self._embedding) if trunk is None else trunk
        cos, sin = self._cos.index_select(0, positions), self._sin.index_select(0, positions)  # (N, 1, D)
        mixture: Mixture | None = None
        if slots is not None:
            mixture = copies or self._bank.masked(slots)
        captured = hidden
        for index, layer in enumerate(self._layers[first:], start=first):
            if index == self._capture_layer:
                captured = hidden
            hidden = hidden + layer.attention(index, hidden, cos, sin, past, mixture)
            hidden = hidden + layer.mlp(hidden, mixture)
        if self._capture_layer == len(self._layers):
            captured = hidden
        return captured, _normed(self._norm, hidden)

    def copies(self, width: int) -> Gathered | None:
        """As Runner.copies."""
        return self._bank.gathered(width)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """As Runner.logits."""
        return self._head(hidden)


def _angles(base: Base) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines (positions, 1, D) of the whole context; the sign of the half that turns is in the sines."""
    cos, sin = base.angles(torch.arange(base.context_length))
    half = sin.shape[-1] // 2
    signed = torch.cat([-sin[:, :half], sin[:, half:]], dim=-1)
    return cos[:, None].contiguous(), signed[:, None].contiguous()


def _normed(norm: Norm, rows: torch.Tensor) -> torch.Tensor:
    return rms_norm(rows, norm.weight.shape, norm.weight, norm.epsilon)


def _layer(base: Base, index: int, bank: AdapterBank, dtype: torch.dtype) -> _Layer:
    weights = layer_weights(base, index, dtype)
    return _Layer(weights, *(_Linear.of(side, index, bank) for side in weights.sides))
