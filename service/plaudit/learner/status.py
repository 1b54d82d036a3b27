"""Tells what the learner is doing: a small JSON file that people and the demo read, a log line, and metrics.

Enters: steps as they begin. Leaves: `<data_dir>/learner.json`, replaced whole each time. Nothing reads it back to
decide anything.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import structlog

from plaudit.metrics import Metrics

log = structlog.get_logger(__name__)
_LEAST_SECONDS = 0.2  # Progress within a step is told at most this often.


class Status:
    """The learner's present step."""

    def __init__(self, path: Path, metrics: Metrics) -> None:
        self._path = path
        self._metrics = metrics
        self._turn = self._number = 0
        self._name = ""
        self._began = self._told = time.time()
        self.seconds: dict[str, float] = {}

    def turn(self, turn: int) -> None:
        """Begin a turn."""
        self._turn = turn
        self.seconds = {}

    def step(self, number: int, name: str) -> None:
        """Begin a numbered step of the turn."""
        self.end_step()
        self._number, self._name, self._began = number, name, time.time()
        log.info("step", turn=self._turn, number=number, name=name)
        self._write("")

    def end_step(self) -> None:
        """End the present step and note its seconds."""
        if self._name:
            spent = time.time() - self._began
            self.seconds[self._name] = round(spent, 2)
            self._metrics.turn_seconds.labels(self._name).observe(spent)
            self._name = ""

    def detail(self, text: str) -> None:
        """What goes on within the step."""
        if time.time() - self._told >= _LEAST_SECONDS:
            self._write(text)

    def idle(self, text: str) -> None:
        """Between turns."""
        self.end_step()
        self._number, self._name = 0, ""
        self._write(text)

    def _write(self, detail: str) -> None:
        self._told = time.time()
        fields = {
            "turn": self._turn,
            "step": self._number,
            "name": self._name,
            "detail": detail,
            "started_at": self._began,
        }
        partial = self._path.with_suffix(".partial")
        partial.write_text(json.dumps(fields))
        os.replace(partial, self._path)
