"""How good texts are beside others, as numbers with intervals. Pure: golds enter, figures leave.

How varied they are is counted as the gate counts it: `plaudit.release.texts.compare_variety`.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

RESAMPLES = 2000


@dataclass(frozen=True, slots=True)
class Rate:
    """A mean over prompts with its 95% interval. `n` is the number of prompts."""

    estimate: float
    low: float
    high: float
    n: int

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return asdict(self)


def win_share(golds: Sequence[float], base_golds: Sequence[float]) -> float:
    """Share of all pairs of one prompt that the first side wins; ties count half. 0.5 where a side is empty."""
    pairs = [(gold > base) + 0.5 * (gold == base) for gold in golds for base in base_golds]
    return sum(pairs) / len(pairs) if pairs else 0.5


def rate_over_prompts(shares: Sequence[float], seed: int = 0) -> Rate:
    """Mean of one number a prompt, with a 95% percentile bootstrap over prompts (Efron 1979)."""
    if not shares:
        raise ValueError("a rate needs at least one prompt, and there is none")
    rng = random.Random(f"bootstrap:{seed}")
    count = len(shares)
    means = sorted(sum(rng.choices(shares, k=count)) / count for _ in range(RESAMPLES))
    tail = RESAMPLES * 25 // 1000
    return Rate(sum(shares) / count, means[tail], means[-tail - 1], count)


_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")


def sentences_of(text: str) -> list[str]:
    """Sentences of a text, with their ending marks."""
    return [sentence for sentence in _SENTENCE_END.split(text.strip()) if sentence]
