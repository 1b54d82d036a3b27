"""Lanes: batches of fixed width in which completions decode, each row at a position of its own.

In: a base, rows to place. Out: logits of one decode step. A lane always computes its full width, so that the bits of
a row depend on its own prompt and tokens alone. Keys and values of a row lie in the lane's cache until the row is
freed; the cache grows in blocks as longer rows come and is dropped when the lane is empty and large.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from plaudit.engine.bank import AdapterBank
from plaudit.engine.base import Base, causal_bias

BLOCK = 32
KEEP_CAPACITY = 256
# A pass over one short prompt takes as long as reading the weights; wide lanes compute several at once.
ROWS_A_PROMPT = 16


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


def token_bytes(base: Base) -> int:
    """Bytes that the keys and values of one token take, in all layers."""
    prefix = Prefix()
    ids = torch.zeros(1, 1, dtype=torch.long, device=base.device)
    mask = torch.zeros(1, 1, 1, 1, device=base.device, dtype=base.dtype)
    with torch.no_grad():
        base.run_layers(base.embed(ids), 0, base.num_layers, mask=mask, past=prefix)
    return sum(tensor.nbytes for tensor in (*prefix.keys, *prefix.values))


class _Together:
    """Chunks of several prompts in one batch, each behind keys and values of its own; rows without a prompt idle."""

    def __init__(self, prefixes: Sequence[Prefix], width: int, chunk: int) -> None:
        self._prefixes, self._width = prefixes, width
        longest = max(prefix.length for prefix in prefixes) + chunk
        self.span = math.ceil(longest / BLOCK) * BLOCK
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


class Lane:
    """One batch of fixed width."""

    def __init__(self, base: Base, bank: AdapterBank, width: int, capture_layer: int) -> None:
        self.width = width
        # Prompts that are computed in one pass. It follows from the width, which every reply's record names, so that
        # a replay computes the prompt in the same shape.
        self.prompts = max(1, width // ROWS_A_PROMPT)
        self._base, self._bank, self._capture_layer = base, bank, capture_layer
        self._keys: list[torch.Tensor] = []
        self._values: list[torch.Tensor] = []
        self._capacity = 0
        self._all_rows = torch.arange(width, device=base.device)
        # Written anew at each step: from the allocator so large a block comes as fresh pages, which the system has to
        # clear, and on a small model that is a quarter of a step.
        self._logits = torch.zeros(width, base.vocab_size) if base.plain_head else None
        self._tokens = torch.zeros(width, dtype=torch.long, device=base.device)
        self._positions = torch.zeros(width, dtype=torch.long, device=base.device)
        self._slots = torch.zeros(width, dtype=torch.long, device=base.device)
        self._free = list(range(width - 1, -1, -1))
        self._span = 0

    @property
    def occupied(self) -> int:
        """Rows that decode."""
        return self.width - len(self._free)

    @property
    def free(self) -> int:
        """Rows that wait for work."""
        return len(self._free)

    def place(self, prefix: Prefix, last_token: int, slot: int, most_tokens: int) -> int:
        """Take a row for a prompt whose tokens but the last are in `prefix`; returns the row."""
        row = self._free.pop()
        self._reserve(prefix, prefix.length + most_tokens + 1)
        for layer, (key, value) in enumerate(zip(prefix.keys, prefix.values, strict=True)):
            self._keys[layer][row, :, : prefix.length] = key[0]
            self._values[layer][row, :, : prefix.length] = value[0]
        self._tokens[row] = last_token
        self._positions[row] = prefix.length
        self._slots[row] = slot
        return row

    def _reserve(self, prefix: Prefix, length: int) -> None:
        if length <= self._capacity:
            return
        capacity = math.ceil(length / BLOCK) * BLOCK
        grown: list[list[torch.Tensor]] = []
        for old, like in ((self._keys, prefix.keys), (self._values, prefix.values)):
            new = [
                torch.zeros(self.width, t.shape[1], capacity, t.shape[3], dtype=t.dtype, device=t.device) for t in like
            ]
            for target, source in zip(new, old, strict=False):
                target[:, :, : self._capacity] = source
            grown.append(new)
        self._keys, self._values = grown
        self._capacity = capacity

    def release(self, row: int) -> None:
        """Free a row."""
        self._free.append(row)
        self._tokens[row] = 0
        self._positions[row] = 0
        self._slots[row] = 0
        if not self.occupied and self._capacity > KEEP_CAPACITY:
            self._keys, self._values, self._capacity = [], [], 0

    def step(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Run the next token of every row: logits (W, V), good until the next step, and trunk activations (W, H)."""
        base, bank = self._base, self._bank
        self._span = min(self._capacity, math.ceil((int(self._positions.max()) + 1) / BLOCK) * BLOCK)
        positions = self._positions[:, None]
        seen = torch.arange(self._span, device=base.device)[None, :] <= positions
        mask = torch.zeros(self.width, self._span, device=base.device, dtype=base.dtype)
        mask.masked_fill_(~seen, -math.inf)
        mask = mask[:, None, None]
        bank.use(self._slots if bool(self._slots.any()) else None)
        hidden = base.run_layers(
            base.embed(self._tokens[:, None]), 0, self._capture_layer, positions=positions, mask=mask, past=self
        )
        last = base.run_layers(hidden, self._capture_layer, base.num_layers, positions=positions, mask=mask, past=self)
        bank.use(None)
        return base.logits(base.norm(last[:, 0]), self._logits), hidden[:, 0]

    def update(self, key: torch.Tensor, value: torch.Tensor, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Write keys and values of the running step (the layers call this)."""
        self._keys[layer][self._all_rows, :, self._positions] = key[:, :, 0]
        self._values[layer][self._all_rows, :, self._positions] = value[:, :, 0]
        return self._keys[layer][:, :, : self._span], self._values[layer][:, :, : self._span]

    def advance(self, row: int, token: int) -> None:
        """Let `token` be a row's next input."""
        self._tokens[row] = token
        self._positions[row] += 1
