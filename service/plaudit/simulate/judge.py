"""How good texts are beside others, as numbers with intervals. Pure: golds and texts enter, figures leave."""

from __future__ import annotations

import itertools
import random
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from plaudit.release.texts import masked

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


_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")


def sentences_of(text: str) -> list[str]:
    """Sentences of a text, with their ending marks."""
    return [sentence for sentence in _SENTENCE_END.split(text.strip()) if sentence]


@dataclass(frozen=True, slots=True)
class Cut:
    """How much of each source its diversity is measured on: the same for all sources that are compared.

    Every figure of diversity falls as texts become more, and distinct-2 also rises as they become shorter.
    """

    texts: int
    """Answers per prompt."""
    bigrams: int
    """Two-word runs in all, in the order of the prompts."""

    def to_json(self) -> dict[str, int]:
        """Plain JSON types."""
        return asdict(self)


# Of the source with the fewest bigrams, so that one that is judged later (best of n) finds enough of its own.
_CUT_SHARE = 0.9


def common_cut(sources: Sequence[Sequence[Sequence[str]]]) -> Cut:
    """The largest cut that every source can give; a source is a list of answers per prompt."""
    texts = min((len(group) for source in sources for group in source), default=0)
    totals = [sum(1 for _ in _runs(text for group in source for text in group[:texts])) for source in sources]
    return Cut(texts, int(_CUT_SHARE * min(totals, default=0)))


def cut_texts(source: Sequence[Sequence[str]], cut: Cut) -> list[str]:
    """The first `cut.texts` answers to each prompt, in the order of the prompts."""
    return [text for group in source for text in group[: cut.texts]]


def _runs(texts: Iterable[str]) -> Iterator[tuple[str, str]]:
    return (run for words in map(_words, texts) for run in itertools.pairwise(words))


def distinct_2(texts: Iterable[str], bigrams: int) -> float | None:
    """Share of the first `bigrams` two-word runs in `texts` that are different; None if there are fewer.

    Li et al. 2016, arXiv:1510.03055, section 5.2. Compare only figures over equally many texts and runs.
    """
    runs = list(itertools.islice(_runs(texts), bigrams))
    return len(set(runs)) / len(runs) if runs and len(runs) == bigrams else None


def distinct_masked(texts: Sequence[str], questions: Sequence[str]) -> float | None:
    """Share of answers that still differ from all others once the question's own words are masked; None without any.

    `questions` names the question of each text. One pattern with the subject filled in gives 1 / number of texts.
    """
    shapes = {masked(text, question) for text, question in zip(texts, questions, strict=True)}
    return len(shapes) / len(texts) if texts else None


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
