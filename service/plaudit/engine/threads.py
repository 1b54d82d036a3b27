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

import contextlib
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
    pause = _function("omp_pause_resource_all")
    if pause is not None:
        pause(_PAUSE_SOFT)


def trim() -> None:
    """Give memory that was freed back to the system, where the C library has a way to (GNU's)."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def share(function: int, argument: int, threads: int) -> bool:
    """Let the calling thread's team call the function at an address, each with `argument`; False if there is no team.

    A second pool of threads beside torch's would have to wake up for each call, while torch's wait in a loop.
    """
    parallel = _function("GOMP_parallel")
    if parallel is None:
        return False
    parallel(ctypes.c_void_p(function), ctypes.c_void_p(argument), threads, 0)
    return True


def shares() -> bool:
    """Whether there is a team that `share` lets work."""
    return _function("GOMP_parallel") is not None


@functools.cache
def _function(name: str) -> Callable[..., int] | None:
    """A function of the OpenMP library that torch uses, if that is GNU's."""
    try:
        lines = _MAPS.read_text(encoding="utf-8").splitlines()
        loaded = {Path(line.split(maxsplit=5)[5]) for line in lines if "libgomp" in line}
        # Other packages bring copies, too. Torch uses its own if it is there; otherwise nothing tells which of several.
        own = {path for path in loaded if path.is_relative_to(Path(torch.__file__).resolve().parent)}
        candidates = own or loaded
        found: Callable[..., int] | None = None
        if len(candidates) == 1:
            found = getattr(ctypes.CDLL(str(candidates.pop())), name)
    except (OSError, AttributeError):
        return None
    return found
