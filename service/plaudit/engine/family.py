"""The layers of the Llama family as weights: norms, attention with rotary positions, and a gated MLP.

In: a base. Out: what each layer is made of, if it is made of nothing else. Linears that take the same input are packed
side by side, once for everybody who computes with them: the engine that serves, and the learner's passes. Weights are
copied, the model keeps its own. Llama (Touvron et al. 2023, arXiv:2302.13971); rotary positions (Su et al. 2021,
arXiv:2104.09864).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from plaudit.engine.base import Base
from plaudit.engine.decoder import Stacked
from plaudit.engine.limits import sliding_window
from plaudit.engine.narrow import Narrow
from plaudit.engine.packed import Packed

NORMS = ("input_layernorm", "post_attention_layernorm")
QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
OUT = ("self_attn.o_proj",)
GATE_UP = ("mlp.gate_proj", "mlp.up_proj")
DOWN = ("mlp.down_proj",)


class Unfit(Exception):
    """This base is not computed here; the message says why."""


@dataclass(frozen=True, slots=True)
class Norm:
    """A norm by root mean squares: its weight (H,), and what is added to the mean square."""

    weight: torch.Tensor
    epsilon: float

    @classmethod
    def of(cls, module: Any) -> Norm:
        """The norm that a module is; raises Unfit."""
        epsilon = getattr(module, "variance_epsilon", None)
        if epsilon is None or list(dict(module.named_parameters())) != ["weight"]:
            raise Unfit(f"{type(module).__name__} is no norm by root mean squares")
        return cls(module.weight.detach().clone(), float(epsilon))


@dataclass(frozen=True, slots=True)
class Side:
    """Linears that take the same input, by their names in the layer; `packed` has their outputs (`sizes`) in a row."""

    names: tuple[str, ...]
    sizes: tuple[int, ...]
    packed: Packed | Narrow

    @property
    def spans(self) -> list[tuple[int, int]]:
        """Begin and end of each linear's output."""
        ends = [sum(self.sizes[: i + 1]) for i in range(len(self.sizes))]
        return [(end - size, end) for end, size in zip(ends, self.sizes, strict=True)]


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """One layer: heads of queries, of keys (`groups`), their size, and what scores are scaled by."""

    before_attention: Norm
    qkv: Side
    out: Side
    before_mlp: Norm
    gate_up: Side
    down: Side
    heads: int
    groups: int
    size: int
    scaling: float

    @property
    def sides(self) -> tuple[Side, ...]:
        """Its linears."""
        return (self.qkv, self.out, self.gate_up, self.down)


def require_plain(base: Base) -> None:
    """Raise Unfit for a base that does anything around its layers, or whose context is beyond a window of them."""
    if not isinstance(base.decoder, Stacked) or not base.after_head.plain:
        raise Unfit(f"a {type(base.model).__name__} is run by its own forward pass")
    window = sliding_window(base.model.config.to_dict())
    if window is not None and window < base.context_length:
        raise Unfit(f"its layers look back {window} tokens, and the context is {base.context_length}")


def layer_weights(base: Base, index: int, dtype: torch.dtype) -> LayerWeights:
    """The weights of layer `index`, its linears packed in `dtype`; raises Unfit if there is more to it."""
    require_plain(base)
    layer = base.layer(index)
    known = (*NORMS, *QKV, *OUT, *GATE_UP, *DOWN)
    named = {name.replace(".base_layer.", ".") for name, _ in layer.named_parameters() if ".lora_" not in name}
    strange = sorted(name for name in named if name.rpartition(".")[0] not in known)
    if strange or {name.rpartition(".")[0] for name in named} != set(known):
        raise Unfit(f"a {type(layer).__name__} has other weights ({', '.join(strange[:3]) or 'or fewer'})")
    attention: Any = layer.get_submodule("self_attn")
    size = int(attention.head_dim)
    qkv, out, gate_up, down = (_side(base, index, names, dtype) for names in (QKV, OUT, GATE_UP, DOWN))
    return LayerWeights(
        before_attention=Norm.of(layer.get_submodule(NORMS[0])),
        qkv=qkv,
        out=out,
        before_mlp=Norm.of(layer.get_submodule(NORMS[1])),
        gate_up=gate_up,
        down=down,
        heads=qkv.sizes[0] // size,
        groups=qkv.sizes[1] // size,
        size=size,
        scaling=float(attention.scaling),
    )


def narrow_head(base: Base) -> tuple[Narrow, Narrow]:
    """The head, and the embedding by rows of it; in bfloat16, with inputs and products in fp32, so that little is lost.

    They are one if the base ties them.
    """
    head, embedding = base.head, base.embedding
    weight: Any = embedding.weight
    narrow = Narrow(head.weight, head.bias, torch.bfloat16)
    tied = head.weight is weight
    return narrow, narrow if tied else Narrow(weight, None, torch.bfloat16)


def packed_head(base: Base) -> Packed:
    """The head, in fp32: a logit of 20 that is rounded to bfloat16 is wrong by up to .06, and so is the log-prob."""
    found = _once(base, "head", [base.head], torch.float32)
    assert isinstance(found, Packed)
    return found


def _side(base: Base, index: int, names: tuple[str, ...], dtype: torch.dtype) -> Side:
    # PEFT may have wrapped a linear.
    wrapped: list[Any] = [base.layer(index).get_submodule(name) for name in names]
    linears = [getattr(each, "base_layer", each) for each in wrapped]
    if not all(type(each) is torch.nn.Linear for each in linears):
        raise Unfit(f"{', '.join(names)} are not all plain linears")
    sizes = tuple(each.out_features for each in linears)
    return Side(names, sizes, _once(base, f"{index} {names}", linears, dtype))


def _once(base: Base, place: str, linears: Sequence[torch.nn.Linear], dtype: torch.dtype) -> Packed | Narrow:
    """Linears side by side, packed; the same copy as long as anybody has it."""
    found = base.packs.get((place, dtype))
    if found is None:
        bias = None
        if any(each.bias is not None for each in linears):
            none = [each.weight.new_zeros(each.out_features) for each in linears]
            bias = torch.cat([n if each.bias is None else each.bias for each, n in zip(linears, none, strict=True)])
        weight = torch.cat([each.weight for each in linears]) if len(linears) > 1 else linears[0].weight
        found = Narrow(weight, bias) if dtype == torch.int8 else Packed(weight, bias, dtype)
        base.packs[place, dtype] = found
    return found
