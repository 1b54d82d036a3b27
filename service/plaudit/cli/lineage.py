"""`plaudit release lineage`: from a release to what it learnt from, and from an act of feedback to its releases.

Reads the registry and the evidence store themselves; prints ids, counts and states, never what people wrote.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from plaudit.cli.options import JsonOption, SettingsOptions, channel_of, takes_settings

if TYPE_CHECKING:
    from plaudit.release.registry import Registry
    from plaudit.types import Channel


@takes_settings
def lineage(
    given: SettingsOptions,
    channel: Annotated[str, typer.Argument(help='Channel of the release, as "domain/tenant".')] = "",
    version: Annotated[int | None, typer.Argument(help="Version of the release.", min=0)] = None,
    act: Annotated[str, typer.Option("--act", help="Id of a piece of feedback: which releases learnt from it.")] = "",
    interaction: Annotated[
        str, typer.Option("--interaction", help="Id of an interaction: which releases learnt from feedback on it.")
    ] = "",
    most: Annotated[int, typer.Option("--most", help="Number of withdrawn pieces of feedback to name.", min=0)] = 100,
    as_json: JsonOption = False,
) -> None:
    """Show what a release came from and what of it was withdrawn since, or which releases had a piece of feedback."""
    named = bool(act or interaction)
    if named == bool(channel) or bool(channel) != (version is not None):
        raise typer.BadParameter("name a release (CHANNEL VERSION), or a piece of feedback with --act or --interaction")
    whose = channel_of(channel) if channel else None
    settings = given.load_used()
    from plaudit.release.registry import Registry

    with Registry(settings.store_url, settings.registry_root) as registry:
        if whose is None or version is None:
            acts = _acts(registry, act, interaction)
            typer.echo(_json(acts) if as_json else _acts_lines(acts))
        else:
            found = _release(registry, whose, version, most)
            typer.echo(_json(found) if as_json else _release_lines(found))


def _acts(registry: Registry, act: str, interaction: str) -> dict[str, Any]:
    from plaudit.release.lineage import learnt

    found = learnt(registry.database, feedback_id=act, interaction_id=interaction)
    states = {each.channel: registry.state(each.channel) for each in found}
    return {
        "acts": [
            {
                "channel": str(each.channel),
                "interaction_id": each.interaction_id,
                "feedback_id": each.feedback_id,
                "releases": [_row(registry, each.channel, version) for version in each.versions],
                "serves": state.live if (state := states[each.channel]) else None,
            }
            for each in found
        ]
    }


def _release(registry: Registry, channel: Channel, version: int, most: int) -> dict[str, Any]:
    from plaudit.release.lineage import since

    manifest = registry.manifest(channel, version)
    parents, parent = [], manifest.parent
    while parent is not None:
        parents.append({**_row(registry, channel, parent), "evidence_digest": None})
        above = registry.manifest(channel, parent)
        parents[-1]["evidence_digest"] = above.evidence_digest
        parent = above.parent
    gone = since(registry.database, channel, version, most=most)
    plain = json.loads(manifest.to_json_for_readers())
    return {
        "channel": str(channel),
        **_row(registry, channel, version),
        "parents": parents,
        **{name: plain.get(name) for name in ("evidence_digest", "evidence_counts", "as_of", "newest_feedback_at")},
        "offsets": plain["offsets"],
        "acts": gone.acts,
        "erased": version in registry.erased(channel),
        "withdrawn": gone.counts,
        "withdrawn_acts": [
            {"interaction_id": each, "feedback_id": act, "became": fate} for each, act, fate in gone.first
        ],
    }


def _row(registry: Registry, channel: Channel, version: int) -> dict[str, Any]:
    row = registry.release(channel, version)
    return {
        "version": version,
        "state": str(row.state),
        "digest": row.digest,
        "created_at": row.created_at.isoformat(timespec="seconds"),
    }


def _acts_lines(found: dict[str, Any]) -> str:
    if not found["acts"]:
        return "no release learnt from it (of releases made before Plaudit kept this, nothing is known)"
    lines = []
    for each in found["acts"]:
        lines.append(f"{each['feedback_id']} on {each['interaction_id']} ({each['channel']})")
        lines += [f"  {_said(row)}{'  serves' * (row['version'] == each['serves'])}" for row in each["releases"]]
    return "\n".join(lines)


def _release_lines(found: dict[str, Any]) -> str:
    lines = [f"{found['channel']}  {_said(found)}"]
    lines += [f"  began from  {_said(row)}" for row in found["parents"]]
    if found["evidence_digest"]:
        counts = ", ".join(f"{count} {kind}" for kind, count in found["evidence_counts"].items())
        lines.append(f"  evidence    {found['evidence_digest']} as of {found['as_of']}")
        lines.append(f"              {counts or 'none'}")
    if found["erased"]:
        lines.append("  erasure     it may have learnt from somebody who was erased: it goes out of service")
    if found["acts"] is None:
        why = "not kept of this release" if found["version"] else "none: this is the base"
        lines.append(f"  feedback    {why}")
    elif found["acts"]:
        gone = ", ".join(f"{count} {fate}" for fate, count in found["withdrawn"].items())
        lines.append(f"  feedback    {found['acts']}; since then {gone or 'all still count'}")
        lines += [
            f"              {row['became']}: {row['feedback_id']} on {row['interaction_id']}"
            for row in found["withdrawn_acts"]
        ]
    return "\n".join(lines)


def _said(row: dict[str, Any]) -> str:
    return f"version {row['version']}  {row['state']:<11} {row['created_at']}  {row['digest'][:12]}"


def _json(value: dict[str, Any]) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False)
