"""What torch leaves to those who call it from several threads.

**Teams.** Torch computes in teams of OpenMP threads, and each thread that ever computed keeps a team of its own. If
the teams together outnumber the cores, GNU's OpenMP puts every waiting thread to sleep at once, and each small
operation then pays for waking it: a decode step of a small model takes a quarter longer. A thread that lets another
compute therefore gives its team back first; the next operation makes a new one in a fraction of a millisecond.

**First calls.** MKL chooses the kernel of exp, log, sqrt and the like at each function's first call. If that call is
already split among threads, one of them may compute its part with a kernel of low accuracy (relative error up to 1e-4),
once in the life of a process (https://github.com/pytorch/pytorch/issues/188792). The first reply would then differ from
its replay. A first call on one element has one thread.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from pathlib import Path

import torch

_PAUSE_SOFT = 1  # omp_pause_resource_t of OpenMP 5.0
_MAPS = Path("/proc/self/maps")


_BY_MKL = (
    *(torch.acos, torch.asin, torch.atan, torch.cos, torch.erf, torch.erfc, torch.erfinv, torch.exp, torch.log),
    *(torch.log10, torch.log1p, torch.log2, torch.sin, torch.sqrt, torch.tan, torch.tanh, torch.trunc),
)


@functools.cache
def settle_kernels() -> None:
    """Make the first call of every function that MKL computes, in each precision, before threads share one."""
    for dtype in (torch.float32, torch.float64):
        for function in _BY_MKL:
            function(torch.full((1,), 0.5, dtype=dtype))


def release_team() -> None:
    """Give back the calling thread's OpenMP team; if OpenMP is not GNU's nothing happens."""
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
