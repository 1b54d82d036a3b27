"""`plaudit up`: serve, join and learn as children of one command over one data directory.

Enters: the options that all three share. Leaves: their logs, line by line under their names, on standard error; a child
that dies is started again after a pause that grows; one that cannot start ends all, and all end if this command dies.
Nothing else is shared: each child is the command that an operator would run.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import IO

from plaudit.signals import ENDS_WITH_STDIN, StopEvent
from plaudit.waiting import doubled

NAMES = ("serve", "join", "learn")
# What a child that cannot run ends with, having said why; so often in a row, and it will not. A child that dies of
# anything else, or after it worked for long, is always started again.
EXPLAINED = 1
MOST_TRIES = 3
LONG_SECONDS = 600.0
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 30.0
# The service drains for serve.drain_seconds; a turn of the learner may be cut off at any step.
END_SECONDS = 45.0
_LOOK_SECONDS = 0.2

Say = Callable[[str], None]


@dataclass(slots=True)
class Child:
    """One of the three processes, through all its starts."""

    name: str
    command: tuple[str, ...]
    process: subprocess.Popen[bytes] | None = None
    began: float = 0.0
    deaths: int = 0
    refusals: int = 0
    start_at: float = 0.0
    reader: threading.Thread | None = field(default=None, repr=False)

    def start(self, say: Say) -> None:
        """Starts the process, and a thread that passes its lines on."""
        self.process = subprocess.Popen(
            self.command,
            # Its other end closes with this process, however that ends: then the child ends too.
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, **ENDS_WITH_STDIN, "PYTHONUNBUFFERED": "1"},
            # Ctrl-C in a terminal reaches this command alone, which ends its children in their order.
            process_group=0,
        )
        self.began = time.monotonic()
        assert self.process.stdout is not None, "asked for above"
        self.reader = threading.Thread(target=self._read, args=(self.process.stdout, say), daemon=True)
        self.reader.start()

    def _read(self, lines: IO[bytes], say: Say) -> None:
        with lines:
            for line in lines:
                say(f"{self.name:5} | {line.decode(errors='replace').rstrip()}")

    def ended(self) -> int | None:
        """Exit code of a process that has ended by itself; None if it runs, or waits to be started again."""
        return None if self.process is None else self.process.poll()

    def end(self, seconds: float) -> None:
        """SIGTERM, and SIGKILL after some seconds."""
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(seconds)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        if self.reader is not None:
            self.reader.join(5.0)
        self.forget()

    def forget(self) -> None:
        """Lets go of a process that has ended."""
        if self.process is not None and self.process.stdin is not None:
            self.process.stdin.close()
        self.process = None


def up(options: Sequence[str], serve_options: Sequence[str], stop: StopEvent, say: Say) -> int:
    """Runs the three until `stop` is set, then ends them, the learner first; returns the exit code.

    `options` go to every child and `serve_options` to `plaudit serve` alone. Returns 1 if a child cannot start.
    """
    children = [
        Child(name, (sys.executable, "-m", "plaudit", name, *options, *(serve_options if name == "serve" else ())))
        for name in NAMES
    ]
    try:
        for child in children:
            child.start(say)
        while not stop.wait(_LOOK_SECONDS):
            for child in children:
                if not _kept_up(child, say):
                    return 1
    finally:
        say("up    | ends: learn, join, serve")
        for child in reversed(children):
            child.end(END_SECONDS)
    return 0


def _kept_up(child: Child, say: Say) -> bool:
    """Starts a child again if it has died and its pause is over; False if it has failed too often."""
    code = child.ended()
    if code is not None:
        lived = time.monotonic() - child.began
        child.deaths = child.deaths + 1 if lived < LONG_SECONDS else 0
        child.refusals = child.refusals + 1 if code == EXPLAINED and lived < LONG_SECONDS else 0
        child.forget()
        if child.refusals >= MOST_TRIES:
            say(f"up    | {child.name} ended {MOST_TRIES} times for what its last lines say")
            return False
        pause = doubled(FIRST_PAUSE, child.deaths, LONGEST_PAUSE)
        child.start_at = time.monotonic() + pause
        say(f"up    | {child.name} ended with code {code} after {lived:.0f} s; it is started again in {pause:g} s")
    elif child.process is None and time.monotonic() >= child.start_at:
        child.start(say)
    return True
