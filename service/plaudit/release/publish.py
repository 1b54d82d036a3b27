"""Tells the replicas that a channel changed: one record on `plaudit.releases`.

Enters: what the registry's move left behind. Leaves: a durable record. The registry's row is the truth, and replicas
poll it too: an unavailable log delays them and changes nothing. The caller decides whether that is an error.
"""

from __future__ import annotations

import datetime as dt

from plaudit.eventlog import EventLog, Topic
from plaudit.eventlog.codec import ReleaseChange, encode_release_changed
from plaudit.release.moves import Change


def publish(log: EventLog, change: Change, *, actor: str, reason: str, producer: str) -> None:
    """Append the change to `plaudit.releases`; raises what the log raises, and the change holds all the same."""
    state, release = change.state, change.release
    record = ReleaseChange(
        channel=state.channel,
        generation=state.generation,
        live=state.live,
        canary=state.canary,
        pinned=state.pinned,
        version=release.version,
        digest=release.digest,
        state=str(release.state),
        created_at=release.created_at,
        changed_at=dt.datetime.now(dt.UTC),
        decision_json=release.decision_json,
        actor=actor,
        reason=reason,
    )
    log.append(Topic.RELEASES, str(state.channel), encode_release_changed(record, producer=producer))
