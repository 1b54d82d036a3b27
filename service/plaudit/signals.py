"""SIGTERM and SIGINT end a process: at once while it starts, at a moment of its own choosing once it works.

A process calls `end_on_signals` before it loads anything and `stop_on_signals` when it is ready for its work. PID 1 of
a container has no default reaction to signals, so without the first call one that comes during the start is lost.
A child of `plaudit up` or `plaudit demo` ends with its parent, whatever ended that (`end_with_parent`).
"""

from __future__ import annotations

import _thread
import contextlib
import os
import signal
import stat
import threading
import time
from types import FrameType, MappingProxyType

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_SLICE_SECONDS = 0.25
# Variables of a child whose standard input is a pipe that its parent keeps open and never writes to. It closes when the
# parent ends, by SIGKILL too, on every system.
ENDS_WITH_STDIN = MappingProxyType({"PLAUDIT_ENDS_WITH_STDIN": "1"})
_DRAIN_SECONDS = 45.0  # as long as a parent waits before it kills


class StopEvent(threading.Event):
    """An event that signals set: `stop_on_signals` makes it.

    Python runs a signal's handler in the main thread, between two bytecodes. A main thread about to block has missed
    that moment, and one that waits does not notice a signal that the kernel gave to another thread: both would sleep
    until the next signal. Waiting is therefore done in slices.
    """

    def wait(self, timeout: float | None = None) -> bool:
        """As `threading.Event.wait`."""
        ends = None if timeout is None else time.monotonic() + timeout
        while not self.is_set():
            left = _SLICE_SECONDS if ends is None else min(_SLICE_SECONDS, ends - time.monotonic())
            if left <= 0:
                return False
            super().wait(left)
        return True


def end_on_signals() -> None:
    """From now on SIGTERM or SIGINT raises SystemExit in the main thread, so that `finally` blocks run.

    The exit code is 128 + the signal's number. Signals that come after the first are ignored: they must not cut off
    the clean-up that the first one began.
    """
    for each in _SIGNALS:
        signal.signal(each, _end)


def _end(number: int, _: FrameType | None) -> None:
    for each in _SIGNALS:
        signal.signal(each, signal.SIG_IGN)
    raise SystemExit(128 + number)


def end_with_parent() -> None:
    """From now on this process gets SIGTERM, and SIGKILL if it goes on, when the parent that asked for it ends."""
    # Not for the children of this process: their standard input is another.
    if any(os.environ.pop(name, "") for name in ENDS_WITH_STDIN):
        threading.Thread(target=_end_with_stdin, name="plaudit-parent", daemon=True).start()


def _end_with_stdin() -> None:
    with contextlib.suppress(OSError):
        while os.read(0, 4096):
            continue
    for output in (1, 2):
        # Nobody reads a pipe to that parent any more: a line of the log would raise, and cut the drain off.
        if stat.S_ISFIFO(os.fstat(output).st_mode):
            os.dup2(os.open(os.devnull, os.O_WRONLY), output)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(_DRAIN_SECONDS)
    os.kill(os.getpid(), signal.SIGKILL)


def stop_on_signals() -> StopEvent:
    """An event that SIGTERM or SIGINT sets from now on; to be called from the main thread."""
    stop = StopEvent()
    for each in _SIGNALS:
        # The interrupted thread may hold the event's lock, so another one sets it.
        signal.signal(each, lambda *_: _thread.start_new_thread(stop.set, ()))
    return stop
