"""A call as the work behind it sees it: how much time is left, and whether the caller is still there.

What enters: a gRPC context. What leaves: waits that end with the deadline or the caller. Never knows what is computed.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from plaudit.engine.protocol import Generated, ScoreTicket, Ticket
from plaudit.errors import Cancelled, DeadlinePassed


class Call:
    """One call under way. Its tickets are cancelled when it ends, so that a caller who leaves frees the slots."""

    def __init__(self, context: Any, default_seconds: float) -> None:
        remaining = context.time_remaining()
        self._context = context
        self._ends_at = time.monotonic() + (default_seconds if remaining is None else min(remaining, default_seconds))

    def remaining(self) -> float:
        """Seconds left; raises DeadlinePassed if none are."""
        left = self._ends_at - time.monotonic()
        if left <= 0:
            raise DeadlinePassed()
        return left

    def result(self, ticket: ScoreTicket) -> list[tuple[float, ...]]:
        """What the ticket gives; raises DeadlinePassed, Cancelled or what broke it, and cancels it."""
        try:
            return ticket.result(self.remaining())
        except TimeoutError as error:
            raise DeadlinePassed() from error
        finally:
            ticket.cancel()

    def watch(self, tickets: Sequence[Ticket | ScoreTicket]) -> None:
        """Cancels the tickets when the call ends in any way; a finished ticket takes no notice."""

        def cancel() -> None:
            for ticket in tickets:
                ticket.cancel()

        if not self._context.add_callback(cancel):
            cancel()
            raise Cancelled()

    def results(self, tickets: Sequence[Ticket]) -> list[Generated]:
        """All completions, in order; raises DeadlinePassed, Cancelled or what broke one, and cancels the rest."""
        try:
            return [ticket.result(self.remaining()) for ticket in tickets]
        except TimeoutError as error:
            raise DeadlinePassed() from error
        finally:
            for ticket in tickets:
                ticket.cancel()
