"""Tells what the learner is doing: a small JSON file that people and the demo read, a log line, and metrics.

Enters: steps as they begin. Leaves: `<data_dir>/learner.json`, replaced whole each time (of several learners the one
that wrote last is seen), and the row of this process in the store. Nothing reads them back to decide anything, so that
a full disk costs the file alone.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
import uuid
from pathlib import Path

import structlog

from plaudit.learner.outcome import Result
from plaudit.metrics import Metrics
from plaudit.store.processes import Beat
from plaudit.types import Channel

log = structlog.get_logger(__name__)
_LEAST_SECONDS = 0.2  # Progress within a step is told at most this often.


class Status:
    """The learner's present step."""

    def __init__(self, path: Path, metrics: Metrics, beat: Beat | None = None) -> None:
        self._path = path
        self._beat = beat
        self._said: dict[str, list[str]] = {}
        self._partial = path.with_name(f".{path.name}-{uuid.uuid4().hex}.partial")
        self._metrics = metrics
        self._channel = ""
        self._turn = self._number = 0
        self._name = ""
        self._began = self._told = time.time()
        self.seconds: dict[str, float] = {}

    def turn(self, channel: Channel, turn: int) -> None:
        """Begin a turn that would make version `turn` of a channel."""
        self._channel, self._turn = str(channel), turn
        self.seconds = {}

    def step(self, number: int, name: str) -> None:
        """Begin a numbered step of the turn."""
        self.end_step()
        self._number, self._name, self._began = number, name, time.time()
        log.info("step", channel=self._channel, turn=self._turn, number=number, name=name)
        self._write("", news=True)

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

    def idle(self, channel: Channel, result: Result) -> None:
        """Between turns: what the last look at a channel came to."""
        self.end_step()
        self._channel, self._number, self._name = str(channel), 0, ""
        said = [str(result.outcome), result.reason]
        news = self._said.get(str(channel)) != said
        self._said[str(channel)] = said
        self._write(": ".join(said), news=news)

    def rest(self) -> None:
        """Nothing to look at just now; that the process runs is told all the same."""
        self._tell_store("")

    def close(self) -> None:
        """The process ends."""
        if self._beat is not None:
            self._beat.end()

    def _tell_store(self, detail: str, *, news: bool = False) -> None:
        """For people on other machines (`plaudit status`): the step, and what the last look at each channel came to."""
        if self._beat is not None:
            step = {"channel": self._channel, "turn": self._turn, "step": self._number, "name": self._name}
            self._beat.beat({**step, "detail": detail, "began": self._began, "said": self._said}, now=news)

    def _write(self, detail: str, *, news: bool = False) -> None:
        self._told = time.time()
        fields = {
            "pid": os.getpid(),
            "channel": self._channel,
            "turn": self._turn,
            "step": self._number,
            "name": self._name,
            "detail": detail,
            "started_at": self._began,
        }
        self._tell_store(detail, news=news)
        with contextlib.suppress(OSError):
            self._partial.write_text(json.dumps(fields))
            os.replace(self._partial, self._path)
