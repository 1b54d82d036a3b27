"""Where sentences end in generated text. Text enters, offsets and cut text leave; pure."""

from __future__ import annotations

import itertools
import re

# Marks that end a sentence, with closing quotes, brackets and emphasis. Latin marks need white space or the end of
# the text behind them, so that "3.5" and "example.org" stay whole; CJK marks do not.
_END = re.compile(r"""(?:[.!?…]+["'”’»)\]*_]*(?=\s|$))|(?:[。！？]+["'”’」』)\]]*)""")
_ABBREVIATIONS = frozenset(
    {"e.g", "i.e", "mr", "mrs", "ms", "dr", "prof", "st", "vs", "cf", "approx", "dept", "fig", "no", "vol", "jr", "sr"}
)
# These abbreviate within a sentence and may also close one; what follows decides.
_MAYBE_LAST = frozenset({"etc", "inc", "ltd", "co", "a.m", "p.m", "u.s", "u.k"})
_LAST_WORD = re.compile(r"[^\s(\[\"'“‘*]+$")
_LIST_NUMBER = re.compile(r"(?:^|[\n:;.!?)])[ \t]*(?:\d{1,2}|[a-zA-Z])$")


def _ends_sentence(before: str, mark: str, after: str) -> bool:
    """Whether `mark` between `before` and `after` ends a sentence, and is no list number, abbreviation or initial."""
    if not before.strip():
        return False
    if mark[0] != "." or mark.startswith(".."):
        return True
    if _LIST_NUMBER.search(before):
        return False
    match = _LAST_WORD.search(before)
    word = match.group().lower() if match else ""
    if word in _ABBREVIATIONS:
        # "The answer is no." closes a sentence; "No. 5" does not.
        return word == "no" and not after.lstrip()[:1].isdigit()
    follows = after.lstrip()[:1]
    if word in _MAYBE_LAST:
        return not follows.islower()
    is_initial = len(word) == 1 and word.isalpha() and word != "i" and follows.isupper()
    return not (is_initial and re.search(r"(?:^|[.!?]\s+|[A-Z]\w*\s+|\bby\s+)\S$", before) is not None)


def sentence_ends(text: str) -> list[int]:
    """Offsets just behind each full sentence of `text`, ascending."""
    ends = []
    for match in _END.finditer(text):
        if _ends_sentence(text[: match.start()], match.group(), text[match.end() :]):
            ends.append(match.end())
    return ends


def sentences(text: str) -> list[str]:
    """The sentences of `text`, stripped; a last unfinished one is included."""
    edges = [0, *sentence_ends(text), len(text)]
    parts = (text[start:end].strip() for start, end in itertools.pairwise(edges))
    return [part for part in parts if part]


def cut_after_last_sentence(text: str) -> str:
    """`text` up to its last full sentence, or whole if it has none; stripped."""
    ends = sentence_ends(text)
    return text[: ends[-1]].strip() if ends else text.strip()
