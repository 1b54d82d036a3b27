"""Prompts: keys, values and trunk activations of their tokens, computed in chunks.

In: a base, token ids. Out: a Prefix, which rows of a lane and scored options begin from. A chunk always has the same
shape for the same prompt, so that a prompt's bits do not depend on the prompts beside it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from plaudit.engine.bank import AdapterBank
from plaudit.engine.base import Base, causal_bias

# A pass over several prompts reads a multiple of so many positions.
SPAN = 32


@dataclass(slots=True)
class Prefix:
    """Keys and values of a prompt's tokens: per layer (1, Hk, T, D); and its trunk activations (T, H)."""

    keys: list[torch.Tensor] = field(default_factory=list)
    values: list[torch.Tensor] = field(default_factory=list)
    hidden: torch.Tensor | None = None
    length: int = 0

    def copy(self) -> Prefix:
        """A prefix that grows by itself; tensors are shared, for they are never written again."""
        return Prefix(list(self.keys), list(self.values), self.hidden, self.length)

    def update(self, key: torch.Tensor, value: torch.Tensor, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Append keys and values of a chunk (the layers call this)."""
        if layer == len(self.keys):
            self.keys.append(key)
            self.values.append(value)
        else:
            self.keys[layer] = torch.cat([self.keys[layer], key], dim=2)
            self.values[layer] = torch.cat([self.values[layer], value], dim=2)
        return self.keys[layer], self.values[layer]


def extend(base: Base, bank: AdapterBank, prefix: Prefix, tokens: list[int], slot: int, capture_layer: int) -> None:
    """Run a chunk of prompt tokens after `prefix`, which takes its keys, values and trunk activations."""
    ids = torch.tensor([tokens], device=base.device)
    positions = torch.arange(prefix.length, prefix.length + len(tokens), device=base.device)[None]
    mask = causal_bias(len(tokens), prefix.length + len(tokens), base.device, base.dtype)
    bank.use(torch.tensor([slot], device=base.device) if slot else None)
    hidden = base.run_layers(base.embed(ids), 0, capture_layer, positions=positions, mask=mask, past=prefix)
    base.run_layers(hidden, capture_layer, base.num_layers, positions=positions, mask=mask, past=prefix)
    bank.use(None)
    prefix.hidden = hidden[0] if prefix.hidden is None else torch.cat([prefix.hidden, hidden[0]])
    prefix.length += len(tokens)


class _Together:
    """Chunks of several prompts in one batch, each behind keys and values of its own; rows without a prompt idle."""

    def __init__(self, prefixes: Sequence[Prefix], width: int, chunk: int) -> None:
        self._prefixes, self._width = prefixes, width
        longest = max(prefix.length for prefix in prefixes) + chunk
        self.span = math.ceil(longest / SPAN) * SPAN
        lengths = [prefix.length for prefix in prefixes] + [0] * (width - len(prefixes))
        self.positions = torch.tensor(lengths)[:, None] + torch.arange(chunk)[None]  # (W, chunk)
        self._rows = torch.arange(width)[:, None]

    def update(self, key: torch.Tensor, value: torch.Tensor, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        found = []
        for name, fresh in (("keys", key), ("values", value)):
            whole = fresh.new_zeros(self._width, fresh.shape[1], self.span, fresh.shape[3])
            for row, prefix in enumerate(self._prefixes):
                if prefix.length:
                    whole[row, :, : prefix.length] = getattr(prefix, name)[layer][0]
            whole[self._rows, :, self.positions] = fresh.transpose(1, 2)
            for row, prefix in enumerate(self._prefixes):
                stored = getattr(prefix, name)
                upto = whole[row : row + 1, :, : int(self.positions[row, -1]) + 1].clone()
                if layer == len(stored):
                    stored.append(upto)
                else:
                    stored[layer] = upto
            found.append(whole)
        return found[0], found[1]


def extend_together(
    base: Base,
    bank: AdapterBank,
    prefixes: Sequence[Prefix],
    chunks: Sequence[Sequence[int]],
    slots: Sequence[int],
    *,
    width: int,
    chunk: int,
    capture_layer: int,
) -> None:
    """As `extend`, for up to `width` prompts in one pass of `width` rows of `chunk` tokens, whatever there is to do.

    The shape is always the same, so that a prompt's bits do not depend on the prompts beside it.
    """
    idle = width - len(prefixes)
    ids = torch.tensor([[*tokens, *[0] * (chunk - len(tokens))] for tokens in chunks] + [[0] * chunk] * idle)
    past = _Together(prefixes, width, chunk)
    positions = past.positions.to(base.device)
    mask = torch.zeros(width, chunk, past.span, device=base.device, dtype=base.dtype)
    mask.masked_fill_(torch.arange(past.span, device=base.device)[None, None] > positions[:, :, None], -math.inf)
    mask = mask[:, None]
    bank.use(torch.tensor([*slots, *[0] * idle], device=base.device) if any(slots) else None)
    embedded = base.embed(ids.to(base.device))
    hidden = base.run_layers(embedded, 0, capture_layer, positions=positions, mask=mask, past=past)
    base.run_layers(hidden, capture_layer, base.num_layers, positions=positions, mask=mask, past=past)
    bank.use(None)
    for row, (prefix, tokens) in enumerate(zip(prefixes, chunks, strict=True)):
        length = prefix.length + len(tokens)
        # Behind the chunk's last token stand keys and values of its padding.
        prefix.keys = [key[:, :, :length] for key in prefix.keys]
        prefix.values = [value[:, :, :length] for value in prefix.values]
        seen = hidden[row, : len(tokens)]
        prefix.hidden = seen if prefix.hidden is None else torch.cat([prefix.hidden, seen])
        prefix.length = length
