"""The command `plaudit`: every process and every operator's act, each one command.

Enters: arguments, settings and the environment. Leaves: results on standard output (JSON if --json is given), logs
and errors on standard error; exit code 0, 1 for an error that Plaudit explains, 2 for wrong usage. Whatever is heavy
is imported inside the command that needs it, so that `plaudit --help` is quick and loads no torch.
"""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from plaudit.cli import (
    adopt,
    backup,
    demo,
    estimate,
    exchange,
    lineage,
    model,
    people,
    processes,
    replay,
    settings,
    status,
)
from plaudit.cli.evidence import evidence_app, rejected_app
from plaudit.cli.keys import keys_app
from plaudit.cli.plugins import plugins_app
from plaudit.cli.privacy import privacy_app
from plaudit.cli.raters import raters_app
from plaudit.cli.release import release_app
from plaudit.signals import end_on_signals, end_with_parent

app = typer.Typer(
    name="plaudit",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # boxes show "<bool>" beside every flag, and break in logs and narrow terminals
)
app.command()(processes.serve)
app.command()(processes.up)
app.command()(status.status)
app.command()(status.doctor)
release_app.command()(estimate.estimate)
release_app.command()(lineage.lineage)
release_app.command()(replay.replay)
release_app.command("import")(adopt.import_)
evidence_app.command()(replay.rebuild)
evidence_app.command()(exchange.export)
evidence_app.command("import")(exchange.import_)
app.add_typer(processes.join_app, name="join")
app.add_typer(processes.learn_app, name="learn")
app.add_typer(release_app, name="release")
app.add_typer(evidence_app, name="evidence")
app.add_typer(rejected_app, name="rejected")
app.add_typer(keys_app, name="keys")
app.add_typer(raters_app, name="raters")
app.add_typer(privacy_app, name="privacy")
app.add_typer(plugins_app, name="plugins")
app.add_typer(settings.settings_app, name="settings")
app.add_typer(model.model_app, name="model")
app.command()(backup.backup)
app.command()(backup.restore)
# Registered last, so that `plaudit --help` begins with what an operator runs.
app.command()(demo.demo)
app.command()(people.simulate)
app.command()(people.evaluate)
app.command()(demo.replay)
app.command(hidden=True)(people.judge)
app.command(hidden=True)(people.judge_states)
app.command(hidden=True)(people.populations)
app.command("best-of", hidden=True)(demo.best_of)


def _print_version(wanted: bool) -> None:
    if wanted:
        from plaudit import __version__

        typer.echo(f"plaudit {__version__}")
        raise typer.Exit


@app.callback()
def common(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and end.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """An online feedback service for deployed assistants: people's feedback becomes a better assistant."""


def main() -> None:
    """Entry point: runs the command.

    An error that Plaudit explains, a library that is not installed and a file that cannot be read or written are a
    message and exit code 1.
    """
    from plaudit.errors import PlauditError
    from plaudit.telemetry import quiet_crashes

    # Before anything is loaded: a signal during the start ends it, also if this is PID 1 of a container.
    end_on_signals()
    end_with_parent()
    quiet_crashes()
    # Read when torch loads OpenMP. Threads that wait must not burn the core that another process needs, and waking one
    # takes longer than most of a decode step's products: they spin for some microseconds and then sleep.
    os.environ.setdefault("GOMP_SPINCOUNT", "20000")
    try:
        app()
    except PlauditError as error:
        _end(error.message)
    except ModuleNotFoundError as error:
        from plaudit.extras import advice

        if not (said := advice(error)):
            raise
        _end(said)
    except OSError as error:
        if not error.filename:
            raise
        _end(f"{os.fspath(error.filename)}: {error.strerror or type(error).__name__}")


def _end(why: str) -> None:
    sys.stderr.write(f"plaudit: {why}\n")
    sys.exit(1)
