"""A layer of the Llama family in the learner's passes: forward and backward written out, on packed weights.

In: a decoder layer with PEFT's adapters on its linears, or without. Out: the same numbers and the same gradients. The
weights take none, so that the way back through a linear is a product with its transposed weights. What is written out
is what autograd does not know: that q, k and v (gate and up) read one input and are one product each way; that an
adapter's low rank is added in place; that norms, rotations and the gate cost less to compute again than to keep. A
layer keeps its input, q, k, v, what attention weighs by, and gate and up.

Letters: N = B T tokens, H features, R ranks of all adapters side by side. RMSNorm: Zhang & Sennrich 2019,
arXiv:1910.07467; LoRA: Hu et al. 2021, arXiv:2106.09685, eq. 3; SwiGLU: Shazeer 2020, arXiv:2002.05202.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch.nn.functional import silu

from plaudit.engine.attention import causal_bias, grouped_attention
from plaudit.engine.base import Base
from plaudit.engine.family import LayerWeights, Norm, Side, Unfit, layer_weights
from plaudit.engine.packed import Packed

Grads = list[torch.Tensor | None]


class Lora(NamedTuple):
    """An adapter of one linear: `down` (r, in), `up` (out, r)."""

    down: torch.Tensor
    up: torch.Tensor
    scale: float


class _Odd(Exception):
    """Something about this pass is not written out here: the layer's own way is taken."""


class LlamaLayer:
    """What a decoder layer's `forward` is replaced by; raises Unfit for a layer of another make."""

    computes_from = True
    """Takes `first`: the token from which on its output is wanted."""

    def __init__(self, base: Base, index: int, dtype: torch.dtype) -> None:
        self._weights = layer_weights(base, index, dtype)
        if base.angles(torch.zeros(1, dtype=torch.long))[0].shape[-1] != self._weights.size:
            raise Unfit("only a part of a head is turned")
        layer = base.layer(index)
        self._layer, self._plain, self._index = layer, layer.forward, index
        self.dtype, self.coarse = dtype, dtype != base.dtype
        self._linears = [_Linear(layer, side, dtype) for side in self._weights.sides]

    def __call__(
        self,
        hidden: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_embeddings: tuple[torch.Tensor, torch.Tensor] | None = None,
        past_key_values: Any = None,
        first: int = 0,
        **options: Any,
    ) -> torch.Tensor:
        """Hidden states (B, T, H) of those that enter; see Base.run_layers."""
        try:
            if position_embeddings is None or hidden.dtype != torch.float32 or options.get("use_cache"):
                raise _Odd
            loras = [linear.loras() for linear in self._linears]
        except _Odd:
            plain: torch.Tensor = self._plain(
                hidden,
                attention_mask=attention_mask,
                position_embeddings=position_embeddings,
                past_key_values=past_key_values,
                **options,
            )
            return plain[:, first:]
        qkv, *others = self._linears
        cos, sin = position_embeddings
        query, key, value = _Before.apply(hidden, cos, sin, self._weights, qkv, loras[0], *_flat(loras[0]))  # type: ignore[no-untyped-call]
        if first:
            hidden, query = hidden[:, first:], query[:, :, first:]
        scaling = self._weights.scaling
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self._index)
            mixed, _ = grouped_attention(None, query, key, value, attention_mask, scaling)
        else:
            length, keys = query.shape[2], key.shape[2]
            bias = attention_mask
            if bias is None:
                bias = causal_bias(length, keys, query.device, query.dtype)[None, None]
            mixed = _Attention.apply(query, key, value, bias[:, :, bias.shape[2] - length :], scaling)  # type: ignore[no-untyped-call]
        after: torch.Tensor = _After.apply(  # type: ignore[no-untyped-call]
            hidden, mixed.flatten(2), self._weights.before_mlp, others, loras[1:], *_flat(*loras[1:])
        )
        return after


class _Linear:
    """Linears side by side, with the way back to their input, which is packed when first needed."""

    def __init__(self, layer: torch.nn.Module, side: Side, dtype: torch.dtype) -> None:
        self._layer, self._side, self._dtype = layer, side, dtype
        self._back: Packed | None = None

    def loras(self) -> list[Lora | None]:
        """The adapter in force of each linear; raises _Odd."""
        return [_lora(self._layer.get_submodule(name)) for name in self._side.names]

    def forth(
        self, rows: torch.Tensor, loras: Sequence[Lora | None], added: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The product (N, out) with rows (N, in), `added` (N, out) to it; and rows by the adapters' downs (N, R)."""
        product = self._side.packed(rows) if added is None else self._side.packed.add(rows, added)
        if not any(loras):
            return product, None
        low = rows @ _downs(loras).T
        for (begin, end), (at, until), lora in self._parts(loras):
            product[:, begin:end].addmm_(low[:, at:until], lora.up.T, alpha=lora.scale)
        return product, low

    def back(
        self,
        gradient: torch.Tensor,
        rows: torch.Tensor,
        low: torch.Tensor | None,
        loras: Sequence[Lora | None],
        to_inputs: bool = True,
    ) -> tuple[torch.Tensor | None, Grads]:
        """Gradients of the rows (N, in), None unless wanted, and of the adapters' weights, as `_flat` has them."""
        found: torch.Tensor | None = None
        if to_inputs:
            if self._back is None:
                self._back = Packed(self._transposed(), dtype=self._dtype)
            found = self._back(gradient)
        if low is None:
            return found, [None] * (2 * len(loras))
        # Transposed, the few rows stand first: several times as quick as the few columns last.
        backs, ups = [], []
        for (begin, end), (at, until), lora in self._parts(loras):
            own = gradient[:, begin:end]
            backs.append((lora.up.T @ own.T).mul_(lora.scale))  # (r, N)
            ups.append((low[:, at:until].T @ own).mul_(lora.scale).T)
        back = torch.cat(backs) if len(backs) > 1 else backs[0]  # (R, N)
        if found is not None:
            found.addmm_(back.T, _downs(loras))
        of_downs = back @ rows
        grads: Grads = []
        parts = iter(zip(self._parts(loras), ups, strict=True))
        for one in loras:
            if one is None:
                grads += [None, None]
            else:
                (_, (at, until), _), up = next(parts)
                grads += [of_downs[at:until], up]
        return found, grads

    def _parts(self, loras: Sequence[Lora | None]) -> Iterator[tuple[tuple[int, int], tuple[int, int], Lora]]:
        """Of each adapter: its linear's outputs, its ranks among all, itself."""
        at = 0
        for span, lora in zip(self._side.spans, loras, strict=True):
            if lora is not None:
                yield span, (at, at + len(lora.down)), lora
                at += len(lora.down)

    def _transposed(self) -> torch.Tensor:
        modules: list[Any] = [self._layer.get_submodule(name) for name in self._side.names]
        return torch.cat([getattr(each, "base_layer", each).weight.detach() for each in modules]).T


def _downs(loras: Sequence[Lora | None]) -> torch.Tensor:
    several = [each.down for each in loras if each is not None]
    return several[0] if len(several) == 1 else torch.cat(several)


def _flat(*sides: Sequence[Lora | None]) -> list[torch.Tensor | None]:
    """Weights of adapters for autograd: `down` and `up` of each linear in turn."""
    return [each for loras in sides for lora in loras for each in ((None, None) if lora is None else lora[:2])]


def _lora(module: Any) -> Lora | None:
    from peft.tuners.lora import LoraLayer  # here alone: a process that serves has no need of it

    hooked = module._forward_hooks or module._forward_pre_hooks
    if not isinstance(module, LoraLayer):
        if hooked:
            raise _Odd
        return None
    base = module.base_layer
    if hooked or base._forward_hooks or base._forward_pre_hooks or module.merged:
        raise _Odd
    if module.disable_adapters:
        return None
    names = [name for name in module.active_adapters if name in module.lora_A]
    if len(names) > 1:
        raise _Odd
    if not names:
        return None
    (name,) = names
    return Lora(module.lora_A[name].weight, module.lora_B[name].weight, module.scaling[name])


class _Before(torch.autograd.Function):
    """Norm, q, k and v, and their rotation: queries (B, Hq, T, D), keys and values (B, Hk, T, D)."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        cos: torch.Tensor,
        sin: torch.Tensor,
        weights: LayerWeights,
        linear: _Linear,
        loras: Sequence[Lora | None],
        *_: torch.Tensor | None,
    ) -> tuple[torch.Tensor, ...]:
        rows = hidden.flatten(0, 1)
        normed, inverse = _normed(weights.before_attention, rows)
        product, low = linear.forth(normed, loras)
        heads = product.view(*hidden.shape[:2], -1, weights.size)  # (B, T, Hq + 2 Hk, D)
        angles = cos[:, :, None], sin[:, :, None]
        query, key, value = torch.split(heads, [weights.heads, weights.groups, weights.groups], dim=2)
        ctx.save_for_backward(rows, inverse, *angles, low)
        ctx.weights, ctx.linear, ctx.loras = weights, linear, loras
        return _turned(query, *angles), _turned(key, *angles), value.transpose(1, 2).contiguous()

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[Any, ...]:
        rows, inverse, cos, sin, low = ctx.saved_tensors
        weights = ctx.weights
        batch, _, length, size = gradients[1].shape
        both = weights.heads + weights.groups
        whole = rows.new_empty(batch, length, both + weights.groups, size)
        _turn_back(gradients[0], cos, sin, whole[:, :, : weights.heads])
        _turn_back(gradients[1], cos, sin, whole[:, :, weights.heads : both])
        whole[:, :, both:] = gradients[2].transpose(1, 2)
        normed = rows * inverse * weights.before_attention.weight
        wanted = ctx.needs_input_grad[0]
        back, grads = ctx.linear.back(whole.view(len(rows), -1), normed, low, ctx.loras, wanted)
        if wanted:
            back = _norm_back(weights.before_attention, back, rows, inverse).view(batch, length, -1)
        return back, None, None, None, None, None, *grads


class _Attention(torch.autograd.Function):
    """As `grouped_attention` with a bias (B or 1, 1, T, L): (B, T, Hq, D)."""

    @staticmethod
    def forward(
        ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, bias: torch.Tensor, scaling: float
    ) -> torch.Tensor:
        batch, heads, length, size = query.shape
        groups, keys = key.shape[1:3]
        several = query.reshape(batch * groups, -1, size)  # (B Hk, G T, D)
        key, value = key.reshape(-1, keys, size), value.reshape(-1, keys, size)
        scores = several.new_empty(batch * groups, several.shape[1], keys)
        torch.baddbmm(scores, several, key.transpose(1, 2), beta=0, alpha=scaling, out=scores)
        scores.view(batch, heads, length, keys).add_(bias)
        weights = torch.softmax(scores, dim=-1)
        ctx.save_for_backward(several, key, value, weights)
        ctx.shape, ctx.scaling = query.shape, scaling
        return (weights @ value).view(batch, heads, length, size).transpose(1, 2).contiguous()

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        query, key, value, weights = ctx.saved_tensors
        batch, size = ctx.shape[0], ctx.shape[3]
        own = gradients[0].transpose(1, 2).reshape(query.shape)
        of_value = weights.transpose(1, 2) @ own
        of_scores = torch._softmax_backward_data(own @ value.transpose(1, 2), weights, -1, torch.float32)
        of_scores.mul_(ctx.scaling)
        of_query, of_key = of_scores @ key, of_scores.transpose(1, 2) @ query
        shape = (batch, -1, key.shape[1], size)
        return of_query.view(ctx.shape), of_key.view(shape), of_value.view(shape), None, None


class _After(torch.autograd.Function):
    """The output of attention, added to what entered the layer, and the gated MLP behind it: (B, T, H)."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        mixed: torch.Tensor,
        norm: Norm,
        linears: Sequence[_Linear],
        loras: Sequence[Sequence[Lora | None]],
        *_: torch.Tensor | None,
    ) -> torch.Tensor:
        out, gate_up, down = linears
        heads = mixed.flatten(0, 1)
        middle, low_out = out.forth(heads, loras[0], hidden.flatten(0, 1))
        normed, inverse = _normed(norm, middle)
        both, low_both = gate_up.forth(normed, loras[1])
        gate, up = both.chunk(2, dim=-1)
        product, low_down = down.forth(silu(gate).mul_(up), loras[2], middle)
        ctx.save_for_backward(heads, middle, inverse, both, low_out, low_both, low_down)
        ctx.norm, ctx.linears, ctx.loras, ctx.shapes = norm, linears, loras, (hidden.shape, mixed.shape)
        return product.view(hidden.shape)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[Any, ...]:
        heads, middle, inverse, both, low_out, low_both, low_down = ctx.saved_tensors
        out, gate_up, down = ctx.linears
        gradient = gradients[0].flatten(0, 1)
        if not gradient.is_contiguous():
            gradient = gradient.contiguous()
        gate, up = both.chunk(2, dim=-1)
        opened = silu(gate)
        of_gated, of_down = down.back(gradient, opened * up, low_down, ctx.loras[2])
        of_both = torch.empty_like(both)
        of_gate, of_up = of_both.chunk(2, dim=-1)
        torch.mul(of_gated, opened, out=of_up)
        torch.ops.aten.silu_backward.grad_input(of_gated.mul_(up), gate, grad_input=of_gate)
        normed = middle * inverse * ctx.norm.weight
        of_normed, of_gate_up = gate_up.back(of_both, normed, low_both, ctx.loras[1])
        of_middle = _norm_back(ctx.norm, of_normed, middle, inverse).add_(gradient)
        of_heads, of_out = out.back(of_middle, heads, low_out, ctx.loras[0])
        entered, mixed = ctx.shapes
        return of_middle.view(entered), of_heads.view(mixed), None, None, None, *of_out, *of_gate_up, *of_down


def _normed(norm: Norm, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows (N, H) over their root mean square, and one over that (N, 1)."""
    inverse = rows.square().mean(-1, keepdim=True).add_(norm.epsilon).rsqrt_()
    return (rows * inverse).mul_(norm.weight), inverse


def _norm_back(norm: Norm, gradient: torch.Tensor, rows: torch.Tensor, inverse: torch.Tensor) -> torch.Tensor:
    """The gradient of the rows; that of the normed rows is written over."""
    own, even = gradient.mul_(norm.weight), rows * inverse
    along = (own * even).mean(-1, keepdim=True)
    return own.sub_(even.mul_(along)).mul_(inverse)


def _turned(heads: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Heads (B, T, h, D) turned by their places' angles (B or 1, T, 1, D), as (B, h, T, D)."""
    batch, length, count, size = heads.shape
    found = heads.new_empty(batch, count, length, size)
    _turn(heads, cos, sin, found.transpose(1, 2), 1.0)
    return found


def _turn_back(gradient: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, out: torch.Tensor) -> None:
    """Into `out` (B, T, h, D) the gradient of heads, of what they were turned to (B, h, T, D)."""
    _turn(gradient.transpose(1, 2), cos, sin, out, -1.0)


def _turn(heads: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, out: torch.Tensor, way: float) -> None:
    half = heads.shape[-1] // 2
    torch.mul(heads, cos, out=out)
    # Backward the halves of the sines change places, too; they are not the same in every scheme of positions.
    low, high = (sin[..., :half], sin[..., half:]) if way > 0 else (sin[..., half:], sin[..., :half])
    out[..., :half].addcmul_(heads[..., half:], low, value=-way)
    out[..., half:].addcmul_(heads[..., :half], high, value=way)
