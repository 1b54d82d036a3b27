"""The tiny taste: a hidden gold preference over texts of the toy language, in five bounded parts.

A request and a displayed text enter; parts in [0, 1] and their value leave. Imported by simulated people only.
"""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Mapping

from plaudit.simulate.population import SimPrompt
from plaudit.testing import toy_language

from plaudit_instruction.sentences import sentences

WEIGHTS: Mapping[str, float] = {"plain": 1.6, "speaks": 1.2, "warm": 1.0, "no_repetition": 0.8}
PARTS = ("topic", *WEIGHTS)
_TOTAL = sum(WEIGHTS.values())
_WARM = frozenset(toy_language.WARM_CLOSINGS)


@functools.cache
def channel_prompts() -> tuple[SimPrompt, ...]:
    """What people ask in the channel."""
    return tuple(_prompt(one, True) for one in toy_language.channel_prompts())


@functools.cache
def evaluation_prompts() -> tuple[SimPrompt, ...]:
    """What only evaluations ask."""
    return tuple(_prompt(one, one.kind in toy_language.CHANNEL_KINDS) for one in toy_language.evaluation_prompts())


def _prompt(one: toy_language.ToyPrompt, seen_kind: bool) -> SimPrompt:
    return SimPrompt(text=one.text, kind=one.kind, topic=(one.topic,), seen_kind=seen_kind)


def read(prompt: SimPrompt, text: str) -> dict[str, float]:
    """The parts of the taste, each in [0, 1]; all 0 for a text without words."""
    lower = text.lower()
    words = re.findall(r"[a-z]+", lower)
    parts = [part for part in sentences(lower) if part]
    if not words:
        return dict.fromkeys(PARTS, 0.0)
    body = [part for part in parts if part not in _WARM]
    named = [word for word in words if word in toy_language.TOPICS]
    pompous = sum(word in toy_language.POMPOUS_WORDS for word in words)
    stock = sum(opening in lower for opening in toy_language.STOCK_OPENINGS)
    warm = len(parts) - len(body)
    repeats = sum(first == second for first, second in itertools.pairwise(words))
    repeats += len(parts) - len(set(parts))
    return {
        # Subjects that were not asked for count against the one that was.
        "topic": sum(word in prompt.topic for word in named) / len(named) if named else 0.0,
        "plain": max(0.0, 1.0 - 0.35 * pompous - 0.5 * stock),
        "speaks": min(1.0, 0.6 * sum(word in ("you", "your") for word in words)),
        "warm": (0.0, 1.0, 0.3)[warm] if warm < 3 else 0.0,
        "no_repetition": max(0.0, 1.0 - 0.6 * repeats),
    }


# Chosen on samples of the toy corpus: a spread of 1.2 within a prompt against raters' noise of 0.6; constants lose.
STYLE_SCALE = 6.0
TOPIC_LOSS = 0.9


def value(parts: Mapping[str, float], weights: Mapping[str, float] | None = None) -> float:
    """Gold units, 0 to 6: style, scaled by how far the text keeps to its subject."""
    liking = weights or {}
    style = sum(liking.get(name, 1.0) * weight * parts[name] for name, weight in WEIGHTS.items()) / _TOTAL
    return STYLE_SCALE * style * max(0.0, 1.0 - TOPIC_LOSS * liking.get("topic", 1.0) * (1.0 - parts["topic"]))
