"""The simulator's connection: Plaudit's own client, with more patience and with every attempt counted.

Questions and acts enter, replies and acknowledgements leave. Sends nothing that an ordinary caller could not.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from plaudit.client import Plaudit
from plaudit.errors import DeadlinePassed, PlauditError, UnknownChannel
from plaudit.eventlog.bodies import act_to_proto
from plaudit.simulate.asking import Answer, Ask, Question
from plaudit.simulate.population import SimAct
from plaudit.types import Channel

FIRST_WAIT_SECONDS = 0.1
LONGEST_WAIT_SECONDS = 3.0
END_SECONDS = 10.0

Given = TypeVar("Given")


class Refused(Exception):
    """The service did not do what was asked, and asking again would not help or has gone on too long."""

    def __init__(self, error: PlauditError, attempts: int) -> None:
        self.error = error
        self.attempts = attempts
        super().__init__(f"{error.reason} after {attempts} attempts: {error.message}")

    @property
    def reason(self) -> str:
        """The ErrorReason of the last attempt."""
        return self.error.reason


class Connection:
    """A connection to the service at `target`, shared by the simulator's threads."""

    def __init__(
        self,
        target: str,
        ask: Ask,
        *,
        deadline_seconds: float = 120.0,
        patience_seconds: float = 120.0,
        stop: threading.Event | None = None,
    ) -> None:
        """`ask` sends the questions of one domain (`asking.ask_of`).

        `stop` says that the process is to end: then what fails is tried again for END_SECONDS at most.
        """
        self._ask = ask
        self._patience = patience_seconds
        self._stop = stop or threading.Event()
        # One attempt a call: attempts are made here, so that none goes uncounted.
        self._client = Plaudit(target, timeout=deadline_seconds, patience=0.0)

    def close(self) -> None:
        """Ends the connection."""
        self._client.close()

    def ask(self, question: Question) -> tuple[Answer, int]:
        """The answer, and the attempts that it took; raises Refused."""
        return self._patiently(lambda: self._ask(self._client, question))

    def submit(self, *, feedback_id: str, handle: str, rater: str, act: SimAct) -> int:
        """Attempts until the act was acknowledged as durable; raises Refused. The id makes sending again harmless."""
        feedback = act_to_proto(act.act)
        feedback.feedback_id, feedback.handle, feedback.rater = feedback_id, handle, rater
        feedback.reasons.extend(act.reasons)
        return self._patiently(lambda: self._client.submit(feedback))[1]

    def live_version(self, channel: Channel) -> int | None:
        """Version that the channel serves; None before its first request."""
        try:
            (state, _), _ = self._patiently(lambda: self._client.releases(str(channel)))
        except Refused as refused:
            if isinstance(refused.error, UnknownChannel):
                return None
            raise
        return state.live

    def _patiently(self, call: Callable[[], Given]) -> tuple[Given, int]:
        started, wait, attempts = time.monotonic(), FIRST_WAIT_SECONDS, 0
        told_to_end: float | None = None
        while True:
            attempts += 1
            try:
                return call(), attempts
            except PlauditError as error:
                again = error.retryable or isinstance(error, DeadlinePassed)
                now = time.monotonic()
                if self._stop.is_set():
                    told_to_end = told_to_end or now
                over = told_to_end is not None and now + wait > told_to_end + END_SECONDS
                if not again or over or now - started + wait > self._patience:
                    raise Refused(error, attempts) from error
            # Jitter keeps many threads from coming back at the same moment.
            time.sleep(wait * random.uniform(0.5, 1.0))
            wait = min(LONGEST_WAIT_SECONDS, 2 * wait)
