"""How simulated people correct a text: small local edits, kept where their liking of the text grows.

A text enters with a way to value texts; a better text leaves, or None where no small edit helps. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence

from plaudit_instruction.plugin import LARGEST_EDIT, edit_distance
from plaudit_instruction.sentences import sentence_ends, sentences

PLAINER = {
    "utilize": "use",
    "utilizing": "using",
    "numerous": "many",
    "approximately": "about",
    "individuals": "people",
    "purchase": "buy",
    "obtain": "get",
    "assist": "help",
    "additionally": "also",
    "however": "but",
    "therefore": "so",
    "ensure": "make sure",
    "commence": "start",
    "provide": "give",
    "require": "need",
    "essential": "needed",
    "delicious": "tasty",
    "beautiful": "pretty",
    "incredible": "good",
    "fantastic": "good",
    "amazing": "good",
    "wonderful": "lovely",
    "significant": "big",
    "crucial": "needed",
    "refreshing": "fresh",
    "comfortable": "soft",
}
DROPPED = re.compile(
    r"\b(?:truly|very|incredibly|really|extremely|absolutely|simply|certainly|wonderfully|as well as possible)\s+"
    r"|\*\*|[#`_]{2,}",
    re.IGNORECASE,
)
SMALLEST_GAIN = 0.1


def corrected(text: str, worth: Callable[[str], float], endings: Sequence[str], rounds: int = 3) -> str | None:
    """The best of a few rounds of single edits; None where nothing gains or the edit would be a rewrite.

    Editing comes first; one of `endings` follows at most, so that corrections do not teach a refrain.
    """
    start, best = worth(text), text
    original = _tokens(text)

    def better(edits: Iterable[str]) -> str:
        near = [edit for edit in edits if edit and edit_distance(original, _tokens(edit)) <= LARGEST_EDIT]
        return max([best, *near], key=worth)

    for _ in range(rounds):
        edited = better(_edits(best))
        if edited == best:
            break
        best = edited
    if _finished(best):
        best = better(f"{best.rstrip()} {ending}" for ending in endings)
    return best if worth(best) >= start + SMALLEST_GAIN else None


def _edits(text: str) -> Iterator[str]:
    """Single edits: plainer words, no puffery, one sentence fewer, finished, two sentences made of one."""
    yield _plainer(text)
    yield DROPPED.sub("", text)
    parts = sentences(text)
    if len(parts) > 1:
        for left_out in range(len(parts)):
            yield " ".join(part for index, part in enumerate(parts) if index != left_out)
    if not _finished(text):
        yield text.rstrip(" ,;:-\n") + "."
    yield re.sub(r",\s+(?:and|but|so)\s+(\w)", lambda match: ". " + match.group(1).upper(), text, count=1)


def _finished(text: str) -> bool:
    ends = sentence_ends(text)
    return bool(ends) and ends[-1] >= len(text.rstrip())


def _plainer(text: str) -> str:
    def swap(match: re.Match[str]) -> str:
        word = match.group()
        plain = PLAINER.get(word.lower(), word)
        return plain.capitalize() if word[0].isupper() else plain

    return re.sub(r"[A-Za-z]+", swap, text)


def _tokens(text: str) -> list[str]:
    return re.findall(r"\w+|[^\w\s]", text)
