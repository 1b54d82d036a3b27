"""`plaudit privacy`: the end of people's data, by age."""

from __future__ import annotations

import json
import sqlite3
from typing import Annotated

import typer

from plaudit.cli_settings import ConfigOption, DataDirOption, JsonOption, SetOption, load

privacy_app = typer.Typer(help="The end of people's data.", no_args_is_help=True)

_NAMES = {
    "log_records": "records of the embedded log",
    "interactions": "interactions",
    "feedback": "acts and retractions",
    "evidence": "pieces of evidence",
    "rejections": "rejected records",
    "probe_answers": "files of probe answers",
}


@privacy_app.command("expire")
def expire(
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Count what would be deleted, and delete nothing.")
    ] = False,
    compact: Annotated[
        bool, typer.Option("--compact", help="Also write SQLite files anew, without their free pages.")
    ] = False,
    as_json: JsonOption = False,
    config: ConfigOption = None,
    assign: SetOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Delete now what is older than privacy.retention_days, as the join does by itself."""
    settings = load(config, assign, data_dir)
    from plaudit.privacy.retention import Retention
    from plaudit.privacy.sweep import LEASE, scrub
    from plaudit.release.registry import Registry
    from plaudit.store.leases import LeaseHeld, Leases

    with Registry(settings.store_url, settings.registry_root) as registry:
        try:
            with Leases(registry.database).take(LEASE):
                found = Retention(settings, registry, dry_run=dry_run).run()
        except LeaseHeld as held:
            typer.echo(f"{held.owner} is at it already; try again in a minute", err=True)
            raise typer.Exit(1) from None
        try:
            clean = dry_run or scrub(settings, registry.database, compact=compact)
        except sqlite3.OperationalError:
            clean = False
    if as_json:
        typer.echo(json.dumps({"deleted": not dry_run, "counts": dict(sorted(found.items())), "scrubbed": clean}))
        return
    if not settings.shortest_retention_days:
        typer.echo("nothing ends: privacy.retention_days is 0 in every channel")
    words = ", ".join(f"{count} {_NAMES[what]}" for what, count in sorted(found.items())) or "nothing"
    typer.echo(f"{'would delete' if dry_run else 'deleted'}: {words}")
    if not clean:
        typer.echo(
            "a reader was in the way: the files' bytes still hold what was deleted; the join tries again", err=True
        )
