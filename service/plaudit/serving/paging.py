"""Pages of lists. Pure.

Enters: a request with page_size and page_token. Leaves: how many are wanted and behind which, and the token of the next
page. A token names the last item of its page, so that items which come later or go move nobody's place.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

from plaudit.errors import InvalidField
from plaudit.serving.validate import refused

DEFAULT_PAGE = 100
MOST_PER_PAGE = 1_000
_MAX_TOKEN_CHARS = 512

Item = TypeVar("Item")


class Paged(Protocol):
    """A request for a page."""

    page_size: int
    page_token: str


def page_size(asked: Paged) -> int:
    """How many items the page may have."""
    if asked.page_size > MOST_PER_PAGE:
        raise refused("page_size", asked.page_size, f"0 to {MOST_PER_PAGE}")
    return asked.page_size or DEFAULT_PAGE


def behind(asked: Paged) -> str:
    """The name behind which the page begins; empty for the first. Raises InvalidField."""
    try:
        if len(asked.page_token) > _MAX_TOKEN_CHARS:
            raise ValueError
        return base64.b64decode(asked.page_token, altchars=b"-_", validate=True).decode()
    except ValueError:  # not base64, or not UTF-8
        raise InvalidField(
            "page_token is none that this service gave; send the next_page_token of the page before, or none",
            field="page_token",
        ) from None


def page(found: Sequence[Item], size: int, name: Callable[[Item], str]) -> tuple[Sequence[Item], str]:
    """The page out of its items and perhaps more, and the token of the next one (empty if there is none)."""
    if len(found) <= size:
        return found, ""
    shown = found[:size]
    return shown, base64.urlsafe_b64encode(name(shown[-1]).encode()).decode()
