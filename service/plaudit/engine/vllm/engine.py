"""The engine over vLLM servers: jobs, options and adapters as `engine.protocol` says, computed elsewhere.

In: jobs, options to score, adapters to stage. Out: tickets with tokens and log-probs. One thread runs an event loop
with a task per job. A job stays on the release that it named, whatever happens to servers: one whose server is lost
goes on at another, behind the token that came last; what follows is drawn with another seed, from the same
distribution.

A job's way: `submit` checks it and starts a task -> a server that holds its adapter takes it (fleet.py) -> tokens come
and are pushed to the ticket -> at EOS, a stop string or `max_tokens` the request ends -> log-probs under
softmax(logits) are asked for, unless the tokens were drawn from just that.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import hashlib
import math
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import structlog
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, wait_random_exponential

from plaudit.engine.protocol import EncodedPrompt, Job, Observer, ReleaseKey, Usage
from plaudit.engine.sampling import check
from plaudit.engine.slots import Load, Slots
from plaudit.engine.vllm import wire
from plaudit.engine.vllm.fleet import BASE, Fleet
from plaudit.engine.vllm.local import LocalModel, signature
from plaudit.engine.vllm.server import ServerAway, Unanswered
from plaudit.engine.vllm.shelf import Named, Shelf
from plaudit.engine.vllm.ticket import VllmScoreTicket, VllmTicket
from plaudit.errors import (
    Cancelled,
    EngineUnavailable,
    InternalError,
    NotServing,
    OptionsTooLong,
    PlauditError,
    PromptTooLong,
    QueueFull,
    ReleaseNotServable,
)
from plaudit.settings import Settings
from plaudit.types import FinishReason, Message

# Longer than any server's own limits on what is waited for here.
_CALL_SECONDS = 600.0
_LAST_SECONDS = 10.0  # for raw log-probs of a completion that was given up
# Servers that a request may lose under way: one that ends whatever server takes it must not end all of them.
MOST_LOSSES = 2
_WAIT = wait_random_exponential(multiplier=0.1, max=1.0)

_T = TypeVar("_T")
log = structlog.get_logger("plaudit.engine")


class VllmEngine:
    """Implements `engine.protocol.Engine` over vLLM servers."""

    capture_layer = None
    widths: tuple[int, ...] = ()

    def __init__(self, model: LocalModel, fleet: Fleet, settings: Settings) -> None:
        engine = settings.engine
        self.base_digest = model.digest
        self.base_dtype: str = engine.vllm.dtype
        self.end_of_turn = model.end_of_turn
        self.context_length = model.context_length(engine.context_length)
        self._model = model
        self._fleet = fleet
        self._shelf = Shelf.of(settings)
        self._settings = engine
        self._lock = threading.Condition()
        self._slots = Slots(engine.adapter_slots, self._lock)
        self._names: dict[int, Named] = {}
        self._loading = threading.Lock()
        self._jobs: set[VllmTicket] = set()
        self._scores = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._stopping = False
        self._observer: Observer | None = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="engine", daemon=True)
        self._thread.start()

    @classmethod
    def of(cls, settings: Settings) -> VllmEngine:
        """An engine over the servers that settings name, once one of them takes requests.

        Raises EngineUnavailable if none answers, and Misconfigured if one of them runs another base or is started so
        that it cannot serve as the protocol says.
        """
        model = LocalModel(settings.model.path)
        known = signature(settings, model.digest) if settings.engine.vllm.check_base else None
        fleet = Fleet.of(settings, known, model.context_length(settings.engine.context_length))
        engine = cls(model, fleet, settings)
        try:
            engine._call(fleet.open())
        except BaseException:
            engine.close()
            raise
        engine._start(fleet.watch())
        return engine

    # Text ----------------------------------------------------------------------------------------

    def encode(self, messages: Sequence[Message]) -> EncodedPrompt:
        """Token ids of a conversation; no text of a message becomes a control token."""
        return self._model.encode(messages)

    def encode_text(self, text: str) -> tuple[int, ...]:
        """Token ids of plain text."""
        return self._model.encode_text(text)

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of token ids."""
        return self._model.decode(tokens)

    # Jobs ----------------------------------------------------------------------------------------

    def submit(self, jobs: Sequence[Job]) -> list[VllmTicket]:
        """Start jobs, all or none; raises QueueFull, PromptTooLong, ReleaseNotServable or NotServing."""
        for job in jobs:
            check(job.sampling)
            self._check_length(len(job.prompt.tokens), job.sampling.max_tokens)
            if job.width:
                raise ReleaseNotServable("vLLM servers have no batches of a fixed width", width=job.width)
        tickets = [VllmTicket(job, self._model.decode) for job in jobs]
        with self._lock:
            self._check_queue(len(jobs))
            for release in {job.release for job in jobs}:
                self._slots.require(release)
            for job in jobs:
                self._slots.job_begins(job.release)
            self._jobs.update(tickets)
        for ticket in tickets:
            ticket.fetch = functools.partial(self._fetched, ticket)
            self._start(self._run(ticket))
        return tickets

    async def _run(self, ticket: VllmTicket) -> None:
        """A job from its first token to its last; nothing that breaks it breaks another."""
        try:
            ticket.work.begin()
            reason = await self._again(lambda: self._draw(ticket), lambda: ticket.moved)
            if not wire.is_plain(ticket.job.sampling):
                ticket.raw[:] = await self._raw(ticket, len(ticket.tokens))
            ticket.finish(reason)
        except asyncio.CancelledError:
            ticket.fail(NotServing() if self._stopping and not ticket.cancelled else Cancelled())
        except PlauditError as error:
            ticket.fail(error)
        except Exception as error:
            log.exception("a job failed", release=str(ticket.job.release))
            ticket.fail(InternalError(f"decoding failed: {type(error).__name__}"))
        finally:
            with self._lock:
                self._jobs.discard(ticket)
                self._slots.job_ended(ticket.job.release)
                self._lock.notify_all()

    async def _draw(self, ticket: VllmTicket) -> FinishReason:
        """Tokens from one server until the completion ends."""
        job, name = ticket.job, self._name(ticket.job.release)
        came = len(ticket.tokens)
        async with self._fleet.serving(name) as place:
            body = wire.completion(
                place.model(name),
                (*job.prompt.tokens, *ticket.tokens),
                job.sampling,
                _seed(job.seed, came),
                job.sampling.max_tokens - came,
                sorted(self._model.eos_ids),
            )
            async with contextlib.aclosing(place.server.stream(body)) as pieces:
                async for piece in pieces:
                    if (reason := self._take(ticket, piece)) is not None:
                        return reason
            address = place.server.address
            raise ServerAway(f"the vLLM server at {address} broke an answer off", address, under_way=True)

    def _take(self, ticket: VllmTicket, piece: wire.Drawn) -> FinishReason | None:
        """Push a piece's tokens to a ticket; what ended the completion, if anything did."""
        sampling = ticket.job.sampling
        if piece.tokens:
            self._tell(ticket)
        for token, logprob in zip(piece.tokens, piece.logprobs, strict=True):
            if not math.isfinite(logprob):
                raise InternalError(f"release {ticket.job.release} gives log-probs that are not numbers")
            raw = logprob if wire.is_plain(sampling) else math.nan
            stopped = ticket.push(token, raw, 0.0 if wire.is_greedy(sampling) else logprob)
            if token in self._model.eos_ids:
                return FinishReason.EOS
            if stopped:
                return FinishReason.STOP
            if len(ticket.tokens) >= sampling.max_tokens:
                return FinishReason.LENGTH
        return {"length": FinishReason.LENGTH, "stop": FinishReason.EOS}.get(piece.finish or "")

    def _tell(self, ticket: VllmTicket) -> None:
        now = time.monotonic()
        if self._observer is not None:
            if ticket.tokens:
                self._observer.stepped(now - ticket.moved, 1, 0)
            else:
                self._observer.queued(now - ticket.submitted)
                self._observer.first_token(now - ticket.submitted)
        ticket.moved = now

    async def _raw(self, ticket: VllmTicket, count: int) -> tuple[float, ...]:
        job, name = ticket.job, self._name(ticket.job.release)
        tokens = [ticket.tokens[:count]]
        (found,) = await self._again(lambda: self._fleet.score_at_one(name, job.prompt, tokens, 1.0))
        return found

    def _fetched(self, ticket: VllmTicket, count: int) -> tuple[float, ...]:
        """Raw log-probs of a completion that was given up."""
        key = ticket.job.release
        with self._lock:
            if self._stopping:
                raise NotServing
            self._slots.require(key)
            self._slots.job_begins(key)
        try:
            return self._call(self._raw(ticket, count), _LAST_SECONDS)
        finally:
            with self._lock:
                self._slots.job_ended(key)

    # Scores --------------------------------------------------------------------------------------

    def score(
        self,
        prompt: EncodedPrompt,
        completions: Sequence[Sequence[int]],
        release: ReleaseKey,
        temperature: float = 1.0,
    ) -> list[tuple[float, ...]]:
        """Log-probs (nats) of completions after a prompt, by every server, which must agree (ProofFailed)."""
        self._check_length(len(prompt.tokens), max((len(c) for c in completions), default=0))
        with self._lock:
            if self._stopping:
                raise NotServing
            self._slots.require(release)
            self._slots.job_begins(release)
        try:
            name = self._name(release)
            return self._call(self._again(lambda: self._fleet.score(name, prompt, completions, temperature)))
        finally:
            with self._lock:
                self._slots.job_ended(release)

    def score_options(
        self,
        prompt: EncodedPrompt,
        options: Sequence[Sequence[int]],
        release: ReleaseKey,
        temperature: float | None = None,
    ) -> VllmScoreTicket:
        """Start to score options, each with its end of turn; raises QueueFull, PromptTooLong, OptionsTooLong, ..."""
        self._check_length(len(prompt.tokens), 1)
        ended = [(*option, self.end_of_turn) for option in options]
        longest = max((len(option) for option in ended), default=0)
        # The server has room for a token behind what it reads.
        room = self.context_length - len(prompt.tokens)
        if longest > room:
            raise OptionsTooLong(
                f"an option has {longest} tokens with its end of turn, and behind this prompt the context of "
                f"{self.context_length} has room for {room}",
                tokens=longest,
                limit=room,
            )
        tokens = len({each[: at + 1] for each in ended for at in range(len(each))})
        if tokens > self._settings.score_tokens:
            raise OptionsTooLong(
                f"the options have {tokens} tokens together, beginnings that they share counted once; "
                f"engine.score_tokens allows {self._settings.score_tokens}",
                tokens=tokens,
                limit=self._settings.score_tokens,
            )
        ticket = VllmScoreTicket()
        with self._lock:
            self._check_queue(1)
            chosen = self._slots.require(release).temperature if temperature is None else temperature
            self._slots.job_begins(release)
            self._scores += 1
        self._start(self._score(ticket, prompt, ended, release, chosen))
        return ticket

    async def _score(
        self,
        ticket: VllmScoreTicket,
        prompt: EncodedPrompt,
        options: Sequence[Sequence[int]],
        release: ReleaseKey,
        temperature: float,
    ) -> None:
        try:
            ticket.work.begin()
            name = self._name(release)
            found = await self._again(lambda: self._fleet.score_at_one(name, prompt, options, temperature))
            ticket.finish(found)
        except asyncio.CancelledError:
            ticket.fail(NotServing() if self._stopping and not ticket.cancelled else Cancelled())
        except PlauditError as error:
            ticket.fail(error)
        except Exception as error:
            log.exception("score failed", release=str(release))
            ticket.fail(InternalError(f"scoring failed: {type(error).__name__}"))
        finally:
            with self._lock:
                self._scores -= 1
                self._slots.job_ended(release)
                self._lock.notify_all()

    # Adapters ------------------------------------------------------------------------------------

    def stage(self, key: ReleaseKey, adapter: Path | None, *, temperature: float = 1.0) -> None:
        """Load an adapter into every server that is up, and keep it; staging a key again changes nothing."""
        self._slots.stage(key, self._loader(adapter), temperature)

    @contextlib.contextmanager
    def hold(self, key: ReleaseKey, adapter: Path | None, *, temperature: float = 1.0) -> Iterator[bool]:
        """Load an adapter unless it is there, and keep it for the block; gives whether it was loaded."""
        loaded = self._slots.hold(key, self._loader(adapter), temperature)
        try:
            yield loaded
        finally:
            self._slots.let_go(key)
            self._unload_unused()

    def unstage(self, key: ReleaseKey) -> None:
        """Forget a key, and unload its adapter once no request that named it is open."""
        self._slots.forget(key)
        self._unload_unused()

    def staged(self) -> dict[ReleaseKey, float]:
        """Staged keys with their default temperatures."""
        return self._slots.temperatures()

    def _loader(self, adapter: Path | None) -> Load | None:
        """Puts an adapter into a slot: the one that was there goes first, so that servers hold no more than slots."""

        def load(slot: int) -> None:
            assert adapter is not None
            named = self._shelf.put(adapter)
            with self._loading:
                former = self._names.pop(slot, None)
                if former is not None and former not in self._names.values():
                    self._call(self._fleet.let_go(former.name))
                if named not in self._names.values():
                    self._call(self._fleet.hold(named))
                self._names[slot] = named

        return None if adapter is None else load

    def _unload_unused(self) -> None:
        """Unload adapters whose slot has no release any more; what is missed is found at the next call."""
        if set(self._names) <= self._slots.taken() or not self._loading.acquire(blocking=False):
            return
        try:
            for slot in set(self._names) - self._slots.taken():
                former = self._names.pop(slot)
                if former not in self._names.values():
                    self._call(self._fleet.let_go(former.name))
        finally:
            self._loading.release()

    def _name(self, release: ReleaseKey) -> str:
        """What requests of a release that is in use are called at the servers."""
        slot = self._slots.of(release).slot
        return self._names[slot].name if slot else BASE

    # Common --------------------------------------------------------------------------------------

    def load(self) -> tuple[int, int]:
        """Jobs that decode, and jobs that wait for their first token."""
        with self._lock:
            decoding = sum(bool(ticket.tokens) for ticket in self._jobs)
            return decoding, len(self._jobs) - decoding

    def usage(self) -> Usage:
        """Slots; the memory of keys and values is the servers' own, whose metrics tell of it."""
        return Usage(0, 0, *self._slots.used())

    def servers(self) -> tuple[int, int]:
        """Servers that take requests, and servers in all."""
        return self._fleet.counts()

    def observe(self, observer: Observer) -> None:
        """Tell an observer of the work from now on."""
        self._observer = observer
        self._call(self._fleet.observe(observer.server))

    def close(self, drain_seconds: float = 0.0) -> None:
        """End the engine, after at most `drain_seconds` for jobs under way; adapters stay loaded at the servers."""
        end = time.monotonic() + drain_seconds
        with self._lock:
            self._stopping = True
            while (self._jobs or self._scores) and time.monotonic() < end:
                self._lock.wait(0.05)
        if self._thread.is_alive():
            self._call(self._end())
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()

    async def _end(self) -> None:
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._fleet.close()

    def _check_queue(self, more: int) -> None:
        if self._stopping:
            raise NotServing
        waiting = sum(not ticket.tokens for ticket in self._jobs) + self._scores
        if waiting + more > self._settings.max_waiting:
            raise QueueFull(
                f"{waiting} requests wait and {self._settings.max_waiting} may; retry with backoff",
                waiting=waiting,
                limit=self._settings.max_waiting,
            )

    def _check_length(self, prompt: int, more: int) -> None:
        if prompt + more > self.context_length:
            raise PromptTooLong(
                f"the prompt has {prompt} tokens, with {more} more it exceeds the context of {self.context_length}; "
                "shorten the prompt or ask for fewer tokens",
                tokens=prompt + more,
                limit=self.context_length,
            )

    async def _again(self, make: Callable[[], Awaitable[_T]], moved: Callable[[], float] | None = None) -> _T:
        """What `make` gives, tried again until `engine.vllm.patience_seconds` have passed without progress.

        `moved`: when there was progress last; None: none before the end. Raises EngineUnavailable.
        """
        began, losses = time.monotonic(), 0

        def out_of_patience(state: RetryCallState) -> bool:
            nonlocal losses
            error = state.outcome.exception() if state.outcome is not None else None
            losses += isinstance(error, ServerAway) and error.under_way
            if losses > MOST_LOSSES:
                return True
            since = began if moved is None else max(began, moved())
            return time.monotonic() - since > self._settings.vllm.patience_seconds

        retrying = AsyncRetrying(
            stop=out_of_patience,
            wait=_WAIT,
            retry=retry_if_exception_type((Unanswered, EngineUnavailable)),
            reraise=True,
        )
        try:
            async for attempt in retrying:
                with attempt:
                    return await make()
        except Unanswered as error:
            raise error.as_ours() from error
        raise AssertionError("the last try returns or raises")

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        """Start a task, and keep it until it ends: the loop holds it weakly."""

        def start() -> None:
            task = self._loop.create_task(work)
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

        self._loop.call_soon_threadsafe(start)

    def _call(self, work: Coroutine[Any, Any, _T], seconds: float = _CALL_SECONDS) -> _T:
        """What a coroutine of the event loop gives, for a thread that waits for it."""
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result(seconds)
        except TimeoutError as error:
            future.cancel()
            raise EngineUnavailable(f"the vLLM servers gave no answer in {seconds:.0f} s; retry", servers="") from error
        except Unanswered as error:
            raise error.as_ours() from error


def _seed(seed: int, came: int) -> int:
    """A job's seed; of one that goes on behind `came` tokens another, for that state of the generator is lost."""
    if not came:
        return seed % 2**64
    return int.from_bytes(hashlib.sha256(f"{seed}\0{came}".encode()).digest()[:8], "big")
