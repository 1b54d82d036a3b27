"""`plaudit release`: what a channel serves, and the operator's three moves on it."""

from __future__ import annotations

import dataclasses
import json
from typing import Annotated, Any

import typer

from plaudit.cli.channels import channels_of, never_served
from plaudit.cli.options import ChannelArgument, JsonOption, SettingsOptions, channel_of, echo_json, takes_settings

release_app = typer.Typer(help="Releases of a channel, and which of them serves.", no_args_is_help=True)

VersionArgument = Annotated[int, typer.Argument(help="Version; 0 is the base.", min=0)]
TargetOption = Annotated[str, typer.Option("--target", help="Ask this running service (host:port), not the registry.")]
ReasonOption = Annotated[str, typer.Option("--reason", help="Why, for the record.")]
GenerationOption = Annotated[
    int | None, typer.Option("--expected-generation", help="Refuse if somebody changed the channel since this one.")
]


@release_app.command("list")
@takes_settings
def list_releases(
    given: SettingsOptions,
    channel: ChannelArgument,
    target: TargetOption = "",
    as_json: JsonOption = False,
) -> None:
    """List a channel's releases: which serves, what each gained, why the gate refused it."""
    found = channels_of(channel, target, given).releases(channel)
    if as_json:
        echo_json(found)
        return
    typer.echo(_sentence(found["state"]))
    for row in found["releases"]:
        mark = "*" if row["version"] == found["state"]["live"] else " "
        said = f"  {why}" if (why := _decided(row)) else ""
        typer.echo(f"{mark} {row['version']:>4}  {row['state']:<12} {row['created_at']}  {row['digest'][:12]}{said}")


@release_app.command("history")
@takes_settings
def release_history(given: SettingsOptions, channel: ChannelArgument, as_json: JsonOption = False) -> None:
    """List who changed what a channel serves, when and why. Reads the registry itself."""
    from plaudit.release.registry import Registry

    named, settings = channel_of(channel), given.load_used()
    with Registry(settings.store_url, settings.registry_root) as registry:
        rows = [dataclasses.asdict(row) for row in registry.history(named)]
    if as_json:
        echo_json([{**row, "at": row["at"].isoformat(timespec="seconds")} for row in rows])
        return
    if not rows:
        raise never_served(channel, settings)
    for row in rows:
        pinned = ", pinned" if row["pinned"] else ""
        why = f": {row['reason']}" if row["reason"] else ""
        typer.echo(
            f"{row['generation']:>4}  {row['at'].isoformat(timespec='seconds')}  {row['move']:<14} "
            f"-> version {row['live']} live{pinned}  by {row['actor']}{why}"
        )


@release_app.command("show")
@takes_settings
def show_release(
    given: SettingsOptions,
    channel: ChannelArgument,
    version: VersionArgument,
    target: TargetOption = "",
) -> None:
    """Print a release with its gate's decision and its manifest, as JSON."""
    echo_json(channels_of(channel, target, given).release(channel, version))


@release_app.command("card")
@takes_settings
def release_card(
    given: SettingsOptions,
    channel: ChannelArgument,
    version: VersionArgument,
    target: TargetOption = "",
) -> None:
    """Print a release's card in Markdown: what it learnt from, its accuracy by slice, what the gate measured."""
    from plaudit.release.card import card

    typer.echo(card(channels_of(channel, target, given).release(channel, version)), nl=False)


@release_app.command("probes")
@takes_settings
def probe_answers(given: SettingsOptions, channel: ChannelArgument, version: VersionArgument) -> None:
    """Print a candidate's answers to the domain's safety probes that did harm, as JSON. Reads the registry itself."""
    named, settings = channel_of(channel), given.load_used()
    from plaudit.release.registry import PROBE_ANSWERS, Registry

    with Registry(settings.store_url, settings.registry_root) as registry:
        typer.echo(registry.kept_beside(named, version, PROBE_ANSWERS) or "[]")


@release_app.command("promote")
@takes_settings
def promote(
    given: SettingsOptions,
    channel: ChannelArgument,
    version: VersionArgument,
    reason: ReasonOption = "",
    expected_generation: GenerationOption = None,
    target: TargetOption = "",
    as_json: JsonOption = False,
) -> None:
    """Make a gated release live."""
    channels = channels_of(channel, target, given)
    _report(channels.promote(channel, version, expected_generation, reason), as_json)


@release_app.command("rollback")
@takes_settings
def rollback(
    given: SettingsOptions,
    channel: ChannelArgument,
    to: Annotated[int | None, typer.Option("--to", help="Version; by default the previous live one.", min=0)] = None,
    reason: ReasonOption = "",
    expected_generation: GenerationOption = None,
    target: TargetOption = "",
    as_json: JsonOption = False,
) -> None:
    """Roll back to an earlier release."""
    channels = channels_of(channel, target, given)
    _report(channels.roll_back(channel, to, expected_generation, reason), as_json)


@release_app.command("pin")
@takes_settings
def pin(
    given: SettingsOptions,
    channel: ChannelArgument,
    off: Annotated[bool, typer.Option("--off", help="Unpin.")] = False,
    reason: ReasonOption = "",
    expected_generation: GenerationOption = None,
    target: TargetOption = "",
    as_json: JsonOption = False,
) -> None:
    """Pin the channel to its live release, so that the learner cannot change it, or unpin it."""
    channels = channels_of(channel, target, given)
    _report(channels.pin(channel, not off, expected_generation, reason), as_json)


def _decided(row: dict[str, Any]) -> str:
    """What a release gained by its gate, and why it was refused if it was; empty for the base."""
    if not row["decision"]:
        return ""
    from plaudit.release.decision import Decision
    from plaudit.release.reading import failed_checks, gain

    decision = Decision.from_json(json.dumps(row["decision"]))
    refused = "" if decision.accepted else f"refused: {failed_checks(decision.checks)}"
    return "; ".join(each for each in (gain(decision), refused) if each)


def _sentence(state: dict[str, Any]) -> str:
    pinned = ", pinned" if state["pinned"] else ""
    return f"{state['channel']} serves version {state['live']} (generation {state['generation']}{pinned})"


def _report(state: dict[str, Any], as_json: bool) -> None:
    if as_json:
        echo_json(state)
    else:
        typer.echo(_sentence(state))
