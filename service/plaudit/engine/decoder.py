"""A model's layers, run one by one or from one to another: two ways, of which a base takes the first that is right.

In: a model of transformers. Out: what enters the first layer, what leaves any layer, and what the head gets.
`Stacked` calls layers itself, which is all that the Llama family needs. `Whole` lets the model's own forward pass go
through and steps in at its layers: whatever the family does around them (positions that are learnt, angles for each
kind of layer, norms and projections behind the last one) is then done by its own code.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from transformers import Cache, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from plaudit.errors import Misconfigured

LLAMA_FAMILY = "use a base of the Llama family (Llama, Mistral, Qwen, SmolLM, ...)"


class Decoder(Protocol):
    """Layers in order, what stands before them, and what stands behind."""

    layers: torch.nn.ModuleList
    path: str
    """Where the layers are in the model, as "model.layers"."""
    forward: Any
    """The model's own pass through all of it."""

    def embed(self, tokens: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """What enters the first layer, (B, T, H), of token ids (B, T) at positions (B or 1, T)."""

    def run(
        self,
        hidden: torch.Tensor,
        start: int,
        stop: int,
        *,
        positions: torch.Tensor,
        mask: torch.Tensor | None,
        past: Any,
        first: int,
    ) -> torch.Tensor:
        """As Base.run_layers."""

    def norm(self, hidden: torch.Tensor) -> torch.Tensor:
        """What the head gets, (..., H), of what leaves the last layer (..., H)."""


class Stacked:
    """embed_tokens, rotary_emb, layers and norm, called one after another; raises Misconfigured for other models."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.parts: Any = getattr(model, "model", None)
        self.forward: Any = self.parts
        if not all(hasattr(self.parts, part) for part in ("layers", "norm", "rotary_emb", "embed_tokens")):
            raise Misconfigured(
                f"{type(model).__name__} is not built as embed_tokens, rotary_emb, layers and norm; {LLAMA_FAMILY}",
                setting="model.path",
            )
        self.path = "model.layers"

    @property
    def layers(self) -> torch.nn.ModuleList:
        """As Decoder.layers."""
        layers: torch.nn.ModuleList = self.parts.layers
        return layers

    def embed(self, tokens: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """As Decoder.embed."""
        embedded: torch.Tensor = self.parts.embed_tokens(tokens)
        return embedded

    def angles(self, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosines and sines (T, D) by which positions (T,) turn queries and keys."""
        probe = self.parts.embed_tokens.weight[:1]
        cos, sin = self.parts.rotary_emb(probe[None], position_ids=positions[None].to(probe.device))
        return cos[0], sin[0]

    def run(
        self,
        hidden: torch.Tensor,
        start: int,
        stop: int,
        *,
        positions: torch.Tensor,
        mask: torch.Tensor | None,
        past: Any,
        first: int,
    ) -> torch.Tensor:
        """As Decoder.run."""
        angles = self.parts.rotary_emb(hidden, position_ids=positions)
        more: dict[str, int] = {}
        for index in range(start, stop):
            layer = self.layers[index]
            if first and index == stop - 1 and hasattr(vars(layer).get("forward"), "computes_from"):
                # Tokens before it are still seen, and that is all that is left to do for them.
                more = {"first": first}
            hidden = layer(
                hidden,
                attention_mask=mask,
                position_ids=positions,
                past_key_values=past,
                position_embeddings=angles,
                **more,
            )
        return hidden[:, first:] if first and not more else hidden

    def norm(self, hidden: torch.Tensor) -> torch.Tensor:
        """As Decoder.norm."""
        normed: torch.Tensor = self.parts.norm(hidden)
        return normed


@dataclass(frozen=True, slots=True)
class _Pass:
    """Layers start..stop-1 are run on `hidden`, those before and behind are not; all are, from the text, if None."""

    start: int = 0
    stop: int | None = None
    hidden: torch.Tensor | None = None
    norm: bool = False
    """No layer is run, and `hidden` is what leaves the last one."""


class _Reached(BaseException):
    """Ends a forward pass at the layer up to which it was wanted."""

    def __init__(self, hidden: torch.Tensor) -> None:
        super().__init__()
        self.hidden = hidden


class _Asked(threading.local):
    """What this thread wants of the model's forward pass."""

    step: _Pass | None = None
    only: frozenset[int] | None = None


class Whole:
    """The model's own forward pass, begun and ended at any layer; raises Misconfigured if its layers are not found."""

    def __init__(self, model: PreTrainedModel) -> None:
        count = getattr(model.config, "num_hidden_layers", 0)
        self.path, self.layers = _stack(model, count)
        _plain_linears(model, self.layers)
        self.forward: Any = model.get_submodule(self.path.rpartition(".")[0])
        self._asked = _Asked()
        for index, layer in enumerate(self.layers):
            layer.forward = _Gate(layer.forward, index, count, self._asked)
        # The ids that stand in for tokens of which the activations are known; padding would be warned of.
        self._idle = int(model.config.pad_token_id == 0)

    def embed(self, tokens: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """As Decoder.embed."""
        return self._through(_Pass(stop=0), tokens, positions, None, None)

    def run(
        self,
        hidden: torch.Tensor,
        start: int,
        stop: int,
        *,
        positions: torch.Tensor,
        mask: torch.Tensor | None,
        past: Any,
        first: int,
    ) -> torch.Tensor:
        """As Decoder.run."""
        if start < stop:
            tokens = self._stand_ins(hidden)
            hidden = self._through(_Pass(start, stop, hidden), tokens, positions, mask, past)
        return hidden[:, first:] if first else hidden

    def norm(self, hidden: torch.Tensor) -> torch.Tensor:
        """As Decoder.norm."""
        flat = hidden.reshape(1, -1, hidden.shape[-1])
        # Nothing behind the layers depends on where a token stands, so that one place will do for all.
        positions = torch.zeros(1, flat.shape[1], dtype=torch.long, device=flat.device)
        mask = flat.new_zeros(1, 1, 1, 1)
        normed = self._through(_Pass(hidden=flat, norm=True), self._stand_ins(flat), positions, mask, None)
        return normed.reshape(*hidden.shape[:-1], normed.shape[-1])

    @contextlib.contextmanager
    def only(self, indices: frozenset[int]) -> Iterator[None]:
        """For a block, this thread's passes leave out all other layers."""
        self._asked.only = indices
        try:
            yield
        finally:
            self._asked.only = None

    def _stand_ins(self, hidden: torch.Tensor) -> torch.Tensor:
        return torch.full(hidden.shape[:2], self._idle, dtype=torch.long, device=hidden.device)

    def _through(
        self, step: _Pass, tokens: torch.Tensor, positions: torch.Tensor, mask: torch.Tensor | None, past: Any
    ) -> torch.Tensor:
        self._asked.step = step
        try:
            found: torch.Tensor = self.forward(
                input_ids=tokens,
                attention_mask=mask,
                position_ids=positions.expand(len(tokens), -1),
                past_key_values=None if past is None else _AsCache(past),
                use_cache=False,
            ).last_hidden_state
            return found
        except _Reached as reached:
            return reached.hidden
        finally:
            self._asked.step = None


def _stack(model: PreTrainedModel, count: int) -> tuple[str, torch.nn.ModuleList]:
    """Place and list of the model's layers; a list comes before the lists that its members have."""
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.ModuleList) and len(module) == count:
            return name, module
    raise Misconfigured(f"{type(model).__name__} has no list of {count} layers; {LLAMA_FAMILY}", setting="model.path")


class _Gate:
    """What a layer's `forward` is replaced by: the layer itself, what a pass brings, or nothing."""

    def __init__(self, forward: Callable[..., Any], index: int, count: int, asked: _Asked) -> None:
        self._forward, self._index, self._count, self._asked = forward, index, count, asked

    def __call__(self, hidden: torch.Tensor, *args: Any, **options: Any) -> Any:
        step, only, index = self._asked.step, self._asked.only, self._index
        if step is None:
            return hidden if only is not None and index not in only else self._forward(hidden, *args, **options)
        if step.norm:
            return step.hidden if index == self._count - 1 else hidden
        if step.stop == index:
            raise _Reached(hidden)
        if index < step.start:
            return hidden
        if index == step.start and step.hidden is not None:
            hidden = step.hidden
        if only is None or index in only:
            hidden = self._forward(hidden, *args, **options)
        if not isinstance(hidden, torch.Tensor):
            raise TypeError(f"a layer gives a {type(hidden).__name__}, not a tensor")
        if index + 1 == step.stop == self._count:
            raise _Reached(hidden)
        return hidden


class _AsCache(Cache):  # type: ignore[misc]
    """Whatever takes keys and values, as a model's forward pass wants to see it."""

    def __init__(self, past: Any) -> None:
        # None of the library's own storage is made, and it finds none.
        self.layers: list[Any] = []
        self._past = past

    def update(self, key: torch.Tensor, value: torch.Tensor, layer: int, *_: Any, **__: Any) -> tuple[Any, Any]:
        """As the engine's own."""
        found: tuple[Any, Any] = self._past.update(key, value, layer)
        return found

    def get_seq_length(self, *_: Any) -> int:
        """Nothing that a model could conclude positions from: each pass brings its own."""
        return 0


def _plain_linears(model: PreTrainedModel, layers: torch.nn.ModuleList) -> None:
    """Let linears that are stored the other way round (GPT-2) be linears: for adapters, and for packed weights."""
    for layer in layers:
        for name, module in list(layer.named_modules()):
            if isinstance(module, Conv1D):
                inputs, outputs = module.weight.shape
                linear = torch.nn.Linear(inputs, outputs, device="meta")
                linear.weight = torch.nn.Parameter(module.weight.detach().T.contiguous(), requires_grad=False)
                linear.bias = torch.nn.Parameter(module.bias.detach(), requires_grad=False)
                layer.set_submodule(name, linear)


@dataclass(frozen=True, slots=True)
class AfterHead:
    """What a family does to the product of its head: scale it, and keep it below a cap."""

    scale: float = 1.0
    cap: float | None = None

    @classmethod
    def of_config(cls, config: Any) -> AfterHead:
        """As Cohere (logit_scale), Granite (logits_scaling) and Gemma (final_logit_softcapping) name it."""
        scale = float(getattr(config, "logit_scale", None) or 1.0) / float(getattr(config, "logits_scaling", None) or 1)
        return cls(scale, getattr(config, "final_logit_softcapping", None))

    @property
    def plain(self) -> bool:
        """Whether it is nothing."""
        return self.scale == 1.0 and self.cap is None

    def of(self, product: torch.Tensor) -> torch.Tensor:
        """The logits of the head's product, both (..., V)."""
        scaled = product if self.scale == 1.0 else product * self.scale
        return scaled if self.cap is None else torch.tanh(scaled / self.cap) * self.cap

    def slope(self, product: torch.Tensor) -> torch.Tensor:
        """The derivative of the logits by the product, each by its own, (..., V)."""
        if self.cap is None:
            return torch.full_like(product, self.scale)
        return self.scale * (1 - torch.tanh(product * self.scale / self.cap).square())


def stacked_or_whole(model: PreTrainedModel) -> Stacked | Whole:
    """The first of the two ways that the model's parts allow; whether it is right is for `fidelity` to see."""
    try:
        return Stacked(model)
    except Misconfigured:
        return Whole(model)
