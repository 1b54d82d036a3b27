"""Follows the channel states and says which release answers a request.

What enters: channel states of the registry (polled; a record on the releases topic only wakes the poller early). What
leaves: releases that are staged and proved (`staging`), each held until the engine has the request's jobs. Never
changes a channel's state: if a replica cannot serve a release, it says so and goes on with the one that it has. A
channel that it cannot serve does not affect others: its calls are UNAVAILABLE, with a metric and a line in the log.

A change of a channel: the release is made ready beside what serves (steps 1 to 3 of `staging`), then 4 the pointer is
swapped between two requests.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from plaudit.engine.observing import ServerFacts
from plaudit.engine.protocol import ReleaseKey
from plaudit.errors import (
    BadArtifact,
    DeadlinePassed,
    EngineUnavailable,
    NotServing,
    PlauditError,
    ProofFailed,
    ReleaseNotServable,
    SlotsInUse,
    UnknownDomain,
)
from plaudit.eventlog import Consumer
from plaudit.eventlog.outbox import OutboxState
from plaudit.metrics import Metrics
from plaudit.release.moves import ChannelState
from plaudit.release.registry import Registry
from plaudit.serving.staging import Routed, Staging
from plaudit.store.processes import Beat
from plaudit.telemetry import get_logger
from plaudit.types import Channel

_BELL_RECORDS = 100
_LONGEST_SECONDS = 3600.0

log = get_logger("plaudit.router")


@dataclass(frozen=True, slots=True)
class _Serving:
    """What this replica serves on a channel. `behind`: the state names a release that it could not make ready."""

    now: Routed
    generation: int
    behind: bool = False


class Router:
    """Routes requests to releases. `lease` may be called from any thread."""

    def __init__(
        self,
        registry: Registry,
        staging: Staging,
        metrics: Metrics,
        *,
        base_digest: str,
        domains: Sequence[str],
        poll_seconds: float,
        ready_at_start: int,
        temperature: Callable[[Channel], float] = lambda _: 1.0,
        bell: Callable[[], Consumer] | None = None,
        beat: Beat | None = None,
        look_also: Callable[[], None] = lambda: None,
        engine_servers: Callable[[], Mapping[str, ServerFacts]] = dict,
        outbox: Callable[[], OutboxState] | None = None,
    ) -> None:
        self._registry = registry
        self._staging = staging
        self._metrics = metrics
        self._base_digest = base_digest
        self._domains = frozenset(domains)
        self._poll_seconds = poll_seconds
        self._ready_at_start = ready_at_start
        self._temperature = temperature
        self._bell = bell
        self._beat = beat
        self._look_also = look_also
        self._engine_servers = engine_servers
        self._outbox = outbox
        self._serving: dict[Channel, _Serving] = {}
        self._told: dict[Channel, tuple[int, str]] = {}  # what the log was told last of a channel that is behind
        self._unanswered: dict[ReleaseKey, dt.datetime] = {}  # live since a swap, and no reply yet
        self._following: dict[Channel, threading.Lock] = {}  # one thread changes a channel, others go on
        self._known = threading.Lock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    # Following -----------------------------------------------------------------------------------

    def start(self) -> None:
        """Looks once, so that a replica starts with the releases that the states name, then follows in a thread.

        As many channels as there are adapter slots are made ready; the others at their first request.
        """
        self._look(self._ready_at_start)
        self._thread = threading.Thread(target=self._follow, name="plaudit-router", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread; what is staged stays with the engine."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout=self._poll_seconds + 30.0)
        if self._beat is not None:
            self._beat.end()

    def look(self) -> None:
        """Reads the channel states and follows those that changed among the channels that this replica serves."""
        self._look(0)

    def answered(self, channel: Channel, key: ReleaseKey) -> None:
        """Notes that a caller has a reply of a release; at the first, observes the age of the release's feedback."""
        newest = self._unanswered.pop(key, None)
        if newest is not None:
            seconds = (dt.datetime.now(dt.UTC) - newest).total_seconds()
            self._metrics.freshness_seconds.labels(str(channel)).observe(seconds)

    def serving(self) -> Mapping[Channel, ReleaseKey]:
        """What this replica serves."""
        return {channel: serving.now.key for channel, serving in self._serving.items()}

    def _look(self, first: int) -> None:
        for state in self._registry.states():
            if state.channel.domain not in self._domains:
                continue
            known = state.channel in self._serving or state.channel in self._told
            if not (known or not state.live or first > 0):
                continue
            first -= bool(state.live and not known)
            # One channel's trouble is its own, whatever a disk or a database raises: the others are followed.
            try:
                self._follow_state(state)
            except (SlotsInUse, EngineUnavailable):
                self._metrics.replica_behind.labels(str(state.channel)).set(1)
            except Exception as error:
                self._metrics.follower_errors.inc()
                log.error("cannot follow a channel", channel=str(state.channel), error=type(error).__name__)
        if self._beat is not None:
            facts = {"serves": self._facts(), "servers": dict(self._engine_servers())}
            self._beat.beat(facts | ({"outbox": dataclasses.asdict(self._outbox())} if self._outbox else {}))

    def _facts(self) -> dict[str, dict[str, object]]:
        """For people (`plaudit status`): what this replica serves, by channel."""
        serving = dict(self._serving)
        found: dict[str, dict[str, object]] = {
            str(channel): {"version": each.now.key.version, "generation": each.generation, "behind": each.behind}
            for channel, each in serving.items()
        }
        for channel in dict(self._told):  # it could make nothing of the channel ready
            found.setdefault(str(channel), {"version": None, "generation": None, "behind": True})
        return found

    def _follow(self) -> None:
        consumer: Consumer | None = None
        said_log = said_store = False  # an outage is one line, however many looks it meets
        while not self._stop.is_set():
            # The outermost loop of a thread that must not die: whatever the registry or the log raise is counted.
            try:
                if consumer is None and self._bell is not None:
                    consumer = self._bell()
                if consumer is None:
                    self._stop.wait(self._poll_seconds)
                else:
                    consumer.poll(self._poll_seconds, _BELL_RECORDS)
                said_log = False
            except Exception as error:
                if not said_log:
                    log.warning("the releases topic cannot be read; the states are polled", error=type(error).__name__)
                said_log = True
                self._stop.wait(self._poll_seconds)
            if self._stop.is_set():
                break
            try:
                self.look()
                self._look_also()
                said_store = False
            except Exception as error:
                self._metrics.follower_errors.inc()
                if not said_store:
                    log.error("the channel states cannot be read; serving goes on", error=type(error).__name__)
                said_store = True
        if consumer is not None:
            consumer.close()

    def _follow_state(self, state: ChannelState, seconds: float = _LONGEST_SECONDS) -> None:
        with self._known:
            lock = self._following.setdefault(state.channel, threading.Lock())
        if not lock.acquire(timeout=max(seconds, 0.0)):
            raise DeadlinePassed(f"{state.channel} was still being made ready when the call's deadline passed")
        try:
            serving = self._serving.get(state.channel)
            if serving is not None and serving.generation > state.generation:
                return
            if serving is not None and serving.generation == state.generation and not serving.behind:
                return
            started = time.perf_counter()
            try:
                with self._staging.hold(state.channel, state.live, seconds) as routed:
                    self._activate(state, serving, routed, started)
            except (DeadlinePassed, SlotsInUse, EngineUnavailable):
                raise  # no fault of the release
            except PlauditError as error:
                self._fall_behind(state, serving, error)
        finally:
            lock.release()

    def _activate(self, state: ChannelState, serving: _Serving | None, routed: Routed, started: float) -> None:
        channel, name = state.channel, str(state.channel)
        # A start, or the way back to an older release, says nothing about how fast people are heard.
        forward = serving is not None and routed.key.version > serving.now.key.version
        if forward and routed.newest_feedback_at is not None:
            # Before the swap: its first reply may come at once, from another thread.
            self._unanswered[routed.key] = routed.newest_feedback_at
        # One assignment: a request sees the former release or this one, never a mixture.
        self._serving[channel] = _Serving(routed, state.generation)
        self._told.pop(channel, None)
        self._metrics.replica_release.labels(name).set(routed.key.version)
        self._metrics.replica_generation.labels(name).set(state.generation)
        self._metrics.replica_behind.labels(name).set(0)
        if serving is None or serving.now.key != routed.key:
            seconds = time.perf_counter() - started
            self._metrics.swaps.labels(name).inc()
            self._metrics.set_release_info(channel, routed.key.version, routed.key.digest)
            self._metrics.swap_seconds.observe(seconds)
            log.info("serves", channel=name, version=routed.key.version, generation=state.generation, seconds=seconds)

    def _fall_behind(self, state: ChannelState, serving: _Serving | None, error: PlauditError) -> None:
        channel, name = state.channel, str(state.channel)
        self._metrics.replica_behind.labels(name).set(1)
        if serving is not None:
            self._serving[channel] = _Serving(serving.now, state.generation, behind=True)
        if self._told.get(channel) != (state.generation, error.reason):
            self._told[channel] = (state.generation, error.reason)
            log.error(
                "cannot serve the live release",
                channel=name,
                version=state.live,
                reason=error.reason,
                error=error.message,
                serves=serving.now.key.version if serving else None,
            )

    # Routing -------------------------------------------------------------------------------------

    @contextmanager
    def lease(
        self, channel: Channel, versions: Sequence[int] = (), n: int = 1, seconds: float = _LONGEST_SECONDS
    ) -> Iterator[list[Routed]]:
        """Release of each of `n` completions: the live one, or those that an operator names; ready for the block.

        A channel begins with its first request, which waits at most `seconds` until its release is ready. Raises
        UnknownDomain, UnknownRelease, ReleaseNotServable, SlotsInUse, EngineUnavailable, DeadlinePassed, or NotServing.
        """
        ends_at = time.monotonic() + seconds
        with ExitStack() as stack:
            routed: dict[int, Routed] = {}
            live = self._live(channel, seconds).key.version
            wanted = [live if version is None else version for version in _per_completion(versions, n)]
            for version in wanted:
                if version not in routed:
                    left = ends_at - time.monotonic()
                    routed[version] = self._hold(stack, channel, version, left, named=bool(versions))
            yield [routed[version] for version in wanted]

    def _hold(self, stack: ExitStack, channel: Channel, version: int, seconds: float, *, named: bool) -> Routed:
        try:
            return stack.enter_context(self._staging.hold(channel, version, seconds))
        except (BadArtifact, ReleaseNotServable, ProofFailed) as error:
            if named and not isinstance(error, ProofFailed):
                raise ReleaseNotServable(
                    f"{channel}@{version} cannot be served here: {error.message}", channel=channel, version=version
                ) from error
            if named:
                raise
            raise _not_serving(channel) from error

    def _live(self, channel: Channel, seconds: float) -> Routed:
        serving = self._serving.get(channel)
        if serving is None:
            if channel.domain not in self._domains:
                raise unknown_domain(channel.domain, self._domains)
            state = self._registry.ensure_channel(channel, self._base_digest, self._temperature(channel))
            self._follow_state(state, seconds)
            serving = self._serving.get(channel)
        if serving is None:
            raise _not_serving(channel)
        return serving.now


def unknown_domain(domain: str, known: Iterable[str]) -> UnknownDomain:
    """The refusal of a domain that no loaded plugin serves."""
    names = ", ".join(sorted(known))
    return UnknownDomain(
        f"no plugin serves the domain {domain!r}; loaded: {names or 'none'}", domain=domain, known=names
    )


def _not_serving(channel: Channel) -> NotServing:
    return NotServing(
        f"this replica cannot serve the live release of {channel}; its logs say why; retry elsewhere, or roll back"
    )


def _per_completion(versions: Sequence[int], n: int) -> list[int | None]:
    if not versions:
        return [None] * n
    return [versions[0]] * n if len(versions) == 1 else list(versions)
