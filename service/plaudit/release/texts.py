"""What can be counted in texts without a model: variety, sameness, emptiness, repetition, echo.

Texts are what people see. Pure functions; words are runs of letters and digits, case folded, and each character of
a script written without spaces is a word.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

_UNSPACED = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\u0e00-\u0e7f"
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W{_UNSPACED}]+")

# A phrase of three words that covers this share of a text is stuck, not emphasis.
_REPEATED_SHARE = 0.5
# Shorter texts may repeat a word or quote the prompt and still answer it.
_LEAST_WORDS = 6


@dataclass(frozen=True, slots=True)
class Sample:
    """What people see of one completion, the last thing the user said, and the prompt's group.

    Conversations that end alike are different prompts: `group` tells them apart, and is the prompt if it is empty.
    """

    prompt: str
    text: str
    group: str = ""

    @property
    def key(self) -> str:
        """What answers are matched by."""
        return self.group or self.prompt


def words(text: str) -> list[str]:
    """The words of a text, case folded, in order."""
    return _WORD.findall(text.casefold())


def distinct_2(texts: Sequence[str]) -> float | None:
    """Different pairs of neighbouring words as a share of all; None without any.

    Li et al. 2016, arXiv:1510.03055, section 5.2. It falls as texts grow longer or more: `compare_variety` compares.
    """
    pairs = Counter(pair for text in texts for pair in _grams(words(text), 2))
    total = pairs.total()
    return len(pairs) / total if total else None


# Words that carry no subject; what remains of a question is its subject.
_FUNCTION_WORDS = frozenset(
    words(
        "about after and are can could does did for from give had has have her him his how into its make may might "
        "more most much must new not one only other our out over own please shall she should some such tell than that "
        "the their them then there these they this three too under until upon was were what when where which while who "
        "why will with without would write you your"
    )
)


def question_words(question: str) -> list[str]:
    """Words of a question that carry its subject, case folded, in order, each once; function words are English."""
    found = dict.fromkeys(word for word in words(question) if len(word) > 2)
    return [word for word in found if word not in _FUNCTION_WORDS]


def masked(text: str, question: str) -> str:
    """`text` in case-folded words, "_" for each that shares a stem with a subject word of `question`."""
    stems = {_stem(word) for word in question_words(question)}
    return " ".join("_" if _stem(word) in stems else word for word in words(text))


def distinct_masked(samples: Sequence[Sample]) -> float | None:
    """Different answers once their question's own words are masked, as a share of all; None without any.

    One pattern with the subject filled in is one answer then. It falls as answers become more: `compare_variety`
    compares.
    """
    return len({masked(each.text, each.prompt) for each in samples}) / len(samples) if samples else None


def _stem(word: str) -> str:
    return word.removesuffix("s")[:6]


def commonest_opening(texts: Sequence[str], length: int = 3) -> tuple[str, float]:
    """The first `length` words that most texts begin with, and the share of texts that do."""
    if not texts:
        return "", 0.0
    openings = Counter(" ".join(words(text)[:length]) for text in texts)
    # The first in the alphabet of equally common ones, so that the answer does not depend on the order of texts.
    opening, count = min(openings.items(), key=lambda item: (-item[1], item[0]))
    return opening, count / len(texts)


def mean_words(texts: Sequence[str]) -> float:
    """Mean length in words; 0 without texts."""
    return sum(len(words(text)) for text in texts) / len(texts) if texts else 0.0


def degenerate(sample: Sample) -> str:
    """Why a completion is no answer at all: "empty", "repeated" or "echo"; "" if it is one.

    Empty: no word. Repeated: at least six words, and one word, or one phrase of two or three words, covers half of
    them or more by coming again and again. Echo: at least six words, all of them the prompt's own, in its order.
    """
    said = words(sample.text)
    if not said:
        return "empty"
    if len(said) < _LEAST_WORDS:
        return ""
    for length in (1, 2, 3):
        phrase, times = Counter(_grams(said, length)).most_common(1)[0]
        if times > 2 and _covered(said, phrase) / len(said) >= _REPEATED_SHARE:
            return "repeated"
    asked = words(sample.prompt)
    if any(asked[start : start + len(said)] == said for start in range(len(asked) - len(said) + 1)):
        return "echo"
    return ""


def degenerate_share(samples: Sequence[Sample]) -> float:
    """Share of completions that are no answer at all; 0 without samples."""
    return sum(bool(degenerate(sample)) for sample in samples) / len(samples) if samples else 0.0


def longer_share(candidate: Sequence[Sample], other: Sequence[Sample]) -> float | None:
    """How often a judge of length alone would prefer the candidate: mean over prompts, ties count half.

    None if no prompt has completions of both.
    """
    ours, theirs = _lengths(candidate), _lengths(other)
    shares = [
        sum((mine > his) + (mine == his) / 2 for mine in ours[prompt] for his in theirs[prompt])
        / (len(ours[prompt]) * len(theirs[prompt]))
        for prompt in ours
        if prompt in theirs
    ]
    return sum(shares) / len(shares) if shares else None


def matched(candidate: Sequence[Sample], other: Sequence[Sample]) -> tuple[list[Sample], list[Sample]]:
    """Answers of both, as many of each for every prompt, so that counts over them can be compared."""
    ours, theirs = _by_prompt(candidate), _by_prompt(other)
    shared = [(prompt, min(len(ours[prompt]), len(theirs[prompt]))) for prompt in ours if prompt in theirs]
    return (
        [each for prompt, count in shared for each in ours[prompt][:count]],
        [each for prompt, count in shared for each in theirs[prompt][:count]],
    )


@dataclass(frozen=True, slots=True)
class Variety:
    """How varied one side's answers are; a share is None if there was nothing to count."""

    distinct_2: float | None
    distinct_masked: float | None
    opening: str
    """The first three words that most answers begin with. Of people's making, perhaps: keep it out of logs."""
    opening_share: float


@dataclass(frozen=True, slots=True)
class VarietyCompared:
    """Variety of a candidate's answers and of others to the same prompts."""

    candidate: Variety
    other: Variety
    texts: int
    """Answers of each side."""
    pairs: int
    """Pairs of neighbouring words of each side, behind its distinct-2."""


def compare_variety(candidate: Sequence[Sample], other: Sequence[Sample]) -> VarietyCompared:
    """Like with like: as many answers of both for every prompt, and for distinct-2 as many words of both.

    Every figure of variety falls as texts become more, and distinct-2 also rises as they become shorter. So the nth
    answers of both to a prompt are cut to the words of the shorter one. Cutting each side as a whole would not do: the
    side that talks more would be counted on fewer prompts, and prompts differ.
    """
    ours, theirs = matched(candidate, other)
    pairs = list(zip((words(each.text) for each in ours), (words(each.text) for each in theirs), strict=True))
    lengths = [min(len(mine), len(his)) for mine, his in pairs]
    return VarietyCompared(
        candidate=_variety(ours, [mine[:length] for (mine, _), length in zip(pairs, lengths, strict=True)]),
        other=_variety(theirs, [his[:length] for (_, his), length in zip(pairs, lengths, strict=True)]),
        texts=len(ours),
        pairs=sum(max(0, length - 1) for length in lengths),
    )


def _variety(samples: Sequence[Sample], cut: Sequence[Sequence[str]]) -> Variety:
    opening, share = commonest_opening([each.text for each in samples])
    return Variety(distinct_2([" ".join(said) for said in cut]), distinct_masked(samples), opening, share)


def _grams(said: Sequence[str], length: int) -> Iterator[tuple[str, ...]]:
    return (tuple(said[start : start + length]) for start in range(len(said) - length + 1))


def _covered(said: Sequence[str], phrase: tuple[str, ...]) -> int:
    """Words of `said` that lie in places where the phrase stands, none counted twice."""
    places = (
        place
        for start, gram in enumerate(_grams(said, len(phrase)))
        if gram == phrase
        for place in range(start, start + len(phrase))
    )
    return len(set(places))


def _by_prompt(samples: Sequence[Sample]) -> dict[str, list[Sample]]:
    found: dict[str, list[Sample]] = {}
    for sample in samples:
        found.setdefault(sample.key, []).append(sample)
    return found


def _lengths(samples: Sequence[Sample]) -> dict[str, list[int]]:
    return {key: [len(words(each.text)) for each in several] for key, several in _by_prompt(samples).items()}
