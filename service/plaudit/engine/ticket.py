"""What a caller holds of a job: tokens as they come, the result, and a way to give it up.

The engine's thread fills a ticket; any thread reads it. Nothing here touches the model. Text is made by whoever reads,
so that the engine's thread does not wait for a tokenizer.
"""

from __future__ import annotations

import queue
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future

import torch

from plaudit.engine.protocol import Generated, Job
from plaudit.engine.text import GrowingText
from plaudit.types import FinishReason


class TorchTicket:
    """A submitted job; the engine's thread fills it, any thread reads it."""

    def __init__(self, job: Job, decode: Callable[[Sequence[int]], str]) -> None:
        self.job = job
        self.tokens: list[int] = []
        self.raw: list[float] = []
        self.sampled: list[float] = []
        self.hidden: list[torch.Tensor] = []
        self.random = random.Random(job.seed)
        self.cancelled = False
        self.width = 0
        self.submitted = time.monotonic()
        # The engine looks for stop strings as it goes; readers have a text of their own.
        self._watched = GrowingText(decode, job.sampling.stop) if job.sampling.stop else None
        self._text = GrowingText(decode, job.sampling.stop)
        self._shown = ""
        self._reading = threading.Lock()
        # One entry for each token that came, and one for the end.
        self._came: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._done: Future[FinishReason] = Future()

    # What callers use ----------------------------------------------------------------------------

    def deltas(self, timeout: float | None = None) -> Iterator[str]:
        """New text as it comes; raises TimeoutError after `timeout` seconds in all, or what broke the job."""
        end = None if timeout is None else time.monotonic() + timeout
        while True:
            try:
                self._came.get(timeout=None if end is None else max(0.0, end - time.monotonic()))
            except queue.Empty:
                raise TimeoutError from None
            ended = self._done.done()
            with self._reading:
                self._read_on()
                upto = self._text.text if ended and self._done.exception() is None else self._text.safe
                new = upto[len(self._shown) :]
                if new:
                    self._shown = upto
            if new:
                yield new
            if ended:
                self._done.result()
                return

    def result(self, timeout: float | None = None) -> Generated:
        """The finished completion; raises TimeoutError, Cancelled, or what broke the job."""
        reason = self._done.result(timeout)
        with self._reading:
            self._read_on()
            return self._generated(len(self.tokens), self._text.text, reason)

    def so_far(self) -> Generated:
        """What `deltas` has given out, with the tokens behind it, as a completion that was cancelled."""
        with self._reading:
            return self._generated(self._text.count, self._shown, FinishReason.CANCELLED)

    def cancel(self) -> None:
        """Frees the slot at the next step; no effect on a finished job."""
        self.cancelled = True

    def _read_on(self) -> None:
        for token in self.tokens[self._text.count :]:
            self._text.add(token)

    def _generated(self, count: int, text: str, reason: FinishReason) -> Generated:
        return Generated(
            tokens=tuple(self.tokens[:count]),
            text=text,
            logprobs_raw=tuple(self.raw[:count]),
            logprobs_sampled=tuple(self.sampled[:count]),
            finish_reason=reason,
            width=self.width,
            release=self.job.release,
            hidden=torch.cat(self.hidden) if self.hidden else None,
        )

    # The engine's thread --------------------------------------------------------------------------

    def push(self, token: int, raw: float, sampled: float) -> bool:
        """Take a token; returns whether a stop string is complete."""
        self.raw.append(raw)
        self.sampled.append(sampled)
        # Last: whoever sees the token finds its log-probs.
        self.tokens.append(token)
        self._came.put(None)
        if self._watched is None:
            return False
        self._watched.add(token)
        return self._watched.stopped

    def finish(self, reason: FinishReason) -> None:
        """Complete the ticket."""
        self._done.set_result(reason)
        self._came.put(None)

    def fail(self, error: BaseException) -> None:
        """Break the ticket."""
        if not self._done.done():
            self._done.set_exception(error)
            self._came.put(None)


class TorchScoreTicket:
    """Continuations that wait for their log-probs; the engine's thread fills it, any thread reads it."""

    def __init__(self) -> None:
        self.cancelled = False
        self._done: Future[list[tuple[float, ...]]] = Future()

    def result(self, timeout: float | None = None) -> list[tuple[float, ...]]:
        """Log-probs (nats) of each continuation's tokens; raises TimeoutError, Cancelled, or what broke the request."""
        return self._done.result(timeout)

    def cancel(self) -> None:
        """Ends the work at the next step; no effect on a finished request."""
        self.cancelled = True

    def finish(self, logprobs: list[tuple[float, ...]]) -> None:
        """Complete the ticket (the engine's thread)."""
        self._done.set_result(logprobs)

    def fail(self, error: BaseException) -> None:
        """Break the ticket (the engine's thread)."""
        if not self._done.done():
            self._done.set_exception(error)
