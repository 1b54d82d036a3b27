"""From waiting jobs to rows that decode: who is next, whether there is memory, and whose prompt is computed.

In: groups of jobs on one prompt. Out: rows of lanes, filled. Memory is taken before anything is computed: for the
prompt, and for the first job's row, as many tokens as it may come to. A job that does not fit yet waits, and none that
came later is let in before it; what can be computed again (cached prefixes, prompts whose row is not there yet) makes
room first, so whoever waits gets in at the latest when all that decodes has ended.
"""

from __future__ import annotations

import collections
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import structlog

from plaudit.engine.lanes import Lane
from plaudit.engine.memory import Budget, Layout
from plaudit.engine.prefixes import Chunk, Prefix, extend, on_adapter
from plaudit.engine.protocol import EncodedPrompt, Job, Observer, PrefixFound, ReleaseKey
from plaudit.engine.runner import Runner
from plaudit.engine.slots import Slots
from plaudit.engine.ticket import TorchTicket
from plaudit.errors import Cancelled, InternalError, RequestTooLarge

log = structlog.get_logger(__name__)

PREFIX_ENTRIES = 16
# Cached prefixes hold at most this share of the memory.
PREFIX_SHARE = 8
# While nothing decodes nobody's next token waits, and a pass over prompts may be this many chunks.
IDLE_CHUNKS = 4


@dataclass(slots=True)
class Group:
    """Jobs of one submit on one prompt and release: they share the prefill."""

    prompt: EncodedPrompt
    release: ReleaseKey
    waiting: collections.deque[TorchTicket]
    lane: Lane | None = None
    # The row of the first waiting job, taken while the prompt is computed.
    row: int | None = None
    prefix: Prefix | None = None
    # Bytes of the budget for the prompt.
    held: int = 0

    @property
    def missing(self) -> list[int]:
        """Prompt tokens that are still to be computed: all but the last, with which decoding begins."""
        return list(self.prompt.tokens[self.prefix.length if self.prefix else 0 : -1])

    @property
    def length(self) -> int:
        """The most tokens to which the first waiting job may come."""
        return _length(self.waiting[0].job)


def _length(job: Job) -> int:
    return len(job.prompt.tokens) + job.sampling.max_tokens


class Admission:
    """The queue of jobs and the memory that they take. `rows` are the jobs that decode, by lane width and row."""

    def __init__(
        self,
        runner: Runner,
        slots: Slots,
        lanes: Mapping[int, Lane],
        layout: Layout,
        budget: Budget,
        lock: threading.Condition,
        rows: dict[tuple[int, int], TorchTicket],
        *,
        chunk: int,
    ) -> None:
        self._runner, self._slots, self._lanes = runner, slots, lanes
        self._layout, self._budget = layout, budget
        self._lock, self._rows = lock, rows
        self._chunk = chunk
        self._groups: collections.deque[Group] = collections.deque()
        self._cache: collections.OrderedDict[tuple[int, tuple[int, ...]], Prefix] = collections.OrderedDict()
        self._cached = 0
        # Nobody is let in while options wait for memory.
        self.closed = False
        self.waiting = 0
        self.observer: Observer | None = None

    # Callers' threads -----------------------------------------------------------------------------

    def check_memory(self, job: Job) -> None:
        """Raise RequestTooLarge for a job that all of the memory would not hold."""
        lanes = self._lanes.values() if job.width is None else [self._lanes[job.width]]
        self._check(self._prompt_bytes(job.prompt) + max(lane.block_bytes(_length(job)) for lane in lanes))

    def check_prompt(self, prompt: EncodedPrompt) -> None:
        """Raise RequestTooLarge for a prompt that all of the memory would not hold."""
        self._check(self._prompt_bytes(prompt))

    def _check(self, needed: int) -> None:
        if needed > self._budget.limit:
            needed_mb, limit_mb = -(-needed // 2**20), self._budget.limit // 2**20
            raise RequestTooLarge(
                f"keys and values of this request take {needed_mb} MiB, and engine.kv_memory_mb allows {limit_mb}; "
                "shorten the prompt or ask for fewer tokens",
                needed_mb=needed_mb,
                limit_mb=limit_mb,
            )

    def add(self, groups: Iterable[Group]) -> None:
        """Queue groups (with the lock)."""
        for group in groups:
            self._groups.append(group)
            self.waiting += len(group.waiting)

    # The engine's thread --------------------------------------------------------------------------

    @property
    def pending(self) -> bool:
        """Whether a group is in the queue."""
        return bool(self._groups)

    @property
    def tickets(self) -> list[TorchTicket]:
        """The jobs that wait."""
        return [ticket for group in self._groups for ticket in group.waiting]

    def prefill(self) -> None:
        """Compute waiting prompts and fill rows with their jobs: at most about `chunk` tokens while rows decode."""
        left = self._chunk if self._rows else IDLE_CHUNKS * self._chunk
        while left > 0:
            groups = self._next_groups(left)
            if not groups:
                return
            try:
                left -= self._compute(groups)
            except Exception as error:  # the outermost loop: these jobs fail, the engine goes on
                log.exception("prefill failed", release=str(groups[0].release))
                for each in groups:
                    self._fail(each, error)

    def hold_prompt(self, prompt: EncodedPrompt) -> int:
        """Memory (bytes) for a prompt that is computed outside of the queue; 0 if there is none yet."""
        size = self._prompt_bytes(prompt)
        self.closed = not self._make_room(lambda: size)
        if self.closed:
            return 0
        self._budget.take(size)
        return size

    def let_go(self, held: int) -> None:
        """Give memory of `hold_prompt` back."""
        self._budget.give(held)

    def begin(self, prompt: EncodedPrompt, release: ReleaseKey) -> Prefix:
        """The shared prefix of a prompt, computed once per release as a chunk of its own, whatever is cached.

        Of layers below all adapters, once for all releases.
        """
        shared = prompt.tokens[: min(prompt.prefix_length, len(prompt.tokens) - 1)]
        staged = self._slots.of(release)
        key = (staged.serial, shared)
        if not shared:
            return Prefix()
        found = PrefixFound.CACHED
        prefix = self._cache.get(key)
        if prefix is not None:
            self._cache.move_to_end(key)
        else:
            prefix = Prefix()
            known = next((each for (_, tokens), each in self._cache.items() if tokens == shared), None)
            if known is not None and self._runner.shared:
                found = PrefixFound.SHARED_LAYERS
                prefix = on_adapter(self._runner, known, shared, staged.slot)
            else:
                found = PrefixFound.COMPUTED
                extend(self._runner, [Chunk(prefix, shared, staged.slot)])
            self._remember(key, prefix)
        if self.observer is not None:
            self.observer.prefix(found)
        return prefix.copy()

    def extend(self, prefix: Prefix, prompt: EncodedPrompt, release: ReleaseKey) -> int:
        """Compute the next chunk of a prompt; returns its tokens."""
        tokens = prompt.tokens[prefix.length : len(prompt.tokens) - 1][: self._chunk]
        extend(self._runner, [Chunk(prefix, tokens, self._slots.of(release).slot)])
        return len(tokens)

    # Who is next ----------------------------------------------------------------------------------

    def _next_groups(self, tokens: int) -> list[Group]:
        """The next groups with something to do whose next chunks are together about `tokens` tokens, at least one.

        One alone if a token's bits would depend on how many are computed with it. A chunk is never cut to fit, so that
        a prompt is always computed in the same pieces.
        """
        with self._lock:
            for group in self._groups:
                self._drop_cancelled(group)
            for group in [group for group in self._groups if not group.waiting]:
                self._withdraw(group)
                self._groups.remove(group)
            queue = list(self._groups)
        found: list[Group] = []
        closed = self.closed
        for group in queue:
            lane = group.lane or self._lane_for(group.waiting[0].job)
            if lane is None or (group.row is None and not lane.free):
                continue
            tokens -= min(len(group.missing), self._chunk)
            if found and (tokens < 0 or not self._runner.stands_alone):
                break
            try:
                admitted = group.row is not None or (not closed and self._admit(group, lane))
            except Exception as error:  # there is less memory than the budget says: that is this group's trouble
                log.exception("no memory for a row", release=str(group.release))
                self._fail(group, error)
                continue
            if not admitted:
                closed = True
                continue
            found.append(group)
        return found

    def _lane_for(self, job: Job) -> Lane | None:
        """The lane for a job if it has a free row: the smallest that takes all that decodes and waits.

        A step of one lane costs less than steps of two, and may cost its full width whatever it holds
        (`Runner.takes_rows`). So work is gathered in one lane and the others run empty: upwards as load comes,
        downwards as it goes.
        """
        if job.width is not None:
            lane = self._lanes[job.width]
        else:
            load = len(self._rows) + self.waiting
            widest = list(self._lanes.values())[-1]
            lane = next((each for each in self._lanes.values() if each.width >= load), widest)
        return lane if lane.free else None

    def _drop_cancelled(self, group: Group) -> None:
        if group.row is not None and group.lane is not None and group.waiting and group.waiting[0].cancelled:
            # Whoever is next may be longer than the row that was taken.
            group.lane.release(group.row)
            group.row = None
        for ticket in [t for t in group.waiting if t.cancelled]:
            group.waiting.remove(ticket)
            self.waiting -= 1
            self._slots.job_ended(group.release)
            ticket.fail(Cancelled())

    # Memory ---------------------------------------------------------------------------------------

    def _prompt_bytes(self, prompt: EncodedPrompt) -> int:
        return len(prompt.tokens) * self._layout.prompt_bytes

    def _admit(self, group: Group, lane: Lane) -> bool:
        """Take memory for a group's prompt, if it has none, and a row for its first job; False if there is none."""
        prompt = 0 if group.held else self._prompt_bytes(group.prompt)
        if not self._make_room(lambda: prompt + lane.growth(group.length), keep=group):
            return False
        self._budget.take(prompt)
        group.held += prompt
        group.lane = lane
        group.row = lane.take(group.length)
        return True

    def _make_room(self, needed: Callable[[], int], keep: Group | None = None) -> bool:
        """Whether `needed()` bytes fit, after what can be computed again was given up as far as it has to be."""
        if self._budget.fits(needed()):
            return True
        for lane in self._lanes.values():
            lane.shrink()
        while not self._budget.fits(needed()) and self._cache:
            self._forget_oldest()
        for group in reversed(self._groups):
            if self._budget.fits(needed()):
                return True
            if group is not keep and group.held and group.row is None:
                self._withdraw(group)
        return self._budget.fits(needed())

    def _withdraw(self, group: Group) -> None:
        """Give back what a group holds; it begins again."""
        if group.row is not None and group.lane is not None:
            group.lane.release(group.row)
        self._budget.give(group.held)
        group.row, group.lane, group.prefix, group.held = None, None, None, 0

    def _remember(self, key: tuple[int, tuple[int, ...]], prefix: Prefix) -> None:
        size, share = prefix.length * self._layout.prompt_bytes, self._budget.limit // PREFIX_SHARE
        while self._cache and (len(self._cache) >= PREFIX_ENTRIES or self._cached + size > share):
            self._forget_oldest()
        if self._cached + size <= share and self._budget.fits(size):
            self._budget.take(size)
            self._cached += size
            self._cache[key] = prefix

    def _forget_oldest(self) -> None:
        _, prefix = self._cache.popitem(last=False)
        size = prefix.length * self._layout.prompt_bytes
        self._cached -= size
        self._budget.give(size)

    # Prompts --------------------------------------------------------------------------------------

    def _compute(self, groups: list[Group]) -> int:
        """One pass over the groups' prompts; jobs of those that are complete get their rows. Returns tokens done."""
        chunks = []
        for group in groups:
            if group.prefix is None:
                group.prefix = self.begin(group.prompt, group.release)
            if group.missing:
                tokens = group.missing[: self._chunk]
                chunks.append(Chunk(group.prefix, tokens, self._slots.of(group.release).slot))
        if chunks:
            extend(self._runner, chunks)
        for group in groups:
            if not group.missing:
                assert group.lane is not None, "a lane was chosen with the group"
                self._place(group, group.lane)
        return 1 + sum(len(chunk.tokens) for chunk in chunks)

    def _place(self, group: Group, lane: Lane) -> None:
        """Fill rows with a computed prompt's jobs, as far as there are rows and memory for them."""
        while group.waiting and (group.row is not None or (lane.free and self._admit(group, lane))):
            assert group.prefix is not None
            assert group.row is not None
            ticket, row = group.waiting[0], group.row
            lane.fill(row, group.prefix, group.prompt.tokens[-1], self._slots.of(group.release).slot)
            if ticket.job.capture and group.prefix.hidden is not None:
                ticket.hidden.append(group.prefix.hidden)
            ticket.width = lane.width
            if self.observer is not None:
                self.observer.queued(time.monotonic() - ticket.submitted)
            group.row = None
            with self._lock:
                group.waiting.popleft()
                self.waiting -= 1
                self._rows[lane.width, row] = ticket

    def fail_all(self, error: Exception) -> None:
        """Give up all groups."""
        with self._lock:
            groups = list(self._groups)
        for group in groups:
            self._fail(group, error)

    def _fail(self, group: Group, error: Exception) -> None:
        with self._lock:
            for ticket in group.waiting:
                ticket.fail(InternalError(f"the prompt could not be computed: {type(error).__name__}"))
                self._slots.job_ended(group.release)
            self.waiting -= len(group.waiting)
            group.waiting.clear()
