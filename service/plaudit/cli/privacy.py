"""`plaudit privacy`: the end of people's data, by age and by a person's wish.

Names are given as callers send them, and kept nowhere: records have pseudonyms.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from plaudit.cli.options import JsonOption, SettingsOptions, operator, takes_settings

if TYPE_CHECKING:
    from plaudit.privacy.erasure import Erasure
    from plaudit.release.registry import Registry
    from plaudit.settings import Settings

privacy_app = typer.Typer(help="Erase a person, or what is older than may be kept.", no_args_is_help=True)

_NAMES = {
    "log_records": "records of the embedded log",
    "interactions": "interactions",
    "feedback": "acts and retractions",
    "evidence": "pieces of evidence",
    "rejections": "rejected records",
    "probe_answers": "files of probe answers",
}


@privacy_app.command("expire")
@takes_settings
def expire(
    given: SettingsOptions,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Count what would be deleted, and delete nothing.")
    ] = False,
    compact: Annotated[
        bool, typer.Option("--compact", help="Also write SQLite files anew, without their free pages.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Delete now what is older than privacy.retention_days, as the join does by itself."""
    settings = given.load_used()
    from plaudit.privacy.files import scrub
    from plaudit.privacy.retention import Retention
    from plaudit.privacy.sweep import LEASE
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


_LOOK_SECONDS = 0.5


@privacy_app.command("erase")
@takes_settings
def erase(
    given: SettingsOptions,
    person: Annotated[str, typer.Argument(help="The end user or rater, as callers name them.")],
    tenant: Annotated[str, typer.Option("--tenant", help="Tenant of the person.")] = "default",
    erasure_id: Annotated[str, typer.Option("--id", help="Id of the erasure, a UUID; with an old id it goes on.")] = "",
    wait: Annotated[
        float, typer.Option("--wait", help="Seconds to wait for what needs the join or other processes.", min=0)
    ] = 30.0,
    out: Annotated[Path | None, typer.Option("--out", help="File for the receipt, instead of standard output.")] = None,
) -> None:
    """Erase a person from log, store and models, and print the receipt. Exit code 1 while data are not gone."""
    settings = given.load_used()
    from plaudit.privacy import erasure
    from plaudit.privacy.receipts import state_of
    from plaudit.release.registry import Registry
    from plaudit.serving.handle import pseudonym
    from plaudit.serving.keys import agreed_pseudonym_key
    from plaudit.serving.validate import MAX_PERSON_BYTES, identifier, short_text, tenant_name

    checked = tenant_name(tenant)
    name = short_text("person", person, MAX_PERSON_BYTES, required=True)
    with Registry(settings.store_url, settings.registry_root) as registry:
        key = agreed_pseudonym_key(settings, registry.database, names=False)
        who = pseudonym(key, checked, name)
        by = operator()
        found = erasure.request(registry.database, identifier("erasure_id", erasure_id), checked, who, by)
        found = _finished(settings, registry, found, wait)
        _give(settings, registry, found, out)
    if state_of(found) == "requested":
        typer.echo(
            f"erasure {found.erasure_id} waits behind step {found.step}; a running join brings it to its end: "
            f"`plaudit privacy receipt {found.erasure_id}` says how far it is",
            err=True,
        )
        raise typer.Exit(1)


@privacy_app.command("receipt")
@takes_settings
def receipt(
    given: SettingsOptions,
    erasure_id: Annotated[str, typer.Argument(help="Id of the erasure.")],
    out: Annotated[Path | None, typer.Option("--out", help="File for the receipt, instead of standard output.")] = None,
) -> None:
    """Print the signed receipt of an erasure as it stands."""
    settings = given.load_used()
    from plaudit.privacy import erasure
    from plaudit.release.registry import Registry

    with Registry(settings.store_url, settings.registry_root) as registry:
        _give(settings, registry, erasure.read(registry.database, erasure_id), out)


@privacy_app.command("verify")
@takes_settings
def verify(
    given: SettingsOptions,
    receipt: Annotated[Path, typer.Argument(help="File of a receipt.")],
    public_key: Annotated[str, typer.Option("--public-key", help="Key in hex that must have signed it.")] = "",
) -> None:
    """Check that a receipt was signed here, or with --public-key, and was not changed. Exit code 1 if not."""
    settings = given.load()
    from plaudit.errors import Misconfigured
    from plaudit.privacy.receipts import KEY_FILE, signing_key, verified

    if not (public_key or settings.privacy.receipt_key.get_secret_value() or (settings.data_dir / KEY_FILE).exists()):
        raise Misconfigured(
            f"no receipt was signed here: privacy.receipt_key is unset and {settings.data_dir / KEY_FILE} is not "
            "there; say --public-key, or name the data directory that signed it",
            setting="privacy.receipt_key",
        )
    try:
        key = bytes.fromhex(public_key) if public_key else signing_key(settings).public_key().public_bytes_raw()
    except ValueError:
        raise typer.BadParameter("the key is not hex", param_hint="--public-key") from None
    facts = verified(receipt.read_text(encoding="utf-8"), key)
    deleted = ", ".join(f"{count} {what}" for what, count in facts["deleted"].items()) or "nothing was there"
    typer.echo(f"the receipt of erasure {facts['erasure_id']} is good: {facts['state']}; {deleted}")


def _finished(settings: Settings, registry: Registry, found: Erasure, seconds: float) -> Erasure:
    """The erasure, brought as far as it comes within so many seconds, by this process or by a join."""
    from plaudit.eventlog import open_log
    from plaudit.privacy import erasure
    from plaudit.privacy.sweep import finish
    from plaudit.store.leases import LeaseHeld

    log = open_log(settings)
    deadline = time.monotonic() + seconds
    try:
        while True:
            with contextlib.suppress(LeaseHeld, sqlite3.OperationalError):  # a join is at it, or has the file
                finish(settings, registry, log)
            found = erasure.read(registry.database, found.erasure_id)
            if found.erased_at is not None or time.monotonic() > deadline:
                return found
            time.sleep(_LOOK_SECONDS)
    finally:
        log.close()


def _give(settings: Settings, registry: Registry, found: Erasure, out: Path | None) -> None:
    from plaudit.privacy.receipts import receipt

    text = receipt(settings, registry.database, found).to_json()
    if out is None:
        typer.echo(text)
    else:
        out.write_text(text + "\n", encoding="utf-8")
        typer.echo(f"{out}: the receipt of erasure {found.erasure_id}")
