"""Waits for a log, a store or an engine that is away or full, and says so: a process goes on when it is back.

Enters: what needs one of them. Leaves: its result, and a line `<process>.waits` per attempt that failed.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

import structlog

from plaudit.errors import EngineUnavailable, LogUnavailable, StoreUnavailable
from plaudit.signals import StopEvent

FIRST_SECONDS = 1.0  # after the first loss; twice as long each time
LONGEST_SECONDS = 15.0
_MOST_DOUBLINGS = 8  # more than the longest pause has; a power without a bound is a number that no float holds

_T = TypeVar("_T")
_log = structlog.get_logger(__name__)


def doubled(first: float, times: int, longest: float) -> float:
    """`first` seconds doubled so many times, at most `longest`, however often that is."""
    return min(first * 2.0 ** min(times, _MOST_DOUBLINGS), longest)


def pause(process: str, stop: threading.Event, error: Exception, losses: int) -> None:
    """Says what is away or full, and waits a second after the first loss, up to fifteen after many in a row."""
    seconds = doubled(FIRST_SECONDS, losses - 1, LONGEST_SECONDS)
    # The messages of our own errors name files, hosts and what the disk or server said: nothing that people wrote.
    why = (
        error.message
        if isinstance(error, LogUnavailable | StoreUnavailable | EngineUnavailable)
        else type(error).__name__
    )
    _log.warning(f"{process}.waits", why=why, seconds=seconds)
    stop.wait(seconds)


def opened(process: str, make: Callable[[], _T], stop: threading.Event) -> _T | None:
    """What `make` gives, once what it needs answers; None if told to end before that."""
    losses = 0
    while not stop.is_set():
        try:
            return make()
        except (LogUnavailable, StoreUnavailable, EngineUnavailable) as error:
            losses += 1
            pause(process, stop, error, losses)
    return None


def opened_at_last(process: str, make: Callable[[], _T]) -> _T:
    """The same without an end of its own: for a start, which a signal ends by SystemExit (plaudit.signals)."""
    found = opened(process, make, StopEvent())
    assert found is not None, "nobody sets this event"
    return found
