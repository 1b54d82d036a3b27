"""Callers share a write: while one of them writes, the others gather, and the first of these writes for all of them.

Enters: batches, each from the thread of its caller. Leaves: groups of batches, one after the other, in the order in
which they came. Only a caller that has something to do is woken.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

MOST_GATHER_SECONDS = 0.005  # and never longer than half of the last write took


class Batch:
    """What one caller writes; `error` is why it failed, None if it did not."""

    __slots__ = ("done", "error", "leads", "woken")

    def __init__(self) -> None:
        self.done = self.leads = False
        self.error: BaseException | None = None
        # A lock of its own: its caller is woken when there is something for it to do, and nobody else is.
        self.woken = threading.Lock()
        self.woken.acquire()


B = TypeVar("B", bound=Batch)


class Gathering(Generic[B]):
    """Calls `write` with all batches that have gathered, from the thread of the first one's caller, one at a time.

    What `write` raises is the error of each batch of the group; what is none of `failures`, an interrupt for instance,
    also leaves the call of whoever wrote.
    """

    def __init__(self, write: Callable[[Sequence[B]], None], failures: type[Exception]) -> None:
        self._write = write
        self._failures = failures
        self._lock = threading.Lock()
        self._idle = threading.Condition(self._lock)
        self._gathered = threading.Condition(self._lock)
        self._wanted = 1  # callers at once, as far as the last write tells
        self._gather_seconds = 0.0
        self._waiting: list[B] = []
        self._writing = False
        self._closed = False

    def through(self, batch: B) -> bool:
        """Returns once the batch is written or has its error; False, and nothing is written, once this is closed."""
        with self._lock:
            if self._closed:
                return False
            self._waiting.append(batch)
            batch.leads = not self._writing
            self._writing = True
            if len(self._waiting) >= self._wanted:
                self._gathered.notify()
        if not batch.leads:
            try:
                batch.woken.acquire()
            except BaseException:  # an interrupted caller must not keep the others waiting for it
                self._leave(batch)
                raise
        if batch.leads:
            self._lead(batch)
        return True

    def close(self, seconds: float) -> bool:
        """Refuses later batches, and waits for those that are here; whether all were written in time."""
        with self._lock:
            self._closed = True
            return self._idle.wait_for(lambda: not self._writing, timeout=seconds)

    def _leave(self, batch: B) -> None:
        with self._lock:
            if batch in self._waiting:
                self._waiting.remove(batch)
            heir = self._next() if batch.leads and not batch.done else None
        if heir is not None:
            heir.woken.release()

    def _next(self) -> B | None:
        """Who writes next, told so; None if nobody waits. The caller holds the lock and wakes it."""
        heir = self._waiting[0] if self._waiting else None
        if heir is None:
            self._writing = False
            self._idle.notify_all()
        else:
            heir.leads = True
        return heir

    def _lead(self, own: B) -> None:
        """Writes what has gathered and wakes its callers, whatever happens; the next writer first."""
        group: Sequence[B] = [own]
        began = time.monotonic()
        try:
            with self._lock:
                # Those of the last write are on their way back: a moment for them costs less than a write more.
                self._gathered.wait_for(lambda: len(self._waiting) >= self._wanted, self._gather_seconds)
                group, self._waiting = self._waiting, []
            began = time.monotonic()
            self._write(group)
        except BaseException as error:  # an interrupt here must not look like success to the others
            for batch in group:
                batch.error = error
            if not isinstance(error, self._failures):
                raise
        finally:
            with self._lock:
                if own in self._waiting:  # it was interrupted before it took anything
                    self._waiting.remove(own)
                for batch in group:
                    batch.done = True
                self._wanted = len(group) + len(self._waiting)
                self._gather_seconds = min((time.monotonic() - began) / 2, MOST_GATHER_SECONDS)
                heir = self._next()
            if heir is not None:
                heir.woken.release()
            for batch in group:
                if batch is not own:
                    batch.woken.release()
