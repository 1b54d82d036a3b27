"""`plaudit settings`: the settings in force, and the page docs/settings.md."""

from __future__ import annotations

from typing import Annotated

import typer

from plaudit.cli.options import JsonOption, SettingsOptions, channel_of, echo_json, takes_settings

settings_app = typer.Typer(help="Settings in force.", no_args_is_help=True)


@settings_app.command("show")
@takes_settings
def settings_show(
    given: SettingsOptions,
    channel: Annotated[str, typer.Option("--channel", help="Those of one channel, such as support/acme.")] = "",
    as_json: JsonOption = False,
) -> None:
    """Print the settings in force as TOML, secrets masked."""
    settings = given.load()
    from plaudit.settings import digest, resolved
    from plaudit.settings.text import toml

    if channel:
        settings = settings.for_channel(channel_of(channel)).model_copy(update={"channels": {}})

    if as_json:
        echo_json({"settings": resolved(settings), "digest": digest(settings)})
    else:
        typer.echo(toml(resolved(settings)), nl=False)


@settings_app.command("table")
def settings_table() -> None:
    """Print docs/settings.md: every key with its type, default and meaning."""
    from plaudit.settings.text import table

    typer.echo(table(), nl=False)
