"""`plaudit backup` and `plaudit restore`: for whoever may read and write data directory, store and registry."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Annotated

import typer

from plaudit.cli_settings import ConfigOption, DataDirOption, JsonOption, SetOption, load


def backup(
    target: Annotated[Path, typer.Argument(help="New folder, or new file that ends in .tar.")],
    as_json: JsonOption = False,
    config: ConfigOption = None,
    assign: SetOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Back up database, embedded log or outbox, registry and keys, while processes run. Holds texts and keys."""
    settings = load(config, assign, data_dir)
    from plaudit.backup import backup as run

    made = run(settings, target)
    if as_json:
        typer.echo(json.dumps(dataclasses.asdict(made), indent=2))
        return
    logs = [name for name in made.files if "/" not in name and not name.startswith("store.")]
    typer.echo(
        f"{target}: {made.size / 2**20:.1f} MiB: the store ({made.store}), {', '.join(logs) or 'no log'}, "
        f"{made.count('registry')} files of releases, {made.count('keys')} keys"
    )
    typer.echo("keep it as you keep the keys: it holds what people wrote")
    if made.log == "kafka":
        typer.echo("Kafka's topics are not in it: they are kept by their replicas")


def restore(
    source: Annotated[Path, typer.Argument(help="Folder or .tar file that `plaudit backup` made.")],
    replace: Annotated[bool, typer.Option("--replace", help="Put aside what is there; nothing may run on it.")] = False,
    as_json: JsonOption = False,
    config: ConfigOption = None,
    assign: SetOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Restore a backup into an empty deployment, once every digest in it was checked."""
    settings = load(config, assign, data_dir)
    from plaudit.backup import differing_keys
    from plaudit.backup import restore as run

    contents = run(settings, source, replace=replace)
    others = differing_keys(settings, contents)
    if as_json:
        typer.echo(json.dumps({**dataclasses.asdict(contents), "differing_keys": others}, indent=2))
        return
    typer.echo(f"restored {len(contents.files)} files of {contents.created_at} ({contents.size / 2**20:.1f} MiB)")
    for name in others:
        what = "raters get other pseudonyms" if name == "pseudonym" else "handles signed with it are refused"
        typer.echo(f"the key {name} is not the one that was in force then: {what}; give it in the settings", err=True)
    if contents.log == "kafka":
        typer.echo(
            "the join goes on where the backup had read the topics; docs/operate.md says what if they are others"
        )
