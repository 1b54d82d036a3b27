"""`plaudit status` and `plaudit doctor`: where the loop stands, and what is wrong."""

from __future__ import annotations

import json
import sys
from typing import Annotated, Literal

import typer

from plaudit.cli.options import JsonOption, SettingsOptions, channel_of, echo_json, takes_settings
from plaudit.signals import stop_on_signals


@takes_settings
def status(
    given: SettingsOptions,
    channel: Annotated[str, typer.Argument(help="Channel, such as support/acme; all if it is left out.")] = "",
    watch: Annotated[bool, typer.Option("--watch", help="Print it repeatedly, until Ctrl-C.")] = False,
    every: Annotated[float, typer.Option("--every", help="Seconds between two looks of --watch.", min=0.2)] = 5.0,
    as_json: JsonOption = False,
) -> None:
    """Say where the loop stands: what is live, what learning waits for, how the last turns ended."""
    settings = given.load()
    from plaudit.learner.report import as_text, deployment
    from plaudit.plugins import load_plugins

    plugins, only, stop = load_plugins(settings.plugins.allow), channel_of(channel) if channel else None, None
    while True:
        found = deployment(settings, plugins, only)
        if watch and not as_json and sys.stdout.isatty():
            typer.echo("\x1b[2J\x1b[H", nl=False)  # an empty screen
        if as_json:  # one line per look, so that a program can follow
            typer.echo(json.dumps(found.as_dict(), indent=None if watch else 2, ensure_ascii=False, default=str))
        elif only is None or found.channels:
            typer.echo(f"{found.now}\n" * watch + as_text(found))
        if only is not None and not found.channels:
            typer.echo(f"plaudit: nobody has asked {channel} yet; `plaudit status` lists the channels", err=True)
            raise typer.Exit(1)
        stop = stop or (stop_on_signals() if watch else None)
        if stop is None or stop.wait(every):
            return


@takes_settings
def doctor(
    given: SettingsOptions,
    role: Annotated[
        Literal["all", "serve", "join", "learn"], typer.Option(help="Process that is to run here.")
    ] = "all",
    production: Annotated[bool, typer.Option("--production", help="Also what a real deployment needs.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Check that a process can run here, and say how to fix what is wrong. Exit code 1 if something is."""
    from plaudit.doctor import diagnose, render
    from plaudit.errors import Misconfigured
    from plaudit.settings import Settings

    wrong: Misconfigured | None = None
    try:
        settings = given.load()
    except Misconfigured as error:
        wrong, settings = error, Settings()
    findings = diagnose(settings, role=role, production=production, settings_error=wrong)
    if as_json:
        echo_json([finding.as_dict() for finding in findings])
    else:
        typer.echo(render(findings))
    if any(finding.status == "bad" for finding in findings):
        raise typer.Exit(1)
