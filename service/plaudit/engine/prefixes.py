"""Prompts: keys, values and trunk activations of their tokens, computed in chunks.

In: token ids. Out: a Prefix, which rows of a lane and scored options begin from. Chunks of several prompts are one
pass; what they attend to is computed prompt by prompt, in shapes that follow from the prompt alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

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
        self._chunks = chunks
        self._biases = [
            causal_bias(len(chunk.tokens), chunk.prefix.length + len(chunk.tokens), device, dtype) for chunk in chunks
        ]

    def attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, layer: int, scaling: float
    ) -> torch.Tensor:
        found, at = [], 0
        for chunk, bias in zip(self._chunks, self._biases, strict=True):
            own = slice(at, at := at + len(chunk.tokens))
            keys, values = chunk.prefix.append(key[own], value[own], layer)
            found.append(attend_to(query[own], keys, values, bias, scaling))
        return found[0] if len(found) == 1 else torch.cat(found)


def attend_to(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, bias: torch.Tensor, scaling: float
) -> torch.Tensor:
    """Attention (T, Hq, Dv) of queries (T, Hq, D) to keys (Hk, L, D) and values (Hk, L, Dv); bias (T, L) is added."""
    mixed = torch.nn.functional.scaled_dot_product_attention(
        query.transpose(0, 1)[None], keys[None], values[None], attn_mask=bias, scale=scaling, enable_gqa=True
    )
    return mixed[0].transpose(0, 1)


def causal_bias(length: int, keys: int, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    """0 where query t may see key l (l <= keys - length + t), -inf elsewhere: (T, L)."""
    query_at = torch.arange(keys - length, keys, device=device)[:, None]
    unseen = torch.arange(keys, device=device)[None] > query_at
    return torch.zeros(length, keys, device=device, dtype=dtype).masked_fill_(unseen, -math.inf)


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
