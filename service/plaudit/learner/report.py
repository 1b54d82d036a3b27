"""What each channel's learning stands at: `plaudit learn status`.

Enters: the stores. Leaves: one report per channel, in numbers and words. Asks what the learner asks at each look and
changes nothing; loads no model, so that an operator may run it anywhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from plaudit.domain import DomainPlugin
from plaudit.evidence.store import EvidenceStore
from plaudit.learner.outcome import Need
from plaudit.learner.since import LEASE, learnt_until, settings_digest
from plaudit.release.registry import Registry
from plaudit.settings import Settings
from plaudit.store.leases import Leases
from plaudit.store.outcomes import TurnOutcomes
from plaudit.types import Channel


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelReport:
    """One channel: what is live, what its last turn came to, what the next one waits for, who works on it."""

    channel: str
    live: int
    pinned: bool
    needs: tuple[Need, ...]
    outcome: str = ""
    reason: str = ""
    at: str = ""
    learner: str = ""

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    def as_text(self) -> str:
        """Some lines for people."""
        pinned = ", pinned" if self.pinned else ""
        lines = [f"{self.channel}: version {self.live} is live{pinned}"]
        lines.append(f"  now: {f'a turn by {self.learner}' if self.learner else 'no turn'}")
        lines.append("  next turn: " + ", ".join(str(need) for need in self.needs))
        if self.outcome:
            lines.append(f"  last turn ({self.at}): {self.outcome}: {self.reason}")
        return "\n".join(lines)


def channel_reports(
    settings: Settings, plugins: Mapping[str, DomainPlugin], only: Channel | None = None
) -> list[ChannelReport]:
    """A report of every channel that people have used, or of one."""
    store = EvidenceStore(settings.store_url)
    registry = Registry(settings.store_url, settings.registry_root)
    try:
        channels = store.channels() if only is None else [only]
        found = [_report(settings.for_channel(each), plugins, store, registry, each) for each in channels]
        return [each for each in found if each is not None]
    finally:
        registry.close()
        store.close()


def _report(
    settings: Settings,
    plugins: Mapping[str, DomainPlugin],
    store: EvidenceStore,
    registry: Registry,
    channel: Channel,
) -> ChannelReport | None:
    state, outcomes = registry.state(channel), TurnOutcomes(store.database)
    if state is None:
        return None
    needs: tuple[Need, ...] = ()
    if channel.domain in plugins:
        declaration = plugins[channel.domain].declaration
        since = learnt_until(registry, outcomes, state, settings_digest(settings, declaration, registry, state))
        few_raters = declaration.few_raters
        events = store.count_new(channel, registry.salt(channel), since, few_raters=few_raters)
        needs = (Need("new training events", events, settings.learn.min_events),)
    last, holder = outcomes.last(channel), Leases(store.database).holder(LEASE.format(channel=channel))
    return ChannelReport(
        channel=str(channel),
        live=state.live,
        pinned=state.pinned,
        needs=needs,
        outcome=last.outcome if last else "",
        reason=last.reason if last else "",
        at=last.at.isoformat(timespec="seconds") if last else "",
        learner=holder.owner if holder else "",
    )
