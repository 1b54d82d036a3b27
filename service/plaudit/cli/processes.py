"""`plaudit serve`, `join`, `learn` and `up`: the processes of a deployment, and where the join goes on.

Enters: settings. Leaves: a process that goes on until SIGTERM.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import typer

from plaudit.cli import plan
from plaudit.cli.options import JsonOption, SettingsOptions, echo_json, takes_settings
from plaudit.signals import stop_on_signals

if TYPE_CHECKING:
    from plaudit.settings import Settings

join_app = typer.Typer(invoke_without_command=True, add_completion=False)
learn_app = typer.Typer(invoke_without_command=True, add_completion=False)
learn_app.command("plan")(plan.learn_plan)

HttpOption = Annotated[
    int | None, typer.Option("--http", help="Port of the OpenAI-compatible HTTP door (serve.http_port); 0: a free one.")
]


@takes_settings
def serve(given: SettingsOptions, http: HttpOption = None) -> None:
    """Answer requests and take feedback over gRPC, and over HTTP with --http, until SIGTERM."""
    settings = _with_door(given, http).load()
    from plaudit.serving.server import serve as run

    run(settings)


@takes_settings
def up(given: SettingsOptions, http: HttpOption = None) -> None:
    """Run serve, join and learn as children of one command over one data directory, until SIGTERM or Ctrl-C."""
    # What is wrong with the settings is said once, before anything starts.
    _with_door(given, http).load()
    from plaudit.up import up as run

    code = run(
        given.as_arguments(),
        [] if http is None else ["--http", str(http)],
        stop_on_signals(),
        lambda line: typer.echo(line, err=True),
    )
    raise typer.Exit(code)


@join_app.callback()
@takes_settings
def join(given: SettingsOptions, context: typer.Context) -> None:
    """Join feedback with its interactions into evidence, until SIGTERM."""
    if context.invoked_subcommand is not None:
        _check_order(given, context)
        return
    settings = given.load()
    _start_logs(settings, "join")
    from plaudit.evidence.worker import run_join
    from plaudit.garbage import JOIN_OBJECTS, set_aside

    set_aside(JOIN_OBJECTS)
    run_join(settings, stop_on_signals())


@join_app.command("reset")
@takes_settings
def reset_join(
    given: SettingsOptions,
    start: Annotated[
        Literal["earliest", "latest"],
        typer.Option("--from", help="earliest: read all that the log holds; latest: leave that out."),
    ],
    as_json: JsonOption = False,
) -> None:
    """Decide where the join reads on after a topic was created again, restored or truncated. Evidence stays."""
    settings = given.load_used()
    from plaudit.evidence.reset import reset

    moved = reset(settings, start)
    if as_json:
        echo_json([each.to_json() for each in moved])
    else:
        typer.echo("\n".join(str(each) for each in moved))


@learn_app.callback()
@takes_settings
def learn(
    given: SettingsOptions,
    context: typer.Context,
    once: Annotated[
        bool, typer.Option("--once", help="Look once at every channel; one new event is enough for a turn; then end.")
    ] = False,
) -> None:
    """Turn evidence into releases: reward model, policy, gate, promotion. With --once exit code 1 if a turn fails."""
    if context.invoked_subcommand is not None:
        _check_order(given, context, once)
        return
    settings = given.load()
    _start_logs(settings, "learn")
    from plaudit.learner.loop import learn as run

    failed = [result for result in run(settings, once) if result.outcome == "failed"]
    if once and failed:
        raise typer.Exit(1)


def _check_order(given: SettingsOptions, context: typer.Context, *others: bool) -> None:
    """Wrong usage for options that stand before a command's own command, where they would mean nothing."""
    if given != SettingsOptions() or any(others):
        command = f"plaudit {context.info_name} {context.invoked_subcommand}"
        raise typer.BadParameter(f"options stand behind the whole command: {command} OPTIONS")


def _with_door(given: SettingsOptions, http: int | None) -> SettingsOptions:
    return given if http is None else given.and_set(f"serve.http_port={http}")


def _start_logs(settings: Settings, process: str) -> None:
    from plaudit.telemetry import configure

    configure(settings.log_format, settings.log_level, process)
