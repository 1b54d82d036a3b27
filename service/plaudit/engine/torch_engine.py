"""The engine on torch: continuous batching in lanes, adapters mixed in one batch, staged while decoding goes on.

In: jobs, score requests, adapters to stage. Out: tickets with tokens and log-probs. One thread owns the model; it
loops over (1) admit waiting jobs, (2) prefill a few prompt tokens, (3) one decode step of every occupied lane,
(4) score requests. A job runs on the adapter it named from its first token to its last; staging writes a slot that
no row uses. Nothing here decides which release serves.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import structlog
import torch

from plaudit.engine import adapter_files
from plaudit.engine.bank import AdapterBank
from plaudit.engine.base import Base
from plaudit.engine.lanes import Lane, Prefix, extend, extend_together, token_bytes
from plaudit.engine.options import Plan, Tree, Walk
from plaudit.engine.protocol import EncodedPrompt, Job, ReleaseKey
from plaudit.engine.sampling import check, draw
from plaudit.engine.slots import Slots, Weights
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

PREFIX_ENTRIES = 16
# Tokens of each prompt in a pass over several: short, because a pass is padded to it.
PROMPT_CHUNK = 16


def _reader(adapter: Path | None) -> Callable[[], Weights] | None:
    return None if adapter is None else functools.partial(adapter_files.read, adapter)


@dataclass(slots=True)
class _Group:
    """Jobs of one submit on one prompt and release: they share the prefill."""

    prompt: EncodedPrompt
    release: ReleaseKey
    waiting: collections.deque[TorchTicket]
    prefix: Prefix | None = None
    lane: Lane | None = None

    @property
    def missing(self) -> list[int]:
        """Prompt tokens that are still to be computed: all but the last, with which decoding begins."""
        return list(self.prompt.tokens[self.prefix.length if self.prefix else 0 : -1])


@dataclass(slots=True)
class _Score:
    """Continuations of a prompt that wait for their log-probs."""

    prompt: EncodedPrompt
    release: ReleaseKey
    walk: Walk
    ticket: TorchScoreTicket = field(default_factory=TorchScoreTicket)
    prefix: Prefix | None = None


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
        self._bank = AdapterBank(base, layers=model.adapter_layers, rank=model.adapter_rank, slots=engine.adapter_slots)
        self._lanes = {w: Lane(base, self._bank, w, self.capture_layer) for w in self.widths}
        self._token_bytes = token_bytes(base)
        self._rows: dict[tuple[int, int], TorchTicket] = {}
        self._groups: collections.deque[_Group] = collections.deque()
        self._scores: collections.deque[_Score] = collections.deque()
        self._prefixes: collections.OrderedDict[tuple[int, tuple[int, ...]], Prefix] = collections.OrderedDict()
        self._waiting = 0
        self._lock = threading.Condition()
        self._slots = Slots(self._bank, self._lock)
        self._stopping = False
        self._ended = False
        self._score_next = False
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
        tickets = [TorchTicket(job, self.base.decode) for job in jobs]
        groups: dict[tuple[EncodedPrompt, ReleaseKey, int | None], _Group] = {}
        for ticket in tickets:
            job = ticket.job
            group = groups.setdefault(
                (job.prompt, job.release, job.width), _Group(job.prompt, job.release, collections.deque())
            )
            group.waiting.append(ticket)
        with self._lock:
            self._check_queue(len(jobs))
            for release in {job.release for job in jobs}:
                self._slots.require(release)
            for job in jobs:
                self._slots.job_begins(job.release)
            self._groups.extend(groups.values())
            self._waiting += len(jobs)
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
        """Queue options, each with its end of turn; raises QueueFull, OptionsTooLong or ReleaseNotServable."""
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
            self._token_bytes,
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
        self._slots.stage(key, _reader(adapter), temperature)

    @contextlib.contextmanager
    def hold(self, key: ReleaseKey, adapter: Path | None, *, temperature: float = 1.0) -> Iterator[bool]:
        """Load an adapter unless it is there, and keep it for the block; gives whether it was loaded."""
        loaded = self._slots.hold(key, _reader(adapter), temperature)
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
            return len(self._rows), self._waiting

    def close(self, drain_seconds: float = 0.0) -> None:
        """End the engine, after at most `drain_seconds` for jobs under way."""
        end = time.monotonic() + drain_seconds
        with self._lock:
            self._stopping = True
            while (self._rows or self._waiting or self._scores) and time.monotonic() < end:
                self._lock.wait(0.05)
            self._ended = True
            self._lock.notify_all()
        self._thread.join()
        for ticket in [*self._rows.values(), *(t for g in self._groups for t in g.waiting)]:
            ticket.fail(NotServing("the engine was closed before the completion ended; retry elsewhere"))
        for request in self._scores:
            request.ticket.fail(NotServing())

    def _check_queue(self, more: int) -> None:
        if self._stopping:
            raise NotServing
        waiting = self._waiting + len(self._scores)
        if waiting + more > self._settings.max_waiting:
            raise QueueFull(
                f"{waiting} requests wait and {self._settings.max_waiting} may; retry with backoff",
                waiting=waiting,
                limit=self._settings.max_waiting,
            )

    def _check_length(self, prompt: int, more: int) -> None:
        if prompt + more > self.context_length:
            raise PromptTooLong(
                f"prompt of {prompt} tokens and {more} more exceed the context of {self.context_length}",
                tokens=prompt + more,
                limit=self.context_length,
            )

    # The engine's thread --------------------------------------------------------------------------

    def _run(self) -> None:
        with torch.no_grad():
            while True:
                with self._lock:
                    while not (self._ended or self._groups or self._rows or self._scores):
                        release_team()
                        self._lock.wait()
                    if self._ended:
                        return
                # Between two decode steps stands one piece of work, so that no stream waits for more than that.
                if self._scores and (self._score_next or not self._groups):
                    self._score_piece()
                    self._score_next = False
                else:
                    self._prefill()
                    self._score_next = True
                for lane in self._lanes.values():
                    if lane.occupied:
                        self._step(lane)

    def _score_piece(self) -> None:
        """Compute one piece of the request that has waited longest."""
        request = self._scores[0]
        walk, slot = request.walk, self._slots.of(request.release).slot
        try:
            if request.ticket.cancelled:
                raise Cancelled
            if request.prefix is None:
                request.prefix = self._prefix_of(request.prompt, request.release)
            elif request.prefix.length < len(request.prompt.tokens) - 1:
                self._extend(request.prefix, list(request.prompt.tokens), request.release)
            else:
                walk.step(self.base, self._bank, request.prefix, slot)
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
        with self._lock:
            self._scores.popleft()
            self._slots.job_ended(request.release)
            self._lock.notify_all()

    def _prefix_of(self, prompt: EncodedPrompt, release: ReleaseKey) -> Prefix:
        """The shared prefix of a prompt, computed once per release as a chunk of its own, whatever is cached."""
        shared = prompt.tokens[: min(prompt.prefix_length, len(prompt.tokens) - 1)]
        key = (self._slots.of(release).serial, shared)
        if key not in self._prefixes:
            prefix = Prefix()
            if shared:
                extend(self.base, self._bank, prefix, list(shared), self._slots.of(release).slot, self.capture_layer)
            self._prefixes[key] = prefix
            while len(self._prefixes) > PREFIX_ENTRIES:
                self._prefixes.popitem(last=False)
        self._prefixes.move_to_end(key)
        return self._prefixes[key].copy()

    def _extend(self, prefix: Prefix, tokens: list[int], release: ReleaseKey) -> int:
        chunk = tokens[prefix.length : len(tokens) - 1][: self._settings.prefill_chunk]
        extend(self.base, self._bank, prefix, chunk, self._slots.of(release).slot, self.capture_layer)
        return len(chunk)

    def _prefill(self) -> None:
        """Compute waiting prompts, at most `prefill_chunk` tokens, and place their jobs as rows are free."""
        budget = self._settings.prefill_chunk
        while budget > 0:
            with self._lock:
                for each in self._groups:
                    self._drop_cancelled(each)
                self._groups = collections.deque(each for each in self._groups if each.waiting)
                groups = self._next_groups()
            if not groups:
                return
            try:
                budget -= self._prefill_groups(groups)
            except Exception as error:  # the outermost loop: these jobs fail, the engine goes on
                log.exception("prefill failed", release=str(groups[0].release))
                for each in groups:
                    self._fail_group(each, error)

    def _next_groups(self) -> list[_Group]:
        """The next groups with something to do, all of one lane, as many as that lane computes prompts at once."""
        found: list[_Group] = []
        for group in self._groups:
            lane = group.lane or self._lane_for(group.waiting[0].job)
            if lane is None or not lane.free or (found and lane is not found[0].lane):
                continue
            group.lane = lane
            found.append(group)
            if len(found) == lane.prompts:
                break
        return found

    def _prefill_groups(self, groups: list[_Group]) -> int:
        """One pass over the groups' prompts; jobs of those that are complete get their rows. Returns tokens done."""
        lane = groups[0].lane
        assert lane is not None, "a lane was chosen with the groups"
        for group in groups:
            if group.prefix is None:
                group.prefix = self._prefix_of(group.prompt, group.release)
        open_ones = [group for group in groups if group.missing]
        cost = 1
        if open_ones and lane.prompts == 1:
            assert open_ones[0].prefix is not None
            cost += self._extend(open_ones[0].prefix, list(open_ones[0].prompt.tokens), open_ones[0].release)
        elif open_ones:
            extend_together(
                self.base,
                self._bank,
                [group.prefix for group in open_ones if group.prefix is not None],
                [group.missing[:PROMPT_CHUNK] for group in open_ones],
                [self._slots.of(group.release).slot for group in open_ones],
                width=lane.prompts,
                chunk=PROMPT_CHUNK,
                capture_layer=self.capture_layer,
            )
            cost += PROMPT_CHUNK * lane.prompts
        for group in groups:
            if not group.missing:
                self._place(group, lane)
        return cost

    def _place(self, group: _Group, lane: Lane) -> None:
        """Give rows of the lane to a computed prompt's jobs, as far as there are."""
        assert group.prefix is not None
        while group.waiting and lane.free:
            ticket = group.waiting[0]
            slot = self._slots.of(group.release).slot
            row = lane.place(group.prefix, group.prompt.tokens[-1], slot, ticket.job.sampling.max_tokens)
            if ticket.job.capture and group.prefix.hidden is not None:
                ticket.hidden.append(group.prefix.hidden)
            ticket.width = lane.width
            with self._lock:
                group.waiting.popleft()
                self._waiting -= 1
                self._rows[lane.width, row] = ticket

    def _lane_for(self, job: Job) -> Lane | None:
        """The lane for a job where it has a free row: the smallest that takes all that decodes and waits.

        A lane costs its full width whatever it holds, so work is gathered in one and the others run empty: upwards
        as load comes, downwards as it goes.
        """
        if job.width is not None:
            lane = self._lanes[job.width]
        else:
            load = len(self._rows) + self._waiting
            lane = next((each for each in self._lanes.values() if each.width >= load), self._lanes[self.widths[-1]])
        return lane if lane.free else None

    def _drop_cancelled(self, group: _Group) -> None:
        for ticket in [t for t in group.waiting if t.cancelled]:
            group.waiting.remove(ticket)
            self._waiting -= 1
            self._slots.job_ended(group.release)
            ticket.fail(Cancelled())

    def _fail_group(self, group: _Group, error: Exception) -> None:
        with self._lock:
            for ticket in group.waiting:
                ticket.fail(InternalError(f"the prompt could not be computed: {type(error).__name__}"))
                self._slots.job_ended(group.release)
            self._waiting -= len(group.waiting)
            group.waiting.clear()

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
            logits, hidden = lane.step()
            settings = [t.job.sampling if t is not None else None for t in tickets]
            uniforms = [t.random.random() if t is not None else 0.0 for t in tickets]
            tokens, raw, sampled = draw(logits, settings, uniforms)
        except Exception as error:
            log.exception("step failed", width=lane.width)
            for row, ticket in enumerate(tickets):
                if ticket is not None:
                    self._free(lane, row, ticket)
                    ticket.fail(InternalError(f"decoding failed: {type(error).__name__}"))
            return
        self.steps += 1
        for row, ticket in enumerate(tickets):
            if ticket is None:
                continue
            if ticket.job.capture:
                ticket.hidden.append(hidden[row : row + 1])
            if math.isnan(raw[row]):
                self._free(lane, row, ticket)
                ticket.fail(InternalError(f"release {ticket.job.release} gives logits that are not numbers"))
                continue
            reason = self._ended_by(ticket, ticket.push(tokens[row], raw[row], sampled[row]))
            if reason is None:
                lane.advance(row, tokens[row])
            else:
                self._free(lane, row, ticket)
                ticket.finish(reason)

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
