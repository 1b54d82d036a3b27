"""Calls of foreign code with a time limit, in threads of their own.

Enters: a function. Leaves: what it returns or raises, or Overdue once its time is over; then the caller goes on and the
thread is left behind, since nothing can end a thread from outside. Each call that is late halves the time of the next
ones, until one is in time again. While `most_left` threads are left behind, calls are refused at once (Overrun): a
function that always hangs costs a bounded number of threads and of seconds. Once per `RETRY_SECONDS` one more call is
let through, up to `MOST_THREADS` left behind in all; a thread that returns after all makes its place free.

What holds the interpreter's lock (a regular expression that backtracks without end) stops every thread of the process,
and no thread can bound it.

Many items go through one function by `each`, in one thread and with one hand-over, as long as none is late: each has
the time limit for itself, and what one item does meets that item alone.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

A = TypeVar("A")
T = TypeVar("T")

MOST_LEFT = 8
MOST_THREADS = 32
RETRY_SECONDS = 60.0
SHORTEST = 1 / 32  # of the time limit: what five late calls in a row leave to the next
_MOST_IDLE = 8


class Overdue(Exception):
    """The call took longer than it may; its argument is the time that it had, in seconds."""


class Overrun(Exception):
    """Too many earlier calls have never come back; its argument is their number."""


class Exits(Exception):
    """The call raised what ends a thread or a process (SystemExit); its cause is that."""


@dataclass(frozen=True, slots=True)
class Ended(Generic[T]):
    """How a call ended."""

    result: T | None = None
    error: Exception | None = None

    def get(self) -> T:
        """What it returned; raises what it raised, or Overdue, Overrun or Exits."""
        if self.error is not None:
            raise self.error
        return self.result  # type: ignore[return-value]  # None only if T has it


class BoundedCalls:
    """Runs calls in threads that are kept for the next ones; may be called from any thread."""

    def __init__(
        self,
        name: str,
        seconds: float,
        *,
        most_left: int = MOST_LEFT,
        retry: float = RETRY_SECONDS,
        most_idle: int = _MOST_IDLE,
    ) -> None:
        self._name = name
        self._seconds = seconds
        self._most_left = most_left
        self._retry = retry
        self._most_idle = most_idle
        self._lock = threading.Lock()
        self._idle: list[_Thread] = []
        self._left = 0
        self._late = 0
        self._more_at = 0.0

    @property
    def left(self) -> int:
        """Threads that are left behind: their calls are late and have not come back."""
        return self._left

    def __call__(self, function: Callable[[], T]) -> T:
        """What the function returns or raises; raises Overdue or Overrun instead if it hangs, and Exits if it exits."""
        return self.each(lambda call: call(), [function])[0].get()

    def each(self, function: Callable[[A], T], items: Sequence[A]) -> list[Ended[T]]:
        """How the function ended for each item, in order; as `__call__` for one after the other."""
        ended: list[Ended[T]] = []
        while len(ended) < len(items):
            try:
                self._some(function, items[len(ended) :], ended)
            except (Overdue, Overrun) as error:
                ended.append(Ended(error=error))
        return ended

    def _some(self, function: Callable[[A], T], items: Sequence[A], ended: list[Ended[T]]) -> None:
        """Adds how the first items ended, all of them unless one is late; raises Overdue for that, or Overrun."""
        with self._lock:
            if self._left >= self._most_left:
                self._one_more()
            seconds = self._seconds * max(SHORTEST, 0.5**self._late)
            thread = self._idle.pop() if self._idle else None
        job = _Job(function, items)
        if thread is None:
            thread = _Thread(self._name, self)
        thread.begin(job)
        wait = seconds
        while not job.done.acquire(timeout=wait):
            with self._lock:
                if job.over:
                    break
                # One that was in time gives the others back what late ones took.
                seconds = self._seconds if job.ended else seconds
                wait = job.began + seconds - time.monotonic()
                if wait <= 0:
                    job.left = True
                    self._left += 1
                    self._late = 1 if job.ended else self._late + 1
                    self._more_at = time.monotonic() + self._retry
                    ended += job.ended
                    raise Overdue(seconds)
        if self._late:
            with self._lock:
                self._late = 0
        ended += job.ended

    def _one_more(self) -> None:
        """Raises Overrun, unless it is time to try whether calls come back again."""
        now = time.monotonic()
        if now < self._more_at or self._left >= MOST_THREADS:
            raise Overrun(self._left)
        self._more_at = now + self._retry

    def _goes_on(self, job: _Job, ended: Ended[Any]) -> bool:
        """Notes how an item ended and begins the next one; False if there is none, or this one was late."""
        with self._lock:
            if job.left:
                return False
            job.ended.append(ended)
            job.began = time.monotonic()
            return len(job.ended) < len(job.items)

    def _return(self, thread: _Thread, job: _Job) -> bool:
        """Takes a thread back that has done its job; False if the thread is not needed."""
        with self._lock:
            job.over = True
            if job.left:
                self._left -= 1
            keep = len(self._idle) < self._most_idle
            if keep:
                self._idle.append(thread)
        job.done.release()
        return keep


def call_once(name: str, seconds: float, function: Callable[[], T]) -> T:
    """What the function returns or raises, as a call of BoundedCalls; of its thread nothing is left behind."""
    return BoundedCalls(name, seconds, most_idle=0)(function)


class _Job:
    __slots__ = ("began", "done", "ended", "function", "items", "left", "over")

    def __init__(self, function: Callable[[Any], Any], items: Sequence[Any]) -> None:
        self.function = function
        self.items = items
        self.ended: list[Ended[Any]] = []
        self.began = time.monotonic()  # of the item in hand
        self.done = threading.Lock()
        self.done.acquire()
        self.over = False
        self.left = False

    def run(self) -> Ended[Any]:
        """The next item."""
        try:
            return Ended(self.function(self.items[len(self.ended)]))
        except Exception as error:
            return Ended(error=error)
        # SystemExit too: foreign code must not end a thread that others count on, and in the caller's own thread it
        # is a signal, and means it.
        except BaseException as error:
            exits = Exits(type(error).__name__)
            exits.__cause__ = error
            return Ended(error=exits)


class _Thread:
    """A daemon thread: it never keeps a process from ending."""

    def __init__(self, name: str, calls: BoundedCalls) -> None:
        self._calls = calls
        self._wake = threading.Lock()
        self._wake.acquire()
        self._job: _Job | None = None
        threading.Thread(target=self._run, name=name, daemon=True).start()

    def begin(self, job: _Job) -> None:
        """Hands the idle thread its next job."""
        self._job = job
        self._wake.release()

    def _run(self) -> None:
        kept = True
        while kept:
            self._wake.acquire()
            job, self._job = self._job, None
            assert job is not None, "a thread is woken with a job"
            more = True
            while more:
                more = self._calls._goes_on(job, job.run())
            kept = self._calls._return(self, job)
            del job  # an idle thread holds nothing of its last call
