"""One pass over the tokens of many texts, one behind the other and without padding: no gradient, no neighbours.

Enter: rows of a prompt and its completions. Leave: hidden states, whose bits depend on the prompt and the completion
alone: linears compute each token by itself, and attention is computed text by text, in shapes that follow from the
text. So what one turn computed can stand for what another would compute beside other texts. Whether that holds on a
machine is tried out (`stands_alone`).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from plaudit.engine.attention import PLAIN, Beyond, attend_to, causal_bias
from plaudit.engine.base import Base
from plaudit.engine.runner import Seen
from plaudit.reward.completion import Completion

# Tokens of one pass: enough that products are bound by arithmetic, few enough that what they make stays small.
PASS_TOKENS = 2048
# Of the trial whether texts stand alone: lengths of prompts and of completions.
TRIAL_PROMPTS, TRIAL_COMPLETIONS = (1, 5, 40, 23, 64, 31), (0, 1, 6, 31, 31, 40)


class Row(NamedTuple):
    """A prompt and the completions packed behind it, in order."""

    prompt: tuple[int, ...]
    shown: tuple[tuple[int, ...], ...]

    @property
    def length(self) -> int:
        """Tokens of the row, an EOS behind each completion."""
        return len(self.prompt) + sum(len(shown) + 1 for shown in self.shown)


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


def row_tokens(row: Row, end: int) -> list[int]:
    """The tokens of a row, `end` behind each completion."""
    return [*row.prompt, *(token for shown in row.shown for token in (*shown, end))]


def passes(rows: Sequence[Row]) -> Iterator[list[Row]]:
    """Consecutive rows of at most PASS_TOKENS tokens, or one row."""
    batch: list[Row] = []
    for row in rows:
        if batch and sum(each.length for each in batch) + row.length > PASS_TOKENS:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


class Layout:
    """Where the texts of rows lie in a flat batch of their tokens, and what each token sees: a Past.

    `completions` are (completion, begin, end), the EOS included; `prompts` are (prompt, begin, end).
    """

    def __init__(self, rows: Sequence[Row], base: Base) -> None:
        self.prompts: list[tuple[tuple[int, ...], int, int]] = []
        self.completions: list[tuple[Completion, int, int]] = []
        self._rows: list[tuple[slice, list[slice]]] = []
        self._device, self._dtype = base.device, base.dtype
        self._biases: dict[tuple[int, int, int | None], Tensor] = {}
        positions = []
        at = 0
        for row in rows:
            length = len(row.prompt)
            self.prompts.append((row.prompt, at, at + length))
            positions.append(torch.arange(length))
            own = []
            for shown, (begin, end) in zip(row.shown, spans(row), strict=True):
                self.completions.append((Completion(row.prompt, shown), at + begin, at + end))
                positions.append(torch.arange(length, length + end - begin))
                own.append(slice(at + begin, at + end))
            self._rows.append((slice(at, at + length), own))
            at += row.length
        self._positions = torch.cat(positions)[None].to(base.device)
        end = end_token(base)
        self._tokens = torch.tensor([[token for row in rows for token in row_tokens(row, end)]], device=base.device)

    @torch.no_grad()
    def run(self, base: Base, hidden: Tensor, start: int, stop: int) -> Tensor:
        """Layers start..stop-1 over the tokens (N, H): (N, H), without gradient, under the adapter in force."""
        return base.run_layers(hidden[None], start, stop, positions=self._positions, past=Seen(self))[0]

    def embedded(self, base: Base) -> Tensor:
        """What enters the first layer, (N, H), of the tokens of the rows."""
        return base.embed(self._tokens, self._positions)[0]

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, layer: int, scaling: float, beyond: Beyond | None = None
    ) -> Tensor:
        """Attention (N, Hq, Dv) of queries (N, Hq, D) to keys (N, Hk, D) and values (N, Hk, Dv)."""
        found = query.new_empty(len(query), query.shape[1], value.shape[2])
        window = (beyond or PLAIN).window
        for prompt, completions in self._rows:
            keys, values = key[prompt].transpose(0, 1), value[prompt].transpose(0, 1)  # (Hk, P, D)
            length = keys.shape[1]
            found[prompt] = attend_to(query[prompt], keys, values, self._bias(length, length, window), scaling, beyond)
            for own in completions:
                size = own.stop - own.start
                found[own] = attend_to(
                    query[own],
                    torch.cat([keys, key[own].transpose(0, 1)], 1),
                    torch.cat([values, value[own].transpose(0, 1)], 1),
                    self._bias(size, length + size, window),
                    scaling,
                    beyond,
                )
        return found

    def _bias(self, length: int, keys: int, window: int | None) -> Tensor:
        asked = (length, keys, window)
        if asked not in self._biases:
            self._biases[asked] = causal_bias(length, keys, self._device, self._dtype, window)
        return self._biases[asked]


@torch.no_grad()
def stands_alone(base: Base) -> bool:
    """Whether a text's bits are the same by itself and beside others: tried out on two layers, with this thread's team.

    Only then may a turn take over what an earlier one computed, and still come to the same when it is replayed.
    """
    draw = torch.Generator().manual_seed(0)
    texts = functools.partial(torch.randint, base.vocab_size, generator=draw)
    rows = [
        Row(tuple(texts((prompt,)).tolist()), tuple(tuple(texts((size,)).tolist()) for size in TRIAL_COMPLETIONS))
        for prompt in TRIAL_PROMPTS
    ]
    stop = min(2, base.num_layers)
    several = Layout(rows, base)
    together = several.run(base, several.embedded(base), 0, stop)
    at = 0
    for row in rows:
        wanted = together[at : at + row.length]
        at += row.length
        for shown, (begin, end) in zip(row.shown, spans(row), strict=True):
            alone = Layout([Row(row.prompt, (shown,))], base)
            found = alone.run(base, alone.embedded(base), 0, stop)
            length = len(row.prompt)
            if not (torch.equal(found[:length], wanted[:length]) and torch.equal(found[length:], wanted[begin:end])):
                return False
    return math.isfinite(float(together.sum()))
