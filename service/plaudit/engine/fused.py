"""The layers of the Llama family on packed weights: products that share their input are one, and nothing else is done.

In: a base whose layers are norms, attention with rotary positions, and a gated MLP. Out: a Runner of the same numbers.
Which bases these are is seen from their modules; that the numbers are the same is tried out by `runners.choose`. The
weights are copied, so a base takes twice its memory in fp32; the model's own stay as they are for whatever trains.
Llama (Touvron et al. 2023, arXiv:2302.13971); rotary positions (Su et al. 2021, arXiv:2104.09864).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import embedding, rms_norm, silu

from plaudit.engine.bank import AdapterBank, Correction, Gathered, Mixture
from plaudit.engine.base import Base
from plaudit.engine.packed import Packed, stand_alone
from plaudit.engine.runner import Past, shared_layers


class Unfit(Exception):
    """This base is not computed here; the message says why."""


@dataclass(frozen=True, slots=True)
class _Norm:
    weight: torch.Tensor
    epsilon: float

    @classmethod
    def of(cls, module: Any) -> _Norm:
        epsilon = getattr(module, "variance_epsilon", None)
        if epsilon is None or list(dict(module.named_parameters())) != ["weight"]:
            raise Unfit(f"{type(module).__name__} is no norm by root mean squares")
        return cls(module.weight.detach(), float(epsilon))

    def __call__(self, rows: torch.Tensor) -> torch.Tensor:
        return rms_norm(rows, self.weight.shape, self.weight, self.epsilon)


@dataclass(frozen=True, slots=True)
class _Linear:
    """Linears that take the same input, side by side, with their adapters."""

    packed: Packed
    correction: Correction | None
    sizes: tuple[int, ...]

    @classmethod
    def of(
        cls, layer: torch.nn.Module, index: int, names: Sequence[str], bank: AdapterBank, dtype: torch.dtype
    ) -> _Linear:
        # PEFT may have wrapped a linear.
        wrapped: list[Any] = [layer.get_submodule(name) for name in names]
        linears = [getattr(each, "base_layer", each) for each in wrapped]
        if not all(type(each) is torch.nn.Linear for each in linears):
            raise Unfit(f"{', '.join(names)} are not all plain linears")
        sizes = tuple(each.out_features for each in linears)
        bias = None
        if any(each.bias is not None for each in linears):
            bias = torch.cat(
                [
                    each.weight.new_zeros(n) if each.bias is None else each.bias
                    for each, n in zip(linears, sizes, strict=True)
                ]
            )
        packed = Packed(torch.cat([each.weight for each in linears]), bias, dtype)
        return cls(packed, bank.correction(index, names, sizes), sizes)

    def __call__(self, rows: torch.Tensor, mixture: Mixture | None) -> torch.Tensor:
        output = self.packed(rows)
        if mixture is None or self.correction is None:
            return output
        return mixture.add(self.correction, rows, output)


@dataclass(frozen=True, slots=True)
class _Layer:
    before_attention: _Norm
    qkv: _Linear
    out: _Linear
    before_mlp: _Norm
    gate_up: _Linear
    down: _Linear
    heads: int
    groups: int
    size: int
    scaling: float

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
        both = self.heads + self.groups
        qkv = self.qkv(self.before_attention(hidden), mixture).view(len(hidden), both + self.groups, self.size)
        qk = qkv[:, :both]
        turned = torch.addcmul(qk * cos, qk.roll(self.size // 2, -1), sin)
        mixed = past.attend(turned[:, : self.heads], turned[:, self.heads :], qkv[:, both:], index, self.scaling)
        return self.out(mixed.reshape(len(hidden), -1), mixture)

    def mlp(self, hidden: torch.Tensor, mixture: Mixture | None) -> torch.Tensor:
        """What the gated MLP adds to hidden states (N, H)."""
        gate, up = self.gate_up(self.before_mlp(hidden), mixture).chunk(2, dim=-1)
        return self.down(silu(gate) * up, mixture)


class Fused:
    """Runs a base of the Llama family in fp32 on the CPU; raises Unfit for any other.

    `dtype` is the number format of the layers' linears. The head stays in fp32: a logit of 20 that is rounded to
    bfloat16 is wrong by up to .06, which is as much in the log-prob; so do adapters, which are small.
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
        self._norm = _Norm.of(base.final_norm)
        self._head = Packed(head.weight, head.bias)
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
        return captured, self._norm(hidden)

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


_NORMS = ("input_layernorm", "post_attention_layernorm")
_QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
_OUT = ("self_attn.o_proj",)
_GATE_UP = ("mlp.gate_proj", "mlp.up_proj")
_DOWN = ("mlp.down_proj",)


def _layer(base: Base, index: int, bank: AdapterBank, dtype: torch.dtype) -> _Layer:
    layer = base.layer(index)
    known = (*_NORMS, *_QKV, *_OUT, *_GATE_UP, *_DOWN)
    named = {name.replace(".base_layer.", ".") for name, _ in layer.named_parameters() if ".lora_" not in name}
    strange = sorted(name for name in named if name.rpartition(".")[0] not in known)
    if strange or {name.rpartition(".")[0] for name in named} != set(known):
        raise Unfit(f"a {type(layer).__name__} has other weights ({', '.join(strange[:3]) or 'or fewer'})")
    attention: Any = layer.get_submodule("self_attn")
    size = int(attention.head_dim)
    qkv, out, gate_up, down = (_Linear.of(layer, index, names, bank, dtype) for names in (_QKV, _OUT, _GATE_UP, _DOWN))
    return _Layer(
        before_attention=_Norm.of(layer.get_submodule(_NORMS[0])),
        qkv=qkv,
        out=out,
        before_mlp=_Norm.of(layer.get_submodule(_NORMS[1])),
        gate_up=gate_up,
        down=down,
        heads=qkv.sizes[0] // size,
        groups=qkv.sizes[1] // size,
        size=size,
        scaling=float(attention.scaling),
    )
