"""What the guard around a plugin costs per call: a member that does nearly nothing, bare and guarded.

    python benchmarks/guard.py

Prints JSON: microseconds per call, the best of five rounds, alone and beside a thread that keeps the interpreter busy.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable

from plaudit.plugins import guard
from plaudit.types import Message, Prompt, Request
from plaudit_echo.plugin import Echo

CALLS, ROUNDS = 5_000, 5


def microseconds(call: Callable[[], object], calls: int = CALLS) -> float:
    """Time of one call, the best of some rounds."""
    rounds = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        for _ in range(calls):
            call()
        rounds.append(1e6 * (time.perf_counter() - started) / calls)
    return round(min(rounds), 1)


def main() -> None:
    """Measure and print."""
    bare, guarded = Echo(), guard([Echo()])["echo"]
    request = Request(messages=(Message("user", "How do I make tea?"),))
    prompt = Prompt(messages=request.messages, group="how do i make tea?")
    found = {}
    for name, plugin in (("bare", bare), ("guarded", guarded)):
        found[name] = {
            "render": microseconds(lambda plugin=plugin: plugin.render(request)),  # type: ignore[misc]
            "parse": microseconds(lambda plugin=plugin: plugin.parse(prompt, "Warm the pot.")),  # type: ignore[misc]
        }
    busy = threading.Event()
    busy.set()

    def burn() -> None:
        while busy.is_set():
            sum(range(100))

    threading.Thread(target=burn, daemon=True).start()
    found["guarded, beside a busy thread"] = {"parse": microseconds(lambda: guarded.parse(prompt, "Warm it."), 100)}
    busy.clear()
    print(json.dumps({"microseconds per call": found}, indent=2))


if __name__ == "__main__":
    main()
