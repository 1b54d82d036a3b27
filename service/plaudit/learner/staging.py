"""Releases and adapters in the engine or on the base for the length of a block."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from plaudit.engine import adapter_files, adapters
from plaudit.engine.protocol import UNREGISTERED, ReleaseKey
from plaudit.learner.context import Turn
from plaudit.release.artifacts import file_digest


def live_adapter(turn: Turn) -> Path | None:
    """The live release's adapter in PEFT's format; None if the base is live."""
    if not turn.state.live:
        return None
    folder = turn.learner.registry.fetch(
        turn.channel, turn.state.live, turn.folder / "live", base_digest=turn.base.digest
    )
    return folder / "policy"


@contextlib.contextmanager
def candidate(turn: Turn, adapter: Path) -> Iterator[ReleaseKey]:
    """A candidate's adapter in the engine, before it has a version."""
    key = ReleaseKey(str(turn.channel), UNREGISTERED, file_digest(adapter / adapter_files.WEIGHTS))
    with staged(turn, key, adapter, turn.sampling.temperature):
        yield key


@contextlib.contextmanager
def live(turn: Turn) -> Iterator[ReleaseKey | None]:
    """The live release in the engine under its own temperature; None if the base is live."""
    adapter = live_adapter(turn)
    if adapter is None:
        yield None
        return
    registry, channel = turn.learner.registry, turn.channel
    row = registry.release(channel, turn.state.live)
    temperature = registry.manifest(channel, row.version).temperature
    key = ReleaseKey(str(channel), row.version, row.digest)
    with staged(turn, key, adapter, temperature):
        yield key


@contextlib.contextmanager
def staged(turn: Turn, key: ReleaseKey, adapter: Path, temperature: float) -> Iterator[ReleaseKey]:
    """An adapter in the engine."""
    turn.engine.stage(key, adapter, temperature=temperature)
    try:
        yield key
    finally:
        turn.engine.unstage(key)


@contextlib.contextmanager
def loaded(turn: Turn, name: str, adapter: Path) -> Iterator[None]:
    """An adapter on the base under a name."""
    adapters.load(turn.base, name, adapter)
    try:
        yield
    finally:
        adapters.remove(turn.base, name)
