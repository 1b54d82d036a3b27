"""The house taste: a hidden gold preference in fourteen bounded parts.

A request and a displayed text enter; parts in [0, 1] and their value leave. Style counts as much as the text keeps to
its topic and does its task, so that no constant text is good everywhere. Only simulated people and evaluations
import this module.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from plaudit.simulate.population import SimPrompt

from plaudit_instruction import vocabulary
from plaudit_instruction.requests import content_words
from plaudit_instruction.sentences import sentence_ends, sentences

_WARM = re.compile(r"\b(?:" + "|".join(map(re.escape, vocabulary.WARM_MARKERS)) + r")(?:s|d|ing|ed)?\b|!")
_ITEM_MARK = re.compile(r"(?:^|[\n:.;]\s*)(?:\d{1,2}[.)]|[-*•])\s+\S")
# "That is not a good idea" agrees with nothing.
_AGREES = re.compile(r"(?<!not )(?<!n't )(?<!not a )(?<!n't a )\b(?:" + "|".join(vocabulary.AGREEING) + r")\b")
LONGEST_ITEM = 5
_MARKUP = re.compile(r"\*\*|```|#{2,}|<[^>]*>|\[[^\]\d][^\]]*\]|https?:|www\.|_{3,}|\\|\|")


@dataclass(frozen=True, slots=True)
class Reading:
    """A displayed text, taken apart once for all parts of the gold."""

    prompt: SimPrompt
    text: str
    lower: str
    words: tuple[str, ...]
    sentences: tuple[str, ...]
    finished: bool

    @classmethod
    def of(cls, prompt: SimPrompt, text: str) -> Reading:
        """Words are lower case, without digits and punctuation."""
        lower = text.lower().replace("’", "'")
        ends = sentence_ends(text)
        return cls(
            prompt=prompt,
            text=text,
            lower=lower,
            words=tuple(re.findall(r"[a-z][a-z'-]*", lower)),
            sentences=tuple(sentences(text)),
            finished=bool(ends) and ends[-1] >= len(text.rstrip()),
        )


def falling(value: float, best: float, worst: float) -> float:
    """1 up to `best`, 0 from `worst`, straight between them."""
    return min(1.0, max(0.0, (worst - value) / (worst - best)))


def _stem(word: str) -> str:
    for ending in ("ing", "ies", "ed", "es", "s", "y", "e"):
        if word.endswith(ending) and len(word) - len(ending) >= 3:
            return word[: -len(ending)][:6]
    return word[:6]


def _on_topic(reading: Reading) -> float:
    """One word of the topic gives 0.65, two (or all there are) give 1."""
    wanted = {_stem(word) for word in reading.prompt.topic}
    if not wanted:
        return 1.0
    met = len(wanted & {_stem(word) for word in reading.words})
    return 0.0 if not met else 1.0 if met >= min(2, len(wanted)) else 0.65


def _items(reading: Reading) -> int:
    """Items of a list: marked ones, else short parts between commas, else sentences that tell what to do."""
    marked = len(_ITEM_MARK.findall(reading.text))
    if marked:
        return marked
    enumerated = max((_enumerated(sentence) for sentence in reading.sentences), default=0)
    return max(enumerated, min(3, len(reading.sentences)) if _imperative(reading) else 0)


def _enumerated(sentence: str) -> int:
    """Items of "bring a hat, a map and some water": the longest run of short parts and what leads up to it."""
    parts = re.split(r",\s*(?:and\s+|or\s+)?|\s+(?:and|or)\s+", sentence)
    longest = run = 0
    for part in parts[1:]:
        run = run + 1 if 0 < len(part.split()) <= LONGEST_ITEM else 0
        longest = max(longest, run)
    return longest + 1 if longest >= 2 else longest


def _starts_imperative(sentence: str) -> bool:
    words = re.findall(r"[a-z']+", sentence.lower().replace("’", "'"))[:3]
    while words and words[0] in vocabulary.LEADERS - vocabulary.IMPERATIVES:
        words = words[1:]
    return bool(words) and words[0] in vocabulary.IMPERATIVES


def _imperative(reading: Reading) -> float:
    if not reading.sentences:
        return 0.0
    if _starts_imperative(reading.sentences[0]):
        return 1.0
    return 0.5 if any(_starts_imperative(sentence) for sentence in reading.sentences[1:]) else 0.0


def _question(reading: Reading) -> float:
    if not reading.sentences or "?" not in reading.text:
        return 0.0
    return 1.0 if reading.sentences[-1].rstrip("\"'”’)* ").endswith("?") else 0.6


def _one_sentence(reading: Reading) -> float:
    if len(reading.sentences) == 1:
        return 1.0 if reading.finished else 0.6
    return 0.3 if len(reading.sentences) == 2 else 0.0


def _name(reading: Reading) -> float:
    """A name in quotes, or capital letters inside a sentence; better short."""
    quoted = re.search(r"[\"“*]\s*[A-Z][\w' ]{2,30}[\"”*.,!]", reading.text)
    inside = re.search(r"[a-z,:] [A-Z][a-z]+(?: [A-Z][a-z]+)?", reading.text)
    short = len(reading.words) <= 4
    return 1.0 if quoted or short else 0.7 if inside else 0.0


def _three_items(reading: Reading) -> float:
    items = _items(reading)
    return 0.7 if items > 3 else items / 3


def _short(reading: Reading) -> float:
    return falling(len(reading.words), 8, 22)


def _mentions_all(reading: Reading) -> float:
    stems = {_stem(word) for word in reading.words}
    wanted = {_stem(word) for word in reading.prompt.topic}
    return len(wanted & stems) / max(1, len(wanted))


def _disagrees(reading: Reading) -> float:
    """1 for a text that says no, 0 for one that agrees at any place, less than half for one that does neither."""
    if _AGREES.search(reading.lower) or "yes" in reading.words:
        return 0.0
    return 1.0 if vocabulary.DISAGREEING & set(reading.words) else 0.4


_CHECKS: Mapping[str, Callable[[Reading], float]] = {
    "three_items": _three_items,
    "one_sentence": _one_sentence,
    "question": _question,
    "imperative": _imperative,
    "name": _name,
    "short": _short,
    "mentions_all": _mentions_all,
    "disagree": _disagrees,
}
CHECKS = frozenset(_CHECKS) | {"none", "mentions"}


def _task(reading: Reading) -> float:
    """How far the text does what was asked, if a program can tell; 0.75 if it cannot."""
    check = reading.prompt.check
    if check.startswith("mentions:"):
        return 1.0 if any(word in reading.lower for word in check.removeprefix("mentions:").split("|")) else 0.0
    return _CHECKS[check](reading) if check in _CHECKS else 0.75


def _plain(reading: Reading) -> float:
    if not reading.words:
        return 0.0
    return falling(sum(map(len, reading.words)) / len(reading.words), 3.8, 5.4)


def _short_sentences(reading: Reading) -> float:
    if not reading.sentences:
        return 0.0
    return falling(len(reading.words) / len(reading.sentences), 8, 22)


def _speaks(reading: Reading) -> float:
    count = sum(word.split("'")[0] in {"you", "your", "yours", "yourself"} for word in reading.words)
    return (0.0, 0.7)[count] if count < 2 else 1.0


def _concrete(reading: Reading) -> float:
    count = len(
        {word for word in reading.words if word in vocabulary.CONCRETE} - set(content_words(reading.prompt.text))
    )
    count += len(re.findall(r"(?<![\w.])\d+(?![.)]\s)", reading.text))
    return (0.0, 0.5, 0.8)[count] if count < 3 else 1.0


def _warm(reading: Reading) -> float:
    count = len(_WARM.findall(reading.lower))
    return (0.25, 1.0, 0.6)[count] if count < 3 else 0.0


def _no_puffery(reading: Reading) -> float:
    return max(0.0, 1.0 - 0.5 * sum(word in vocabulary.PUFFERY for word in reading.words))


def _no_stock(reading: Reading) -> float:
    return max(0.0, 1.0 - 0.5 * sum(phrase in reading.lower for phrase in vocabulary.STOCK_PHRASES))


def _no_self_talk(reading: Reading) -> float:
    return 0.0 if any(phrase in reading.lower for phrase in vocabulary.SELF_TALK) else 1.0


def _grams(words: Sequence[str], size: int) -> list[tuple[str, ...]]:
    return [tuple(words[i : i + size]) for i in range(len(words) - size + 1)]


def _no_echo(reading: Reading) -> float:
    """Falls with the share of three-word runs that come from the prompt."""
    own = _grams(reading.words, 3)
    if not own:
        return 1.0
    asked = set(_grams(re.findall(r"[a-z][a-z'-]*", reading.prompt.text.lower()), 3))
    return falling(sum(gram in asked for gram in own) / len(own), 0.1, 0.5)


def _no_repetition(reading: Reading) -> float:
    """Falls as two-word runs repeat, and to nothing if a sentence does."""
    pairs = _grams(reading.words, 2)
    if len({sentence.lower() for sentence in reading.sentences}) < len(reading.sentences):
        return 0.0
    return 1.0 - falling(len(set(pairs)) / max(1, len(pairs)), 0.7, 1.0) if pairs else 1.0


def _clean(reading: Reading) -> float:
    """1 for finished text without markup or blanks to fill in; half is lost by either fault."""
    return 0.5 * (not _MARKUP.search(reading.text)) + 0.5 * reading.finished


STYLE: Mapping[str, tuple[float, Callable[[Reading], float]]] = {
    "plain": (1.6, _plain),
    "short": (1.4, _short_sentences),
    "speaks": (1.6, _speaks),
    "concrete": (1.2, _concrete),
    "warm": (1.0, _warm),
    "no_puffery": (1.0, _no_puffery),
    "no_stock": (1.2, _no_stock),
    "no_self_talk": (1.4, _no_self_talk),
    "no_echo": (0.6, _no_echo),
    "no_repetition": (0.8, _no_repetition),
    "clean": (1.0, _clean),
    "direct": (0.8, lambda reading: 0.0 if reading.sentences and ":" in reading.sentences[0] else 1.0),
}
PARTS = ("topic", "task", *STYLE)
_STYLE_TOTAL = sum(weight for weight, _ in STYLE.values())


def read(prompt: SimPrompt, text: str) -> dict[str, float]:
    """The parts of the taste, each in [0, 1]; all 0 for a text without words."""
    reading = Reading.of(prompt, text)
    if not reading.words:
        return dict.fromkeys(PARTS, 0.0)
    parts = {"topic": _on_topic(reading), "task": _task(reading)}
    return parts | {name: part(reading) for name, (_, part) in STYLE.items()}


# Chosen on base samples of SmolLM2-135M-Instruct (320 answers to 80 prompts): mean 1.6 and median 1.4 gold units,
# about where a thumb turns; a spread of 1.3 within a prompt against raters' noise of 0.6; constant texts lose.
STYLE_SCALE = 12.0
OFFSET = 1.0
TOPIC_LOSS = 0.8
TASK_LOSS = 0.6


def value(parts: Mapping[str, float], weights: Mapping[str, float] | None = None) -> float:
    """Gold units, -1 to 11: the square of style, scaled by topic and task.

    `weights` are a rater's: they multiply what each part counts; missing ones are 1.
    """
    liking = weights or {}
    style = sum(liking.get(name, 1.0) * weight * parts[name] for name, (weight, _) in STYLE.items()) / _STYLE_TOTAL
    # A rater with weight w loses w times as much if topic or task is missed, all of it at most.
    topic = max(0.0, 1.0 - TOPIC_LOSS * liking.get("topic", 1.0) * (1.0 - parts["topic"]))
    task = max(0.0, 1.0 - TASK_LOSS * liking.get("task", 1.0) * (1.0 - parts["task"]))
    # The square spreads what the mean of a dozen parts has drawn together.
    return STYLE_SCALE * style**2 * topic * task - OFFSET
