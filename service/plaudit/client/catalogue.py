"""What a client reads about domains, channels and releases.

What enters: messages of plaudit.v1. What leaves: frozen types. Never talks to the network, and never imports torch.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass

from plaudit.release.moves import ChannelState, ReleaseRow, ReleaseState
from plaudit.types import Action, Channel, Scale
from plaudit.v1 import domains_pb2, events_pb2, releases_pb2

_KINDS_OF_ACTION = events_pb2.DESCRIPTOR.enum_types_by_name["Action"].values_by_number


@dataclass(frozen=True, slots=True, kw_only=True)
class DeclaredDomain:
    """What one domain takes: enough for a user interface to draw its buttons.

    `kinds` are names of acts (thumbs, choice, ranking, correction, rating, label, signal, comment); `signals` are names
    with their scales; `rating_scale` is None if the domain takes no ratings; `conversations`: thumbs and ratings may be
    about a whole conversation; `places`: of a slate that people see, 1 if the domain makes none.
    """

    name: str
    version: str
    action: Action
    kinds: tuple[str, ...]
    reasons: tuple[str, ...]
    rating_scale: Scale | None
    signals: tuple[tuple[str, Scale], ...]
    labels: tuple[str, ...]
    conversations: bool
    places: int
    policy_version: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleaseDetails:
    """One release: where it stands, the gate's report (None before the gate), and what it came from.

    `gate` and `manifest` are messages of releases.proto. `manifest_json` is the text of which `row.digest` is the
    SHA-256 (of version 0 without the channel's salt, so not there).
    """

    row: ReleaseRow
    gate: releases_pb2.GateReport | None
    manifest: releases_pb2.ReleaseManifest
    manifest_json: str


def declared_domain(message: domains_pb2.Domain) -> DeclaredDomain:
    """The typed domain of a message."""
    return DeclaredDomain(
        name=message.name,
        version=message.version,
        action=Action[_KINDS_OF_ACTION[message.action].name.removeprefix("ACTION_")],
        kinds=tuple(message.kinds),
        reasons=tuple(message.reasons),
        rating_scale=_scale(message.rating_scale) if message.HasField("rating_scale") else None,
        signals=tuple((signal.name, _scale(signal.scale)) for signal in message.signals),
        labels=tuple(message.labels),
        conversations=message.conversations,
        places=message.places,
        policy_version=message.policy_version,
    )


def channel_state(message: releases_pb2.ChannelState) -> ChannelState:
    """The typed state of a message."""
    canary = message.canary if message.HasField("canary") else None
    return ChannelState(Channel.parse(message.channel), message.generation, message.live, canary, message.pinned)


def release_row(message: releases_pb2.Release) -> ReleaseRow:
    """The typed release of a message."""
    name = releases_pb2.ReleaseState.Name(message.state).removeprefix("RELEASE_STATE_")
    return ReleaseRow(
        channel=Channel.parse(message.channel),
        version=message.version,
        digest=message.digest,
        state=ReleaseState[name],
        created_at=message.created_at.ToDatetime(dt.UTC),
        decision_json=message.decision_json,
    )


def release_details(message: releases_pb2.GetReleaseResponse) -> ReleaseDetails:
    """The typed release of a response, with its report and lineage."""
    return ReleaseDetails(
        row=release_row(message.release),
        gate=message.release.gate if message.release.HasField("gate") else None,
        manifest=message.manifest,
        manifest_json=message.manifest_json,
    )


def _scale(message: domains_pb2.Scale) -> Scale:
    return Scale(low=message.low, high=message.high)
