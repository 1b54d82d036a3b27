"""What the person who waits sees: stage, time, feedback, the learner's step and the releases.

Enters: facts as they become known. Leaves: a live panel on a terminal, one line a stage elsewhere. Never decides.
"""

from __future__ import annotations

import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.live import Live
from rich.table import Table

_REFRESH_SECONDS = 0.5


class Progress:
    """A live panel; a context. `stage_seconds` holds the time of every stage that ended."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True)
        self._live = Live(console=self._console, auto_refresh=False, transient=True)
        self._begun = time.monotonic()
        self._stage = ""
        self._stage_begun = self._begun
        self._shown = 0.0
        self._facts: dict[str, str] = {}
        self.stage_seconds: dict[str, float] = {}

    def __enter__(self) -> Self:
        """Show the panel where there is a terminal."""
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        """Close the last stage and the panel."""
        self._close_stage()
        self._live.stop()

    @property
    def seconds(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._begun

    def stage(self, name: str) -> None:
        """Begin a stage."""
        self._close_stage()
        self._stage, self._stage_begun = name, time.monotonic()
        if not self._console.is_terminal:
            self._console.print(f"[{self.seconds:6.0f} s] {name}", highlight=False, markup=False)
        self._show()

    def facts(self, **facts: object) -> None:
        """Show facts by name; an empty one disappears."""
        for name, value in facts.items():
            self._facts[name.replace("_", " ")] = str(value)
        if time.monotonic() - self._shown > _REFRESH_SECONDS:
            self._show()

    def say(self, line: str) -> None:
        """Print a line that stays."""
        self._console.print(line, highlight=False, markup=False)

    def _close_stage(self) -> None:
        if self._stage:
            spent = time.monotonic() - self._stage_begun
            self.stage_seconds[self._stage] = round(self.stage_seconds.get(self._stage, 0.0) + spent, 1)
            self._stage = ""

    def _show(self) -> None:
        self._shown = time.monotonic()
        if not self._console.is_terminal:
            return
        table = Table(title=f"Plaudit demo, {self.seconds:.0f} s", title_justify="left", show_header=False)
        table.add_row("stage", f"{self._stage} ({time.monotonic() - self._stage_begun:.0f} s)")
        for name, value in self._facts.items():
            if value:
                table.add_row(name, value)
        self._live.update(table, refresh=True)
