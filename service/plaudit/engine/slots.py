"""Which release lies in which slot of an engine: a cache that is filled on demand.

In: releases to stage, to hold for a while, to forget. Out: the slot of each. An adapter is loaded without the
engine's lock, into a slot that no row uses, so that decoding never waits for it. When a slot is needed and none is
free, the adapter that was least recently used makes room; one that is pinned, held or decoded on stays.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from dataclasses import dataclass

from plaudit.engine.protocol import ReleaseKey
from plaudit.errors import ReleaseNotServable, SlotsInUse

Load = Callable[[int], None]
"""Puts an adapter into the slot of this number."""


@dataclass(slots=True)
class Staged:
    """A release in the engine. `slot` 0 is the base; `serial` differs for all weights that were ever loaded."""

    slot: int
    serial: int
    temperature: float
    used: int
    jobs: int = 0
    holds: int = 0
    pinned: bool = False
    ready: bool = False
    leaving: bool = False

    @property
    def idle(self) -> bool:
        """Whether it may make room for another."""
        return self.ready and not (self.jobs or self.holds or self.pinned)


class Slots:
    """The staged releases in slots 1..`slots`. `lock` is the engine's; methods say if the caller holds it."""

    def __init__(self, slots: int, lock: threading.Condition) -> None:
        self._slots = slots
        self._lock = lock
        self._staged: dict[ReleaseKey, Staged] = {}
        self._clock = itertools.count(1)

    def stage(self, key: ReleaseKey, load: Load | None, temperature: float) -> None:
        """Load `key` and pin it until it is forgotten; `load` None is the base. Raises BadArtifact or SlotsInUse."""
        self.hold(key, load, temperature)
        with self._lock:
            self._staged[key].pinned = True
            self._staged[key].holds -= 1

    def hold(self, key: ReleaseKey, load: Load | None, temperature: float) -> bool:
        """Load `key` unless it is there, and keep it until `let_go`; returns whether it was loaded."""
        with self._lock:
            while (found := self._staged.get(key)) is not None and not found.ready:
                self._lock.wait()
            if found is not None:
                found.leaving = False
                found.holds += 1
                found.used = next(self._clock)
                return False
            slot = self._take() if load else 0
            serial = next(self._clock)
            staged = Staged(slot, serial if slot else 0, temperature, used=serial, holds=1)
            self._staged[key] = staged
        try:
            if load is not None:
                load(slot)
        except BaseException:
            with self._lock:
                del self._staged[key]
                self._lock.notify_all()
            raise
        with self._lock:
            staged.ready = True
            self._lock.notify_all()
        return True

    def let_go(self, key: ReleaseKey) -> None:
        """End a hold; the release stays until its slot is needed."""
        with self._lock:
            self._staged[key].holds -= 1
            self._settle(key)

    def forget(self, key: ReleaseKey) -> None:
        """Unpin `key` and free its slot once nothing uses it; unknown keys are forgotten already."""
        with self._lock:
            if key in self._staged:
                self._staged[key].pinned = False
                self._staged[key].leaving = True
                self._settle(key)

    def temperatures(self) -> dict[ReleaseKey, float]:
        """Staged releases with their temperatures."""
        with self._lock:
            return {key: each.temperature for key, each in self._staged.items() if each.ready and not each.leaving}

    def used(self) -> tuple[int, int]:
        """Slots with an adapter, and slots in all."""
        with self._lock:
            return sum(bool(staged.slot) for staged in self._staged.values()), self._slots

    def taken(self) -> frozenset[int]:
        """Slots that a release has, or is being loaded into."""
        with self._lock:
            return frozenset(staged.slot for staged in self._staged.values())

    def require(self, key: ReleaseKey) -> Staged:
        """A release that jobs may use (with the lock); raises ReleaseNotServable."""
        staged = self._staged.get(key)
        if staged is None or not staged.ready or staged.leaving:
            raise ReleaseNotServable(f"release {key} is not staged here", channel=key.channel, version=key.version)
        return staged

    def job_begins(self, key: ReleaseKey) -> None:
        """Count a job that was taken (with the lock)."""
        self._staged[key].jobs += 1
        self._staged[key].used = next(self._clock)

    def job_ended(self, key: ReleaseKey) -> None:
        """Count a job that has ended (with the lock)."""
        self._staged[key].jobs -= 1
        self._settle(key)

    def of(self, key: ReleaseKey) -> Staged:
        """A release that a job under way uses."""
        return self._staged[key]

    def _take(self) -> int:
        used = {staged.slot for staged in self._staged.values()}
        free = next((slot for slot in range(1, self._slots + 1) if slot not in used), None)
        if free is not None:
            return free
        idle = [key for key, staged in self._staged.items() if staged.slot and staged.idle]
        if not idle:
            raise SlotsInUse(
                f"all {self._slots} adapter slots are in use; retry with backoff, or raise engine.adapter_slots",
                slots=self._slots,
            )
        return self._staged.pop(min(idle, key=lambda key: self._staged[key].used)).slot

    def _settle(self, key: ReleaseKey) -> None:
        if self._staged[key].leaving and self._staged[key].idle:
            del self._staged[key]
