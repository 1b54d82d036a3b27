"""Named places where a test makes a process die as by kill -9.

A numbered step of a protocol that must survive a crash calls `fail_point("join.3")`. Nothing happens unless the
environment variable PLAUDIT_FAIL_POINT names that point: `join.3` dies at the first passage, `join.3:5` at the
fifth. No handler, destructor or buffer flush runs, as after SIGKILL.
"""

from __future__ import annotations

import os
import threading

FAIL_POINT_VARIABLE = "PLAUDIT_FAIL_POINT"
EXIT_CODE = 137  # 128 + SIGKILL: what a shell reports for a killed process

_passages: dict[str, int] = {}
_lock = threading.Lock()


def fail_point(name: str) -> None:
    """Ends the process at once if PLAUDIT_FAIL_POINT asks for it; otherwise does nothing."""
    wanted = os.environ.get(FAIL_POINT_VARIABLE)
    if not wanted:
        return
    point, _, nth = wanted.partition(":")
    if point != name:
        return
    with _lock:
        _passages[name] = passage = _passages.get(name, 0) + 1
    if passage == int(nth or 1):
        os._exit(EXIT_CODE)
