"""`plaudit evidence` and `plaudit rejected`: what feedback became, and what the join could not use.

Texts of people and of the model are printed by `evidence show --text` alone; who gave what is a pseudonym.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from plaudit.cli.options import ChannelArgument, JsonOption, SettingsOptions, channel_of, echo_json, takes_settings

if TYPE_CHECKING:
    from plaudit.eventlog.codec import Rejected
    from plaudit.settings import Settings

_HEADER_BYTES = 200  # that are shown of a header's value
_MOST_REPLAYED = 10_000  # of one reason at a time: their bytes are in memory

evidence_app = typer.Typer(help="Evidence: what became of feedback.", no_args_is_help=True)
rejected_app = typer.Typer(help="Records that the join could not use (plaudit.rejected).", no_args_is_help=True)


@evidence_app.command("show")
@takes_settings
def show_evidence(
    given: SettingsOptions,
    interaction: Annotated[str, typer.Argument(help="Id of the interaction, as the reply gave it.")],
    text: Annotated[bool, typer.Option("--text", help="Also what people and the model wrote.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Show the feedback on an interaction: its status, the evidence it gave, what that is used for."""
    settings = given.load_used()
    from plaudit.errors import NoInteraction
    from plaudit.evidence.trace import channel_of, trace
    from plaudit.plugins import load_plugins
    from plaudit.release.registry import Registry

    with Registry(settings.store_url, settings.registry_root) as registry:
        channel = channel_of(registry.database, interaction)
        if channel is None:
            raise NoInteraction(
                f"the join has read neither an interaction {interaction!r} nor feedback on it; `plaudit status` says "
                "whether the join runs and how many records it has not read"
            )
        plugin = load_plugins(settings.plugins.allow).get(channel.domain)
        found = trace(
            registry.database,
            interaction,
            registry.salt(channel) if registry.state(channel) else None,
            few_raters=plugin is not None and plugin.declaration.few_raters,
            texts=text,
        )
    typer.echo(json.dumps(found, indent=2, ensure_ascii=False) if as_json else _trace_lines(found))


@evidence_app.command("reasons")
@takes_settings
def count_reasons(given: SettingsOptions, channel: ChannelArgument, as_json: JsonOption = False) -> None:
    """Count the reasons that people name, by release and kind of feedback."""
    settings = given.load_used()
    from plaudit.evidence.reasons import reasons_named
    from plaudit.evidence.store import EvidenceStore

    store = EvidenceStore(settings.store_url)
    try:
        found = reasons_named(store.database, channel_of(channel))
    finally:
        store.close()
    if as_json:
        echo_json([dataclasses.asdict(each) for each in found])
        return
    for each in found:
        shares = ", ".join(f"{name} {count} ({count / each.acts:.0%})" for name, count in each.reasons.items())
        typer.echo(f"release {each.release}  {each.said}: {each.acts}; {shares or 'no reasons'}")
    if not found:
        typer.echo(f"nothing was said about answers of {channel}")


@rejected_app.command("list")
@takes_settings
def list_rejected(
    given: SettingsOptions,
    last: Annotated[int, typer.Option("--last", help="Number of the newest ones to show.", min=1)] = 20,
    reason: Annotated[str, typer.Option("--reason", help="Only those of one reason, such as ID_CONFLICT.")] = "",
    as_json: JsonOption = False,
) -> None:
    """List what the join could not use and why, the newest last."""
    settings = given.load_logged()
    from plaudit.eventlog import open_log
    from plaudit.evidence.rejected import read_rejected

    log = open_log(settings)
    try:
        found = read_rejected(log, last, reason)
    finally:
        log.close()
    if as_json:
        rows = [
            {
                "rejected_at": each.rejected_at.isoformat(timespec="seconds"),
                "reason": each.reason,
                "message": each.message,
                "record": f"{each.topic}:{each.partition}:{each.offset}",
                "key": each.key.decode(errors="replace"),
                "bytes": len(each.value),
            }
            for each in found.newest
        ]
        echo_json({"counts": found.counts, "newest": rows})
        return
    if not found.newest:
        typer.echo("nothing was rejected" + (f" as {reason}" if reason else ""))
        return
    for each in found.newest:
        where = f"{each.topic}:{each.partition}:{each.offset}"
        typer.echo(f"{each.rejected_at.isoformat(timespec='seconds')}  {each.reason:<18} {where}  {each.message}")
    counts = ", ".join(f"{count} {name}" for name, count in found.counts.items())
    typer.echo(f"in all: {counts}; docs/errors.md has the reasons")


RecordArgument = Annotated[str, typer.Argument(help="TOPIC:PARTITION:OFFSET, as `plaudit rejected list` names it.")]


@rejected_app.command("show")
@takes_settings
def show_rejected(
    given: SettingsOptions,
    record: RecordArgument,
    out: Annotated[Path | None, typer.Option(help="File for the record's original bytes; they may hold text.")] = None,
) -> None:
    """Show why one record was rejected, each reason once; with --out also keep its bytes."""
    found = _rejections(given.load_logged(), record, "")
    for each in found:
        typer.echo(f"{each.rejected_at.isoformat(timespec='seconds')}  {each.reason}: {each.message}")
    typer.echo(f"key {found[-1].key.decode(errors='replace')}, {len(found[-1].value)} bytes")
    for name, value in found[-1].headers:
        typer.echo(f"header {name}: {value!r}" if len(value) <= _HEADER_BYTES else f"header {name}, {len(value)} bytes")
    if out is not None:
        out.write_bytes(found[-1].value)


@rejected_app.command("replay")
@takes_settings
def replay_rejected(
    given: SettingsOptions,
    record: Annotated[str, typer.Argument(help="TOPIC:PARTITION:OFFSET; all of --reason if it is left out.")] = "",
    reason: Annotated[str, typer.Option("--reason", help="All that were rejected for this reason.")] = "",
) -> None:
    """Send rejected records again, as they were, once what was wrong is fixed; the join counts nothing twice."""
    if bool(record) == bool(reason):
        raise typer.BadParameter("name one record, or a reason with --reason")
    settings = given.load_logged()
    from plaudit.eventlog import open_log
    from plaudit.evidence.rejected import replay

    found = _rejections(settings, record, reason)
    log = open_log(settings)
    try:
        typer.echo(f"{replay(log, found)} records were sent again")
    finally:
        log.close()


def _rejections(settings: Settings, record: str, reason: str) -> list[Rejected]:
    from plaudit.errors import UnknownFeedback
    from plaudit.eventlog import open_log
    from plaudit.evidence.rejected import read_rejected

    log = open_log(settings)
    try:
        found = list(read_rejected(log, _MOST_REPLAYED, reason, record).newest)
    finally:
        log.close()
    if not found:
        raise UnknownFeedback(f"nothing was rejected as {record or reason}; `plaudit rejected list` shows what was")
    return found


def _trace_lines(found: dict[str, Any]) -> str:
    if found["here"]:
        lines = [f"{found['interaction_id']}  {found['channel']}  {found['purpose']}  {found['completed_at']}"]
        if not found["consent"]["train"]:
            kept = "learnt from" if found["consent"]["store"] else "kept"
            lines.append(f"  nobody agreed that its texts are {kept}")
        lines += [f"  {message['role']}: {message['content']}" for message in found.get("messages", ())]
        for each in found["candidates"]:
            valid = "" if each["valid"] else ", invalid"
            option = f", option {each['option_id']}" if "option_id" in each else ""
            wrote = f": {each['text']}" if "text" in each else ""
            lines.append(f"  candidate {each['place']} of release {each['release']}{option}{valid}{wrote}")
    else:
        lines = [f"{found['interaction_id']}: the interaction has not arrived; feedback on it waits"]
    if not found["feedback"]:
        lines.append("  no feedback")
    for act in found["feedback"]:
        reason = f" ({act['reason']})" if act["reason"] else ""
        lines.append(f"  {act['accepted_at']}  {_words(act, _ACT_FRAME)}: {act['status']}{reason}, by {act['who']}")
        for piece in act["evidence"]:
            use = f": {piece['use']}" if "use" in piece else ""
            lines.append(f"      -> {piece['piece']} {_words(piece, _PIECE_FRAME)}{use}")
        if act["status"] == "joined" and not act["evidence"]:
            lines.append(
                "      -> no evidence: a comment teaches nothing by itself, and a domain may leave feedback out"
            )
    return "\n".join(lines)


_ACT_FRAME = frozenset({"feedback_id", "who", "accepted_at", "status", "reason", "evidence"})
_PIECE_FRAME = frozenset({"piece", "rater_split", "group_split", "use"})


def _words(fields: dict[str, Any], without: frozenset[str]) -> str:
    kind = fields.get("kind", "")
    rest = ", ".join(
        f"{name.removesuffix('_id').replace('_', ' ')} {value}"
        for name, value in fields.items()
        if name not in without and name != "kind" and value not in ("", None)
    )
    return f"{kind} ({rest})" if kind and rest else kind or rest
