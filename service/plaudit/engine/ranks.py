"""Processes that share out the passes of a fit, as the one of them sees it that draws and decides: rank 0.

Enters: a pass, as a function of a module and a share for each rank. Leaves: what each share came to, and the sum of all
shares' gradients. `Alone` is a learner of one process; `engine.torchrun` has those of several.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol, TypeVar

import torch

from plaudit.engine.base import Base
from plaudit.engine.protocol import Engine

Share = TypeVar("Share")
Made = TypeVar("Made")


class Here(NamedTuple):
    """What a process computes with."""

    base: Base
    engine: Engine


class Ranks(Protocol):
    """Processes that compute together, seen from rank 0.

    A pass has a share for each rank, None for one without work. `adapter` names the one that is in force at rank 0
    (None: the bare base); followers put it in force for their share.
    """

    @property
    def size(self) -> int:
        """How many there are."""

    @property
    def samplers(self) -> int:
        """How many have an engine, the first ones: 1 if it is a remote one."""

    def spread(
        self, work: Callable[[Here, Share], Made], shares: Sequence[Share | None], adapter: str | None
    ) -> list[Made]:
        """What each share comes to, in order, without gradient; those without work are left out."""

    def forward(
        self, work: Callable[[Here, Share], torch.Tensor], shares: Sequence[Share | None], adapter: str
    ) -> torch.Tensor:
        """The shares' tensors, which are on the CPU, one behind the other, with gradient.

        `backward` completes the pass behind the loss's.
        """

    def backward(self, adapter: str) -> None:
        """Add to the adapter's gradient what flows back into the last `forward`; asked behind the loss's backward."""

    def check(self) -> None:
        """Raise LearnerProcessLost if one of them is gone."""

    def close(self) -> None:
        """Let the followers end."""


class Alone:
    """One process: passes are computed as they are asked for."""

    size = 1
    samplers = 1

    def __init__(self, base: Base, engine: Engine | None = None) -> None:
        self._here = Here(base, engine)  # type: ignore[arg-type]

    def spread(
        self, work: Callable[[Here, Share], Made], shares: Sequence[Share | None], adapter: str | None
    ) -> list[Made]:
        """See Ranks."""
        return [work(self._here, share) for share in shares if share is not None]

    def forward(
        self, work: Callable[[Here, Share], torch.Tensor], shares: Sequence[Share | None], adapter: str
    ) -> torch.Tensor:
        """See Ranks."""
        (made,) = self.spread(work, shares, adapter)
        return made

    def backward(self, adapter: str) -> None:
        """See Ranks: the loss's own backward pass has reached everything."""

    def check(self) -> None:
        """See Ranks."""

    def close(self) -> None:
        """See Ranks."""


def split(count: int, size: int) -> list[range]:
    """Consecutive parts of `count` things for each of `size` ranks, which differ by at most one."""
    ends = [count * rank // size for rank in range(size + 1)]
    return [range(begin, end) for begin, end in itertools.pairwise(ends)]
