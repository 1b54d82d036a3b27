"""Lanes: batches of fixed width in which completions decode, each row at a position of its own.

In: rows to place. Out: logits of one decode step. The bits of a row depend on its own prompt and tokens alone: a lane
computes its full width, unless the runner computes each row by itself (`Runner.takes_rows`); then it leaves out most
idle rows. Keys and values lie in blocks of a few rows of about the same length:
a long row makes no short one longer. A block is made when a row needs it and goes when its last row has left.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from plaudit.engine.attention import PLAIN, Beyond, grouped_attention
from plaudit.engine.memory import Budget, Layout
from plaudit.engine.prefixes import Prefix
from plaudit.engine.runner import Places, Runner
from plaudit.engine.sampling import Memory

# A block costs its whole size for its first row, and an attention call of its own for each layer and step.
BLOCK_BYTES = 128 * 2**20
# Rows are as long as the least of 128, 256, 512, ... that holds them.
SHORTEST = 128
# Empty blocks up to this length are kept while nothing else needs their memory; short rows come again at once.
KEEP_CAPACITY = 256
# Attention of a block is computed over a multiple of so many positions.
SPAN = 32


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

    def places(self, at: Mapping[int, int]) -> Places:
        """Where the rows of a pass lie here; `at` has the place in the pass of each row of the lane that is in it."""
        found = [(at[row], place) for place, row in enumerate(self._of) if row is not None and row in at]
        rows, places = np.array(found, dtype=np.int64).reshape(-1, 2).T.copy()
        return Places(rows, places, self._as_arrays[0], self._as_arrays[1])

    @functools.cached_property
    def _as_arrays(self) -> tuple[list[np.ndarray[Any, Any]], list[np.ndarray[Any, Any]]]:
        return [each.numpy() for each in self.keys], [each.numpy() for each in self.values]

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
        self._within: dict[int, torch.Tensor] = {}
        # Where a step's token lies in a layer's keys or values as rows of one head's size, by the number of heads.
        self._at: dict[int, torch.Tensor] = {}

    def attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        layer: int,
        scaling: float,
        beyond: Beyond | None = None,
    ) -> torch.Tensor:
        """Take keys and values (W, Hk, D) of the step; attention (R, Hq, D) of the block's places.

        Queries (W, Hq, D), keys and values are of all rows of the lane.
        """
        keys, values = self.keys[layer], self.values[layer]
        for stored, fresh in ((keys, key), (values, value)):
            own = self._own(fresh)
            stored.view(-1, stored.shape[3]).index_copy_(0, self._places(own.shape[1]), own.flatten(0, 1))
        queries, span = self._own(query)[:, :, None], self._span
        seen, more = (keys[:, :, :span], values[:, :, :span]), beyond or PLAIN
        mask = self._mask if more.window is None else self._masked_within(more.window)
        return grouped_attention(None, queries, *seen, mask, scaling, softcap=more.cap, s_aux=more.sinks)[0][:, 0]

    def _masked_within(self, window: int) -> torch.Tensor:
        if window not in self._within:
            far = torch.arange(self._span, device=self._device)[None, :] <= self._positions[:, None] - window
            self._within[window] = self._mask.masked_fill(far[:, None, None], -math.inf)
        return self._within[window]

    def _places(self, heads: int) -> torch.Tensor:
        if heads not in self._at:
            first = self._all[:, None] * heads + torch.arange(heads, device=self._device)  # (R, Hk)
            self._at[heads] = (first * self.capacity + self._positions[:, None]).flatten()
        return self._at[heads]


class Lane:
    """One batch of fixed width. Rows are taken, then filled with a prompt, then decode until they are released."""

    def __init__(self, runner: Runner, layout: Layout, budget: Budget, width: int) -> None:
        self.width = width
        self._runner, self._layout, self._budget = runner, layout, budget
        # For the draws from this lane's logits.
        self.memory = Memory()
        self._block_bytes = min(BLOCK_BYTES, budget.limit // 8)
        self._blocks: list[Block] = []
        self._places: dict[int, tuple[Block, int]] = {}
        self._decoding: set[int] = set()
        self._tokens, self._positions, self._slots = [0] * width, [0] * width, [0] * width
        # The rows of the running step, in its order.
        self._rows: Sequence[int] = ()
        # Positions of a step that no block has taken yet.
        self._begins_at: torch.Tensor | None = None
        self._free = list(range(width - 1, -1, -1))
        self._running: list[Block] = []
        # When the last step ended, if its rows go on.
        self._stepped: float | None = None

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
                target[place, :, : prefix.length] = source
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
        if not self._decoding:
            self._stepped = None
        if block.empty and block.capacity > KEEP_CAPACITY:
            self._drop(block)

    def shrink(self) -> None:
        """Give back the blocks that hold no row."""
        for block in [block for block in self._blocks if block.empty]:
            self._drop(block)

    def step(self) -> tuple[Sequence[int], torch.Tensor, torch.Tensor]:
        """Run the next token of rows: which rows (R,), their logits (R, V), good until the next step, and trunk (R, H).

        If the runner takes single rows, those that decode and a few idle ones; otherwise all.
        """
        self._rows = self._few() if self._runner.takes_rows else range(self.width)
        tokens, positions, slots = (
            torch.tensor([of[row] for row in self._rows], device=self._layout.device)
            for of in (self._tokens, self._positions, self._slots)
        )
        self._running = [block for block in self._blocks if not block.empty]
        self._begins_at = positions
        hidden, last = self._runner.run(tokens, positions, self, slots if any(self._slots) else None)
        return self._rows, self._runner.logits(last, step=True), hidden

    def _few(self) -> Sequence[int]:
        """The rows that decode, and idle ones up to one of a few counts: a new count costs 2 ms at first."""
        decoding = len(self._decoding)
        count = min(self.width, math.ceil(decoding / 8) * 8 if decoding > 4 else 2 ** math.ceil(math.log2(decoding)))
        idle = (row for row in range(self.width) if row not in self._decoding)
        return sorted(self._decoding) + list(itertools.islice(idle, count - decoding))

    def places(self) -> Sequence[Places]:
        """Where the decoding rows of the running step have their keys and values."""
        at = {row: number for number, row in enumerate(self._rows) if row in self._decoding}
        found = [block.places(at) for block in self._running]
        return [each for each in found if len(each.rows)]

    def attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        layer: int,
        scaling: float,
        beyond: Beyond | None = None,
    ) -> torch.Tensor:
        """As Past.attend, for a running step of all rows."""
        if self._begins_at is not None:
            for block in self._running:
                block.begin_step(self._begins_at, self._layout.dtype)
            self._begins_at = None
        if len(self._running) == 1 and self._running[0].whole:
            return self._running[0].attend(query, key, value, layer, scaling, beyond)
        found = query.new_zeros(self.width, query.shape[1], value.shape[2])
        for block in self._running:
            attended = block.attend(query, key, value, layer, scaling, beyond)
            found.index_copy_(0, block.targets, attended if block.full else attended.index_select(0, block.sources))
        return found

    def since_last(self, now: float) -> float | None:
        """Seconds since the step before the one that ends `now`; None if that left no row."""
        before, self._stepped = self._stepped, now
        return None if before is None else now - before

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
