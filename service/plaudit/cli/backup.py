"""`plaudit backup` and `plaudit restore`: for whoever may read and write data directory, store and registry."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from plaudit.cli.options import JsonOption, SettingsOptions, echo_json, takes_settings


@takes_settings
def backup(
    given: SettingsOptions,
    target: Annotated[Path, typer.Argument(help="New folder, or new file that ends in .tar.")],
    as_json: JsonOption = False,
) -> None:
    """Back up database, embedded log or outbox, registry and keys, while processes run. Holds texts and keys."""
    settings = given.load_used()
    from plaudit.backup import backup as run

    made = run(settings, target)
    if as_json:
        echo_json(dataclasses.asdict(made))
        return
    logs = [name for name in made.files if "/" not in name and not name.startswith("store.")]
    typer.echo(
        f"{target}: {made.size / 2**20:.1f} MiB: the store ({made.store}), {', '.join(logs) or 'no log'}, "
        f"{made.count('registry')} files of releases, {made.count('keys')} keys"
    )
    typer.echo("keep it as you keep the keys: it holds what people wrote")
    if made.log == "kafka":
        typer.echo("Kafka's topics are not in it: they are kept by their replicas")


@takes_settings
def restore(
    given: SettingsOptions,
    source: Annotated[Path, typer.Argument(help="Folder or .tar file that `plaudit backup` made.")],
    replace: Annotated[bool, typer.Option("--replace", help="Replace what is there; no process may use it.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Restore a backup into an empty deployment, once every digest in it was checked."""
    settings = given.load()
    from plaudit.backup import differing_keys
    from plaudit.backup import restore as run

    contents = run(settings, source, replace=replace)
    others = differing_keys(settings, contents)
    if as_json:
        echo_json({**dataclasses.asdict(contents), "differing_keys": others})
        return
    typer.echo(f"restored {len(contents.files)} files of {contents.created_at} ({contents.size / 2**20:.1f} MiB)")
    for name in others:
        what = "raters get other pseudonyms" if name == "pseudonym" else "handles signed with it are refused"
        typer.echo(f"the key {name} is not the one that was in force then: {what}; give it in the settings", err=True)
    if contents.log == "kafka":
        typer.echo("the join goes on where the backup had read the topics; docs/backup.md says what if they are others")
