"""Prompts: keys, values and trunk activations of their tokens, computed in chunks.

In: token ids. Out: a Prefix, which rows of a lane and scored options begin from. Chunks of several prompts are one
pass; what they attend to is computed prompt by prompt, in shapes that follow from the prompt alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from plaudit.engine.attention import PLAIN, Beyond, attend_to, causal_bias
from plaudit.engine.runner import Runner


@dataclass(slots=True)
class Prefix:
    """Keys and values of a prompt's tokens: per layer (Hk, T, D); and its trunk activations (T, H)."""

    keys: list[torch.Tensor] = field(default_factory=list)
    values: list[torch.Tensor] = field(default_factory=list)
    hidden: torch.Tensor | None = None
    length: int = 0

    def copy(self) -> Prefix:
        """A prefix that grows by itself; tensors are shared, for they are never written again."""
        return Prefix(list(self.keys), list(self.values), self.hidden, self.length)

    def append(self, key: torch.Tensor, value: torch.Tensor, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Take keys and values (T, Hk, D) of a chunk at a layer; what is there then."""
        for stored, fresh in ((self.keys, key), (self.values, value)):
            heads = fresh.transpose(0, 1)
            if layer == len(stored):
                # A copy, for the chunk's own is a view of everything that its pass computed.
                stored.append(heads.contiguous() if len(heads) > 1 else heads.clone())
            else:
                stored[layer] = torch.cat([stored[layer], heads], dim=1)
        return self.keys[layer], self.values[layer]


@dataclass(frozen=True, slots=True)
class Chunk:
    """The next tokens of a prompt, on the adapter of a slot."""

    prefix: Prefix
    tokens: Sequence[int]
    slot: int


class _Chunks:
    """Keys and values of chunks that lie one after another in a pass."""

    def __init__(self, chunks: Sequence[Chunk], device: torch.device, dtype: torch.dtype) -> None:
        self._chunks, self._device, self._dtype = chunks, device, dtype
        self._biases: dict[int | None, list[torch.Tensor]] = {}

    def attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        layer: int,
        scaling: float,
        beyond: Beyond | None = None,
    ) -> torch.Tensor:
        found, at = [], 0
        for chunk, bias in zip(self._chunks, self._within((beyond or PLAIN).window), strict=True):
            own = slice(at, at := at + len(chunk.tokens))
            keys, values = chunk.prefix.append(key[own], value[own], layer)
            found.append(attend_to(query[own], keys, values, bias, scaling, beyond))
        return found[0] if len(found) == 1 else torch.cat(found)

    def _within(self, window: int | None) -> list[torch.Tensor]:
        """The biases of the chunks under a window."""
        if window not in self._biases:
            sizes = [(len(chunk.tokens), chunk.prefix.length + len(chunk.tokens)) for chunk in self._chunks]
            self._biases[window] = [causal_bias(*size, self._device, self._dtype, window) for size in sizes]
        return self._biases[window]


def on_adapter(runner: Runner, known: Prefix, tokens: Sequence[int], slot: int) -> Prefix:
    """The prefix of `tokens` on the adapter of a slot, out of the same on another: shared layers are not run again.

    `known` was computed as one chunk, and so is what comes back: its bits are those of `extend`.
    """
    made = Prefix(known.keys[: runner.shared], known.values[: runner.shared], known.hidden)
    past = _Chunks([Chunk(made, tokens, slot)], runner.device, runner.dtype)
    ids = torch.tensor(tokens, device=runner.device)
    positions = torch.arange(len(tokens), device=runner.device)
    runner.run(ids, positions, past, torch.full_like(ids, slot) if slot else None, known.hidden, finals=False)
    made.length = len(tokens)
    return made


def extend(runner: Runner, chunks: Sequence[Chunk]) -> None:
    """Run chunks of different prompts in one pass; each prefix takes its keys, values and trunk activations."""
    device = runner.device
    tokens = torch.tensor([token for chunk in chunks for token in chunk.tokens], device=device)
    positions = torch.cat(
        [torch.arange(c.prefix.length, c.prefix.length + len(c.tokens), device=device) for c in chunks]
    )
    slots = torch.tensor([c.slot for c in chunks for _ in c.tokens], device=device)
    past = _Chunks(chunks, device, runner.dtype)
    hidden, _ = runner.run(tokens, positions, past, slots if any(c.slot for c in chunks) else None, finals=False)
    at = 0
    for chunk in chunks:
        seen = hidden[at : (at := at + len(chunk.tokens))]
        before = chunk.prefix.hidden
        chunk.prefix.hidden = seen.clone() if before is None else torch.cat([before, seen])
        chunk.prefix.length += len(chunk.tokens)
