"""What a user did lately, as the model reads it. Pure.

Callers send events as passages, oldest first: the id of the item, its text, and in `source` what happened ("liked",
"skipped", "watched half"). What they wish for now is the last user message, if they say it.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence

from plaudit.types import Message, Passage, Request

MOST_EVENTS = 20  # The newest are read; more would only push the older ones out of a small model's context.
WISH = "What next?"
GROUP_CHARS = 100  # Of the newest event, for whoever reads a group's name.
_WORDS = re.compile(r"\w+")


def wish_of(request: Request) -> str:
    """What the user asks for; a fixed question if nothing is said."""
    said = request.messages[-1].content if request.messages else ""
    return " ".join(said.split()) or WISH


def asked(request: Request) -> tuple[Message, ...]:
    """Earlier messages as they came, and a last one of the newest events, a line each, with the wish below."""
    lines = [f"{each.source.strip() or 'seen'}: {_one_line(each.text)}" for each in request.passages[-MOST_EVENTS:]]
    return (*request.messages[:-1], Message("user", "\n".join((*lines, wish_of(request)))))


def group_of(request: Request) -> str:
    """The prompt group: the events that are read and the wish, whatever the items. One event more is another group."""
    recent = request.passages[-MOST_EVENTS:]
    parts = [*(f"{each.source}\0{_one_line(each.text)}" for each in recent), wish_of(request)]
    digest = hashlib.sha256("\0\0".join(part.casefold() for part in parts).encode()).hexdigest()[:32]
    newest = _one_line(recent[-1].text) if recent else "no events"
    return f"{newest[:GROUP_CHARS]} #{digest}"


def words(text: str) -> frozenset[str]:
    """Words of a text, without case."""
    return frozenset(_WORDS.findall(text.casefold()))


def known_words(events: Sequence[Passage]) -> frozenset[str]:
    """Words of the events that are read."""
    return frozenset().union(*(words(each.text) for each in events[-MOST_EVENTS:]))


def _one_line(text: str) -> str:
    return " ".join(text.split())
