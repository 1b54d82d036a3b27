"""The best fixed sentence pattern with the question's own words filled in: a baseline that reads nothing else.

Enters: a population's gold, sentences to build from, and prompts to search on (never those that are evaluated). Leaves:
one pattern. If such a pattern beats a trained release, the gold rewards form, and the report must show that.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from plaudit.release.texts import question_words
from plaudit.simulate.judge import sentences_of
from plaudit.simulate.population import Population, SimPrompt

SLOT = "{t}"
# Patterns are tried on a part of the prompts first, and the best are extended sentence by sentence.
SCREEN_PROMPTS = 12
SENTENCES = 30
KEPT = 8
LONGEST = 3


def fill(pattern: str, question: str) -> str:
    """`pattern` with the last two content words of `question` in its slots; "it" if the question has none."""
    words = question_words(question)[-2:]
    return pattern.replace(SLOT, " ".join(words) or "it")


def pattern_of(sentence: str, question: str) -> str:
    """`sentence` with a slot in place of each run of words that come from `question`."""
    words = question_words(question)
    if not words:
        return sentence
    run = "|".join(re.escape(word) for word in sorted(words, key=len, reverse=True))
    return re.sub(rf"\b(?:{run})(?:\s+(?:{run}))*\b", SLOT, sentence, flags=re.IGNORECASE)


def best_pattern(population: Population, answers: Iterable[tuple[SimPrompt, str]], prompts: Sequence[SimPrompt]) -> str:
    """The pattern of up to three sentences with the highest mean gold over `prompts` that a greedy search finds.

    Sentences come from `answers` and from `population.patterns`, which its author knows to please the gold.
    """
    sentences = {pattern_of(sentence, prompt.text) for prompt, answer in answers for sentence in sentences_of(answer)}
    sentences |= {sentence for pattern in population.patterns for sentence in sentences_of(pattern)}
    screen = prompts[:SCREEN_PROMPTS]

    def worth(pattern: str, on: Sequence[SimPrompt]) -> float:
        return sum(population.gold(prompt, fill(pattern, prompt.text)) for prompt in on) / max(1, len(on))

    def best(patterns: Iterable[str], count: int) -> list[str]:
        # The alphabet decides between equals, so that the result does not depend on order.
        return sorted(set(patterns), key=lambda pattern: (-worth(pattern, screen), pattern))[:count]

    parts = best(sentences, SENTENCES)
    found = best([*parts, *population.patterns], KEPT)
    beam = found
    for _ in range(LONGEST - 1):
        beam = best((f"{head} {tail}" for head in beam for tail in parts if tail not in head), KEPT)
        found = [*found, *beam]
    return max(sorted(set(found)), key=lambda pattern: worth(pattern, prompts), default="")
