"""Waits of tests: until something holds, however slow the machine is."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

Found = TypeVar("Found")


def wait_until(holds: Callable[[], Found], seconds: float = 300.0, *, every: float = 0.01) -> Found:
    """What `holds` returns once that is true; asks again `every` so many seconds, and fails after `seconds`."""
    ends_at = time.monotonic() + seconds
    while not (found := holds()):
        assert time.monotonic() < ends_at, "it never came true"
        time.sleep(every)
    return found
