"""What the person who waits sees: the stages, how far the present one is, and how long the rest will take.

Enters: the stages with the seconds that each took on another machine, and facts as they become known. Leaves: a live
panel on a terminal; elsewhere a line per stage, and one per minute that a stage goes on. Never decides.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

_REFRESH_SECONDS = 0.5
_LINE_SECONDS = 60.0  # without a terminal a long stage says that it lives
# A few quick stages say little about a machine: the estimate trusts what was seen only as far as it reaches.
_TRUST_SECONDS = 20.0
Stages = Sequence[tuple[str, float]]
"""Names in order, each with the seconds that it is expected to take."""


class Progress:
    """A live panel; a context. `stage_seconds` holds the time of every stage that ended.

    `console`: standard error by default. `clock`: seconds, monotonic.
    """

    def __init__(self, console: Console | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = console or Console(stderr=True)
        self._live = Live(console=self._console, auto_refresh=False, transient=True)
        self._clock = clock
        self._begun = clock()
        self._stage = ""
        self._stage_begun = self._begun
        self._shown = 0.0
        self._said = self._begun
        self._planned: dict[str, float] = {}
        self._part = 0.0
        self._doing = ""
        self._facts: dict[str, str] = {}
        self.stage_seconds: dict[str, float] = {}

    def __enter__(self) -> Self:
        """Show the panel if there is a terminal."""
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
        return self._clock() - self._begun

    def plan(self, stages: Stages) -> None:
        """Say which stages are to come, so that there is an estimate."""
        self._planned = dict(stages)

    def stage(self, name: str) -> None:
        """Begin a stage."""
        self._close_stage()
        self._stage, self._stage_begun, self._part, self._doing = name, self._clock(), 0.0, ""
        self._line(name)
        self._show()

    def at(self, part: float, doing: str = "") -> None:
        """How much of the stage is done, 0 to 1, and what goes on in it. A part never goes back."""
        self._part, self._doing = max(self._part, min(part, 1.0)), doing
        if self._clock() - self._shown > _REFRESH_SECONDS:
            self._show()

    def facts(self, **facts: object) -> None:
        """Show facts by name; an empty one disappears."""
        self._facts.update({name.replace("_", " "): str(value) for name, value in facts.items()})
        if self._stage and self._clock() - self._said >= _LINE_SECONDS:
            part = f", {self._part:.0%} done" if self._part else ""
            self._line(f"{self._stage}{part}{f': {self._doing}' if self._doing else ''}")

    def say(self, line: str) -> None:
        """Print a line that stays."""
        self._console.print(line, highlight=False, markup=False, soft_wrap=True)

    def part(self) -> float:
        """How much of the stage is done: as far as was told, else by its time, of which a twentieth is kept back."""
        here = self._planned.get(self._stage, 0.0)
        return self._part or min((self._clock() - self._stage_begun) / here, 0.95) if here else self._part

    def left(self) -> float | None:
        """Seconds that the rest will take, at the pace seen so far; None if nothing is planned.

        The pace is what the stages so far took against what was expected of them, and 1 as long as they were short.
        """
        if not self._planned:
            return None
        spent, here, part = self._clock() - self._stage_begun, self._planned.get(self._stage, 0.0), self.part()
        took, expected = _TRUST_SECONDS, _TRUST_SECONDS
        for name, seconds in self.stage_seconds.items():
            took, expected = took + seconds, expected + self._planned.get(name, 0.0)
        if self._part > 0.1:
            took, expected = took + spent, expected + here * part
        names = list(self._planned)
        ahead = names[names.index(self._stage) + 1 :] if self._stage in names else []
        rest = here * (1 - part) + sum(self._planned[name] for name in ahead)
        return rest * took / expected

    def _line(self, what: str) -> None:
        self._said = self._clock()
        if not self._console.is_terminal:
            left = self.left()
            about = f", about {spoken(left)} left" if left is not None else ""
            self._console.print(f"[{self.seconds:6.0f} s{about}] {what}", highlight=False, markup=False, soft_wrap=True)

    def _close_stage(self) -> None:
        if self._stage:
            spent = self._clock() - self._stage_begun
            self.stage_seconds[self._stage] = round(self.stage_seconds.get(self._stage, 0.0) + spent, 1)
            self._stage = ""

    def _show(self) -> None:
        self._shown = self._clock()
        if self._console.is_terminal:
            self._live.update(self.panel(), refresh=True)

    def panel(self) -> Group:
        """What a terminal shows now."""
        left = self.left()
        title = f"Plaudit demo: {spoken(self.seconds)}" + (f", about {spoken(left)} left" if left is not None else "")
        table = Table.grid(padding=(0, 2))
        for name in self._planned or [*self.stage_seconds, self._stage]:
            if name == self._stage:
                bar = ProgressBar(total=1.0, completed=self.part(), width=28)
                table.add_row(Text("▸", "bold"), Text(name, "bold"), bar, spoken(self._clock() - self._stage_begun))
            elif name in self.stage_seconds:
                table.add_row(Text("✓", "green"), name, "", spoken(self.stage_seconds[name]))
            else:
                table.add_row(" ", Text(name, "dim"))
        facts = "   ".join(f"{name}: {value}" for name, value in self._facts.items() if value)
        below = [Text(line, "dim") for line in (self._doing, facts) if line]
        return Group(Text(title, "bold"), table, *below)


def spoken(seconds: float) -> str:
    """A time as people say it: seconds below two minutes, else minutes."""
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
