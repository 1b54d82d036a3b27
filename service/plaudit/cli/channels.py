"""What `plaudit release` works on: the channels of a running service, or those of the registry.

With a target the service is asked (ReleaseService). Without one the registry is opened directly, the same
compare-and-set function moves the channel, and the change is published on `plaudit.releases`, so that replicas follow
at once. Rows are alike both ways.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Protocol

import typer

from plaudit.cli.options import SettingsOptions, channel_of, operator

if TYPE_CHECKING:
    from plaudit.settings import Settings


class Channels(Protocol):
    """What the commands need, of a service or of the registry. Rows are plain JSON types."""

    def releases(self, channel: str) -> dict[str, Any]:
        """State of the channel and its releases, oldest first."""

    def release(self, channel: str, version: int) -> dict[str, Any]:
        """One release with its manifest."""

    def promote(self, channel: str, version: int, generation: int | None, reason: str) -> dict[str, Any]:
        """State after the version was made live."""

    def roll_back(self, channel: str, version: int | None, generation: int | None, reason: str) -> dict[str, Any]:
        """State after going back to `version`, or to the previous live one."""

    def pin(self, channel: str, pinned: bool, generation: int | None, reason: str) -> dict[str, Any]:
        """State after pinning or unpinning."""


class RegistryChannels:
    """Channels through the registry's own store."""

    def __init__(self, settings: Settings) -> None:
        from plaudit.release.registry import Registry

        self._settings = settings
        self._registry = Registry(settings.store_url, settings.registry_root)

    def releases(self, channel: str) -> dict[str, Any]:
        """State of the channel and its releases, oldest first."""
        parsed = channel_of(channel)
        state = self._registry.state(parsed)
        if state is None:
            raise never_served(channel, self._settings)
        return {"state": _row(state), "releases": [_row(release) for release in self._registry.releases(parsed)]}

    def release(self, channel: str, version: int) -> dict[str, Any]:
        """One release with its manifest."""
        parsed = channel_of(channel)
        row = _row(self._registry.release(parsed, version))
        return {**row, "manifest": json.loads(self._registry.manifest(parsed, version).to_json_for_readers())}

    def promote(self, channel: str, version: int, generation: int | None, reason: str) -> dict[str, Any]:
        """State after the version was made live."""
        from plaudit.release.moves import Promote

        return self._change(channel, Promote(version), generation, reason)

    def roll_back(self, channel: str, version: int | None, generation: int | None, reason: str) -> dict[str, Any]:
        """State after going back to `version`, or to the previous live one."""
        from plaudit.release.moves import RollBack

        return self._change(channel, RollBack(version), generation, reason)

    def pin(self, channel: str, pinned: bool, generation: int | None, reason: str) -> dict[str, Any]:
        """State after pinning or unpinning."""
        from plaudit.release.moves import Pin

        return self._change(channel, Pin(pinned), generation, reason)

    def _change(self, channel: str, move: Any, generation: int | None, reason: str) -> dict[str, Any]:
        from plaudit import __version__
        from plaudit.errors import PlauditError
        from plaudit.eventlog import open_log
        from plaudit.release.publish import publish

        actor = operator()
        change = self._registry.change(
            channel_of(channel), move, expected_generation=generation, actor=actor, reason=reason
        )
        # The move holds without the record: replicas poll the row. Taken for a failure it would be made again, and a
        # second rollback goes back one release further.
        try:
            log = open_log(self._settings)
            try:
                publish(log, change, actor=actor, reason=reason, producer=f"plaudit-cli/{__version__}")
            finally:
                log.close()
        except PlauditError as error:
            typer.echo(f"the change is made, and replicas learn of it by polling: {error.message}", err=True)
        return _row(change.state)


class ServiceChannels:
    """Channels through a running service."""

    def __init__(self, target: str) -> None:
        from plaudit.client.calls import connect

        self._target = target
        self._channel, stubs = connect(target, {})
        self._stub = stubs.releases

    def releases(self, channel: str) -> dict[str, Any]:
        """State of the channel and its releases, oldest first."""
        from plaudit.v1 import releases_pb2 as pb

        asked, found = pb.ListReleasesRequest(channel=channel, page_size=1000), []
        while True:
            with self._refusals():
                reply = self._stub.ListReleases(asked, timeout=10)
            found += [_release(release) for release in reply.releases]
            if not reply.next_page_token:
                return {"state": _state(reply.state), "releases": found}
            asked.page_token = reply.next_page_token

    def release(self, channel: str, version: int) -> dict[str, Any]:
        """One release with its manifest."""
        from plaudit.v1 import releases_pb2 as pb

        with self._refusals():
            reply = self._stub.GetRelease(pb.GetReleaseRequest(channel=channel, version=version), timeout=10)
        return {**_release(reply.release), "manifest": json.loads(reply.manifest_json or "{}")}

    def promote(self, channel: str, version: int, generation: int | None, reason: str) -> dict[str, Any]:
        """State after the version was made live."""
        from plaudit.v1 import releases_pb2 as pb

        request = pb.PromoteReleaseRequest(
            channel=channel, version=version, expected_generation=generation, reason=reason
        )
        with self._refusals():
            return _state(self._stub.PromoteRelease(request, timeout=30).state)

    def roll_back(self, channel: str, version: int | None, generation: int | None, reason: str) -> dict[str, Any]:
        """State after going back to `version`, or to the previous live one."""
        from plaudit.v1 import releases_pb2 as pb

        request = pb.RollBackReleaseRequest(
            channel=channel, to_version=version, expected_generation=generation, reason=reason
        )
        with self._refusals():
            return _state(self._stub.RollBackRelease(request, timeout=30).state)

    def pin(self, channel: str, pinned: bool, generation: int | None, reason: str) -> dict[str, Any]:
        """State after pinning or unpinning."""
        from plaudit.v1 import releases_pb2 as pb

        request = pb.PinReleaseRequest(channel=channel, pinned=pinned, expected_generation=generation, reason=reason)
        with self._refusals():
            return _state(self._stub.PinRelease(request, timeout=30).state)

    @contextlib.contextmanager
    def _refusals(self) -> Iterator[None]:
        import grpc

        from plaudit.errors import PlauditError

        try:
            yield
        except grpc.RpcError as error:
            code = error.code().name
            raise PlauditError(f"{self._target}: {error.details()} ({code})") from None


def channels_of(channel: str, target: str, given: SettingsOptions) -> Channels:
    """Channels of the service at `target`, or of the registry that the settings name if it is empty."""
    if target:
        if given != SettingsOptions():
            raise typer.BadParameter(
                "--config, --set and --data-dir name a registry, and --target a service that has its own; give one or "
                "the other"
            )
        return ServiceChannels(target)
    channel_of(channel)  # wrong usage is said first
    return RegistryChannels(given.load_used())


def never_served(channel: str, settings: Settings) -> Exception:
    """The error about a channel that this registry does not know."""
    from plaudit.errors import UnknownChannel

    return UnknownChannel(
        f"channel {channel!r} has never served; `plaudit release` without --target reads {settings.registry_root}, "
        "is that the right one?"
    )


def _row(value: Any) -> dict[str, Any]:
    """A registry row in plain JSON types; the decision is parsed."""
    row = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    row["channel"] = str(row["channel"])
    if "decision_json" in row:
        row["decision"] = json.loads(row.pop("decision_json") or "null")
    if "created_at" in row:
        row["created_at"] = row["created_at"].isoformat(timespec="seconds")
    return row


def _state(state: Any) -> dict[str, Any]:
    return {
        "channel": state.channel,
        "generation": state.generation,
        "live": state.live,
        "canary": state.canary if state.HasField("canary") else None,
        "pinned": state.pinned,
    }


def _release(release: Any) -> dict[str, Any]:
    from plaudit.v1 import releases_pb2 as pb

    return {
        "channel": release.channel,
        "version": release.version,
        "digest": release.digest,
        "state": pb.ReleaseState.Name(release.state).removeprefix("RELEASE_STATE_").lower(),
        "created_at": release.created_at.ToDatetime().isoformat(timespec="seconds") + "+00:00",
        "decision": json.loads(release.decision_json or "null"),
    }
