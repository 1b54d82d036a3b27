"""How good texts are beside others, as numbers with intervals. Pure: golds and texts enter, figures leave."""

from __future__ import annotations

import itertools
import random
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

RESAMPLES = 2000
OPENING_WORDS = 3


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


def _words(text: str) -> list[str]:
    return re.findall(r"\w+(?:['’]\w+)?", text.lower())


def distinct_2(texts: Sequence[str]) -> float:
    """Share of all two-word runs in `texts` that are different (Li et al. 2016, arXiv:1510.03055); 1 without any."""
    runs = [run for words in map(_words, texts) for run in itertools.pairwise(words)]
    return len(set(runs)) / len(runs) if runs else 1.0


def commonest_opening(texts: Sequence[str], words: int = OPENING_WORDS) -> tuple[str, float]:
    """The first `words` words that most texts begin with, and the share of texts that do."""
    openings = Counter(" ".join(_words(text)[:words]) for text in texts)
    if not openings:
        return "", 0.0
    # The alphabet decides between equals, so that a report never depends on order.
    opening, count = min(openings.items(), key=lambda item: (-item[1], item[0]))
    return opening, count / len(texts)


def mean_words(texts: Sequence[str]) -> float:
    """Mean number of words a text."""
    return sum(len(text.split()) for text in texts) / len(texts) if texts else 0.0
