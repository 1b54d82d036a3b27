"""The requests that simulated people make: templates of `prompts/*.json` filled with their items.

Files enter, prompts leave. `channel.json` has the kinds that a channel sees, each with items that it sees and items
held out for evaluations; `unseen.json` has kinds that only evaluations ask.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterator
from importlib.resources import files
from typing import Any

from plaudit.simulate.population import SimPrompt


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_FUNCTION_WORDS = _words(
    "a about after an and are at be been before by can cut do does did for from give had has have he her his how "
    "i if in into is it its make me most my no not of off on one or our out over own she so some that the their "
    "them then they this three to too under until up us was we what when where which while who why will with "
    "without would you your"
)


def content_words(text: str) -> tuple[str, ...]:
    """The words of `text` that carry its subject, lower case, in order, each once."""
    words = (word.strip("'") for word in re.findall(r"[a-z']+", text.lower()))
    return tuple(dict.fromkeys(word for word in words if len(word) > 1 and word not in _FUNCTION_WORDS))


def _read(name: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads(files("plaudit_instruction").joinpath("prompts", name).read_text("utf-8"))
    return rows


def _filled(row: dict[str, Any], items: str, seen_kind: bool) -> Iterator[SimPrompt]:
    # Templates take turns, so that each item is asked once.
    for number, item in enumerate(row[items]):
        template: str = row["templates"][number % len(row["templates"])]
        first, _, second = item.partition(" / ")
        yield SimPrompt(
            text=template.format(item, a=first, b=second),
            kind=row["kind"],
            check=row["check"],
            topic=content_words(item),
            seen_kind=seen_kind,
        )


@functools.cache
def channel_prompts() -> tuple[SimPrompt, ...]:
    """What people ask in the channel."""
    return tuple(prompt for row in _read("channel.json") for prompt in _filled(row, "items", True))


@functools.cache
def evaluation_prompts() -> tuple[SimPrompt, ...]:
    """What only evaluations ask: held-out items of channel kinds, then kinds that the channel never sees."""
    held_out = tuple(prompt for row in _read("channel.json") for prompt in _filled(row, "held_out", True))
    return held_out + tuple(prompt for row in _read("unseen.json") for prompt in _filled(row, "items", False))
