"""A pass over tokens, whichever they are: the next token of every row of a lane, chunks of prompts, options.

In: token ids and positions of a flat batch, and what keeps their keys and values. Out: trunk activations and final
hidden states. A pass knows nothing of rows and prompts; what a token sees is decided by its `Past`. Two runners give
the same numbers: `Modules` takes the model's own layers and serves every family, `fused.Fused` computes those of the
Llama family on packed weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch

from plaudit.engine import kernels
from plaudit.engine.attention import Beyond
from plaudit.engine.bank import AdapterBank
from plaudit.engine.base import Base


class Past(Protocol):
    """Keys and values of what went before the tokens of a pass."""

    def attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        layer: int,
        scaling: float,
        beyond: Beyond | None = None,
    ) -> torch.Tensor:
        """Take keys (N, Hk, D) and values (N, Hk, Dv) of the pass; attention (N, Hq, Dv) of its queries (N, Hq, D)."""


@dataclass(frozen=True, slots=True)
class Places:
    """Where keys and values lie: of `rows` (R,) of a pass, at `places` (R,) of an array (P, Hk, C, D) per layer."""

    rows: np.ndarray[Any, Any]
    places: np.ndarray[Any, Any]
    keys: Sequence[np.ndarray[Any, Any]]
    values: Sequence[np.ndarray[Any, Any]]


@runtime_checkable
class InPlaces(Past, Protocol):
    """A Past of a pass that has one token of each row, which sees all that went before it."""

    def places(self) -> Sequence[Places]:
        """Where the rows of the pass have their keys and values, for whoever reads and writes them there."""


class Runner(Protocol):
    """Runs the layers of one base."""

    device: torch.device
    dtype: torch.dtype
    format: torch.dtype
    """Of the linears' weights: what log-probs are as exact as."""
    shared: int
    """Layers whose keys, values and output (the trunk activations) are the same for all adapters."""

    @property
    def stands_alone(self) -> bool:
        """Whether a token's bits do not depend on how many tokens are in its pass."""

    @property
    def takes_rows(self) -> bool:
        """Whether the same holds for a step's rows, attention and logits included (InPlaces)."""

    def run(
        self,
        tokens: torch.Tensor,
        positions: torch.Tensor,
        past: Past,
        slots: torch.Tensor | None,
        trunk: torch.Tensor | None = None,
        finals: bool = True,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Trunk activations (N, H) and final hidden states (N, H), normed, of token ids (N,) at positions (N,).

        `slots` (N,) are the adapters' places in the bank, 0 the base; None if no token has one. If `trunk` is given,
        the layers below are not run, and `past` has their keys and values already. Without `finals` nobody reads the
        final hidden states: they may be anything.
        """

    def logits(self, hidden: torch.Tensor, *, step: bool = False) -> torch.Tensor:
        """Logits (N, V) in fp32 of final hidden states (N, H), of a step's rows if `step`; good until the next call."""


def shared_layers(bank: AdapterBank, capture_layer: int) -> int:
    """As Runner.shared: none, if adapters sit below the layer at which activations are taken."""
    return capture_layer if capture_layer <= bank.start else 0


class Modules:
    """The model's own layers, with the bank's adapters hooked to them."""

    stands_alone = False
    takes_rows = False

    def __init__(self, base: Base, bank: AdapterBank, capture_layer: int) -> None:
        bank.hook()
        self._kernels = kernels.load()
        self.shared = shared_layers(bank, capture_layer)
        self.device, self.dtype, self.format = base.device, base.dtype, base.format
        self._base, self._bank, self._capture_layer = base, bank, capture_layer
        # Written anew at each step: from the allocator so large a block comes as fresh pages, which the system has to
        # clear, and on a small model that is a quarter of a step.
        self._logits = torch.zeros(0, base.vocab_size)

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
        base, places = self._base, positions[None]
        seen = Seen(past)
        self._bank.use(None if slots is None else self._bank.mixture(slots, self._kernels))
        if trunk is None:
            hidden = base.run_layers(
                base.embed(tokens[None], places), 0, self._capture_layer, positions=places, past=seen
            )
        else:
            hidden = trunk[None]
        last = base.run_layers(hidden, self._capture_layer, base.num_layers, positions=places, past=seen)
        self._bank.use(None)
        return hidden[0], base.norm(last[0])

    def logits(self, hidden: torch.Tensor, *, step: bool = False) -> torch.Tensor:
        """As Runner.logits."""
        if not self._base.plain_head:
            return self._base.logits(hidden)
        if len(self._logits) < len(hidden):
            self._logits = torch.zeros(len(hidden), self._base.vocab_size)
        return self._base.logits(hidden, self._logits[: len(hidden)])


class Seen:
    """A Past as the model's layers take it (`past` of Base.run_layers): what they get back attends."""

    def __init__(self, past: Past) -> None:
        self._past = past

    def update(self, key: torch.Tensor, value: torch.Tensor, layer: int) -> tuple[Any, Any]:
        """Keys and values (1, Hk, N, D) of a layer, as pieces that attend."""
        pieces = _Pieces(self._past, key, value, layer)
        return pieces, pieces


class _Pieces:
    def __init__(self, past: Past, key: torch.Tensor, value: torch.Tensor, layer: int) -> None:
        self._past, self._key, self._value, self._layer = past, key, value, layer

    def attend(self, query: torch.Tensor, scaling: float | None, beyond: Beyond | None) -> torch.Tensor:
        """Attention (1, N, Hq, Dv) of queries (1, Hq, N, D)."""
        scale = query.shape[3] ** -0.5 if scaling is None else scaling
        queries, keys, values = (each[0].transpose(0, 1) for each in (query, self._key, self._value))
        return self._past.attend(queries, keys, values, self._layer, scale, beyond)[None]
