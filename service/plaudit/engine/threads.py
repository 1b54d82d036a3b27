"""Hands the cores from one thread of a process to another.

Torch computes in teams of OpenMP threads, and each thread that ever computed keeps a team of its own. Where the teams
together outnumber the cores, GNU's OpenMP puts every waiting thread to sleep at once, and each small operation then
pays for waking it: a decode step of a small model takes a quarter longer. A thread that lets another compute
therefore gives its team back first; the next operation makes a new one in a fraction of a millisecond.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from pathlib import Path

_PAUSE_SOFT = 1  # omp_pause_resource_t of OpenMP 5.0
_MAPS = Path("/proc/self/maps")


def release_team() -> None:
    """Give back the calling thread's OpenMP team; where OpenMP is not GNU's nothing happens."""
    pause = _pause()
    if pause is not None:
        pause(_PAUSE_SOFT)


@functools.cache
def _pause() -> Callable[[int], int] | None:
    """OpenMP's omp_pause_resource_all of the library that this process has loaded."""
    try:
        loaded = {line.split()[-1] for line in _MAPS.read_text(encoding="utf-8").splitlines() if "libgomp" in line}
        # With several copies of the library nothing tells which one torch uses.
        return ctypes.CDLL(loaded.pop()).omp_pause_resource_all if len(loaded) == 1 else None
    except (OSError, AttributeError):
        return None
