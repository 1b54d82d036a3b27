"""Runs completions through the base's layers, sharing each prompt, and keeps trunk activations.

Completions of one prompt are packed into one row: the prompt once, then each completion's shown tokens and EOS, at
the positions that they would have alone. A completion sees the prompt and itself, never its neighbours, so that
packed and single passes give the same states. Enter: token ids. Leave: hidden states. Whether an adapter is on is
the caller's affair; the trunk lies below all adapters, so its activations are computed once and kept.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from plaudit.engine.base import Base
from plaudit.reward.completion import Completion

# A row of one prompt and what shares it: longer rows waste attention, shorter ones repeat prompts.
MOST_ROW_TOKENS = 384
# One pass holds about this many padded tokens: activations of ten layers of a 135M model take 0.5 MB a token.
MOST_PASS_TOKENS = 3072
# Rows join a pass while they are at most this much longer than its shortest, or while it is too small to be worth it:
# computing padding costs more than a pass more.
MOST_STRETCH = 1.15
LEAST_PASS_TOKENS = 192


@dataclass(frozen=True, slots=True)
class Row:
    """A prompt and the completions packed behind it, in order."""

    prompt: tuple[int, ...]
    shown: tuple[tuple[int, ...], ...]

    @property
    def length(self) -> int:
        """Tokens of the row."""
        return len(self.prompt) + sum(len(shown) + 1 for shown in self.shown)


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


class TrunkCache:
    """Trunk activations (fp32, on the CPU) of prompts and of completions, each computed once.

    `start` is the layer whose input is kept, `stop` the layer below which states are read. Not for several threads.
    """

    def __init__(self, base: Base, start: int, stop: int) -> None:
        self.base = base
        self.start, self.stop = start, stop
        self._prompts: dict[tuple[int, ...], Tensor] = {}
        self._completions: dict[Completion, Tensor] = {}

    def __len__(self) -> int:
        """Completions held."""
        return len(self._completions)

    def put(self, completion: Completion, hidden: Tensor) -> None:
        """Seed with activations (P + S + 1, H) from elsewhere: of the prompt, the shown tokens and the EOS."""
        expected = len(completion.prompt) + len(completion.shown) + 1
        assert hidden.shape == (expected, self.base.hidden_size), f"{tuple(hidden.shape)} for {expected} tokens"
        hidden = hidden.detach().float().cpu()
        self._prompts.setdefault(completion.prompt, hidden[: len(completion.prompt)].clone())
        self._completions[completion] = hidden[len(completion.prompt) :].clone()

    @torch.no_grad()
    def fill(self, completions: Iterable[Completion]) -> None:
        """Compute what is missing."""
        missing = [c for c in completions if c not in self._completions]
        for rows in passes(pack(missing)):
            width = max(row.length for row in rows)
            tokens = torch.full((len(rows), width), end_token(self.base), device=self.base.device)
            for index, row in enumerate(rows):
                flat = [*row.prompt, *(token for shown in row.shown for token in (*shown, end_token(self.base)))]
                tokens[index, : row.length] = torch.tensor(flat, device=self.base.device)
            hidden = run_rows(self.base, rows, self.base.embed(tokens), 0, self.start).float().cpu()
            for index, row in enumerate(rows):
                if row.prompt not in self._prompts:
                    self._prompts[row.prompt] = hidden[index, : len(row.prompt)].clone()
                for shown, (begin, end) in zip(row.shown, spans(row), strict=True):
                    self._completions[Completion(row.prompt, shown)] = hidden[index, begin:end].clone()

    def forget(self, completions: Iterable[Completion]) -> None:
        """Drop completions that will not be asked for again; prompts stay."""
        for completion in completions:
            self._completions.pop(completion, None)

    def clear(self, above: int) -> None:
        """Drop everything if more than `above` tokens are held."""
        held = sum(len(each) for several in (self._prompts, self._completions) for each in several.values())
        if held > above:
            self._prompts.clear()
            self._completions.clear()

    def inputs(self, rows: Sequence[Row]) -> Tensor:
        """Activations of rows (B, T, H), zero on the right of each row, on the base's device; all must be held."""
        width = max(row.length for row in rows)
        out = torch.zeros(len(rows), width, self.base.hidden_size)
        for index, row in enumerate(rows):
            out[index, : len(row.prompt)] = self._prompts[row.prompt]
            for shown, (begin, end) in zip(row.shown, spans(row), strict=True):
                out[index, begin:end] = self._completions[Completion(row.prompt, shown)]
        return out.to(self.base.device, self.base.dtype)

    def run(
        self, completions: Iterable[Completion], most: int = MOST_PASS_TOKENS
    ) -> Iterator[tuple[list[Row], Tensor]]:
        """Rows and their states as read (B, T, H), fp32, pass by pass, under the adapter in force; all must be held."""
        for rows in passes(pack(completions), most):
            yield rows, run_rows(self.base, rows, self.inputs(rows), self.start, self.stop).float()

    @torch.no_grad()
    def states(self, completions: Sequence[Completion]) -> dict[Completion, Tensor]:
        """States (S + 1, H) of each completion's shown tokens and EOS, under the adapter in force, detached."""
        self.fill(completions)
        out: dict[Completion, Tensor] = {}
        for rows, hidden in self.run(completions):
            for index, row in enumerate(rows):
                for shown, (begin, end) in zip(row.shown, spans(row), strict=True):
                    out[Completion(row.prompt, shown)] = hidden[index, begin:end].clone()
        return out

    def pooled(self, completions: Sequence[Completion]) -> tuple[Tensor, Tensor]:
        """State at EOS, and the mean over the shown tokens: (N, H) each, under the adapter in force.

        An empty response has its state at EOS for the mean. With gradient to the adapter if autograd is on.
        """
        self.fill(completions)
        order: dict[Completion, int] = {}
        lasts, means = [], []
        for rows, hidden in self.run(completions):
            width = hidden.shape[1]
            ends: list[int] = []
            tokens: list[int] = []
            owners: list[int] = []
            for index, row in enumerate(rows):
                for shown, (begin, end) in zip(row.shown, spans(row), strict=True):
                    order[Completion(row.prompt, shown)] = len(order)
                    own = range(index * width + begin, index * width + max(end - 1, begin + 1))
                    tokens += own
                    owners += [len(ends)] * len(own)
                    ends.append(index * width + end - 1)
            # One gather a pass: a slice a completion would each send back a gradient of the whole pass's size.
            flat = hidden.flatten(0, 1)
            owner = torch.tensor(owners, device=flat.device)
            sums = flat.new_zeros(len(ends), flat.shape[1]).index_add(0, owner, flat[torch.tensor(tokens)])
            lasts.append(flat[torch.tensor(ends)])
            means.append(sums / torch.bincount(owner, minlength=len(ends))[:, None])
        rows_of = torch.tensor([order[each] for each in completions], device=self.base.device)
        return torch.cat(lasts)[rows_of], torch.cat(means)[rows_of]


def spans(row: Row) -> list[tuple[int, int]]:
    """Begin and end of each completion in its row, the EOS included."""
    found = []
    at = len(row.prompt)
    for shown in row.shown:
        found.append((at, at + len(shown) + 1))
        at += len(shown) + 1
    return found


def end_token(base: Base) -> int:
    """The EOS that closes a completion for the reward model: the tokenizer's own, else the smallest id."""
    token = base.tokenizer.eos_token_id
    return int(token) if isinstance(token, int) else min(base.eos_ids)
