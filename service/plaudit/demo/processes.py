"""The demo's child processes: each a command of `plaudit`, each with its own log file.

Enters: command lines. Leaves: running processes, their exit codes, and the ends of their logs if one fails. Ends
only what it started.
"""

from __future__ import annotations

import contextlib
import os
import platform
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from plaudit.signals import ENDS_WITH_STDIN

TAIL_LINES = 25
PROGRAM = (sys.executable, "-m", "plaudit")
# glibc gives large blocks back to the system after each step and asks for them anew; training is a third faster when
# it keeps them.
GLIBC_KEEPS_MEMORY = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "100000000000",
    "MALLOC_TOP_PAD_": "268435456",
}


class DemoFailed(Exception):
    """A process of the demo failed; the end of its log follows."""


@dataclass(slots=True)
class Child:
    """A process that runs or ran."""

    name: str
    command: tuple[str, ...]
    log: Path
    process: subprocess.Popen[bytes]
    started: float
    may_end: bool
    asked_to_end: bool = False
    program: tuple[str, ...] = PROGRAM

    @property
    def running(self) -> bool:
        """Whether it has not ended."""
        return self.process.poll() is None

    def tail(self) -> str:
        """The last lines of its log."""
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()
        return "\n".join(lines[-TAIL_LINES:])

    def failure(self) -> DemoFailed:
        """The error of a process that ended badly, with the end of its log."""
        code = self.process.returncode
        return DemoFailed(f"`plaudit {self.name}` ended with code {code}; the end of {self.log}:\n{self.tail()}")


class Processes:
    """Starts and ends children; a context, at whose end all that still run are ended."""

    def __init__(self, logs: Path, *, threads: int) -> None:
        logs.mkdir(parents=True, exist_ok=True)
        self._logs = logs
        self._threads = threads
        self._children: list[Child] = []

    def __enter__(self) -> Self:
        """Enter."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        """End every child that runs, the youngest first."""
        for child in reversed(self._children):
            self.end(child)

    @property
    def commands(self) -> list[str]:
        """Command lines of all children, as a person would type them."""
        named = [("plaudit",) if child.program == PROGRAM else child.program for child in self._children]
        return [shlex.join((*name, *child.command)) for name, child in zip(named, self._children, strict=True)]

    def start(
        self,
        name: str,
        arguments: Sequence[str],
        *,
        ends: bool = False,
        environ: Mapping[str, str] | None = None,
        program: tuple[str, ...] = PROGRAM,
    ) -> Child:
        """Start `plaudit <arguments>`, or another program; `ends`: its end is no failure while others go on."""
        log = self._logs / f"{name}.log"
        with log.open("ab") as output:
            process = subprocess.Popen(
                [*program, *arguments],
                # Its other end closes with this process, however that ends: then the child ends too.
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**self._environ(), **(environ or {}), **ENDS_WITH_STDIN},
                # Another program may leave processes behind: it gets a group, which is ended whole.
                process_group=None if program == PROGRAM else 0,
            )
        child = Child(name, tuple(arguments), log, process, time.monotonic(), ends, program=program)
        self._children.append(child)
        return child

    def run(self, name: str, arguments: Sequence[str], tick: Callable[[], None]) -> Child:
        """Start a child and wait for its end; raises DemoFailed if it ends badly."""
        return self.wait(self.start(name, arguments, ends=True), tick)

    def wait(self, child: Child, tick: Callable[[], None]) -> Child:
        """Wait for a child's end, calling `tick` meanwhile; raises DemoFailed for it or for a service that ended."""
        while child.running:
            tick()
            self.check()
            time.sleep(0.1)
        if child.process.returncode != 0:
            raise child.failure()
        return child

    def check(self) -> None:
        """Raise DemoFailed if a process that should run has ended, or any has ended badly."""
        for child in self._children:
            code = child.process.poll()
            if code is not None and not child.asked_to_end and (code != 0 or not child.may_end):
                raise child.failure()

    def end(self, child: Child, patience: float = 40.0) -> None:
        """SIGTERM, and SIGKILL after `patience` seconds."""
        child.asked_to_end = True
        if child.running:
            child.process.send_signal(signal.SIGTERM)
            try:
                child.process.wait(patience)
            except subprocess.TimeoutExpired:
                child.process.kill()
                child.process.wait()
        if child.program != PROGRAM:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.process.pid, signal.SIGKILL)
        if child.process.stdin:
            child.process.stdin.close()

    def _environ(self) -> dict[str, str]:
        return {
            **os.environ,
            "OMP_NUM_THREADS": str(self._threads),
            "PYTHONUNBUFFERED": "1",
        }


def model_environ() -> dict[str, str]:
    """More variables of a process that runs the model."""
    return dict(GLIBC_KEEPS_MEMORY) if platform.libc_ver()[0] == "glibc" else {}
