"""How a server shows that what it runs under a name is what was proved under that name before.

In: log-probs as they were and as they are. Out: nothing, or ProofFailed. Serving proves a release against its trainer's
log-probs (`serving.proof`). What was asked of the servers for that is kept, and any server that loads the adapter later
(it was away, or restarted) is asked the same again.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from plaudit.engine.protocol import EncodedPrompt
from plaudit.errors import ProofFailed

# Servers of one fleet run the same code on the same weights. In float32 they differ by the order of sums; in 16 bits,
# perhaps on other GPUs and in other batches, by roundings that add up over layers.
EXACT_MEAN = 1e-3
COARSE_MEAN = 5e-2
# Of what the adapter changes: whatever the number format, it must be nearer to itself than to the base.
SHARE = 0.2


@dataclass(frozen=True, slots=True)
class Witness:
    """Log-probs (nats) of a completion's tokens, under softmax(logits / temperature), as a server gave them."""

    prompt: EncodedPrompt
    completion: tuple[int, ...]
    temperature: float
    logprobs: tuple[float, ...]


def apart(one: Sequence[float], other: Sequence[float]) -> float:
    """Mean absolute difference (nats); NaN if any is NaN, 0 of nothing."""
    return math.fsum(abs(x - y) for x, y in zip(one, other, strict=True)) / max(1, len(one))


def check(what: str, kept: Sequence[float], now: Sequence[float], base: Sequence[float] | None, *, exact: bool) -> None:
    """Raises ProofFailed unless a server's log-probs are those that were kept; `base` are the same server's without.

    The tolerance is written as what must hold, because comparisons with NaN are false.
    """
    tolerance = EXACT_MEAN if exact else COARSE_MEAN
    if base is not None:
        tolerance = min(tolerance, SHARE * apart(kept, base))
    difference = apart(kept, now)
    if not difference <= tolerance:
        raise ProofFailed(
            f"{what} differs on average by {difference:.3g} from the log-probs that it was proved with, above "
            f"{tolerance:.3g}: another adapter, or none, answers under this name",
            difference=difference,
            tolerance=tolerance,
        )
