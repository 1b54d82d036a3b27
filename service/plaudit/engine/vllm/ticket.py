"""A submitted job whose tokens come from a server.

The engine's event loop fills it, any thread reads it. A server says with which log-prob a token was drawn; the raw ones
are asked for afterwards unless they are the same, so a completion that was cancelled asks for its own when it is read.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import threading
from collections.abc import Callable, Sequence

from plaudit.engine.protocol import Generated, Job
from plaudit.engine.ticket import TorchScoreTicket, TorchTicket


class Work:
    """The task behind a ticket. It looks for `cancelled` when it begins, so that it may be ended at any time."""

    def __init__(self) -> None:
        self.cancelled = False
        self._task: asyncio.Task[None] | None = None

    def begin(self) -> None:
        """Called by the task itself, first; raises CancelledError if it was ended before."""
        self._task = asyncio.current_task()
        if self.cancelled:
            raise asyncio.CancelledError

    def end(self) -> None:
        """Ends the task, from any thread; no effect after its end."""
        self.cancelled = True
        if (task := self._task) is not None:
            with contextlib.suppress(RuntimeError):  # the engine was closed
                task.get_loop().call_soon_threadsafe(task.cancel)


class VllmTicket(TorchTicket):
    """A job. `fetch` gives log-probs of its first tokens under softmax(logits); `moved` is when a token came last."""

    def __init__(self, job: Job, decode: Callable[[Sequence[int]], str]) -> None:
        super().__init__(job, decode)
        self.work = Work()
        self.moved = self.submitted
        self.fetch: Callable[[int], Sequence[float]] = lambda count: [math.nan] * count
        self._fetching = threading.Lock()

    def cancel(self) -> None:
        """See Ticket."""
        super().cancel()
        self.work.end()

    def so_far(self) -> Generated:
        """See Ticket; raises EngineUnavailable if no server gives the raw log-probs."""
        count = len(super().so_far().tokens)
        with self._fetching:
            if any(math.isnan(each) for each in self.raw[:count]):
                self.raw[:count] = self.fetch(count)
        return super().so_far()


class VllmScoreTicket(TorchScoreTicket):
    """Options that wait for their log-probs."""

    def __init__(self) -> None:
        super().__init__()
        self.work = Work()

    def cancel(self) -> None:
        """See ScoreTicket."""
        super().cancel()
        self.work.end()
