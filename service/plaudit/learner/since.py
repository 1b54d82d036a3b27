"""What counts as new evidence on a channel, and which refusals hold.

Enters: registry, remembered outcomes, settings. Leaves: the time since which evidence is new, and the digest of all
that, beside the evidence, decides what a turn comes to. Imports no torch: `plaudit status` asks here too.
"""

from __future__ import annotations

import datetime as dt
import hashlib
from typing import Any

import plaudit
from plaudit.domain import Declaration
from plaudit.learner.outcome import REFUSALS
from plaudit.release.manifest import canonical_json
from plaudit.release.moves import ChannelState, ReleaseState
from plaudit.release.registry import Registry
from plaudit.settings import Settings
from plaudit.store.outcomes import TurnOutcomes

# Name of the lease of whoever learns on a channel.
LEASE = "learn {channel}"
# Sections of the settings that decide what a turn comes to.
SECTIONS = ("model", "reward", "policy", "gate", "decision")


def in_force(settings: Settings) -> dict[str, Any]:
    """The settings of a channel that decide what a turn comes to, as plain values."""
    return {name: getattr(settings, name).model_dump(mode="json") for name in SECTIONS}


def settings_digest(settings: Settings, declaration: Declaration, registry: Registry, state: ChannelState) -> str:
    """SHA-256, in hex, of what a turn depends on beside the evidence: a change of any of it is worth a new turn."""
    depends = {
        "settings": in_force(settings),
        "seed": settings.learn.seed,
        "live": registry.release(state.channel, state.live).digest,
        "versions": [plaudit.__version__, declaration.name, declaration.version, declaration.policy_version],
    }
    return hashlib.sha256(canonical_json(depends).encode()).hexdigest()


def learnt_until(registry: Registry, outcomes: TurnOutcomes, state: ChannelState, digest: str) -> dt.datetime | None:
    """Evidence acknowledged after this time is new; all of it if None.

    Releases used theirs up, and so did turns under the same settings (`digest`) that ended in a refusal. What a
    turn that died had used, or one that was refused under other settings, or a release that learnt from somebody who
    was erased, is new again.
    """
    times: list[dt.datetime | None] = []
    erased = registry.erased(state.channel)
    for row in reversed(registry.releases(state.channel)):
        passed_over = row.version in erased or row.state in (ReleaseState.REJECTED, ReleaseState.TRAINED)
        as_of = registry.manifest(state.channel, row.version).as_of if row.version and not passed_over else None
        if as_of is not None:  # an imported adapter has none: it used no evidence up
            times.append(as_of)
            break
    refused = outcomes.last(state.channel, settings_digest=digest, outcomes=REFUSALS)
    times.append(refused.at if refused else None)
    return max((time for time in times if time is not None), default=None)
