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
    """Share of all pairs of one prompt that the first side wins; ties count half. 0.5 if a side is empty."""
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """A figure over all prompts, and apart over those of kinds that the channel asked and those that it never did."""

    all: Rate
    seen: Rate | None
    unseen: Rate | None

    def to_json(self, name: str) -> dict[str, Any]:
        """Plain JSON types: `name`, `name`_seen and `name`_unseen."""
        return {
            name: self.all.to_json(),
            f"{name}_seen": self.seen.to_json() if self.seen else None,
            f"{name}_unseen": self.unseen.to_json() if self.unseen else None,
        }


def split_over_prompts(values: Sequence[float], seen: Sequence[bool], seed: int = 0) -> Split:
    """The mean of one number a prompt, with intervals; `seen` says of each prompt whether its kind is the channel's."""
    of_seen = [value for value, known in zip(values, seen, strict=True) if known]
    of_unseen = [value for value, known in zip(values, seen, strict=True) if not known]
    return Split(
        all=rate_over_prompts(values, seed),
        seen=rate_over_prompts(of_seen, seed) if of_seen else None,
        unseen=rate_over_prompts(of_unseen, seed) if of_unseen else None,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Golds:
    """What the hidden gold says of one source of answers.

    `gold` in the population's units; `gain`: gold less the base's on the same prompt; `win_rate`: of comparisons with
    the base's answers to the same prompt, ties counted half.
    """

    gold: Split
    gain: Split
    win_rate: Split

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types, under the names that the demo's report reads."""
        return {
            **self.gold.to_json("gold"),
            **self.gain.to_json("gold_gain"),
            **self.win_rate.to_json("gold_win_rate"),
        }


def golds_of(
    own: Sequence[Sequence[float]], base: Sequence[Sequence[float]], seen: Sequence[bool], seed: int = 0
) -> dict[str, Split]:
    """The fields of Golds, from the golds of each prompt's answers and of the base's."""
    means = [sum(each) / len(each) for each in own]
    gains = [mean - sum(other) / len(other) for mean, other in zip(means, base, strict=True)]
    shares = [win_share(each, other) for each, other in zip(own, base, strict=True)]
    return {
        "gold": split_over_prompts(means, seen, seed),
        "gain": split_over_prompts(gains, seen, seed),
        "win_rate": split_over_prompts(shares, seen, seed),
    }


_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")


def sentences_of(text: str) -> list[str]:
    """Sentences of a text, with their ending marks."""
    return [sentence for sentence in _SENTENCE_END.split(text.strip()) if sentence]
