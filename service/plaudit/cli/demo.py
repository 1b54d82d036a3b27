"""`plaudit demo`, and the two audits that it runs as processes: `plaudit replay` and `plaudit best-of`.

Enters: options. Leaves: a report folder, or JSON.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

import typer

from plaudit.cli.options import (
    ChannelArgument,
    JsonOption,
    SetOption,
    SettingsOptions,
    channel_of,
    echo_json,
    takes_settings,
)

OutOption = Annotated[Path | None, typer.Option("--out", help="File to write, instead of standard output.")]


def demo(
    domain: Annotated[
        str, typer.Option(help="Domain whose people ask and rate; by default that of the instruct model's people.")
    ] = "",
    quick: Annotated[bool, typer.Option("--quick", help="A tiny model and fewer people: minutes.")] = False,
    out: Annotated[Path, typer.Option("--out", help="Folder of the report, the logs and the data.")] = Path(
        "demo-report"
    ),
    seed: Annotated[int, typer.Option(help="Fixes the people, the sampling and the training.")] = 0,
    log: Annotated[Literal["sqlite", "kafka"], typer.Option(help="Event log.")] = "sqlite",
    keep_data: Annotated[bool, typer.Option("--keep-data", help="Keep the data directory afterwards.")] = False,
    vllm: Annotated[Path | None, typer.Option(help="Path of the program vllm, whose server runs the model.")] = None,
    as_json: JsonOption = False,
    assign: SetOption = None,
) -> None:
    """Run the whole loop on this machine, with simulated people, and write a report."""
    from plaudit.demo.orchestrate import run_demo
    from plaudit.demo.plan import DemoOptions
    from plaudit.demo.processes import DemoFailed

    options = DemoOptions(
        out=out,
        domain=domain,
        quick=quick,
        seed=seed,
        log=log,
        keep_data=keep_data,
        vllm=vllm,
        overrides=tuple(assign or ()),
    )
    try:
        report = run_demo(options)
    except DemoFailed as error:
        typer.echo(f"plaudit: {error}", err=True)
        raise typer.Exit(1) from error
    typer.echo(json.dumps(report.data, indent=2, ensure_ascii=False) if as_json else report.summary())
    typer.echo(f"report: {out / 'report.md'}", err=as_json)


@takes_settings
def replay(
    given: SettingsOptions,
    channel: ChannelArgument,
    count: Annotated[int, typer.Option(help="Completions to generate again.", min=1)] = 64,
    out: OutOption = None,
) -> None:
    """Generate logged replies again on an idle engine and count those that differ, as JSON."""
    named, settings = channel_of(channel), given.load_used()
    from plaudit.demo.replay import replay as run

    echo_json(run(settings, named, count).as_dict(), out)


@takes_settings
def best_of(
    given: SettingsOptions,
    channel: ChannelArgument,
    version: Annotated[int, typer.Argument(help="Release whose reward model picks.", min=1)],
    answers: Annotated[Path, typer.Option(help="File that `plaudit evaluate --answers` wrote.")],
    out: OutOption = None,
) -> None:
    """Let a release's reward model order the texts of each prompt; a JSON list of places, best first."""
    named, settings = channel_of(channel), given.load_used()
    from plaudit.learner.best_of_n import pick
    from plaudit.types import Request

    content = json.loads(answers.read_text(encoding="utf-8"))
    requests = [Request.of_plain(each) for each in content["prompts"]]
    echo_json(pick(settings, named, version, requests, content["offered"]), out)
