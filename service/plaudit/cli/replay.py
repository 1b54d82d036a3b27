"""`plaudit evidence rebuild` and `plaudit release replay`: whether the log still gives what was made of it."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer

from plaudit.cli.options import ChannelArgument, JsonOption, SettingsOptions, channel_of, echo_json, takes_settings

if TYPE_CHECKING:
    from plaudit.evidence.rebuild import Rebuilt
    from plaudit.learner.replay import Replayed

_TELL_SECONDS = 2.0


@takes_settings
def rebuild(
    given: SettingsOptions,
    check: Annotated[
        bool, typer.Option("--check", help="Only say what differs; exit code 1 if something does.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Derive all evidence again from the log, compare it with what is stored, and repair what differs."""
    settings = given.load_logged()
    from plaudit.eventlog import open_log
    from plaudit.evidence.rebuild import rebuild as run
    from plaudit.evidence.store import EvidenceStore
    from plaudit.plugins import load_plugins
    from plaudit.privacy.forgotten import Forgotten

    plugins = load_plugins(settings.plugins.allow, budget_seconds=settings.plugins.budget_seconds)
    store, tell = EvidenceStore(settings.store_url), _teller()
    try:
        log = open_log(settings)
        try:
            found = run(
                log,
                store,
                plugins,
                settings.join,
                fix=not check,
                forgotten=Forgotten(
                    lambda channel: settings.for_channel(channel).privacy.retention_days,
                    opens=settings.privacy.person_keys,
                ),
                progress=lambda count: tell(f"{count} records read"),
            )
        finally:
            log.close()
    finally:
        store.close()
    if as_json:
        echo_json(_rebuilt_json(found))
    else:
        typer.echo(_rebuilt_lines(found))
    if check and not found.same:
        raise typer.Exit(1)


@takes_settings
def replay(
    given: SettingsOptions,
    channel: ChannelArgument,
    version: Annotated[int, typer.Argument(help="Version of the release.", min=1)],
    as_json: JsonOption = False,
) -> None:
    """Retrain a release from its manifest and say whether the same adapter comes out. Nothing is promoted.

    Exit code 1 if it is another adapter, or if there is nothing left to train from.
    """
    named, settings = channel_of(channel), given.load_used()
    from plaudit.learner.replay import replay as run

    found = run(settings, named, version, progress=_teller())
    typer.echo(json.dumps(found.to_json(), indent=2) if as_json else _replayed_lines(found))
    if not found.same:
        raise typer.Exit(1)


def _teller() -> Callable[[str], None]:
    """Tells on standard error what goes on, every now and then."""
    told = time.monotonic()

    def tell(text: str) -> None:
        nonlocal told
        if time.monotonic() - told >= _TELL_SECONDS:
            told = time.monotonic()
            typer.echo(text, err=True)

    return tell


def _rebuilt_json(found: Rebuilt) -> dict[str, object]:
    return {
        "same": found.same,
        "records": found.read.records,
        "gaps": [dataclasses.asdict(gap) for gap in found.read.gaps],
        "channels": [
            {**dataclasses.asdict(each), "channel": str(each.channel), "same": each.same} for each in found.channels
        ],
        "fixed": found.fixed,
    }


def _rebuilt_lines(found: Rebuilt) -> str:
    lines = [f"{found.read.records} records read from the log"]
    lines += [f"  {gap}" for gap in found.read.gaps]
    for each in found.channels:
        beyond = f"; {each.beyond} more whose records the log no longer holds" if each.beyond else ""
        said = "the same" if each.same else f"{each.different} rows differ (the log gives {each.rebuilt[:12]})"
        lines.append(f"{each.channel}: {each.rows} rows of evidence, digest {each.digest[:12]}: {said}{beyond}")
    if found.fixed:
        lines.append(f"the evidence of {found.fixed} interactions was made anew")
    return "\n".join(lines)


def _replayed_lines(found: Replayed) -> str:
    if found.same:
        lines = [f"{found.channel}@{found.version}: the same adapter, {found.adapter[:12]}"]
    elif found.found is None:
        lines = [f"{found.channel}@{found.version}: cannot be replayed"]
    else:
        lines = [
            f"{found.channel}@{found.version}: another adapter, {found.found[:12]} instead of {found.adapter[:12]}"
        ]
        if not found.differences:
            lines.append("  nothing that is recorded differs: another machine, or another number of threads?")
    return "\n".join([*lines, *(f"  {each}" for each in found.differences)])
