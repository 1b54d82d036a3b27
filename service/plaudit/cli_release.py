"""`plaudit release`: what a channel serves, and the operator's three moves on it.

With --target the running service is asked (ReleaseService). Without it the registry is opened directly, the same
compare-and-set function moves the channel, and the change is published on `plaudit.releases`, so that replicas follow
at once. Both ways print the same.
"""

from __future__ import annotations

import contextlib
import dataclasses
import getpass
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Protocol

import typer

from plaudit.cli_settings import ConfigOption, DataDirOption, JsonOption, SetOption, channel_of, load_used

if TYPE_CHECKING:
    from plaudit.settings import Settings

release_app = typer.Typer(help="Releases of a channel, and which of them serves.", no_args_is_help=True)

ChannelArgument = Annotated[str, typer.Argument(help='Channel, as "domain/tenant".')]
VersionArgument = Annotated[int, typer.Argument(help="Version; 0 is the base.", min=0)]
TargetOption = Annotated[str, typer.Option("--target", help="Ask this running service (host:port), not the registry.")]
ReasonOption = Annotated[str, typer.Option("--reason", help="Why, for the record.")]
GenerationOption = Annotated[
    int | None, typer.Option("--expected-generation", help="Refuse if somebody changed the channel since this one.")
]


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
            raise _never_served(channel, self._settings)
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
        from plaudit.errors import LogUnavailable
        from plaudit.eventlog import open_log
        from plaudit.release.publish import publish

        actor = f"operator:{getpass.getuser()}"
        change = self._registry.change(
            channel_of(channel), move, expected_generation=generation, actor=actor, reason=reason
        )
        # The move holds without the record: replicas poll the row. A rollback must work with Kafka down.
        try:
            log = open_log(self._settings)
            try:
                publish(log, change, actor=actor, reason=reason, producer="plaudit-cli")
            finally:
                log.close()
        except LogUnavailable as error:
            typer.echo(f"the change is made, and replicas learn of it by polling: {error.message}", err=True)
        return _row(change.state)


class ServiceChannels:
    """Channels through a running service."""

    def __init__(self, target: str) -> None:
        from plaudit.client_calls import connect

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


@release_app.command("list")
def list_releases(
    channel: ChannelArgument,
    target: TargetOption = "",
    as_json: JsonOption = False,
    config: ConfigOption = None,
    assign: SetOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """List a channel's releases: which serves, what each gained, why the gate refused it."""
    found = _channels(channel, target, config, assign, data_dir).releases(channel)
    if as_json:
        _echo_json(found)
        return
    typer.echo(_sentence(found["state"]))
    for row in found["releases"]:
        mark = "*" if row["version"] == found["state"]["live"] else " "
        said = f"  {why}" if (why := _decided(row)) else ""
        typer.echo(f"{mark} {row['version']:>4}  {row['state']:<12} {row['created_at']}  {row['digest'][:12]}{said}")


@release_app.command("history")
def release_history(
    channel: ChannelArgument,
    as_json: JsonOption = False,
    config: ConfigOption = None,
    assign: SetOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """List who changed what a channel serves, when and why. Reads the registry itself."""
    from plaudit.release.registry import Registry

    named, settings = channel_of(channel), load_used(config, assign, data_dir)
    with Registry(settings.store_url, settings.registry_root) as registry:
        rows = [dataclasses.asdict(row) for row in registry.history(named)]
    if as_json:
        _echo_json([{**row, "at": row["at"].isoformat(timespec="seconds")} for row in rows])
        return
    if not rows:
        raise _never_served(channel, settings)
    for row in rows:
        pinned = ", pinned" if row["pinned"] else ""
        why = f": {row['reason']}" if row["reason"] else ""
        typer.echo(
            f"{row['generation']:>4}  {row['at'].isoformat(timespec='seconds')}  {row['move']:<14} "
            f"-> version {row['live']} live{pinned}  by {row['actor']}{why}"
        )


@release_app.command("show")
def show_release(
    channel: ChannelArgument,
    version: VersionArgument,
    target: TargetOption = "",
    config: ConfigOption = None,
    assign: SetOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Print a release with its gate's decision and its manifest, as JSON."""
    _echo_json(_channels(channel, target, config, assign, data_dir).release(channel, version))


@release_app.command("card")
def release_card(
    channel: ChannelArgument,
    version: VersionArgument,
    target: TargetOption = "",
    config: ConfigOption = None,
    assign: SetOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Print a release's card in Markdown: what it learnt from, for whom it is right, what the gate measured."""
    from plaudit.release.card import card

    typer.echo(card(_channels(channel, target, config, assign, data_dir).release(channel, version)), nl=False)


@release_app.command("probes")
def probe_answers(
    channel: ChannelArgument,
    version: VersionArgument,
    config: ConfigOption = None,
    assign: SetOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Print a candidate's answers to the domain's safety probes that did harm, as JSON. Reads the registry itself."""
    named, settings = channel_of(channel), load_used(config, assign, data_dir)
    from plaudit.release.registry import PROBE_ANSWERS, Registry

    with Registry(settings.store_url, settings.registry_root) as registry:
        typer.echo(registry.kept_beside(named, version, PROBE_ANSWERS) or "[]")


@release_app.command("promote")
def promote(
    channel: ChannelArgument,
    version: VersionArgument,
    reason: ReasonOption = "",
    expected_generation: GenerationOption = None,
    target: TargetOption = "",
    as_json: JsonOption = False,
    config: ConfigOption = None,
    assign: SetOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Make a gated release live."""
    channels = _channels(channel, target, config, assign, data_dir)
    _report(channels.promote(channel, version, expected_generation, reason), as_json)


@release_app.command("rollback")
def rollback(
    channel: ChannelArgument,
    to: Annotated[int | None, typer.Option("--to", help="Version; by default the previous live one.", min=0)] = None,
    reason: ReasonOption = "",
    expected_generation: GenerationOption = None,
    target: TargetOption = "",
    as_json: JsonOption = False,
    config: ConfigOption = None,
    assign: SetOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Go back to an earlier release."""
    channels = _channels(channel, target, config, assign, data_dir)
    _report(channels.roll_back(channel, to, expected_generation, reason), as_json)


@release_app.command("pin")
def pin(
    channel: ChannelArgument,
    off: Annotated[bool, typer.Option("--off", help="Unpin.")] = False,
    reason: ReasonOption = "",
    expected_generation: GenerationOption = None,
    target: TargetOption = "",
    as_json: JsonOption = False,
    config: ConfigOption = None,
    assign: SetOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Pin the channel to its live release, so that the learner cannot change it, or unpin it."""
    channels = _channels(channel, target, config, assign, data_dir)
    _report(channels.pin(channel, not off, expected_generation, reason), as_json)


def _channels(
    channel: str, target: str, config: Path | None, assign: list[str] | None, data_dir: Path | None
) -> Channels:
    if target:
        return ServiceChannels(target)
    channel_of(channel)  # wrong usage is said first
    return RegistryChannels(load_used(config, assign, data_dir))


def _never_served(channel: str, settings: Settings) -> Exception:
    from plaudit.errors import UnknownChannel

    return UnknownChannel(
        f"channel {channel!r} has never served; `plaudit release` without --target reads {settings.registry_root}, "
        "is that the right one?"
    )


def _decided(row: dict[str, Any]) -> str:
    """What a release gained by its gate, and why it was refused if it was; empty for the base."""
    if not row["decision"]:
        return ""
    from plaudit.release.gate import Decision
    from plaudit.release.reading import failed_checks, gain

    decision = Decision.from_json(json.dumps(row["decision"]))
    refused = "" if decision.accepted else f"refused: {failed_checks(decision.checks)}"
    return "; ".join(each for each in (gain(decision), refused) if each)


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


def _sentence(state: dict[str, Any]) -> str:
    pinned = ", pinned" if state["pinned"] else ""
    return f"{state['channel']} serves version {state['live']} (generation {state['generation']}{pinned})"


def _report(state: dict[str, Any], as_json: bool) -> None:
    if as_json:
        _echo_json(state)
    else:
        typer.echo(_sentence(state))


def _echo_json(value: Any) -> None:
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False, default=str))
