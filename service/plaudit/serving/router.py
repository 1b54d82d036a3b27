"""Follows the channel states and says which release answers a request.

What enters: channel states of the registry (polled, with the releases topic as a bell). What leaves: release keys that
are staged and proved. Never changes a channel's state: a replica has no veto over the fleet, it can only say that it
cannot serve a release, and goes on with what it has.

A change of a channel, in steps: 1 fetch the artifacts and check every digest; 2 stage the adapter beside what serves;
3 prove it; 4 swap the pointer between two requests; 5 keep the former release staged, forget what nobody needs.
Requests hold a lease on their release until the engine has their jobs, so step 5 never takes it from under them.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from plaudit.engine.protocol import Engine, ReleaseKey
from plaudit.errors import BadArtifact, NotServing, PlauditError, ReleaseNotServable, UnknownDomain
from plaudit.eventlog import Consumer
from plaudit.metrics import Metrics
from plaudit.release.manifest import Manifest
from plaudit.release.moves import ChannelState
from plaudit.release.registry import Registry
from plaudit.serving.proof import prove
from plaudit.telemetry import get_logger
from plaudit.types import Channel

_FIRST_RETRY_SECONDS = 2.0
_LONGEST_RETRY_SECONDS = 300.0
_BELL_RECORDS = 100

log = get_logger("plaudit.router")


@dataclass(frozen=True, slots=True)
class Routed:
    """A release that may answer, with the temperature that is its default."""

    key: ReleaseKey
    temperature: float


@dataclass(frozen=True, slots=True)
class _Serving:
    """What this replica serves on a channel. `behind` where the state names a release that it could not stage."""

    now: Routed
    before: Routed | None
    generation: int
    behind: bool = False


@dataclass(slots=True)
class _Retry:
    generation: int
    at: float
    wait: float


class Router:
    """Routes requests to releases. `route` and `lease` may be called from any thread."""

    def __init__(
        self,
        registry: Registry,
        engine: Engine,
        metrics: Metrics,
        *,
        domains: Sequence[str],
        cache: Path,
        poll_seconds: float,
        adapter_slots: int,
        exact: bool = True,
        temperature: Callable[[Channel], float] = lambda _: 1.0,
        bell: Callable[[], Consumer] | None = None,
    ) -> None:
        self._registry = registry
        self._temperature = temperature
        self._engine = engine
        self._metrics = metrics
        self._domains = frozenset(domains)
        self._cache = cache
        self._poll_seconds = poll_seconds
        self._adapter_slots = adapter_slots
        self._exact = exact
        self._bell = bell
        self._serving: dict[Channel, _Serving] = {}
        self._staged: dict[ReleaseKey, Routed] = {}
        self._unserved: set[Channel] = set()
        self._retries: dict[Channel, _Retry] = {}
        self._leases: Counter[ReleaseKey] = Counter()
        self._used_at: dict[ReleaseKey, float] = {}
        self._changing = threading.RLock()  # one thread stages and swaps
        self._counting = threading.Lock()  # leases and the set of staged releases
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._on_health: Callable[[bool], None] = lambda healthy: None

    # Following -----------------------------------------------------------------------------------

    def start(self, on_health: Callable[[bool], None] | None = None) -> None:
        """Looks once, so that a replica is not ready before it serves what the states say, then follows in a thread.

        `on_health` is told after each look whether every channel has a release to answer with.
        """
        if on_health is not None:
            self._on_health = on_health
        self.look()
        self._thread = threading.Thread(target=self._follow, name="plaudit-router", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread; what is staged stays with the engine."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout=self._poll_seconds + 30.0)

    def look(self) -> None:
        """Reads the channel states and follows those that changed."""
        for state in self._registry.states():
            if state.channel.domain in self._domains:
                self._follow_state(state)
        self._on_health(not self._unserved)

    def serving(self) -> Mapping[Channel, ReleaseKey]:
        """What this replica serves."""
        return {channel: serving.now.key for channel, serving in self._serving.items()}

    def _follow(self) -> None:
        consumer: Consumer | None = None
        while not self._stop.is_set():
            # The outermost loop of a thread that must not die: whatever the registry or the log raise is counted.
            try:
                if consumer is None and self._bell is not None:
                    consumer = self._bell()
                if consumer is None:
                    self._stop.wait(self._poll_seconds)
                else:
                    consumer.poll(self._poll_seconds, _BELL_RECORDS)
            except Exception as error:
                log.warning("the releases topic cannot be read; the states are polled", error=str(error))
                self._stop.wait(self._poll_seconds)
            if self._stop.is_set():
                break
            try:
                self.look()
            except Exception as error:
                self._metrics.follower_errors.inc()
                log.error("the channel states cannot be read; serving goes on", error=str(error))
        if consumer is not None:
            consumer.close()

    def _follow_state(self, state: ChannelState) -> None:
        with self._changing:
            serving = self._serving.get(state.channel)
            if serving is not None and not serving.behind and serving.generation >= state.generation:
                return
            if serving is not None and serving.generation > state.generation:
                return
            retry = self._retries.get(state.channel)
            if retry and retry.generation == state.generation and time.monotonic() < retry.at:
                return
            started = time.perf_counter()
            try:
                routed = self._ready(state.channel, state.live)
            except PlauditError as error:
                self._fall_behind(state, serving, error)
                return
            self._activate(state, serving, routed, started)

    def _activate(self, state: ChannelState, serving: _Serving | None, routed: Routed, started: float) -> None:
        channel, name = state.channel, str(state.channel)
        swapped = serving is None or serving.now.key != routed.key
        before = (serving.now if swapped else serving.before) if serving else None
        # One assignment: a request sees the former release or this one, never a mixture.
        self._serving[channel] = _Serving(routed, before, state.generation)
        self._retries.pop(channel, None)
        self._unserved.discard(channel)
        self._metrics.replica_release.labels(name).set(routed.key.version)
        self._metrics.replica_generation.labels(name).set(state.generation)
        self._metrics.replica_behind.labels(name).set(0)
        if swapped:
            seconds = time.perf_counter() - started
            self._metrics.swaps.labels(name).inc()
            self._metrics.swap_seconds.observe(seconds)
            log.info("serves", channel=name, version=routed.key.version, generation=state.generation, seconds=seconds)
        self._forget_unneeded(keep_slots=0)

    def _fall_behind(self, state: ChannelState, serving: _Serving | None, error: PlauditError) -> None:
        channel, name = state.channel, str(state.channel)
        retry = self._retries.get(channel)
        again = retry is not None and retry.generation == state.generation
        wait = min(2 * retry.wait, _LONGEST_RETRY_SECONDS) if retry and again else _FIRST_RETRY_SECONDS
        self._retries[channel] = _Retry(state.generation, time.monotonic() + wait, wait)
        self._metrics.release_refusals.labels(name, error.reason).inc()
        self._metrics.replica_behind.labels(name).set(1)
        if serving is None:
            self._unserved.add(channel)
        else:
            self._serving[channel] = _Serving(serving.now, serving.before, state.generation, behind=True)
        log.error(
            "cannot serve the live release",
            channel=name,
            version=state.live,
            reason=error.reason,
            error=error.message,
            serves=serving.now.key.version if serving else None,
            retry_seconds=wait,
        )

    # Staging -------------------------------------------------------------------------------------

    def _ready(self, channel: Channel, version: int) -> Routed:
        """The release, fetched, staged and proved (steps 1 to 3)."""
        with self._changing:
            row = self._registry.release(channel, version)
            key = ReleaseKey(str(channel), version, row.digest)
            if key in self._staged:
                return self._staged[key]
            manifest = self._registry.manifest(channel, version)
            if manifest.base_digest != self._engine.base_digest:
                raise BadArtifact(
                    f"{key} was trained on base {manifest.base_digest[:12]}, this replica runs "
                    f"{self._engine.base_digest[:12]}: serve it with the base it belongs to",
                    digest=manifest.base_digest,
                    expected=self._engine.base_digest,
                )
            base = key if version == 0 else self._ready(channel, 0).key
            self._stage(channel, key, manifest)
            try:
                proof = prove(self._engine, key, base, manifest, exact=self._exact)
            except PlauditError:
                self._engine.unstage(key)
                raise
            if manifest.probes:
                log.info("proved", release=str(key), greatest=proof.greatest, from_base=proof.from_base)
            routed = Routed(key, manifest.temperature)
            with self._counting:
                self._staged[key] = routed
            self._metrics.staged_releases.set(len(self._staged))
            return routed

    def _stage(self, channel: Channel, key: ReleaseKey, manifest: Manifest) -> None:
        adapter: Path | None = None
        if manifest.adapter is not None:
            self._forget_unneeded(keep_slots=1)
            folder = self._cache / channel.domain / channel.tenant / f"{key.version}-{key.digest[:12]}"
            adapter = self._registry.fetch(channel, key.version, folder) / "policy"
        self._engine.stage(key, adapter, temperature=manifest.temperature)

    def _forget_unneeded(self, keep_slots: int) -> None:
        """Unstages releases named once by an operator or long replaced, the longest unused first.

        What a channel serves, what it served before and version 0 stay, and so does what a request holds. Leaves
        `keep_slots` adapter slots free; with 0 it only keeps within the slots.
        """
        needed = {routed.key for s in self._serving.values() for routed in (s.now, s.before) if routed is not None}
        with self._counting:
            adapters = [key for key in self._staged if key.version != 0]
            spare = [key for key in adapters if key not in needed and not self._leases[key]]
            spare.sort(key=lambda key: self._used_at.get(key, 0.0))
            too_many = len(adapters) + keep_slots - self._adapter_slots
            # Releases replaced twice are forgotten at once; only operators' recent ones may linger in free slots.
            drop = [key for index, key in enumerate(spare) if index < too_many or key not in self._used_at]
            if too_many > len(drop):
                # Better no way back without a fetch than no way forward: the former releases go next.
                former = {s.before.key for s in self._serving.values() if s.before} - {
                    s.now.key for s in self._serving.values()
                }
                drop += sorted(k for k in former if k.version and not self._leases[k])[: too_many - len(drop)]
            for key in drop:
                del self._staged[key]
                self._used_at.pop(key, None)
        for key in drop:
            self._engine.unstage(key)
        self._metrics.staged_releases.set(len(self._staged))

    # Routing -------------------------------------------------------------------------------------

    @contextmanager
    def lease(self, channel: Channel, versions: Sequence[int] = (), n: int = 1) -> Iterator[list[Routed]]:
        """As `route`, and the releases stay staged until the block ends."""
        held: list[Routed] = []
        try:
            for version in _per_completion(versions, n):
                held.append(self._hold(channel, version))
            yield held
        finally:
            with self._counting:
                for routed in held:
                    self._leases[routed.key] -= 1
                    if self._leases[routed.key] <= 0:
                        del self._leases[routed.key]

    def route(self, channel: Channel, versions: Sequence[int] = (), n: int = 1) -> list[ReleaseKey]:
        """Release of each of `n` completions: the live one, or those that an operator names.

        A channel begins with its first request. Raises UnknownDomain, UnknownRelease, ReleaseNotServable, NotServing.
        """
        with self.lease(channel, versions, n) as routed:
            return [each.key for each in routed]

    def _hold(self, channel: Channel, version: int | None) -> Routed:
        while True:
            routed = self._live(channel) if version is None else self._named(channel, version)
            with self._counting:
                # Between finding it and holding it, a swap may have forgotten it; then look again.
                if routed.key in self._staged:
                    self._leases[routed.key] += 1
                    return routed

    def _live(self, channel: Channel) -> Routed:
        serving = self._serving.get(channel)
        if serving is None:
            if channel.domain not in self._domains:
                raise unknown_domain(channel.domain, self._domains)
            temperature = self._temperature(channel)
            self._follow_state(self._registry.ensure_channel(channel, self._engine.base_digest, temperature))
            serving = self._serving.get(channel)
        if serving is None:
            raise NotServing(
                f"this replica cannot serve the live release of {channel}; its logs say why; retry elsewhere"
            )
        return serving.now

    def _named(self, channel: Channel, version: int) -> Routed:
        self._live(channel)
        try:
            routed = self._ready(channel, version)
        except (BadArtifact, ReleaseNotServable) as error:
            raise ReleaseNotServable(
                f"{channel}@{version} cannot be served here: {error.message}", channel=channel, version=version
            ) from error
        with self._counting:
            self._used_at[routed.key] = time.monotonic()
        return routed


def unknown_domain(domain: str, known: Iterable[str]) -> UnknownDomain:
    """The refusal of a domain that no loaded plugin serves."""
    names = ", ".join(sorted(known))
    return UnknownDomain(
        f"no plugin serves the domain {domain!r}; loaded: {names or 'none'}", domain=domain, known=names
    )


def _per_completion(versions: Sequence[int], n: int) -> list[int | None]:
    if not versions:
        return [None] * n
    return [versions[0]] * n if len(versions) == 1 else list(versions)
