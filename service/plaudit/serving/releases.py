"""ReleaseService: what releases a channel has, which it serves, and the moves that change that.

What enters: channels, versions, moves. What leaves: the registry's answers and, for every change, a record in
`plaudit.releases`. Never changes a channel but through the registry's one compare-and-set function. The record is a
bell and a history: the row is the truth, so a change whose record could not be written has happened all the same.
"""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import Callable, Iterator
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp

from plaudit.access.rights import caller, check_channel
from plaudit.errors import NotServing, PlauditError, UnknownChannel
from plaudit.eventlog import EventLog, Topic
from plaudit.eventlog.codec import ReleaseChange, encode_release_changed
from plaudit.release.moves import Change, ChannelState, Move, Pin, Promote, ReleaseRow, RollBack
from plaudit.release.registry import Registry
from plaudit.release.typed import gate_message, manifest_message
from plaudit.serving.calls import Call
from plaudit.serving.paging import behind, page, page_size
from plaudit.serving.recording import PRODUCER
from plaudit.serving.validate import (
    MAX_REASON_BYTES,
    MAX_VERSION,
    channel_name,
    refused,
    release_version,
    short_text,
    tenant_name,
)
from plaudit.telemetry import get_logger, traceparent
from plaudit.types import Channel
from plaudit.v1 import releases_pb2, releases_pb2_grpc

ACTOR_KEY = "plaudit-actor"
_MAX_ACTOR_CHARS = 120

log = get_logger("plaudit.releases")


class ReleaseServicer(releases_pb2_grpc.ReleaseServiceServicer):  # type: ignore[misc]
    """Releases of channels."""

    def __init__(
        self,
        registry: Registry,
        event_log: EventLog,
        *,
        poll_seconds: float,
        stream_seconds: float,
        draining: Callable[[], bool],
    ) -> None:
        self._registry = registry
        self._log = event_log
        self._poll_seconds = poll_seconds
        self._stream_seconds = stream_seconds
        self._draining = draining

    def ListReleases(
        self, request: releases_pb2.ListReleasesRequest, context: Any
    ) -> releases_pb2.ListReleasesResponse:
        """See releases.proto."""
        state = self._state(_channel(request))
        after, size = behind(request), page_size(request)
        if after and not (after.isascii() and after.isdigit() and int(after) <= MAX_VERSION):
            raise refused("page_token", "of another list", "the next_page_token of the page before")
        rows = self._registry.releases(state.channel, behind=int(after) if after else -1, most=size + 1)
        shown, token = page(rows, size, lambda row: str(row.version))
        return releases_pb2.ListReleasesResponse(
            releases=[_release(row) for row in shown], state=_channel_state(state), next_page_token=token
        )

    def ListChannels(
        self, request: releases_pb2.ListChannelsRequest, context: Any
    ) -> releases_pb2.ListChannelsResponse:
        """See releases.proto."""
        size = page_size(request)
        shown, token = page(self._mine(behind(request), size + 1), size, lambda state: str(state.channel))
        return releases_pb2.ListChannelsResponse(
            channels=[_channel_state(state) for state in shown], next_page_token=token
        )

    def _mine(self, after: str, most: int) -> list[ChannelState]:
        """States of the caller's channels behind a name, in order."""
        may_use, mine = caller().may_use, list[ChannelState]()
        while len(mine) < most:
            states = self._registry.states(behind=after, most=most)
            mine += [state for state in states if may_use(state.channel)]
            if len(states) < most:
                break
            after = str(states[-1].channel)
        return mine[:most]

    def GetRelease(self, request: releases_pb2.GetReleaseRequest, context: Any) -> releases_pb2.GetReleaseResponse:
        """See releases.proto."""
        channel = self._state(_channel(request)).channel
        version = release_version("version", request.version)
        row = self._registry.release(channel, version)
        manifest = self._registry.manifest(channel, version)
        return releases_pb2.GetReleaseResponse(
            release=_release(row),
            manifest_json=manifest.to_json_for_readers(),
            manifest=manifest_message(manifest),
        )

    def WatchReleases(self, request: releases_pb2.WatchReleasesRequest, context: Any) -> Iterator[Any]:
        """See releases.proto. Ends with NOT_SERVING when this replica drains, so that the watcher goes elsewhere."""
        call = Call(context, self._stream_seconds)
        channel = _channel(request) if request.channel else None
        may_use = caller().may_use
        if channel is not None:
            self._state(channel)
        seen: dict[Channel, int] = {}
        while context.is_active():
            if self._draining():
                raise NotServing("this replica is draining; watch another")
            for state in self._registry.states():
                if not may_use(state.channel):
                    continue
                if channel in (None, state.channel) and seen.get(state.channel) != state.generation:
                    seen[state.channel] = state.generation
                    yield releases_pb2.WatchReleasesResponse(state=_channel_state(state))
            time.sleep(min(self._poll_seconds, call.remaining()))

    def PromoteRelease(
        self, request: releases_pb2.PromoteReleaseRequest, context: Any
    ) -> releases_pb2.PromoteReleaseResponse:
        """See releases.proto."""
        state = self._change(request, Promote(release_version("version", request.version)), context)
        return releases_pb2.PromoteReleaseResponse(state=state)

    def RollBackRelease(
        self, request: releases_pb2.RollBackReleaseRequest, context: Any
    ) -> releases_pb2.RollBackReleaseResponse:
        """See releases.proto."""
        to = release_version("to_version", request.to_version) if request.HasField("to_version") else None
        move = RollBack(to)
        return releases_pb2.RollBackReleaseResponse(state=self._change(request, move, context))

    def PinRelease(self, request: releases_pb2.PinReleaseRequest, context: Any) -> releases_pb2.PinReleaseResponse:
        """See releases.proto."""
        return releases_pb2.PinReleaseResponse(state=self._change(request, Pin(request.pinned), context))

    def _state(self, channel: Channel) -> ChannelState:
        state = self._registry.state(channel)
        if state is None:
            raise UnknownChannel(
                f"the channel {channel} has never served; a channel begins with its first request", channel=channel
            )
        return state

    def _change(self, request: Any, move: Move, context: Any) -> releases_pb2.ChannelState:
        channel = _channel(request)
        reason = short_text("reason", request.reason, MAX_REASON_BYTES)
        expected = request.expected_generation if request.HasField("expected_generation") else None
        actor = _actor(context)
        change = self._registry.change(channel, move, expected_generation=expected, actor=actor, reason=reason)
        log.info("channel changed", channel=str(channel), move=str(move), live=change.state.live, actor=actor)
        self._announce(change, actor, reason)
        return _channel_state(change.state)

    def _announce(self, change: Change, actor: str, reason: str) -> None:
        record = ReleaseChange(
            channel=change.state.channel,
            generation=change.state.generation,
            live=change.state.live,
            canary=change.state.canary,
            pinned=change.state.pinned,
            version=change.release.version,
            digest=change.release.digest,
            state=change.release.state.value,
            created_at=change.release.created_at,
            changed_at=dt.datetime.now(dt.UTC),
            decision_json=change.release.decision_json,
            actor=actor,
            reason=reason,
        )
        encoded = encode_release_changed(record, producer=PRODUCER, traceparent=traceparent())
        try:
            self._log.append(Topic.RELEASES, str(change.state.channel), encoded)
        except PlauditError as error:
            log.error("a change has no record; replicas find it by polling", reason=error.reason, error=error.message)


def _channel(request: Any) -> Channel:
    """The channel that a request names, if its caller may use it."""
    domain, slash, tenant = request.channel.partition("/")
    channel = channel_name(f"{domain}/{tenant_name('')}" if slash and not tenant else request.channel)
    check_channel(channel)
    return channel


def _actor(context: Any) -> str:
    """Who asks, for the record: whom the credentials name; without any, what the caller says or where it calls from."""
    if caller().name:
        return caller().name[:_MAX_ACTOR_CHARS]
    for key, value in context.invocation_metadata():
        if key == ACTOR_KEY and isinstance(value, str) and value:
            return value[:_MAX_ACTOR_CHARS]
    return f"grpc {context.peer()}"[:_MAX_ACTOR_CHARS]


def _release(row: ReleaseRow) -> releases_pb2.Release:
    created_at = Timestamp()
    created_at.FromDatetime(row.created_at)
    return releases_pb2.Release(
        channel=str(row.channel),
        version=row.version,
        digest=row.digest,
        state=f"RELEASE_STATE_{row.state.name}",
        created_at=created_at,
        decision_json=row.decision_json,
        gate=gate_message(row.decision_json),
    )


def _channel_state(state: ChannelState) -> releases_pb2.ChannelState:
    return releases_pb2.ChannelState(
        channel=str(state.channel),
        generation=state.generation,
        live=state.live,
        canary=state.canary,
        pinned=state.pinned,
    )
