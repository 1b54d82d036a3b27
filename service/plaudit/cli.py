"""The command `plaudit`: every process and every operator's act, each one command.

Enters: arguments, settings and the environment. Leaves: results on standard output (JSON if --json is given), logs
and errors on standard error; exit code 0, 1 for an error that Plaudit explains, 2 for wrong usage. Whatever is heavy
is imported inside the command that needs it, so that `plaudit --help` is quick and loads no torch.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from plaudit import cli_adopt, cli_backup, cli_demo, cli_estimate, cli_exchange, cli_lineage, cli_people, cli_replay
from plaudit.cli_evidence import evidence_app, rejected_app
from plaudit.cli_keys import keys_app
from plaudit.cli_plugins import plugins_app
from plaudit.cli_privacy import privacy_app
from plaudit.cli_raters import raters_app
from plaudit.cli_release import release_app
from plaudit.cli_settings import ConfigOption, DataDirOption, JsonOption, SetOption, channel_of, load
from plaudit.signals import end_on_signals, end_with_parent, stop_on_signals

if TYPE_CHECKING:
    from plaudit.settings import Settings

app = typer.Typer(
    name="plaudit",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # boxes show "<bool>" beside every flag, and break in logs and narrow terminals
)
join_app = typer.Typer(invoke_without_command=True, add_completion=False)
learn_app = typer.Typer(invoke_without_command=True, add_completion=False)
settings_app = typer.Typer(help="Settings in force.", no_args_is_help=True)
model_app = typer.Typer(help="Base models that need no hub.", no_args_is_help=True)
release_app.command()(cli_estimate.estimate)
release_app.command()(cli_lineage.lineage)
release_app.command()(cli_replay.replay)
release_app.command("import")(cli_adopt.import_)
evidence_app.command()(cli_replay.rebuild)
evidence_app.command()(cli_exchange.export)
evidence_app.command("import")(cli_exchange.import_)
app.add_typer(join_app, name="join")
app.add_typer(learn_app, name="learn")
app.add_typer(release_app, name="release")
app.add_typer(evidence_app, name="evidence")
app.add_typer(rejected_app, name="rejected")
app.add_typer(keys_app, name="keys")
app.add_typer(raters_app, name="raters")
app.add_typer(privacy_app, name="privacy")
app.add_typer(plugins_app, name="plugins")
app.add_typer(settings_app, name="settings")
app.add_typer(model_app, name="model")


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


HttpOption = Annotated[
    int | None, typer.Option("--http", help="Port of the OpenAI-compatible HTTP door (serve.http_port); 0: a free one.")
]


@app.command()
def serve(
    http: HttpOption = None, config: ConfigOption = None, assign: SetOption = None, data_dir: DataDirOption = None
) -> None:
    """Answer requests and take feedback over gRPC, and over HTTP with --http, until SIGTERM."""
    settings = load(config, [*(assign or []), *([] if http is None else [f"serve.http_port={http}"])], data_dir)
    from plaudit.serving.server import serve as run

    run(settings)


@app.command()
def up(
    http: HttpOption = None, config: ConfigOption = None, assign: SetOption = None, data_dir: DataDirOption = None
) -> None:
    """Run serve, join and learn as children of one command over one data directory, until SIGTERM or Ctrl-C."""
    # What is wrong with the settings is said once, before anything starts.
    load(config, [*(assign or []), *([] if http is None else [f"serve.http_port={http}"])], data_dir)
    from plaudit.up import up as run

    options = [
        *(["--config", str(config)] if config else []),
        *(part for each in assign or [] for part in ("--set", each)),
        *(["--data-dir", str(data_dir)] if data_dir else []),
    ]
    code = run(
        options,
        [] if http is None else ["--http", str(http)],
        stop_on_signals(),
        lambda line: typer.echo(line, err=True),
    )
    raise typer.Exit(code)


@join_app.callback()
def join(
    context: typer.Context, config: ConfigOption = None, assign: SetOption = None, data_dir: DataDirOption = None
) -> None:
    """Join feedback with its interactions into evidence, until SIGTERM."""
    if context.invoked_subcommand is not None:
        return
    settings = load(config, assign, data_dir)
    _start_logs(settings, "join")
    from plaudit.evidence.worker import run_join
    from plaudit.garbage import JOIN_OBJECTS, set_aside

    set_aside(JOIN_OBJECTS)
    run_join(settings, stop_on_signals())


@join_app.command("reset")
def reset_join(
    start: Annotated[
        Literal["earliest", "latest"],
        typer.Option("--from", help="earliest: read all that the log holds; latest: leave out what it holds now."),
    ],
    as_json: JsonOption = False,
    config: ConfigOption = None,
    assign: SetOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Decide where the join goes on after a topic was made anew, restored or cut. Evidence stays as it is."""
    settings = load(config, assign, data_dir)
    from plaudit.evidence.reset import reset

    moved = reset(settings, start)
    if as_json:
        echo_json([each.to_json() for each in moved])
    else:
        typer.echo("\n".join(str(each) for each in moved))


@learn_app.callback()
def learn(
    context: typer.Context,
    once: Annotated[bool, typer.Option("--once", help="One turn over what there is, then end.")] = False,
    config: ConfigOption = None,
    assign: SetOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Turn evidence into releases: reward model, policy, gate, promotion. With --once exit code 1 if a turn fails."""
    if context.invoked_subcommand is not None:
        return
    settings = load(config, assign, data_dir)
    _start_logs(settings, "learn")
    from plaudit.learner.loop import learn as run

    failed = [result for result in run(settings, once) if result.outcome == "failed"]
    if once and failed:
        raise typer.Exit(1)


@learn_app.command("plan")
def learn_plan(
    channel: Annotated[
        str, typer.Argument(help="Channel whose settings and domain count; those of the process if it is left out.")
    ] = "",
    raters: Annotated[int, typer.Option("--raters", help="People who give feedback.", min=1, max=100_000)] = 40,
    thumbs: Annotated[str, typer.Option("--thumbs", help="Share of the feedback that is thumbs, such as 70%.")] = "",
    choices: Annotated[str, typer.Option("--choices", help="Share that choose between two answers.")] = "",
    rankings: Annotated[str, typer.Option("--rankings", help="Share that rank four answers.")] = "",
    per_prompt: Annotated[
        float, typer.Option("--per-prompt", help="Pieces of feedback that each prompt gets.", min=1)
    ] = 1.0,
    as_json: JsonOption = False,
    config: ConfigOption = None,
    assign: SetOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Say how much feedback a first release takes, and why, before any was given.

    Shares that are left out are 0; if all are, 70% thumbs, 20% choices and 10% rankings are meant.
    """
    settings = load(config, assign, data_dir)
    import dataclasses

    from plaudit.learner.plan import Mix, as_text, plan
    from plaudit.plugins import load_plugins

    few = False
    if channel:
        parsed = channel_of(channel)
        settings = settings.for_channel(parsed)
        found = load_plugins(settings.plugins.allow).get(parsed.domain)
        few = found is not None and found.declaration.few_raters
    try:
        given = (thumbs, choices, rankings) if thumbs or choices or rankings else ("70%", "20%", "10%")
        shares = dict(zip(("thumbs", "choices", "rankings"), map(_share, given), strict=True))
        made = plan(Mix(raters=raters, per_prompt=per_prompt, **shares), settings, few_raters=few)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    if as_json:
        echo_json(dataclasses.asdict(made))
    else:
        typer.echo(as_text(made))


def _share(text: str) -> float:
    """A share as "70%" or "0.7", 0 if it is left out; raises ValueError."""
    text = text or "0"
    share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    if share > 1:
        raise ValueError(f"{text} is more than the whole; write a share as 70% or 0.7")
    return share


@app.command()
def status(
    channel: Annotated[str, typer.Argument(help="Channel, such as support/acme; all if it is left out.")] = "",
    watch: Annotated[bool, typer.Option("--watch", help="Again and again, until Ctrl-C.")] = False,
    every: Annotated[float, typer.Option("--every", help="Seconds between two looks of --watch.", min=0.2)] = 5.0,
    as_json: JsonOption = False,
    config: ConfigOption = None,
    assign: SetOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Say where the loop stands: what is live, what learning waits for, how the last turns ended."""
    settings = load(config, assign, data_dir)
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


@app.command()
def doctor(
    role: Annotated[
        Literal["all", "serve", "join", "learn"], typer.Option(help="Process that is to run here.")
    ] = "all",
    production: Annotated[bool, typer.Option("--production", help="Also what only a laptop may leave out.")] = False,
    as_json: JsonOption = False,
    config: ConfigOption = None,
    assign: SetOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Check that a process can run here, and say how to fix what is wrong. Exit code 1 if something is."""
    from plaudit.doctor import diagnose, render
    from plaudit.errors import Misconfigured
    from plaudit.settings import Settings

    wrong: Misconfigured | None = None
    try:
        settings = load(config, assign, data_dir)
    except Misconfigured as error:
        wrong, settings = error, Settings()
    findings = diagnose(settings, role=role, production=production, settings_error=wrong)
    if as_json:
        echo_json([finding.as_dict() for finding in findings])
    else:
        typer.echo(render(findings))
    if any(finding.status == "bad" for finding in findings):
        raise typer.Exit(1)


@settings_app.command("show")
def settings_show(
    channel: Annotated[str, typer.Option("--channel", help="Those of one channel, such as support/acme.")] = "",
    as_json: JsonOption = False,
    config: ConfigOption = None,
    assign: SetOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Print the settings in force as TOML, secrets masked."""
    settings = load(config, assign, data_dir)
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


@model_app.command("prepare")
def model_prepare(
    name: Annotated[Literal["smollm2", "tiny"], typer.Argument(help="smollm2 (135M, instruct) or tiny (for trials).")],
    out: Annotated[Path, typer.Option("--out", help="Folder to write.")],
) -> None:
    """Write a base model in the Hugging Face format, without a hub."""
    from plaudit.demo.plan import cache_dir
    from plaudit.testing import models

    kept = cache_dir() / name
    if name == "tiny" or (kept / models.READY).exists():
        typer.echo(str(models.pretrained_tiny(out) if name == "tiny" else models.copied(kept, out)))
        return
    began = time.monotonic()

    def tell(done: int, total: int) -> None:
        typer.echo(f"{name}: step {done} of {total} after {time.monotonic() - began:.0f} s", err=True)

    typer.echo(f"{name}: half a minute, longer on a busy machine; once per folder", err=True)
    typer.echo(str(models.smollm2(out, progress=tell)))


app.command()(cli_backup.backup)
app.command()(cli_backup.restore)
# Registered last, so that `plaudit --help` begins with what an operator runs.
app.command()(cli_demo.demo)
app.command()(cli_people.simulate)
app.command()(cli_people.evaluate)
app.command()(cli_demo.replay)
app.command(hidden=True)(cli_people.judge)
app.command(hidden=True)(cli_people.judge_states)
app.command(hidden=True)(cli_people.populations)
app.command("best-of", hidden=True)(cli_demo.best_of)


def echo_json(value: Any) -> None:
    """Print a value as JSON."""
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False, default=str))


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


def _start_logs(settings: Settings, process: str) -> None:
    from plaudit.telemetry import configure

    configure(settings.log_format, settings.log_level, process)


if __name__ == "__main__":
    main()
