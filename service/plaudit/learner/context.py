"""What the steps of a turn work with: what a process shares, and one turn's facts. Both are frozen."""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Connection

from plaudit.decoding import channel_sampling
from plaudit.domain import DomainPlugin
from plaudit.engine.base import Base
from plaudit.engine.protocol import Engine, ReleaseKey
from plaudit.engine.ranks import Ranks
from plaudit.engine.targets import start_layer
from plaudit.eventlog import EventLog
from plaudit.evidence.store import EvidenceStore
from plaudit.failpoints import fail_point
from plaudit.learner.kept import Kept
from plaudit.learner.status import Status
from plaudit.metrics import Metrics
from plaudit.privacy.models import check_nobody_erased
from plaudit.release.moves import ChannelState
from plaudit.release.registry import Registry
from plaudit.settings import EngineSettings, Settings
from plaudit.store.leases import Lease, LeaseLost, Leases
from plaudit.store.outcomes import TurnOutcomes
from plaudit.types import Channel, Sampling


@dataclass(frozen=True, slots=True, kw_only=True)
class Learner:
    """What every turn of a process shares. `rollouts`: settings of the engine. `ranks`: who computes with it."""

    settings: Settings
    rollouts: EngineSettings
    base: Base
    engine: Engine
    ranks: Ranks
    log: EventLog
    store: EvidenceStore
    registry: Registry
    plugins: Mapping[str, DomainPlugin]
    metrics: Metrics
    status: Status
    leases: Leases
    outcomes: TurnOutcomes

    def close(self) -> None:
        """Close the engine, the stores and the log, and let followers end."""
        self.status.close()
        self.ranks.close()
        for each in (self.engine, self.registry, self.store, self.log):
            each.close()


# Adapters that a turn has in its engine at once: a candidate, what is live, and one that leaves.
LEARNER_SLOTS = 3


def rollout_engine(settings: Settings, processes: int = 1) -> EngineSettings:
    """The engine of a learner. Its widths are part of what a turn comes to: the last bits of a sum depend on them.

    `processes` share out the rows of a rollout.
    """
    # Rollouts come in bursts: rows are filled before they decode, and nobody waits for the first token.
    rows = max(math.ceil(each.prompts / processes) * each.samples for each in settings.policies)
    changes = {"widths": (rows, 2 * rows), "prefill_chunk": rows * 64, "max_waiting": 1_000_000}
    # Every pass multiplies by all slots, and weights of an empty one take as much memory.
    changes["adapter_slots"] = min(settings.engine.adapter_slots, LEARNER_SLOTS)
    return settings.engine.model_copy(update=changes)


# Turns that ask the base with one seed (docs/adr/0027).
TURNS_OF_A_BASE_SEED = 8


def base_seed(seed: int) -> int:
    """Seed of what a turn with `seed` asks of the base."""
    return seed // TURNS_OF_A_BASE_SEED


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """One turn's facts, fixed when it begins.

    `settings` are the channel's. `state` is the channel's state from which the turn began and from whose generation
    alone it may promote. `digest` is of all that decides what the turn comes to beside the evidence. `lease` says
    whether this process may still work on the channel. `seed` fixes everything that is drawn, and `as_of` the age of
    evidence: with both from a manifest, the same log, machine and versions, a turn comes to the same adapter.
    `folder` is gone after the turn. `erasures` have reached the channel when it began, and no more may meanwhile.
    `kept` is what of earlier turns it may use, and what it leaves.
    """

    learner: Learner
    channel: Channel
    plugin: DomainPlugin
    settings: Settings
    state: ChannelState
    digest: str
    lease: Lease
    seed: int
    as_of: dt.datetime
    folder: Path
    erasures: int
    kept: Kept

    def guard(self, connection: Connection) -> None:
        """Asked within each transaction that writes what the turn learnt; raises LeaseLost or ErasedMeanwhile."""
        self.lease.check(connection)
        check_nobody_erased(self.learner.store.database, connection, self.channel, self.erasures)

    def begin(self, number: int, name: str) -> None:
        """Begin a numbered step; raises LeaseLost if another learner took the channel over."""
        fail_point(f"learn.{number}")
        if self.lease.lost:
            raise LeaseLost(str(self.channel))
        self.learner.status.step(number, name)

    def tell(self, text: str) -> None:
        """Say what goes on within the step."""
        self.learner.status.detail(text)

    @property
    def base(self) -> Base:
        """The frozen base."""
        return self.learner.base

    @property
    def engine(self) -> Engine:
        """The engine that samples."""
        return self.learner.engine

    @property
    def base_key(self) -> ReleaseKey:
        """Version 0 of the channel, as the engine knows it."""
        return ReleaseKey(str(self.channel), 0, self.learner.registry.release(self.channel, 0).digest)

    @property
    def base_seed(self) -> int:
        """Seed of what is asked of the base: the same for some turns, so that its answers can be kept."""
        return base_seed(self.seed)

    @property
    def sampling(self) -> Sampling:
        """How the channel's policy is sampled: as callers are served."""
        return channel_sampling(self.plugin, self.settings.policy)

    def served(self, version: int) -> Sampling:
        """How a release answers callers: at its own temperature, whatever the settings say of the next one."""
        own = self.learner.registry.manifest(self.channel, version).temperature
        return channel_sampling(self.plugin, self.settings.policy.model_copy(update={"temperature": own}))

    @property
    def start_layer(self) -> int:
        """First layer that carries the policy's adapter."""
        return start_layer(self.base, self.settings.model.adapter_layers)
