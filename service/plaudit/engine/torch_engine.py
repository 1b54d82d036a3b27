"""The engine on torch: continuous batching in lanes, adapters mixed in one batch, staged while decoding goes on.

In: jobs, options to score, adapters to stage. Out: tickets with tokens and log-probs. One thread owns the model; it
loops over (1) one piece of work: a pass over waiting prompts or a piece of options, (2) one decode step of every
occupied lane. A job runs on the adapter it named from its first token to its last. Nothing here decides which release
serves.

A job's way: `submit` checks it and queues a ticket in a `Group` (admission.py) -> memory for its prompt and a row of a
`Lane` are taken -> the prompt is computed in chunks (prefixes.py) -> the row is filled and decodes (lanes.py) -> each
token is drawn (sampling.py) and pushed to the ticket -> at EOS, a stop string or `max_tokens` the row is freed. A
ticket makes text out of its tokens when somebody reads it (ticket.py, text.py).
"""

from __future__ import annotations

import collections
import contextlib
import math
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import structlog
import torch

from plaudit.engine import adapter_files
from plaudit.engine.admission import Admission, Group
from plaudit.engine.bank import AdapterBank
from plaudit.engine.base import Base
from plaudit.engine.lanes import Lane
from plaudit.engine.memory import Budget, Layout, kv_limit
from plaudit.engine.options import Plan, Tree, Walk
from plaudit.engine.packed import number_format
from plaudit.engine.prefixes import Prefix
from plaudit.engine.protocol import EncodedPrompt, Job, Observer, ReleaseKey, Usage
from plaudit.engine.runners import choose
from plaudit.engine.sampling import check, draw
from plaudit.engine.slots import Load, Slots
from plaudit.engine.targets import start_layer
from plaudit.engine.threads import release_team
from plaudit.engine.ticket import TorchScoreTicket, TorchTicket
from plaudit.errors import (
    Cancelled,
    InternalError,
    Misconfigured,
    NotServing,
    OptionsTooLong,
    PromptTooLong,
    QueueFull,
    ReleaseNotServable,
)
from plaudit.settings import EngineSettings, ModelSettings
from plaudit.types import FinishReason, Message

log = structlog.get_logger(__name__)


def _loader(bank: AdapterBank, adapter: Path | None) -> Load | None:
    def load(slot: int) -> None:
        assert adapter is not None
        bank.write(slot, *adapter_files.read(adapter))
        release_team()

    return None if adapter is None else load


@dataclass(slots=True)
class _Score:
    """Continuations of a prompt that wait for their log-probs."""

    prompt: EncodedPrompt
    release: ReleaseKey
    walk: Walk
    ticket: TorchScoreTicket = field(default_factory=TorchScoreTicket)
    prefix: Prefix | None = None
    held: int = 0


class TorchEngine:
    """Implements `engine.protocol.Engine` on a Base."""

    def __init__(
        self, base: Base, engine: EngineSettings, model: ModelSettings, *, capture_layer: int | None = None
    ) -> None:
        self.base = base
        self.base_digest = base.digest
        self.end_of_turn = base.end_of_turn
        self.context_length = engine.context_length or base.context_length
        if self.context_length > base.context_length:
            raise Misconfigured(
                f"engine.context_length is {self.context_length} and the base was checked up to {base.context_length}",
                setting="engine.context_length",
            )
        self.widths = tuple(sorted(engine.widths))
        self.capture_layer = start_layer(base, model.adapter_layers) if capture_layer is None else capture_layer
        self._settings = engine
        bank = AdapterBank(base, layers=model.adapter_layers, rank=model.adapter_rank, slots=engine.adapter_slots)
        self._layout = Layout.of(base)
        self._runner = choose(base, bank, self.capture_layer, number_format(engine.dtype))
        self.base_dtype = str(self._runner.format).removeprefix("torch.")
        self._budget = Budget(kv_limit(base, engine.kv_memory_mb))
        self._lanes = {w: Lane(self._runner, self._layout, self._budget, w) for w in self.widths}
        self._rows: dict[tuple[int, int], TorchTicket] = {}
        self._scores: collections.deque[_Score] = collections.deque()
        self._lock = threading.Condition()
        self._bank = bank
        self._slots = Slots(bank.slots, self._lock)
        self._admission = Admission(
            self._runner,
            self._slots,
            self._lanes,
            self._layout,
            self._budget,
            self._lock,
            self._rows,
            chunk=engine.prefill_chunk,
        )
        self._stopping = False
        self._ended = False
        self._score_next = False
        self._observer: Observer | None = None
        self.steps = 0
        release_team()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    # What callers use ----------------------------------------------------------------------------

    def encode(self, messages: Sequence[Message]) -> EncodedPrompt:
        """Token ids of a conversation; see Base.encode."""
        return self.base.encode(messages)

    def encode_text(self, text: str) -> tuple[int, ...]:
        """Token ids of plain text."""
        return self.base.encode_text(text)

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of token ids."""
        return self.base.decode(tokens)

    def submit(self, jobs: Sequence[Job]) -> list[TorchTicket]:
        """Queue jobs, all or none; raises QueueFull, PromptTooLong, ReleaseNotServable or NotServing."""
        for job in jobs:
            check(job.sampling)
            self._check_length(len(job.prompt.tokens), job.sampling.max_tokens)
            if job.width is not None and job.width not in self._lanes:
                raise ReleaseNotServable(f"no lane of width {job.width}; widths are {self.widths}", width=job.width)
            self._admission.check_memory(job)
        tickets = [TorchTicket(job, self.base.decode) for job in jobs]
        groups: dict[tuple[EncodedPrompt, ReleaseKey, int | None], Group] = {}
        for ticket in tickets:
            job = ticket.job
            group = groups.setdefault(
                (job.prompt, job.release, job.width), Group(job.prompt, job.release, collections.deque())
            )
            group.waiting.append(ticket)
        with self._lock:
            self._check_queue(len(jobs))
            for release in {job.release for job in jobs}:
                self._slots.require(release)
            for job in jobs:
                self._slots.job_begins(job.release)
            self._admission.add(groups.values())
            self._lock.notify_all()
        return tickets

    def score(
        self,
        prompt: EncodedPrompt,
        completions: Sequence[Sequence[int]],
        release: ReleaseKey,
        temperature: float = 1.0,
    ) -> list[tuple[float, ...]]:
        """Log-probs (nats) of completions after a prompt; the prompt is computed once for all of them."""
        self._check_length(len(prompt.tokens), max((len(c) for c in completions), default=0))
        return self._queue_score(prompt, completions, release, temperature, bounded=False).result()

    def score_options(
        self,
        prompt: EncodedPrompt,
        options: Sequence[Sequence[int]],
        release: ReleaseKey,
        temperature: float | None = None,
    ) -> TorchScoreTicket:
        """Queue options, each with its end of turn; raises QueueFull, PromptTooLong, OptionsTooLong, ..."""
        self._check_length(len(prompt.tokens), 1)
        ended = [[*option, self.end_of_turn] for option in options]
        longest = max((len(option) for option in ended), default=0)
        room = self.context_length - len(prompt.tokens)
        if longest > room:
            raise OptionsTooLong(
                f"an option has {longest} tokens with its end of turn, and behind this prompt the context of "
                f"{self.context_length} has room for {room}",
                tokens=longest,
                limit=room,
            )
        return self._queue_score(prompt, ended, release, temperature, bounded=True)

    def _queue_score(
        self,
        prompt: EncodedPrompt,
        continuations: Sequence[Sequence[int]],
        release: ReleaseKey,
        temperature: float | None,
        *,
        bounded: bool,
    ) -> TorchScoreTicket:
        self._admission.check_prompt(prompt)
        tree = Tree.of(prompt.tokens[-1], continuations)
        if bounded and len(tree) > self._settings.score_tokens:
            raise OptionsTooLong(
                f"the options have {len(tree)} tokens together, beginnings that they share counted once; "
                f"engine.score_tokens allows {self._settings.score_tokens}",
                tokens=len(tree),
                limit=self._settings.score_tokens,
            )
        plan = Plan.of(
            self.base,
            tree,
            len(prompt.tokens),
            self._layout.token_bytes,
            most=self._settings.prefill_chunk,
            budget=self._settings.score_memory_mb * 2**20,
        )
        with self._lock:
            if bounded:
                self._check_queue(1)
            elif self._stopping:
                raise NotServing
            staged = self._slots.require(release)
            chosen = staged.temperature if temperature is None else temperature
            walk = Walk(tree, plan, chosen, [len(each) for each in continuations])
            request = _Score(prompt, release, walk)
            self._slots.job_begins(release)
            self._scores.append(request)
            self._lock.notify_all()
        return request.ticket

    def stage(self, key: ReleaseKey, adapter: Path | None, *, temperature: float = 1.0) -> None:
        """Load an adapter while decoding goes on, and keep it; staging a key again changes nothing."""
        self._slots.stage(key, _loader(self._bank, adapter), temperature)

    @contextlib.contextmanager
    def hold(self, key: ReleaseKey, adapter: Path | None, *, temperature: float = 1.0) -> Iterator[bool]:
        """Load an adapter unless it is there, and keep it for the block; gives whether it was loaded."""
        loaded = self._slots.hold(key, _loader(self._bank, adapter), temperature)
        try:
            yield loaded
        finally:
            self._slots.let_go(key)

    def unstage(self, key: ReleaseKey) -> None:
        """Forget a key once its last job has ended."""
        self._slots.forget(key)

    def staged(self) -> dict[ReleaseKey, float]:
        """Staged keys with their default temperatures."""
        return self._slots.temperatures()

    def load(self) -> tuple[int, int]:
        """Jobs that decode, and jobs that wait."""
        with self._lock:
            return len(self._rows), self._admission.waiting

    def usage(self) -> Usage:
        """What is held of memory and slots now."""
        return Usage(self._budget.held, self._budget.limit, *self._slots.used())

    def observe(self, observer: Observer) -> None:
        """Tell an observer of the work from now on."""
        self._observer = self._admission.observer = observer

    def close(self, drain_seconds: float = 0.0) -> None:
        """End the engine, after at most `drain_seconds` for jobs under way."""
        end = time.monotonic() + drain_seconds
        with self._lock:
            self._stopping = True
            while (self._rows or self._admission.waiting or self._scores) and time.monotonic() < end:
                self._lock.wait(0.05)
            self._ended = True
            self._lock.notify_all()
        self._thread.join()
        for ticket in [*self._rows.values(), *self._admission.tickets]:
            ticket.fail(NotServing("the engine was closed before the completion ended; retry elsewhere"))
        for request in self._scores:
            request.ticket.fail(NotServing())

    def _check_queue(self, more: int) -> None:
        if self._stopping:
            raise NotServing
        waiting = self._admission.waiting + len(self._scores)
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

    # The engine's thread --------------------------------------------------------------------------

    def _run(self) -> None:
        with torch.no_grad():
            while True:
                with self._lock:
                    while not (self._ended or self._admission.pending or self._rows or self._scores):
                        release_team()
                        self._lock.wait()
                    if self._ended:
                        return
                try:
                    self._turn()
                except Exception as error:  # the outermost loop: whoever is served now fails, and the engine goes on
                    log.exception("the engine failed")
                    self._fail_all(error)

    def _turn(self) -> None:
        # Between two decode steps stands one piece of work, so that no stream waits for more than that.
        if self._scores and (self._score_next or not self._admission.pending):
            self._score_piece()
            self._score_next = False
        else:
            self._admission.prefill()
            self._score_next = True
        for lane in self._lanes.values():
            if lane.occupied:
                self._step(lane)

    def _fail_all(self, error: Exception) -> None:
        """Give up what is under way and what waits."""
        failed = InternalError(f"the engine failed: {type(error).__name__}")
        for (width, row), ticket in list(self._rows.items()):
            ticket.fail(failed)
            self._free(self._lanes[width], row, ticket)
        self._admission.fail_all(error)
        for request in list(self._scores):
            request.ticket.fail(failed)
            self._end_score(request)

    def _score_piece(self) -> None:
        """Compute one piece of the request that has waited longest."""
        request = self._scores[0]
        walk, slot = request.walk, self._slots.of(request.release).slot
        try:
            if request.ticket.cancelled:
                raise Cancelled
            if request.prefix is None:
                request.held = self._admission.hold_prompt(request.prompt)
                if request.held:
                    request.prefix = self._admission.begin(request.prompt, request.release)
            elif request.prefix.length < len(request.prompt.tokens) - 1:
                self._admission.extend(request.prefix, request.prompt, request.release)
            else:
                walk.step(self._runner, request.prefix, slot)
                if not walk.done:
                    return
        except Cancelled as error:
            self._end_score(request)
            request.ticket.fail(error)
        except Exception as error:
            log.exception("score failed", release=str(request.release))
            self._end_score(request)
            request.ticket.fail(InternalError(f"scoring failed: {type(error).__name__}"))
        else:
            if walk.done:
                self._end_score(request)
                request.ticket.finish(walk.logprobs)

    def _end_score(self, request: _Score) -> None:
        self._admission.let_go(request.held)
        self._admission.closed = False
        with self._lock:
            self._scores.popleft()
            self._slots.job_ended(request.release)
            self._lock.notify_all()

    def _step(self, lane: Lane) -> None:
        tickets = [self._rows.get((lane.width, row)) for row in range(lane.width)]
        for row, ticket in enumerate(tickets):
            if ticket is not None and ticket.cancelled:
                self._free(lane, row, ticket)
                ticket.fail(Cancelled())
                tickets[row] = None
        if not lane.occupied:
            return
        try:
            rows, logits, hidden = lane.step()
            drawn = [tickets[row] for row in rows]
            settings = [t.job.sampling if t is not None else None for t in drawn]
            uniforms = [t.random.random() if t is not None else 0.0 for t in drawn]
            tokens, raw, sampled = draw(logits, settings, uniforms, lane.memory)
        except Exception as error:
            log.exception("step failed", width=lane.width)
            for row, ticket in enumerate(tickets):
                if ticket is not None:
                    self._free(lane, row, ticket)
                    ticket.fail(InternalError(f"decoding failed: {type(error).__name__}"))
            return
        self.steps += 1
        self._tell(lane, tickets, len(rows))
        for at, (row, ticket) in enumerate(zip(rows, drawn, strict=True)):
            if ticket is None:
                continue
            if ticket.job.capture:
                ticket.hidden.append(hidden[at : at + 1])
            if math.isnan(raw[at]):
                self._free(lane, row, ticket)
                ticket.fail(InternalError(f"release {ticket.job.release} gives logits that are not numbers"))
                continue
            reason = self._ended_by(ticket, ticket.push(tokens[at], raw[at], sampled[at]))
            if reason is None:
                lane.advance(row, tokens[at])
            else:
                self._free(lane, row, ticket)
                ticket.finish(reason)

    def _tell(self, lane: Lane, tickets: Sequence[TorchTicket | None], computed: int) -> None:
        """Tell the observer of a step that was just computed, over so many rows."""
        if self._observer is None:
            return
        now = time.monotonic()
        self._observer.stepped(lane.since_last(now), lane.occupied, computed - lane.occupied)
        for ticket in tickets:
            if ticket is not None and not ticket.tokens:
                self._observer.first_token(now - ticket.submitted)

    def _free(self, lane: Lane, row: int, ticket: TorchTicket) -> None:
        lane.release(row)
        with self._lock:
            del self._rows[lane.width, row]
            self._slots.job_ended(ticket.job.release)
            self._lock.notify_all()

    def _ended_by(self, ticket: TorchTicket, stopped: bool) -> FinishReason | None:
        if ticket.tokens[-1] in self.base.eos_ids:
            return FinishReason.EOS
        if stopped:
            return FinishReason.STOP
        return FinishReason.LENGTH if len(ticket.tokens) >= ticket.job.sampling.max_tokens else None
