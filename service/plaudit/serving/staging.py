"""Releases made ready on this replica: fetched, checked, in the engine, proved.

Enters: a channel and a version. Leaves: a release that the engine serves for as long as it is held. The engine's
adapter slots are a cache: a release is staged when it is needed, and the least recently used idle one makes room. A
call that needs a release which is being staged waits for that release alone, within its deadline.

To make a release ready, in steps: 1 fetch the artifacts and check every digest (once per process); 2 stage the adapter
beside what serves; 3 prove it. Steps 2 and 3 run again if it had made room for another. After a failure the release is
refused at once for a while, twice as long each time, so that a damaged release costs its channel only that refusal.

Facts about releases and their files on disk are a cache, too: if there are more than `most`, the least recently used
are dropped, and fetched again when they are needed.
"""

from __future__ import annotations

import datetime as dt
import os
import shutil
import threading
import time
import uuid
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from plaudit.engine.protocol import Engine, ReleaseKey
from plaudit.errors import BadArtifact, DeadlinePassed, EngineUnavailable, PlauditError, SlotsInUse
from plaudit.metrics import Metrics
from plaudit.release.manifest import Manifest
from plaudit.release.registry import Registry
from plaudit.serving.proof import Tolerance, prove
from plaudit.telemetry import get_logger
from plaudit.types import Channel

_FIRST_RETRY_SECONDS = 2.0
_LONGEST_RETRY_SECONDS = 300.0
_GONE = ".gone-"  # before the name of a folder that is being deleted

log = get_logger("plaudit.staging")


@dataclass(frozen=True, slots=True)
class Routed:
    """A release that may answer, with the temperature that is its default."""

    key: ReleaseKey
    temperature: float
    newest_feedback_at: dt.datetime | None = None
    """When the newest act that it learnt from was acknowledged."""


@dataclass(frozen=True, slots=True)
class _Fetched:
    """A release whose files are here and checked; `adapter` None is the base."""

    routed: Routed
    manifest: Manifest
    adapter: Path | None

    @property
    def is_here(self) -> bool:
        """Whether its files are still there."""
        return self.adapter is None or self.adapter.is_dir()


@dataclass(slots=True)
class _Place:
    """What is known of one release. `lock` lets one thread make it ready while others wait."""

    lock: threading.Lock
    fetched: _Fetched | None = None
    error: PlauditError | None = None
    retry_at: float = 0.0
    wait: float = 0.0


class Staging:
    """Holds releases; may be called from any thread. `most`: releases whose files are kept in `cache`."""

    def __init__(
        self, registry: Registry, engine: Engine, metrics: Metrics, *, cache: Path, most: int, tolerance: Tolerance
    ) -> None:
        self._registry = registry
        self._engine = engine
        self._metrics = metrics
        self._cache = cache
        self._most = most
        self._tolerance = tolerance
        self._places: OrderedDict[tuple[Channel, int], _Place] = OrderedDict()
        self._known = threading.Lock()
        _delete(self._set_aside(_oldest(cache, most)))

    @contextmanager
    def hold(self, channel: Channel, version: int, seconds: float = 3600.0) -> Iterator[Routed]:
        """The release, ready until the block ends; jobs that were submitted in the block keep it themselves.

        Waits at most `seconds` for another thread that stages it. Raises UnknownRelease, BadArtifact, ProofFailed,
        SlotsInUse or DeadlinePassed.
        """
        place = self._place(channel, version)
        if not place.lock.acquire(timeout=max(seconds, 0.0)):
            raise DeadlinePassed(f"{channel}@{version} was still being staged when the call's deadline passed")
        try:
            fetched, held = self._ready(place, channel, version)
        finally:
            place.lock.release()
        try:
            yield fetched.routed
        finally:
            held.__exit__(None, None, None)

    def _place(self, channel: Channel, version: int) -> _Place:
        with self._known:
            place = self._places.setdefault((channel, version), _Place(threading.Lock()))
            self._places.move_to_end((channel, version))
            gone = self._set_aside(self._forget())
        _delete(gone)
        return place

    def _forget(self) -> list[Path]:
        """Forget the least recently used places of more than `most`, but those in work; folders of their files."""
        folders = []
        spare = len(self._places) - self._most
        for (channel, version), place in list(self._places.items())[: max(0, spare)]:
            if place.lock.acquire(blocking=False):
                del self._places[channel, version]
                if place.fetched is not None and place.fetched.adapter is not None:
                    folders.append(self._folder(channel, version, place.fetched.routed.key.digest))
                place.lock.release()
        return folders

    def _set_aside(self, folders: list[Path]) -> list[Path]:
        """Rename folders, so that a fetch of one of these releases does not collide with its deletion."""
        aside = []
        for folder in folders:
            gone = folder.with_name(f"{_GONE}{uuid.uuid4().hex}")
            try:
                folder.rename(gone)
            except OSError:  # another replica of this data directory was quicker
                continue
            aside.append(gone)
        return aside

    def _folder(self, channel: Channel, version: int, digest: str) -> Path:
        return self._cache / channel.domain / channel.tenant / f"{version}-{digest[:12]}"

    def _ready(self, place: _Place, channel: Channel, version: int) -> tuple[_Fetched, AbstractContextManager[bool]]:
        if place.error is not None and time.monotonic() < place.retry_at:
            raise type(place.error)(place.error.message, **place.error.metadata)
        try:
            # Files may be gone: another replica of this data directory made room, or somebody tidied up.
            if place.fetched is None or not place.fetched.is_here:
                place.fetched = self._fetch(channel, version)
            held = self._stage(channel, place.fetched)
        except (SlotsInUse, EngineUnavailable):
            raise  # no fault of the release: the next moment may have a slot, or a server
        except PlauditError as error:
            place.wait = min(2 * place.wait, _LONGEST_RETRY_SECONDS) or _FIRST_RETRY_SECONDS
            place.error, place.retry_at, place.fetched = error, time.monotonic() + place.wait, None
            self._metrics.release_refusals.labels(str(channel), error.reason).inc()
            raise
        place.error, place.wait = None, 0.0
        return place.fetched, held

    def _fetch(self, channel: Channel, version: int) -> _Fetched:
        row = self._registry.release(channel, version)
        key = ReleaseKey(str(channel), version, row.digest)
        manifest = self._registry.manifest(channel, version)
        if manifest.base_digest != self._engine.base_digest:
            raise BadArtifact(
                f"{key} was trained on base {manifest.base_digest[:12]}, this replica runs "
                f"{self._engine.base_digest[:12]}: serve it with the base it belongs to",
                digest=manifest.base_digest,
                expected=self._engine.base_digest,
            )
        adapter: Path | None = None
        if manifest.adapter is not None:
            folder = self._folder(channel, version, row.digest)
            adapter = self._registry.fetch(channel, version, folder) / "policy"
            os.utime(folder)  # A later process takes the newest for those in use.
        return _Fetched(Routed(key, manifest.temperature, manifest.newest_feedback_at), manifest, adapter)

    def _stage(self, channel: Channel, fetched: _Fetched) -> AbstractContextManager[bool]:
        """Holds the release in the engine, and proves it if it was not there; the caller ends the hold."""
        key, manifest = fetched.routed.key, fetched.manifest
        held = self._engine.hold(key, fetched.adapter, temperature=manifest.temperature)
        loaded = held.__enter__()
        try:
            if loaded:
                self._prove(channel, fetched)
        except BaseException:
            # Within the lock: a thread that waits must not find what failed.
            self._engine.unstage(key)
            held.__exit__(None, None, None)
            raise
        if loaded:
            self._metrics.staged_releases.set(len(self._engine.staged()))
        return held

    def _prove(self, channel: Channel, fetched: _Fetched) -> None:
        key, manifest = fetched.routed.key, fetched.manifest
        if key.version == 0:
            prove(self._engine, key, key, manifest, tolerance=self._tolerance)
            return
        with self.hold(channel, 0) as base:
            proof = prove(self._engine, key, base.key, manifest, tolerance=self._tolerance)
        log.info("proved", release=str(key), greatest=proof.greatest, from_base=proof.from_base)


def _oldest(cache: Path, most: int) -> list[Path]:
    """Folders of releases that an earlier process left, the oldest of more than `most`, and what it did not delete."""
    found = [path for path in cache.glob("*/*/*") if path.is_dir()]
    whole = sorted((path for path in found if not path.name.startswith(_GONE)), key=lambda path: path.stat().st_mtime)
    return [*(path for path in found if path.name.startswith(_GONE)), *whole[: max(0, len(whole) - most)]]


def _delete(folders: list[Path]) -> None:
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)
