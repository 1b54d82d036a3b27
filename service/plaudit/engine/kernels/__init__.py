"""Kernels: what a pass does between its products, compiled on this machine by numba.

In: float32 tensors on the CPU. Out: the same numbers as torch's operators give, in one pass over memory instead of
several, and each row by itself: a row's bits depend on nothing beside it. Whoever computes has a plain way as well, and
takes it if `load` gives None: numba is not there, or does not work on this platform.

`compiling` says how a kernel is written, compiled and kept. A module of kernels compiles them when it is imported, so
that this module alone imports any, and nothing else in the package names numba.
"""

from __future__ import annotations

import contextlib
import functools
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import structlog
import torch

from plaudit.engine.threads import shares

log = structlog.get_logger(__name__)


@functools.cache
def load() -> Any | None:
    """All kernels as functions of numpy arrays, by their names; None if they do not work here, which is logged once."""
    begun = time.monotonic()
    try:
        with _one_compiles():
            from plaudit.engine.kernels import adapters, attention, compiling, drawing, products, rows

        found = SimpleNamespace(
            add=rows.add,
            norm=rows.norm,
            add_norm=rows.add_norm,
            gate=rows.gate,
            turn=rows.turn,
            attend=attention.attend_together,
            draw=drawing.draw,
            arranged=adapters.Arranged,
            linears=adapters.Linears,
            product=products.Product,
            strip=products.STRIP,
        )
        _try_out(found)
    except Exception as why:  # a compiler may fail in many ways, and none of them may keep an engine from serving
        log.warning("kernels are not compiled here; torch's operators take their place, more slowly", why=str(why))
        return None
    if torch.get_num_threads() > 1 and not shares():
        log.warning("kernels compute on one thread: torch does not use GNU's OpenMP here")
    if compiling.fresh or not compiling.kept:
        # Some ten seconds, once for a processor and a version; afterwards they are read from files.
        log.info("kernels were compiled", seconds=round(time.monotonic() - begun, 1), kept=compiling.kept)
    return found


@functools.cache
def load_narrow() -> Any | None:
    """The kernel of products with narrow weights (`narrow.narrow`), compiled if somebody wants it; None as of load."""
    try:
        with _one_compiles():
            from plaudit.engine.kernels.narrow import narrow
    except Exception as why:
        log.warning("the kernel of narrow weights is not compiled here", why=str(why))
        return None
    return narrow


@contextlib.contextmanager
def _one_compiles() -> Iterator[None]:
    """A block that one process of this machine's user enters at a time: the others then find what it has compiled."""
    with contextlib.ExitStack() as held:
        with contextlib.suppress(ImportError, OSError):  # not on Windows; no folder that can be written
            import fcntl

            user = os.getuid()
            path = Path(tempfile.gettempdir()) / f"plaudit-kernels-{user}.lock"
            descriptor = os.open(path, os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW, 0o600)
            held.callback(os.close, descriptor)
            if os.fstat(descriptor).st_uid != user:  # somebody else could hold it for ever
                raise PermissionError(path)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                log.info("waits for another process, which compiles kernels or reads them")
                fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield


def array(tensor: torch.Tensor) -> np.ndarray[Any, Any]:
    """The tensor's memory as a kernel takes it; it must be contiguous, and no gradient may pass it."""
    return tensor.numpy()


def _try_out(found: SimpleNamespace) -> None:
    """Raise if what was compiled does not compute: compilers have faults, too."""
    generator = torch.Generator().manual_seed(0)
    hidden, more = (torch.randn(3, 40, generator=generator) for _ in range(2))
    weight = torch.rand(40, generator=generator)
    total, normed = hidden.clone(), torch.empty_like(hidden)
    found.add_norm(array(total), array(more), array(weight), 1e-5, array(normed))
    wanted = torch.nn.functional.rms_norm(hidden + more, (40,), weight, 1e-5)
    if not (torch.allclose(total, hidden + more) and torch.allclose(normed, wanted, atol=1e-5)):
        raise ArithmeticError("a compiled kernel gives other numbers than torch")
    slots, *pair = torch.tensor([2, 0, 2]), *(torch.randn(2, 9, 40, generator=generator) for _ in range(2))
    found.arranged(array(slots)).add(found.linears([(*pair, 0)], 40), hidden, total)
    wanted = hidden + more + (hidden @ pair[0][1].T @ pair[1][1]) * (slots > 0)[:, None]
    if not torch.allclose(total, wanted, atol=1e-3):
        raise ArithmeticError("the compiled kernel of adapters gives other numbers than torch")
