"""How far an answer rests on the passages that it was given. Pure.

An answer and its passages enter, a share in [0, 1] leaves: the mean over the answer's sentences of the share of a
sentence's content words that stand in the passages it cites. A sentence without a citation is held against all passages
and counts a little less; one that cites a passage that is not there counts nothing. It sees words, not meaning: "not"
is no content word, and a denial of a passage looks as grounded as the passage.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

UNCITED = 0.75  # What a sentence is worth that names no passage.
_CITED = re.compile(r"\[(\d{1,3})\]")
_SENTENCE = re.compile(r"[^.!?\n]+(?:[.!?]+(?:\s*\[\d{1,3}\])*|\n|$)")
_WORD = re.compile(r"[^\W_]+(?:'[^\W_]+)?")
_FUNCTION_WORDS = frozenset(
    """
    a an and are as at be been but by can could did do does for from had has have he her his how i if in into is it
    its may more most no not of on one or our she should so some such than that the their them then there these they
    this those to was we were what when where which who why will with would you your
    """.split()  # noqa: SIM905
)
_SUFFIXES = ("ing", "ed", "es", "s", "ly")
_SHORTEST_STEM = 3


def citations(text: str) -> tuple[int, ...]:
    """Numbers of the passages that a text cites as [1], [2] and so on, in order, each once."""
    return tuple(dict.fromkeys(int(number) for number in _CITED.findall(text)))


def groundedness(answer: str, passages: Sequence[str]) -> float:
    """Share of what an answer says that its passages say too; 0 for an answer without content words."""
    known = [_stems(passage) for passage in passages]
    everything = frozenset().union(*known) if known else frozenset()
    shares = []
    for sentence in _SENTENCE.findall(answer):
        cited = citations(sentence)
        said = _stems(_CITED.sub(" ", sentence))
        if not said:
            continue
        if not cited:
            shares.append(UNCITED * len(said & everything) / len(said))
        elif any(not 1 <= number <= len(passages) for number in cited):
            shares.append(0.0)
        else:
            held = frozenset().union(*(known[number - 1] for number in cited))
            shares.append(len(said & held) / len(said))
    return sum(shares) / len(shares) if shares else 0.0


def _stems(text: str) -> frozenset[str]:
    words = (word.casefold() for word in _WORD.findall(text))
    return frozenset(_stem(word) for word in words if word not in _FUNCTION_WORDS)


def _stem(word: str) -> str:
    for suffix in _SUFFIXES:
        if word.endswith(suffix) and len(word) - len(suffix) >= _SHORTEST_STEM:
            return word[: -len(suffix)]
    return word
