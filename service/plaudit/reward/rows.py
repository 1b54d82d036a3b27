"""Completions as rows, each prompt once, and passes of padded rows through the base's layers.

Completions of one prompt are packed into one row: the prompt once, then each completion's shown tokens and EOS, at
the positions that they would have alone. A completion sees the prompt and itself, never its neighbours, so that
packed and single passes give the same states. Passes that gradient flows back through are padded rows (few operators
carry it); all others are flat (`reward.flat`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from plaudit.engine.base import Base
from plaudit.reward.completion import Completion
from plaudit.reward.flat import Row

# A row of one prompt and what shares it: longer rows waste attention, shorter ones repeat prompts.
MOST_ROW_TOKENS = 384
# One pass holds about this many padded tokens: activations of ten layers of a 135M model take 0.5 MB a token.
MOST_PASS_TOKENS = 3072
# Rows join a pass while they are at most this much longer than its shortest, or while it is too small to be worth it:
# computing padding costs more than a pass more.
MOST_STRETCH = 1.15
LEAST_PASS_TOKENS = 192


def pack(completions: Iterable[Completion]) -> list[Row]:
    """Distinct completions as rows, shortest row first."""
    by_prompt: dict[tuple[int, ...], dict[tuple[int, ...], None]] = {}
    for prompt, shown in completions:
        by_prompt.setdefault(prompt, {})[shown] = None
    rows = []
    for prompt, several in by_prompt.items():
        # A long prompt is repeated for half a row at most.
        most = max(MOST_ROW_TOKENS, 2 * len(prompt))
        held: list[tuple[int, ...]] = []
        length = len(prompt)
        for shown in several:
            if held and length + len(shown) + 1 > most:
                rows.append(Row(prompt, tuple(held)))
                held, length = [], len(prompt)
            held.append(shown)
            length += len(shown) + 1
        rows.append(Row(prompt, tuple(held)))
    return sorted(rows, key=lambda row: row.length)


def passes(rows: Sequence[Row], most: int = MOST_PASS_TOKENS) -> Iterator[list[Row]]:
    """Consecutive rows (sorted by length) of one forward pass of at most `most` padded tokens, or of one row."""
    batch: list[Row] = []
    for row in rows:
        full = (len(batch) + 1) * row.length > most
        large = len(batch) * row.length >= LEAST_PASS_TOKENS
        if batch and (full or (large and row.length > MOST_STRETCH * batch[0].length)):
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


def layout(rows: Sequence[Row], device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Positions (B, T) and attention bias (B, 1, T, T): 0 where a token sees another, -inf elsewhere."""
    width = max(row.length for row in rows)
    positions = torch.zeros(len(rows), width, dtype=torch.long)
    # 0 is the prompt, 1.. the completions; -1 marks the right padding, which sees and is seen by itself alone.
    segment = torch.full((len(rows), width), -1, dtype=torch.long)
    for index, row in enumerate(rows):
        at = len(row.prompt)
        positions[index, :at] = torch.arange(at)
        segment[index, :at] = 0
        for number, shown in enumerate(row.shown, start=1):
            end = at + len(shown) + 1
            positions[index, at:end] = torch.arange(len(row.prompt), len(row.prompt) + end - at)
            segment[index, at:end] = number
            at = end
    same = segment[:, :, None] == segment[:, None, :]
    of_prompt = (segment[:, None, :] == 0) & (segment[:, :, None] > 0)
    earlier = torch.ones(width, width, dtype=torch.bool).tril()
    bias = torch.zeros(len(rows), 1, width, width, dtype=dtype).masked_fill_(
        ~((same | of_prompt) & earlier)[:, None], -math.inf
    )
    return positions.to(device), bias.to(device)


class _SharedPrefix:
    """Keys and values of the tokens with which every row of a pass begins: run once, then seen by all rows.

    Offers `update` as a layer's cache would. With autograd on, gradient flows back to the one run.
    """

    def __init__(self) -> None:
        self._held: dict[int, tuple[Tensor, Tensor]] = {}

    def update(self, key: Tensor, value: Tensor, layer: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Record at the first call of a layer, extend by what was recorded at the second; (B, Hk, T, D) each."""
        if layer not in self._held:
            self._held[layer] = (key, value)
            return key, value
        before = (each.expand(key.shape[0], -1, -1, -1) for each in self._held[layer])
        keys, values = (torch.cat([old, own], 2) for old, own in zip(before, (key, value), strict=True))
        return keys, values


def run_rows(base: Base, rows: Sequence[Row], hidden: Tensor, start: int, stop: int) -> Tensor:
    """Layers start..stop-1 over packed rows (B, T, H): (B, T, H). What all rows share is computed once."""
    positions, bias = layout(rows, base.device, base.dtype)
    shared = _shared_prefix([row.prompt for row in rows]) if len(rows) > 1 else 0
    if not shared:
        return base.run_layers(hidden, start, stop, positions=positions, mask=bias)
    past = _SharedPrefix()
    prefix = base.run_layers(hidden[:1, :shared], start, stop, past=past)
    own = base.run_layers(
        hidden[:, shared:], start, stop, positions=positions[:, shared:], mask=bias[:, :, shared:], past=past
    )
    return torch.cat([prefix.expand(len(rows), -1, -1), own], 1)


def _shared_prefix(prompts: Sequence[tuple[int, ...]]) -> int:
    """Tokens with which all prompts begin; under one system text that is half of a short prompt."""
    first, last = min(prompts), max(prompts)
    return next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last)))
