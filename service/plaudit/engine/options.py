"""Log-probs of given continuations of one prompt: options with their end of turn, probes, gate answers.

In: a prompt and token lists. Out: one log-prob per token. The lists are laid out as a tree, so that a beginning that
several share is computed once, and the prompt once for all. The tree is walked in depth-first order in pieces of a few
tokens; between two pieces only the keys and values of the prompt and of one path are kept, and logits never outlive
the tokens that are asked for. `Plan` says beforehand how much memory that takes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from plaudit.engine.attention import Beyond, attend_to
from plaudit.engine.base import Base
from plaudit.engine.prefixes import Prefix
from plaudit.engine.runner import Runner
from plaudit.engine.sampling import SMALLEST_TEMPERATURE
from plaudit.errors import OptionsTooLong

# Rows of logits that exist at once: (16, V), and twice more inside of logsumexp.
LOGIT_ROWS = 16
LOGIT_COPIES = 3
# Copies of a piece's attention scores (heads, C, L) and of its activations that are alive in a layer at once.
SCORE_COPIES = 4
HIDDEN_COPIES = 12
MLP_COPIES = 4


@dataclass(slots=True)
class Tree:
    """Continuations of a prompt as a tree of the tokens that are fed; node 0 is the prompt's last token.

    Nodes are in depth-first order, so that a node's descendants follow it at once. `asked[n]` are (continuation,
    position, token) whose log-prob stands at node n.
    """

    tokens: list[int]
    parents: list[int]
    depths: list[int]
    asked: list[list[tuple[int, int, int]]]

    @classmethod
    def of(cls, last: int, continuations: Sequence[Sequence[int]]) -> Tree:
        """The tree of `continuations` of a prompt that ends with the token `last`."""
        tree = cls([last], [-1], [0], [[]])
        # In sorted order those with the same beginning stand together, which is depth-first order.
        path = [0]
        before: Sequence[int] = ()
        for index in sorted(range(len(continuations)), key=lambda i: tuple(continuations[i])):
            tokens = continuations[index]
            shared = 0
            while shared < min(len(path) - 1, len(tokens) - 1) and before[shared] == tokens[shared]:
                shared += 1
            del path[shared + 1 :]
            for position, token in enumerate(tokens[shared:-1], start=shared):
                tree.parents.append(path[-1])
                tree.tokens.append(token)
                tree.depths.append(position + 1)
                tree.asked.append([])
                path.append(len(tree.tokens) - 1)
            for position, token in enumerate(tokens):
                tree.asked[path[position]].append((index, position, token))
            before = tokens
        return tree

    def __len__(self) -> int:
        return len(self.tokens)


@dataclass(frozen=True, slots=True)
class Plan:
    """How a tree is computed: tokens of a piece, and the most memory (bytes) that its tensors take at once."""

    piece: int
    needed: int

    @classmethod
    def of(cls, base: Base, tree: Tree, prompt: int, token_bytes: int, *, most: int, budget: int) -> Plan:
        """The largest piece, at most `most` tokens, within `budget` bytes; raises OptionsTooLong if none is.

        `token_bytes`: keys and values of one token in all layers.
        """
        config = base.model.config
        item = base.dtype.itemsize
        heads: int = config.num_attention_heads
        inner: int = getattr(config, "intermediate_size", 4 * base.hidden_size)
        deepest = max(tree.depths)
        # Keys and values of a path, and while they move a second copy of one layer's.
        path = (deepest + 1) * token_bytes

        def needed(piece: int) -> int:
            length = prompt + deepest + piece
            layer = 2 * length * token_bytes // base.num_layers
            scores = SCORE_COPIES * heads * piece * length * 4
            hidden = piece * (HIDDEN_COPIES * base.hidden_size + MLP_COPIES * inner) * max(item, 4)
            logits = LOGIT_COPIES * min(piece, LOGIT_ROWS) * base.vocab_size * 4
            return path + piece * token_bytes + layer + scores + hidden + logits

        piece = min(most, len(tree))
        while piece > 1 and needed(piece) > budget:
            piece //= 2
        if needed(piece) > budget:
            raise OptionsTooLong(
                f"scoring options of up to {deepest + 1} tokens behind a prompt of {prompt} takes "
                f"{math.ceil(needed(piece) / 2**20)} MiB, and engine.score_memory_mb allows {budget // 2**20}; "
                "send shorter options",
                tokens=deepest + 1,
                limit=max(0, deepest + 1 - math.ceil((needed(piece) - budget) / token_bytes)),
            )
        return cls(piece, needed(piece))


class _Past:
    """Keys and values of the prompt, of the path to a piece, and of the piece, side by side."""

    def __init__(self, prompt: Prefix, path: Prefix, mask: torch.Tensor, positions: torch.Tensor) -> None:
        self._before = [part for part in (prompt, path) if part.length]
        self._mask, self._positions = mask, positions
        self.keys: list[torch.Tensor] = []
        self.values: list[torch.Tensor] = []

    def attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        layer: int,
        scaling: float,
        beyond: Beyond | None = None,
    ) -> torch.Tensor:
        """As Past.attend."""
        # Copies, for the piece's own are views of everything that its pass computed.
        self.keys.append(key.transpose(0, 1).clone(memory_format=torch.contiguous_format))
        self.values.append(value.transpose(0, 1).clone(memory_format=torch.contiguous_format))
        keys = torch.cat([*(part.keys[layer] for part in self._before), self.keys[layer]], dim=1)
        values = torch.cat([*(part.values[layer] for part in self._before), self.values[layer]], dim=1)
        mask = self._mask
        if beyond is not None and beyond.window is not None:
            # A path holds one node of each depth, so that what is before the piece stands at 0, 1, 2, ...
            before = torch.arange(mask.shape[1] - len(self._positions), device=mask.device)
            back = self._positions[:, None] - torch.cat([before, self._positions])
            mask = mask.masked_fill(back >= beyond.window, -math.inf)
        return attend_to(query, keys, values, mask, scaling, beyond)


@dataclass(slots=True)
class Walk:
    """Where the computation of a tree stands."""

    tree: Tree
    plan: Plan
    temperature: float
    lengths: Sequence[int]
    at: int = 0
    path: Prefix = field(default_factory=Prefix)
    found: list[list[float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.temperature = max(self.temperature, SMALLEST_TEMPERATURE)
        self.found = [[math.nan] * length for length in self.lengths]

    @property
    def done(self) -> bool:
        """Whether every log-prob is there."""
        return self.at >= len(self.tree)

    @property
    def logprobs(self) -> list[tuple[float, ...]]:
        """The log-probs of each continuation, in nats."""
        return [tuple(each) for each in self.found]

    @torch.no_grad()
    def step(self, runner: Runner, prompt: Prefix, slot: int) -> None:
        """Compute the next piece behind `prompt`, which holds all of the prompt's tokens but the last."""
        first, last = self.at, min(self.at + self.plan.piece, len(self.tree))
        device = runner.device
        ids = torch.tensor(self.tree.tokens[first:last], device=device)
        positions = prompt.length + torch.tensor(self.tree.depths[first:last], device=device)
        mask = self._mask(prompt.length, first, last).to(device=device, dtype=runner.dtype)
        past = _Past(prompt, self.path, mask, positions)
        _, hidden = runner.run(ids, positions, past, torch.full_like(ids, slot) if slot else None)
        self._read(runner, hidden, first)
        self.at = last
        self._move(past, first)

    def _mask(self, prompt: int, first: int, last: int) -> torch.Tensor:
        """What the nodes first..last-1 see: the prompt, their ancestors, and themselves: (C, L)."""
        tree, path = self.tree, self.path.length
        sees = torch.zeros(last - first, prompt + path + last - first, dtype=torch.bool)
        sees[:, :prompt] = True
        for row, node in enumerate(range(first, last)):
            parent = tree.parents[node]
            if parent >= first:
                sees[row] = sees[parent - first]
            else:
                # A path holds one node of each depth.
                sees[row, prompt : prompt + tree.depths[node]] = True
            sees[row, prompt + path + row] = True
        return torch.zeros(sees.shape).masked_fill_(~sees, -math.inf)

    def _read(self, runner: Runner, hidden: torch.Tensor, first: int) -> None:
        """Log-probs that stand at the piece's nodes, out of final hidden states (C, H)."""
        for start in range(0, hidden.shape[0], LOGIT_ROWS):
            rows = hidden[start : start + LOGIT_ROWS]
            asked = [(row, *one) for row in range(rows.shape[0]) for one in self.tree.asked[first + start + row]]
            if not asked:
                continue
            logits = runner.logits(rows).div_(self.temperature)  # (R, V)
            totals = torch.logsumexp(logits, dim=-1)
            at = torch.tensor([[row, token] for row, _, _, token in asked], device=logits.device)
            values = (logits[at[:, 0], at[:, 1]] - totals[at[:, 0]]).tolist()
            for (_, index, position, _), value in zip(asked, values, strict=True):
                self.found[index][position] = value

    def _move(self, past: _Past, first: int) -> None:
        """Keep keys and values of the next node's ancestors alone."""
        if self.done:
            self.path = Prefix()
            return
        ancestors = []
        node = self.tree.parents[self.at]
        while node >= first:
            ancestors.append(node - first)
            node = self.tree.parents[node]
        old = self.tree.depths[node] + 1 if node >= 0 else 0
        picked = torch.tensor(ancestors[::-1], dtype=torch.long, device=past.keys[0].device)
        for mine, new in ((self.path.keys, past.keys), (self.path.values, past.values)):
            for layer, fresh in enumerate(new):
                kept = fresh.index_select(1, picked)
                if layer == len(mine):
                    mine.append(kept)
                else:
                    mine[layer] = torch.cat([mine[layer][:, :old], kept], dim=1)
        self.path.length = old + len(ancestors)
