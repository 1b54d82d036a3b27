"""The commands `plaudit plugins ...`: what is installed, whether it keeps the contract, and a new one to begin with.

`check` ends with exit code 1 if a check failed or could not be run.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from plaudit.cli.options import JsonOption, echo_json

if TYPE_CHECKING:
    from plaudit.testing.checking import Checked

plugins_app = typer.Typer(help="Domains that are installed, and new ones.", no_args_is_help=True)
_WIDTH = 100


@plugins_app.command("list")
def plugins_list(as_json: JsonOption = False) -> None:
    """List the installed domains, those that cannot load too."""
    import dataclasses

    from plaudit.plugins import installed

    rows = [dataclasses.asdict(plugin) for plugin in installed()]
    if as_json:
        echo_json(rows)
    else:
        for row in rows:
            typer.echo("  ".join(str(value) for value in row.values() if value not in ("", None)))


@plugins_app.command("new")
def plugins_new(
    name: Annotated[str, typer.Argument(help="Domain, such as haiku or code-review.")],
    action: Annotated[
        Literal["completion", "choice"], typer.Option(help="Texts that the model writes, or options that it ranks.")
    ],
    folder: Annotated[Path | None, typer.Option(help="Where to write it; plaudit-NAME if it is left out.")] = None,
) -> None:
    """Write a distribution with a domain that works, simulated people, and tests: a plugin to begin with."""
    from plaudit.scaffold import write_plugin
    from plaudit.types import Action

    written = write_plugin(name, Action(action), folder)
    typer.echo(
        f"wrote {written}; next:\n"
        f"  plaudit plugins check --path {written}\n"
        f"  pip install -e {written}\n"
        f"  plaudit demo --domain {name}"
    )


@plugins_app.command("check")
def plugins_check(
    name: Annotated[str, typer.Argument(help="Domain, as `plaudit plugins list` names it.")] = "",
    path: Annotated[Path | None, typer.Option(help="Folder of a distribution that is not installed.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Run the conformance kit on an installed domain, or on those of a folder. Exit code 1 if a check fails."""
    import dataclasses

    from plaudit.testing.checking import check_folder, check_installed

    if bool(name) == (path is not None):
        raise typer.BadParameter("name an installed domain, or give --path with the folder of a distribution")
    tables = check_folder(path) if path is not None else {name: check_installed(name)}
    if as_json:
        rows = {domain: [dataclasses.asdict(row) for row in table] for domain, table in tables.items()}
        echo_json(rows)
    else:
        typer.echo("\n\n".join(_table(domain, rows) for domain, rows in tables.items()))
    if not all(row.passed for rows in tables.values() for row in rows):
        raise typer.Exit(1)


def _table(domain: str, rows: Sequence[Checked]) -> str:
    """A line per check; below a failed one what was found and what to do."""
    lines = []
    for row in rows:
        state = "ok" if row.passed else "FAILED" if row.ran else "waits"
        lines.append(f"{state:6}  {row.check}")
        for what, text in (("found", row.found), ("to do", row.remedy)):
            if text:
                lines += textwrap.wrap(text, _WIDTH, initial_indent=f"        {what}: ", subsequent_indent=" " * 15)
    failed, waiting = sum(row.ran and not row.passed for row in rows), sum(not row.ran for row in rows)
    last = f"{failed} of {len(rows)} checks failed" if failed or waiting else f"all {len(rows)} checks passed"
    last += f", and {waiting} wait for them" if waiting else ""
    return "\n".join([*lines, f"{domain}: {last}"])
