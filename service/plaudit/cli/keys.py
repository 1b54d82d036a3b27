"""`plaudit keys`: API keys of callers, raters, operators and learners, in the store.

Whoever can write the store makes the first key; there is no other way in. The key itself is printed once, alone on
standard output, so that a script can take it.
"""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from plaudit.cli.options import JsonOption, SettingsOptions, echo_json, operator, takes_settings

if TYPE_CHECKING:
    from plaudit.access.keys import ApiKey, ApiKeys
    from plaudit.settings import Settings

keys_app = typer.Typer(help="API keys: who may call, as what, for which tenants.", no_args_is_help=True)


@keys_app.command("create")
@takes_settings
def create(
    given: SettingsOptions,
    name: Annotated[str, typer.Argument(help="What the key is called in records, such as shop-backend.")],
    role: Annotated[list[str], typer.Option("--role", help="caller, rater, operator or learner; repeats.")],
    tenant: Annotated[list[str] | None, typer.Option("--tenant", help="Tenant; repeats; '*' is any.")] = None,
    domain: Annotated[list[str] | None, typer.Option("--domain", help="Domain; repeats; any if left out.")] = None,
    days: Annotated[int, typer.Option("--days", help="Days until it expires; 0: never.", min=0, max=36_500)] = 0,
    as_json: JsonOption = False,
) -> None:
    """Make a key and print it: it is shown this once, and kept only as a hash."""
    from plaudit.access.rights import ANY, Role

    if not name or len(name) > 100 or not name.isprintable():
        raise typer.BadParameter("a name has 1 to 100 printable characters", param_hint="NAME")
    unknown = sorted(set(role) - set(Role))
    if unknown:
        raise typer.BadParameter(f"{unknown[0]!r} is not a role; roles are {', '.join(Role)}", param_hint="--role")
    if not tenant:
        raise typer.BadParameter("name the tenants that it is for, or '*' for any", param_hint="--tenant")
    expires_at = dt.datetime.now(dt.UTC) + dt.timedelta(days=days) if days else None
    with _keys(given.load()) as keys:
        roles = {Role(each) for each in role}
        key, text = keys.create(name, roles, tenant, domain or [ANY], by=operator(), expires_at=expires_at)
    typer.echo(_line(key), err=True)
    typer.echo(json.dumps({**_row(key), "key": text}, indent=2) if as_json else text)


@keys_app.command("list")
@takes_settings
def list_keys(given: SettingsOptions, as_json: JsonOption = False) -> None:
    """List every key with what it is for; revoked and expired ones too."""
    with _keys(given.load_used()) as keys:
        found = keys.all()
    if as_json:
        echo_json([_row(key) for key in found])
    else:
        typer.echo("\n".join(map(_line, found)) or "there are no keys; `plaudit keys create` makes one")


@keys_app.command("revoke")
@takes_settings
def revoke(
    given: SettingsOptions,
    key_id: Annotated[str, typer.Argument(help="The key's id, as `plaudit keys list` shows it.")],
) -> None:
    """Revoke a key; running servers refuse it within access.remember_seconds."""
    with _keys(given.load_used()) as keys:
        key = keys.revoke(key_id, by=operator())
    if key is None:
        raise typer.BadParameter("there is no such key; `plaudit keys list` shows all", param_hint="KEY_ID")
    typer.echo(_line(key))


@keys_app.command("rights")
def rights() -> None:
    """Print which role may make which call, as the table of docs/access.md."""
    from plaudit.access.rights import rights_table

    typer.echo(rights_table())


@contextmanager
def _keys(settings: Settings) -> Iterator[ApiKeys]:
    from plaudit.access.keys import ApiKeys
    from plaudit.store.database import Database

    database = Database(settings.store_url)
    try:
        yield ApiKeys(database)
    finally:
        database.close()


def _row(key: ApiKey) -> dict[str, Any]:
    return {
        "key_id": key.key_id,
        "name": key.name,
        "state": key.state(dt.datetime.now(dt.UTC)),
        "roles": sorted(key.roles),
        "tenants": sorted(key.tenants),
        "domains": sorted(key.domains),
        "created_at": key.created_at.isoformat(timespec="seconds"),
        "created_by": key.created_by,
        "expires_at": key.expires_at.isoformat(timespec="seconds") if key.expires_at else None,
        "revoked_at": key.revoked_at.isoformat(timespec="seconds") if key.revoked_at else None,
        "revoked_by": key.revoked_by,
    }


def _line(key: ApiKey) -> str:
    row = _row(key)
    what = [",".join(row[name]) for name in ("roles", "tenants", "domains")]
    until = f", until {row['expires_at']}" if row["expires_at"] else ""
    return f"{row['key_id']}  {row['state']:<8} {row['name']}: {what[0]} of {what[1]}, domains {what[2]}{until}"
