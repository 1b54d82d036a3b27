"""Runs completions through the base's layers, in rows that share each prompt (`reward.rows`), and keeps what it can.

Enter: token ids. Leave: hidden states. Whether an adapter is on is the caller's affair; the trunk lies below all
adapters, so its activations are computed once and kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

from plaudit.engine import adapters
from plaudit.engine.base import Base
from plaudit.engine.ranks import Alone, Here, Ranks, split
from plaudit.reward import flat
from plaudit.reward.completion import Completion
from plaudit.reward.flat import Row, spans
from plaudit.reward.rows import MOST_PASS_TOKENS, pack, passes, run_rows

_Item = TypeVar("_Item")

# What one exchange between processes holds for each of them: activations of a 135M model take 2.3 KB a token.
MOST_SENT_TOKENS = 65_536


class KeptFeatures(Protocol):
    """Activations that earlier turns computed."""

    def prompt(self, prompt: tuple[int, ...]) -> Tensor | None:
        """Trunk activations (P, H) of a prompt; None if they are not there."""

    def completion(self, completion: Completion) -> tuple[Tensor, Tensor | None] | None:
        """Trunk activations (S + 1, H) of shown tokens and EOS, and what `plain` gives (2, H) if it is there."""


class Activations(NamedTuple):
    """Trunk activations of prompts (P, H), and of completions (S + 1, H)."""

    prompts: dict[tuple[int, ...], Tensor]
    completions: dict[Completion, Tensor]


class TrunkCache:
    """Trunk activations (fp32, on the CPU) of prompts and of completions, each computed once.

    `start` is the layer whose input is kept, `stop` the layer below which states are read. What is missing is looked
    for in `kept` before it is computed, by all `ranks` together (None: by this process). Not for several threads.
    """

    def __init__(
        self, base: Base, start: int, stop: int, kept: KeptFeatures | None = None, ranks: Ranks | None = None
    ) -> None:
        self.base = base
        self.ranks = ranks or Alone(base)
        self.start, self.stop = start, stop
        self._kept = kept
        self._prompts: dict[tuple[int, ...], Tensor] = {}
        self._completions: dict[Completion, Tensor] = {}
        # What the bare base's state at EOS and mean state are: (2, H).
        self._plain: dict[Completion, Tensor] = {}

    @classmethod
    def holding(cls, base: Base, start: int, stop: int, held: Activations) -> TrunkCache:
        """A cache of another process's activations."""
        cache = cls(base, start, stop)
        cache._prompts, cache._completions = held
        return cache

    def __len__(self) -> int:
        """Completions held."""
        return len(self._completions)

    def held(self) -> Iterator[tuple[Completion, Tensor, Tensor, Tensor | None]]:
        """Completions with the activations of their prompt (P, H) and their own (S + 1, H), and what `plain` gave."""
        for completion, states in self._completions.items():
            yield completion, self._prompts[completion.prompt], states, self._plain.get(completion)

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
        rows = pack(c for c in completions if c not in self._completions and not self._take(c))
        size = self.ranks.size
        for some in self._exchanges(rows, lambda row: row.length):
            # Rows are sorted by length: each rank has short ones and long ones.
            shares = [_Below(some[rank::size], self.start) if rank < len(some) else None for rank in range(size)]
            for found in self.ranks.spread(_below, shares, None):
                for prompt, hidden in found.prompts.items():
                    self._prompts.setdefault(prompt, hidden)
                self._completions.update(found.completions)

    def part(self, completions: Iterable[Completion]) -> Activations:
        """What is held of completions and their prompts; all must be held."""
        wanted = list(completions)
        prompts = {each.prompt: self._prompts[each.prompt] for each in wanted}
        return Activations(prompts, {each: self._completions[each] for each in wanted})

    def _exchanges(self, items: Sequence[_Item], tokens: Callable[[_Item], int]) -> Iterator[list[_Item]]:
        """The items, in as many parts as their activations take to be sent; all of them if nothing is sent."""
        most = self.ranks.size * MOST_SENT_TOKENS
        held: list[_Item] = []
        load = 0
        for item in items:
            if self.ranks.size > 1 and held and load + tokens(item) > most:
                yield held
                held, load = [], 0
            held.append(item)
            load += tokens(item)
        if held:
            yield held

    def _shares(self, completions: Sequence[Completion]) -> list[_Above | None]:
        """Completions with their activations by rank; the first reads this cache."""
        shares: list[_Above | None] = []
        for rank, part in enumerate(split(len(completions), self.ranks.size)):
            own = [completions[i] for i in part]
            held = self if rank == 0 else self.part(own)
            shares.append(_Above(own, held, self.start, self.stop) if own else None)
        return shares

    def _take(self, completion: Completion) -> bool:
        """Take over what an earlier turn computed, if it is there."""
        found = self._kept.completion(completion) if self._kept is not None else None
        if self._kept is None or found is None:
            return False
        if completion.prompt not in self._prompts:
            prompt = self._kept.prompt(completion.prompt)
            if prompt is None:
                return False
            self._prompts[completion.prompt] = prompt
        self._completions[completion], plain = found
        if plain is not None:
            self._plain[completion] = plain
        return True

    def forget(self, completions: Iterable[Completion]) -> None:
        """Drop completions that will not be asked for again; prompts stay."""
        for completion in completions:
            self._completions.pop(completion, None)
            self._plain.pop(completion, None)

    def clear(self, above: int) -> None:
        """Drop everything if more than `above` tokens are held."""
        held = sum(len(each) for several in (self._prompts, self._completions) for each in several.values())
        if held > above:
            for several in (self._prompts, self._completions, self._plain):
                several.clear()

    def inputs(self, rows: Sequence[Row]) -> Tensor:
        """Activations of rows (B, T, H), zero on the right of each row, on the base's device; all must be held."""
        width = max(row.length for row in rows)
        out = torch.zeros(len(rows), width, self.base.hidden_size)
        for index, row in enumerate(rows):
            out[index, : row.length] = self._row(row)
        return out.to(self.base.device, self.base.dtype)

    def _row(self, row: Row) -> Tensor:
        """Activations (T, H) of a row."""
        own = (self._completions[Completion(row.prompt, shown)] for shown in row.shown)
        return torch.cat([self._prompts[row.prompt], *own])

    def run(
        self, completions: Iterable[Completion], most: int = MOST_PASS_TOKENS
    ) -> Iterator[tuple[list[Row], Tensor]]:
        """Rows and their states as read (B, T, H), fp32, pass by pass, under the adapter in force; all must be held."""
        for rows in passes(pack(completions), most):
            yield rows, run_rows(self.base, rows, self.inputs(rows), self.start, self.stop).float()

    def _spread(self, completions: Iterable[Completion]) -> Iterator[tuple[list[tuple[Completion, int, int]], Tensor]]:
        """Completions with their begin and end in states (M, H) as read, pass by pass, as `run`."""
        if torch.is_grad_enabled():
            for rows, hidden in self.run(completions):
                width = hidden.shape[1]
                found = [
                    (Completion(row.prompt, shown), index * width + begin, index * width + end)
                    for index, row in enumerate(rows)
                    for shown, (begin, end) in zip(row.shown, spans(row), strict=True)
                ]
                yield found, hidden.flatten(0, 1)
        else:
            for rows in flat.passes(pack(completions)):
                layout = flat.Layout(rows, self.base)
                inputs = torch.cat([self._row(row) for row in rows]).to(self.base.device, self.base.dtype)
                yield layout.completions, layout.run(self.base, inputs, self.start, self.stop).float()

    @torch.no_grad()
    def states(self, completions: Sequence[Completion]) -> dict[Completion, Tensor]:
        """States (S + 1, H) of each completion's shown tokens and EOS, under the adapter in force, detached."""
        self.fill(completions)
        return {
            completion: hidden[begin:end].clone()
            for found, hidden in self._spread(completions)
            for completion, begin, end in found
        }

    def pooled(self, completions: Sequence[Completion], adapter: str | None = None) -> tuple[Tensor, Tensor]:
        """State at EOS, and the mean over the shown tokens: (N, H) each, under the adapter in force, which is named.

        An empty response has its state at EOS for the mean. With gradient to the adapter if autograd is on.
        """
        self.fill(completions)
        # Those of one prompt stand together, and share it in one rank's passes.
        first = {each.prompt: place for place, each in reversed(list(enumerate(completions)))}
        order = sorted(range(len(completions)), key=lambda place: first[completions[place].prompt])
        ordered = [completions[place] for place in order]
        if torch.is_grad_enabled() and adapter is not None:
            found = self.ranks.forward(_above, self._shares(ordered), adapter)
        else:
            found = self._spread_over(_above, ordered, adapter)
        last, mean = found[torch.tensor(order).argsort()].to(self.base.device).unbind(1)
        return last, mean

    def pooled_here(self, completions: Sequence[Completion]) -> Tensor:
        """As `pooled`, by this process: (N, 2, H)."""
        order: dict[Completion, int] = {}
        lasts, means = [], []
        for found, hidden in self._spread(completions):
            tokens: list[int] = []
            owners: list[int] = []
            for number, (completion, begin, end) in enumerate(found):
                order[completion] = len(order)
                own = range(begin, max(end - 1, begin + 1))
                tokens += own
                owners += [number] * len(own)
            # One gather a pass: a slice a completion would each send back a gradient of the whole pass's size.
            owner = torch.tensor(owners, device=hidden.device)
            sums = hidden.new_zeros(len(found), hidden.shape[1]).index_add(0, owner, hidden[torch.tensor(tokens)])
            lasts.append(hidden[torch.tensor([end - 1 for _, _, end in found])])
            means.append(sums / torch.bincount(owner, minlength=len(found))[:, None])
        rows_of = torch.tensor([order[each] for each in completions], device=self.base.device)
        return torch.stack([torch.cat(lasts)[rows_of], torch.cat(means)[rows_of]], 1)

    def _spread_over(
        self, work: Callable[[Here, _Above], Tensor], completions: Sequence[Completion], adapter: str | None
    ) -> Tensor:
        """What the ranks make of completions, in order."""
        parts = self._exchanges(completions, lambda each: len(each.prompt) + len(each.shown) + 1)
        return torch.cat([made for some in parts for made in self.ranks.spread(work, self._shares(some), adapter)])

    @torch.no_grad()
    def plain(self, completions: Sequence[Completion]) -> tuple[Tensor, Tensor]:
        """What `pooled` gives with all adapters off, on the CPU: computed once per completion."""
        self.fill(completions)
        missing = [each for each in dict.fromkeys(completions) if each not in self._plain]
        if missing:
            with adapters.active(self.base, None):
                computed = self._spread_over(_plain, missing, None)
            # Each in a tensor of its own, so that what is forgotten is free.
            self._plain.update((each, states.clone()) for each, states in zip(missing, computed, strict=True))
        last, mean = torch.stack([self._plain[each] for each in completions], 1)
        return last, mean

    def plain_here(self, completions: Sequence[Completion]) -> Tensor:
        """As `plain`, by this process, with all adapters off: (N, 2, H), on the CPU."""
        states: dict[Completion, Tensor] = {}
        for found, hidden in self._spread(completions):
            for completion, begin, end in found:
                mean = hidden[begin : max(end - 1, begin + 1)].mean(0)
                states[completion] = torch.stack([hidden[end - 1], mean]).cpu()
        return torch.stack([states[each] for each in completions])


# What ranks share out --------------------------------------------------------------------------------


class _Below(NamedTuple):
    """Rows to run through the layers below `start`."""

    rows: list[Row]
    start: int


@torch.no_grad()
def _below(here: Here, share: _Below) -> Activations:
    found = Activations({}, {})
    for rows in flat.passes(share.rows):
        layout = flat.Layout(rows, here.base)
        hidden = layout.run(here.base, layout.embedded(here.base), 0, share.start).float().cpu()
        for prompt, begin, end in layout.prompts:
            if prompt not in found.prompts:
                found.prompts[prompt] = hidden[begin:end].clone()
        for completion, begin, end in layout.completions:
            found.completions[completion] = hidden[begin:end].clone()
    return found


class _Above(NamedTuple):
    """Completions to run through layers start..stop-1, and where their activations are."""

    completions: list[Completion]
    held: TrunkCache | Activations
    start: int
    stop: int


def _above(here: Here, share: _Above) -> Tensor:
    """What `pooled` gives of them, (N, 2, H), on the CPU."""
    return _cache(here, share).pooled_here(share.completions).cpu()


@torch.no_grad()
def _plain(here: Here, share: _Above) -> Tensor:
    """What `plain` gives of them, (N, 2, H)."""
    return _cache(here, share).plain_here(share.completions)


def _cache(here: Here, share: _Above) -> TrunkCache:
    held = share.held
    # Activations alone come to a follower.
    return TrunkCache.holding(here.base, share.start, share.stop, held) if isinstance(held, Activations) else held
