"""What is moderated: the text that moderators and model read, and its name for the splits. Pure."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Sequence

from plaudit.errors import EmptyPrompt, InvalidField
from plaudit.types import Message, Option, Request

GROUP_CHARS = 200  # of the item, for whoever reads a group's name


def item_of(request: Request, options: tuple[Option, ...] = ()) -> tuple[Message, ...]:
    """The item and what was said before it, without system messages; raises InvalidField or EmptyPrompt.

    options: the domain's, which a request brings that is rendered again from the log.
    """
    if request.options not in ((), options):
        raise InvalidField("the options are the domain's categories; leave them out", field="options")
    if request.passages:
        raise InvalidField("moderation reads no passages; put the rules into a system message", field="passages")
    said = tuple(message for message in request.messages if message.role != "system")
    if not said or not said[-1].content.strip():
        raise EmptyPrompt("the last message has no text; send what should be moderated")
    return said


def rules_of(request: Request) -> tuple[Message, ...]:
    """The caller's system messages: the rules of the community, if any came."""
    return tuple(message for message in request.messages if message.role == "system")


def quoted(said: Sequence[Message]) -> str:
    """The item as text. A conversation is quoted with its speakers, so that the model reads it and does not go on."""
    if len(said) == 1:
        return said[0].content
    return "\n".join(f"{message.role}: {message.content}" for message in said)


def group_of(said: Sequence[Message]) -> str:
    """The prompt group: the item with what was said before it, normalised; rules do not make another item of it."""
    last = _normalised(said[-1].content)
    if len(said) == 1 and len(last) <= GROUP_CHARS:
        return last
    digest = hashlib.sha256()
    for message in said:
        for part in (message.role, _normalised(message.content)):
            digest.update(hashlib.sha256(part.encode()).digest())
    return f"{last[:GROUP_CHARS]} #{digest.hexdigest()[:32]}"


def _normalised(text: str) -> str:
    """`text` without differences of case, width, spacing and outer punctuation."""
    folded = re.sub(r"\s+", " ", unicodedata.normalize("NFKC", text).casefold()).strip()
    return folded.strip(" .,;:!?\"'“”‘’()[]") or folded or "blank"
