"""Lanes: batches of fixed width in which completions decode, each row at a position of its own.

In: a base, rows to place. Out: logits of one decode step. A lane always computes its full width, so that the bits of
a row depend on its own prompt and tokens alone. Keys and values lie in blocks of a few rows of about the same length:
a long row makes no short one longer. A block is made when a row needs it and goes when its last row has left.
"""

from __future__ import annotations

import math

import torch

from plaudit.engine.bank import AdapterBank
from plaudit.engine.base import Base, grouped_attention
from plaudit.engine.memory import Budget, Layout
from plaudit.engine.prefixes import SPAN, Prefix

# A block costs its whole size for its first row, and an attention call of its own for each layer and step.
BLOCK_BYTES = 128 * 2**20
# Rows are as long as the least of 128, 256, 512, ... that holds them.
SHORTEST = 128
# Empty blocks up to this length are kept while nothing else needs their memory; short rows come again at once.
KEEP_CAPACITY = 256
# A pass over one short prompt takes as long as reading the weights; wide lanes compute several at once.
ROWS_PER_PROMPT = 16


class Block:
    """Keys and values of some rows of a lane, up to `capacity` tokens each."""

    def __init__(self, layout: Layout, width: int, rows: int, capacity: int) -> None:
        self.capacity = capacity
        self.nbytes = rows * capacity * layout.token_bytes
        self.keys, self.values = layout.zeros(rows, capacity)
        # With as many rows as the lane, each stands at its own place, and nothing has to be picked.
        self.whole = rows == width
        self._of: list[int | None] = [None] * rows
        self._all = torch.arange(rows, device=layout.device)
        self._device = layout.device
        self._settle()

    @property
    def free(self) -> bool:
        """Whether another row fits."""
        return not self.full

    @property
    def full(self) -> bool:
        """Whether every place has a row."""
        return self.targets.numel() == len(self._of)

    @property
    def empty(self) -> bool:
        """Whether no row is left."""
        return not self.targets.numel()

    def take(self, row: int) -> int:
        """Give a place to a row of the lane; returns the place."""
        place = row if self.whole else self._of.index(None)
        self._of[place] = row
        self._settle()
        return place

    def leave(self, place: int) -> None:
        """Free a place."""
        self._of[place] = None
        self._settle()

    def _settle(self) -> None:
        taken = [(place, row) for place, row in enumerate(self._of) if row is not None]
        self.sources = torch.tensor([place for place, _ in taken], dtype=torch.long, device=self._device)
        self.targets = torch.tensor([row for _, row in taken], dtype=torch.long, device=self._device)
        self._taken = torch.tensor([row is not None for row in self._of], device=self._device)
        if not self.whole:
            self._lane_rows = torch.tensor([row or 0 for row in self._of], dtype=torch.long, device=self._device)

    def _own(self, of_lane: torch.Tensor) -> torch.Tensor:
        """What the block's places are of a tensor over the lane's rows; a place without a row has the lane's first."""
        return of_lane if self.whole else of_lane.index_select(0, self._lane_rows)

    def begin_step(self, positions: torch.Tensor, dtype: torch.dtype) -> None:
        """Take the positions (W,) of the lane's rows; places without a row stand at 0, and nobody reads them."""
        own = self._own(positions)
        self._positions = torch.where(self._taken, own, 0)
        self._span = min(self.capacity, math.ceil((int(self._positions.max()) + 1) / SPAN) * SPAN)
        unseen = torch.arange(self._span, device=self._device)[None, :] > self._positions[:, None]
        mask = torch.zeros(unseen.shape, device=self._device, dtype=dtype).masked_fill_(unseen, -math.inf)
        self._mask = mask[:, None, None]

    def write(self, key: torch.Tensor, value: torch.Tensor, layer: int) -> None:
        """Take keys and values (W, heads, 1, size) of the step's tokens."""
        for stored, fresh in ((self.keys, key), (self.values, value)):
            stored[layer][self._all, :, self._positions] = self._own(fresh)[:, :, 0]

    def attend(self, query: torch.Tensor, scaling: float | None, layer: int) -> torch.Tensor:
        """Attention of the block's places (R, 1, heads, size), out of the queries (W, heads, 1, size) of all rows."""
        keys, values = self.keys[layer][:, :, : self._span], self.values[layer][:, :, : self._span]
        return grouped_attention(None, self._own(query), keys, values, self._mask, scaling)[0]


class _Pieces:
    """One layer's keys and values of a running step, in blocks."""

    def __init__(self, blocks: list[Block], layer: int) -> None:
        self._blocks, self._layer = blocks, layer

    def attend(self, query: torch.Tensor, scaling: float | None) -> torch.Tensor:
        """Attention of every row, (W, 1, heads, size), from queries (W, heads, 1, size)."""
        if len(self._blocks) == 1 and self._blocks[0].whole:
            return self._blocks[0].attend(query, scaling, self._layer)
        found = query.new_zeros(query.shape[0], 1, query.shape[1], self._blocks[0].values[self._layer].shape[3])
        for block in self._blocks:
            attended = block.attend(query, scaling, self._layer)
            found.index_copy_(0, block.targets, attended if block.full else attended.index_select(0, block.sources))
        return found


class Lane:
    """One batch of fixed width. Rows are taken, then filled with a prompt, then decode until they are released."""

    def __init__(
        self, base: Base, bank: AdapterBank, layout: Layout, budget: Budget, width: int, capture_layer: int
    ) -> None:
        self.width = width
        # Prompts that are computed in one pass. It follows from the width, which every reply's record names, so that
        # a replay computes the prompt in the same shape.
        self.prompts = max(1, width // ROWS_PER_PROMPT)
        self._base, self._bank, self._layout, self._budget = base, bank, layout, budget
        self._capture_layer = capture_layer
        self._block_bytes = min(BLOCK_BYTES, budget.limit // 8)
        self._blocks: list[Block] = []
        self._places: dict[int, tuple[Block, int]] = {}
        self._decoding: set[int] = set()
        # Written anew at each step: from the allocator so large a block comes as fresh pages, which the system has to
        # clear, and on a small model that is a quarter of a step.
        self._logits = torch.zeros(width, base.vocab_size) if base.plain_head else None
        self._tokens = torch.zeros(width, dtype=torch.long, device=base.device)
        self._positions = torch.zeros(width, dtype=torch.long, device=base.device)
        self._slots = torch.zeros(width, dtype=torch.long, device=base.device)
        self._free = list(range(width - 1, -1, -1))
        self._running: list[Block] = []

    @property
    def occupied(self) -> int:
        """Rows that decode."""
        return len(self._decoding)

    @property
    def free(self) -> int:
        """Rows that wait for work."""
        return len(self._free)

    def block_bytes(self, length: int) -> int:
        """Bytes of a block for rows of `length` tokens."""
        rows, capacity = self._shape(length)
        return rows * capacity * self._layout.token_bytes

    def growth(self, length: int) -> int:
        """Bytes that a further row of `length` tokens would add."""
        return 0 if self._block_for(length) else self.block_bytes(length)

    def take(self, length: int) -> int:
        """Take a row for `length` tokens, whose memory the caller has seen to; returns the row."""
        block = self._block_for(length)
        if block is None:
            block = Block(self._layout, self.width, *self._shape(length))
            self._budget.take(block.nbytes)
            self._blocks.append(block)
        row = self._free.pop()
        self._places[row] = (block, block.take(row))
        return row

    def fill(self, row: int, prefix: Prefix, last_token: int, slot: int) -> None:
        """Let a taken row decode from a prompt whose tokens but the last are in `prefix`."""
        block, place = self._places[row]
        for stored, found in ((block.keys, prefix.keys), (block.values, prefix.values)):
            for target, source in zip(stored, found, strict=False):
                target[place, :, : prefix.length] = source[0]
        self._tokens[row] = last_token
        self._positions[row] = prefix.length
        self._slots[row] = slot
        self._decoding.add(row)

    def release(self, row: int) -> None:
        """Free a row, filled or not."""
        block, place = self._places.pop(row)
        block.leave(place)
        self._decoding.discard(row)
        self._free.append(row)
        self._tokens[row] = 0
        self._positions[row] = 0
        self._slots[row] = 0
        if block.empty and block.capacity > KEEP_CAPACITY:
            self._drop(block)

    def shrink(self) -> None:
        """Give back the blocks that hold no row."""
        for block in [block for block in self._blocks if block.empty]:
            self._drop(block)

    def step(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Run the next token of every row: logits (W, V), good until the next step, and trunk activations (W, H)."""
        base, bank = self._base, self._bank
        self._running = [block for block in self._blocks if not block.empty]
        for block in self._running:
            block.begin_step(self._positions, base.dtype)
        positions = self._positions[:, None]
        bank.use(self._slots if bool(self._slots.any()) else None)
        embedded = base.embed(self._tokens[:, None])
        hidden = base.run_layers(embedded, 0, self._capture_layer, positions=positions, past=self)
        last = base.run_layers(hidden, self._capture_layer, base.num_layers, positions=positions, past=self)
        bank.use(None)
        return base.logits(base.norm(last[:, 0]), self._logits), hidden[:, 0]

    def update(self, key: torch.Tensor, value: torch.Tensor, layer: int) -> tuple[_Pieces, _Pieces]:
        """Write keys and values of the running step; what comes back attends to them (the layers call this)."""
        for block in self._running:
            block.write(key, value, layer)
        pieces = _Pieces(self._running, layer)
        return pieces, pieces

    def advance(self, row: int, token: int) -> None:
        """Let `token` be a row's next input."""
        self._tokens[row] = token
        self._positions[row] += 1

    def _shape(self, length: int) -> tuple[int, int]:
        """Rows and capacity of a block for rows of `length` tokens."""
        capacity = max(SHORTEST, 2 ** math.ceil(math.log2(length)))
        fitting = self._block_bytes // (capacity * self._layout.token_bytes)
        return max(1, min(self.width, 2 ** (fitting.bit_length() - 1) if fitting else 1)), capacity

    def _block_for(self, length: int) -> Block | None:
        _, capacity = self._shape(length)
        return next((block for block in self._blocks if block.capacity == capacity and block.free), None)

    def _drop(self, block: Block) -> None:
        self._blocks.remove(block)
        self._budget.give(block.nbytes)
