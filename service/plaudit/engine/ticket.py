"""What a caller holds of a job: tokens as they come, the result, and a way to give it up.

The engine's thread fills a ticket; any thread reads it. Nothing here touches the model.
"""

from __future__ import annotations

import queue
import random
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future

import torch

from plaudit.engine.protocol import Generated, Job

_END = object()


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
        self._decode = decode
        self._pieces: queue.SimpleQueue[object] = queue.SimpleQueue()
        self._done: Future[Generated] = Future()

    def deltas(self, timeout: float | None = None) -> Iterator[str]:
        """New text as it comes; raises TimeoutError after `timeout` seconds in all, or what broke the job."""
        end = None if timeout is None else time.monotonic() + timeout
        tokens: list[int] = []
        shown = ""
        while True:
            try:
                piece = self._pieces.get(timeout=None if end is None else max(0.0, end - time.monotonic()))
            except queue.Empty:
                raise TimeoutError from None
            if piece is _END:
                final = self._done.result().text
                if len(final) > len(shown):
                    yield final[len(shown) :]
                return
            tokens.append(piece)  # type: ignore[arg-type]
            text = self._decode(tokens)
            # A replacement character at the end is half of a character whose other bytes are still to come. Text
            # that may be the beginning of a stop string waits too.
            safe = len(text) - (1 if text.endswith("\ufffd") else _held_back(text, self.job.sampling.stop))
            if safe > len(shown):
                yield text[len(shown) : safe]
                shown = text[:safe]

    def result(self, timeout: float | None = None) -> Generated:
        """The finished completion; raises TimeoutError, Cancelled, or what broke the job."""
        return self._done.result(timeout)

    def cancel(self) -> None:
        """Frees the slot at the next step; no effect on a finished job."""
        self.cancelled = True

    def push(self, token: int, raw: float, sampled: float) -> None:
        """Take a token (the engine's thread)."""
        self.tokens.append(token)
        self.raw.append(raw)
        self.sampled.append(sampled)
        self._pieces.put(token)

    def finish(self, generated: Generated) -> None:
        """Complete the ticket (the engine's thread)."""
        self._done.set_result(generated)
        self._pieces.put(_END)

    def fail(self, error: BaseException) -> None:
        """Break the ticket (the engine's thread)."""
        if not self._done.done():
            self._done.set_exception(error)
            self._pieces.put(_END)


def _held_back(text: str, stops: Sequence[str]) -> int:
    """Length of the longest end of `text` that begins a stop string."""
    return max((n for stop in stops for n in range(1, len(stop) + 1) if text.endswith(stop[:n])), default=0)
