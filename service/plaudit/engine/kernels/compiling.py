"""How kernels are compiled by numba, and where the result is kept.

A kernel is a function of contiguous arrays and numbers with its types given, so that it is compiled when its module is
imported and never while somebody waits for a token. It runs without the interpreter's lock. Sums may be taken in
another order than they are written in, which is what lets them be computed sixteen at a time; the order depends on an
array's sizes alone. What is compiled is kept beside the source, or in the user's cache folder if that is read-only, or
in the folder that NUMBA_CACHE_DIR names; if nothing can be written it is compiled at each start.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numba
import numpy as np
import structlog
from llvmlite import binding, ir
from numba.core import cgutils, sigutils, types
from numba.core.caching import CompileResultCacheImpl, FunctionCache
from numba.core.ccallback import CFunc
from numba.extending import intrinsic

log = structlog.get_logger(__name__)

Function = TypeVar("Function", bound=Callable[..., Any])

if numba.config.DISABLE_JIT:
    raise ImportError("NUMBA_DISABLE_JIT is set")

OPTIONS: dict[str, Any] = {
    "nogil": True,
    # Not "nnan" and "ninf": a row whose logits are not numbers must be seen.
    "fastmath": {"reassoc", "contract", "nsz", "arcp"},
    "error_model": "numpy",
}
# Whether what is compiled is kept for the next start, and how many kernels were not kept from the last one.
kept, fresh = True, 0
_parts: list[CFunc] = []  # so that their code lives


class _Files(CompileResultCacheImpl):  # type: ignore[misc]
    """Those of one type of processor: of two machines that write one index at once, one may read the other's code."""

    def get_filename_base(self, fullname: str, abiflags: str) -> str:
        return f"{super().get_filename_base(fullname, abiflags)}-{_processor()}"


class _Cache(FunctionCache):  # type: ignore[misc]
    """Numba's own, which knows neither of this file's functions and `vectors` nor of folders that fill up."""

    _impl_class = _Files

    def _index_key(self, sig: Any, codegen: Any) -> tuple[Any, ...]:
        return (*super()._index_key(sig, codegen), _shared())

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        global fresh
        found = None
        with contextlib.suppress(Exception):  # a file that another version wrote, or half of one
            found = super().load_overload(sig, target_context)
        if found is None:
            fresh += 1
            if fresh == 1:
                log.info("compiles kernels, once on this machine; this takes ten seconds or more")
        return found

    def save_overload(self, sig: Any, data: Any) -> None:
        global kept
        try:
            try:
                super().save_overload(sig, data)
            except Exception:  # its index cannot be read: it was cut off when the machine went down
                self.flush()
                super().save_overload(sig, data)
        except Exception:  # the folder is full
            kept = False


@functools.cache
def _shared() -> str:
    here = Path(__file__)
    files = here, here.with_name("vectors.py"), here.parent.with_name("narrow.py")
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


@functools.cache
def _processor() -> str:
    facts = f"{binding.get_host_cpu_name()} {binding.get_host_cpu_features().flatten()}"
    return hashlib.sha256(facts.encode()).hexdigest()[:8]


def kernel(signature: str, *, ordered: bool = False) -> Callable[[Function], Function]:
    """Compile a function for a signature of numba's, such as "void(float32[:,::1], float32[::1], float32)".

    `ordered`: sums are taken as they are written.
    """

    def compiled(function: Function) -> Function:
        made = numba.njit(**_options(ordered))(function)
        _keep(made, function)
        made.compile(signature)
        made.disable_compile()
        return made  # type: ignore[no-any-return]

    return compiled


def part(function: Callable[[int], None], *, ordered: bool = False) -> int:
    """Compile a function of one address for a team of threads (`threads.share`); gives where it lies.

    Each thread of the team calls it with the same address, at which a count begins: `take` deals out the work.
    `ordered` as for a kernel.
    """
    options = {name: value for name, value in _options(ordered).items() if name != "nogil"}
    made: Any = CFunc(function, sigutils.normalize_signature("void(int64)"), locals={}, options=options)
    _keep(made, function)
    made.compile()
    _parts.append(made)
    return int(made.address)


def _options(ordered: bool) -> dict[str, Any]:
    return {**OPTIONS, "fastmath": False} if ordered else OPTIONS


def _keep(made: Any, function: Callable[..., Any]) -> None:
    global kept
    try:
        made._cache = _Cache(function)
    except RuntimeError:
        kept = False


def inlined(function: Function) -> Function:
    """Let kernels of the same file call a function; it becomes a part of each."""
    return numba.njit(inline="always", **OPTIONS)(function)  # type: ignore[no-any-return]


@inlined
def exp(x: Any) -> Any:
    """The exponential of a float32, within two units of the last place; 0 below -87, where the result leaves fp32.

    x = n log 2 + r, and the polynomial of Cephes (Moshier 1989, `expf`) for r. Numba's own is a call for each number.
    """
    clamped = min(max(x, np.float32(-87.0)), np.float32(88.0))
    n = np.float32(np.floor(clamped * np.float32(1.44269504) + np.float32(0.5)))
    r = clamped - n * np.float32(0.693359375) + n * np.float32(2.12194440e-4)
    p = np.float32(1.9875691500e-4) * r + np.float32(1.3981999507e-3)
    p = p * r + np.float32(8.3334519073e-3)
    p = p * r + np.float32(4.1665795894e-2)
    p = p * r + np.float32(1.6666665459e-1)
    p = p * r + np.float32(5.0000001201e-1)
    p = p * r * r + r + np.float32(1.0)
    power = np.int32((np.int32(n) + np.int32(127)) << np.int32(23)).view(np.float32)
    return p * power if x >= np.float32(-87.0) else np.float32(0.0)


def prefetch_at(builder: Any, address: Any) -> None:
    """As prefetch, for intrinsics."""
    byte, number = ir.IntType(8).as_pointer(), ir.IntType(32)
    kind = ir.FunctionType(ir.VoidType(), [byte, number, number, number])
    function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
    # To read; into the second level of cache; data.
    builder.call(function, [builder.inttoptr(address, byte), number(0), number(2), number(1)])


@intrinsic  # type: ignore[untyped-decorator]
def prefetch(typing_context: Any, address: Any) -> Any:
    """Ask for the 64 bytes around an address (an integer); reading them some hundred cycles later costs no wait."""

    def generate(context: Any, builder: Any, _: Any, arguments: Any) -> Any:
        prefetch_at(builder, arguments[0])
        return context.get_dummy_value()

    return types.void(types.intp), generate


@intrinsic  # type: ignore[untyped-decorator]
def take(typing_context: Any, address: Any) -> Any:
    """The next number, from 0, of the count (an int64) at an address; no two threads get the same."""

    def generate(context: Any, builder: Any, _: Any, arguments: Any) -> Any:
        word = ir.IntType(64)
        return builder.atomic_rmw("add", builder.inttoptr(arguments[0], word.as_pointer()), word(1), "monotonic")

    return types.int64(types.int64), generate


@intrinsic  # type: ignore[untyped-decorator]
def pointer(typing_context: Any, address: Any) -> Any:
    """An address as `numba.carray` takes it."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], cgutils.voidptr_t)

    return types.voidptr(types.int64), generate
