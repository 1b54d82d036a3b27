"""`plaudit raters`: raters whose feedback is kept and not learnt from, and the operator's word on each.

Raters go by their pseudonyms, as evidence names them. `--person` finds the pseudonym of a name: the name itself is kept
nowhere.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from plaudit.cli.options import (
    ChannelArgument,
    JsonOption,
    SettingsOptions,
    channel_of,
    echo_json,
    operator,
    takes_settings,
)

if TYPE_CHECKING:
    from plaudit.evidence.quarantine import Quarantine, Quarantined
    from plaudit.settings import Settings

raters_app = typer.Typer(help="Raters whose feedback is kept and not learnt from.", no_args_is_help=True)

PSEUDONYM_DIGITS = 32
_PART_OF_PSEUDONYM = re.compile(f"[0-9a-f]{{4,{PSEUDONYM_DIGITS - 1}}}")

RaterArgument = Annotated[
    str, typer.Argument(help="The rater's pseudonym, 32 digits, as `plaudit evidence show` prints it.")
]
PersonOption = Annotated[bool, typer.Option("--person", help="RATER is a name as callers send it, not a pseudonym.")]


@raters_app.command("list")
@takes_settings
def list_raters(
    given: SettingsOptions,
    channel: Annotated[str, typer.Argument(help="Channel, such as support/acme; all if it is left out.")] = "",
    ended: Annotated[bool, typer.Option("--ended", help="Also raters who were released again.")] = False,
    as_json: JsonOption = False,
) -> None:
    """List raters in quarantine: since when, why, by whom, and how many pieces of feedback do not count."""
    with _quarantine(given.load_used()) as quarantine:
        found = quarantine.list(channel_of(channel) if channel else None, ended=ended)
    if as_json:
        echo_json([_row(each) for each in found])
    else:
        typer.echo("\n".join(map(_line, found)) or "nobody is in quarantine")


@raters_app.command("quarantine")
@takes_settings
def quarantine_rater(
    given: SettingsOptions,
    channel: ChannelArgument,
    rater: RaterArgument,
    reason: Annotated[str, typer.Option("--reason", help="Why, for the record.")],
    person: PersonOption = False,
) -> None:
    """Learn nothing from a rater's feedback, past and future, from the next turn on."""
    settings = given.load_used()
    with _quarantine(settings) as quarantine:
        name = _pseudonym(settings, channel, rater, person)
        done = quarantine.put(channel_of(channel), name, reason, by=operator())
        acts = [each.acts for each in quarantine.list(channel_of(channel)) if each.rater == name]
    typer.echo(f"{name} is in quarantine" if done else f"{name} was in quarantine already")
    if not any(acts):
        typer.echo(
            f"no feedback by {name} counts in {channel} so far"
            + ("" if person else "; a name as callers send it needs --person"),
            err=True,
        )


@raters_app.command("release")
@takes_settings
def release_rater(
    given: SettingsOptions,
    channel: ChannelArgument,
    rater: RaterArgument,
    person: PersonOption = False,
) -> None:
    """Let a rater's feedback count again; no anomaly puts that rater back."""
    settings = given.load_used()
    with _quarantine(settings) as quarantine:
        name = _pseudonym(settings, channel, rater, person)
        done = quarantine.release(channel_of(channel), name, by=operator())
    if not done:
        raise typer.BadParameter(f"{name} is not in quarantine; `plaudit raters list` shows who is", param_hint="RATER")
    typer.echo(f"the feedback of {name} counts again")


@contextmanager
def _quarantine(settings: Settings) -> Iterator[Quarantine]:
    from plaudit.evidence.quarantine import Quarantine
    from plaudit.store.database import Database

    database = Database(settings.store_url)
    try:
        yield Quarantine(database)
    finally:
        database.close()


def _pseudonym(settings: Settings, channel: str, rater: str, person: bool) -> str:
    from plaudit.serving.handle import pseudonym
    from plaudit.serving.keys import agreed_pseudonym_key
    from plaudit.store.database import Database

    if person:
        with closing(Database(settings.store_url)) as database:
            key = agreed_pseudonym_key(settings, database, names=False)
        return pseudonym(key, channel_of(channel).tenant, rater)
    if _PART_OF_PSEUDONYM.fullmatch(rater):
        raise typer.BadParameter(
            f"{rater} is a part of a pseudonym; give all its {PSEUDONYM_DIGITS} digits, as `plaudit evidence show` "
            "prints them, or a name as callers send it with --person",
            param_hint="RATER",
        )
    return rater


def _row(each: Quarantined) -> dict[str, Any]:
    return {
        "channel": str(each.channel),
        "rater": each.rater,
        "since": each.since.isoformat(timespec="seconds"),
        "until": each.until.isoformat(timespec="seconds") if each.until else None,
        "reason": each.reason,
        "by": each.by,
        "released_by": each.released_by,
        "acts": each.acts,
    }


def _line(each: Quarantined) -> str:
    since = f"since {each.since:%Y-%m-%d %H:%M} by {each.by}: {each.reason}"
    words = f"{each.channel}  {each.rater}  {each.acts} pieces of feedback, {since}"
    return f"{words}; let out {each.until:%Y-%m-%d %H:%M} by {each.released_by}" if each.until else words
