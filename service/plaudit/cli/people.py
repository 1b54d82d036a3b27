"""Commands of simulated people, in a process of their own: `plaudit simulate`, `evaluate`, `judge`, `populations`.

Enters: what is simulated, and the address of a running service. Leaves: a ledger or judgements as JSON. These
commands alone reach a population's hidden preference (its gold).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from plaudit.cli.options import echo_json, write_file
from plaudit.signals import stop_on_signals

if TYPE_CHECKING:
    from plaudit.simulate.ledger import SimulationLedger

_LOOK_SECONDS = 0.05

PopulationOption = Annotated[str, typer.Option("--population", help="Who asks and rates; a plugin brings it.")]
TargetOption = Annotated[str, typer.Option("--target", help="Address of the service, host:port.")]
TenantOption = Annotated[str, typer.Option("--tenant", help="Whose traffic it is.")]
SeedOption = Annotated[int, typer.Option("--seed", help="Fixes the people, what they ask and what they like.")]
TemperatureOption = Annotated[
    float | None, typer.Option("--temperature", help="Sampling temperature; by default the release's own.", min=0)
]


def simulate(
    population: PopulationOption = "instruction",
    target: TargetOption = "127.0.0.1:50051",
    tenant: TenantOption = "default",
    seed: SeedOption = 0,
    round_: Annotated[int, typer.Option("--round", help="The same people again: new questions, new noise.", min=0)] = 0,
    events: Annotated[int, typer.Option(help="Pieces of feedback; 0 goes on until SIGTERM.", min=0)] = 1780,
    acts_per_interaction: Annotated[
        float, typer.Option(help="Mean pieces of feedback about one reply; 0, with --events 0, asks only.", min=0)
    ] = 3.3,
    concurrency: Annotated[int, typer.Option(help="Requests open at once.", min=1)] = 32,
    base_share: Annotated[
        float, typer.Option(help="Share of comparisons in which one side is the base.", min=0, max=1)
    ] = 0.0,
    explore_share: Annotated[
        float | None,
        typer.Option(help="Share of requests with purpose EXPLORE; by default the population's own.", min=0, max=1),
    ] = None,
    pause: Annotated[float, typer.Option(help="Seconds that each person waits after an interaction.", min=0)] = 0.0,
    temperature: TemperatureOption = None,
    after: Annotated[Path | None, typer.Option(help="Begin when this file exists; be ready before.")] = None,
    ledger: Annotated[Path | None, typer.Option(help="File for what people asked, got and were told.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the counts as JSON.")] = False,
) -> None:
    """Let simulated people ask and rate."""
    from plaudit.simulate.run import SimulateSettings
    from plaudit.simulate.run import simulate as run

    stop = stop_on_signals()
    while after is not None and not after.exists() and not stop.is_set():
        stop.wait(_LOOK_SECONDS)
    found = run(
        SimulateSettings(
            target=target,
            population=population,
            tenant=tenant,
            seed=seed,
            round=round_,
            events=events or None,
            acts_per_interaction=acts_per_interaction,
            concurrency=concurrency,
            base_share=base_share,
            explore_share=explore_share,
            temperature=temperature,
            pause_seconds=pause,
        ),
        progress=_say_now_and_then(),
        stop=stop,
    )
    if ledger is not None:
        write_file(json.dumps(found.to_json()), ledger)
    counts = found.counts()
    typer.echo(json.dumps(counts, indent=2) if as_json else _sentence(counts))
    if found.failures:
        last = found.failures[-1]
        typer.echo(f"the last {last.what} that failed: {last.message}", err=True)
    if counts["requests"] and not counts["replies"]:
        raise typer.Exit(1)


def evaluate(
    releases: Annotated[str, typer.Option(help="Versions to judge, such as 1,2; the base is always judged.")] = "",
    population: PopulationOption = "instruction",
    target: TargetOption = "127.0.0.1:50051",
    tenant: TenantOption = "default",
    seed: SeedOption = 0,
    samples: Annotated[int, typer.Option(help="Answers per prompt.", min=1, max=8)] = 4,
    prompts: Annotated[int, typer.Option(help="Evaluation prompts asked; 0 asks all.", min=0)] = 0,
    concurrency: Annotated[int, typer.Option(help="Requests open at once.", min=1)] = 32,
    temperature: TemperatureOption = None,
    out: Annotated[Path | None, typer.Option(help="File for the figures, instead of standard output.")] = None,
    answers: Annotated[Path | None, typer.Option(help="File for the answers themselves.")] = None,
) -> None:
    """Let the hidden preference judge releases and simple baselines, on prompts that nobody asked before."""
    from plaudit.errors import NotServing
    from plaudit.simulate.connection import Refused
    from plaudit.simulate.evaluate import evaluate as run
    from plaudit.simulate.panel import EvaluateSettings

    try:
        found = run(
            EvaluateSettings(
                target=target,
                releases=_versions(releases),
                population=population,
                tenant=tenant,
                samples=samples,
                prompts=prompts or None,
                seed=seed,
                concurrency=concurrency,
                temperature=temperature,
            ),
            progress=lambda name: typer.echo(f"asks {name}", err=True),
        )
    except Refused as error:
        raise NotServing(f"{target} did not answer a question of the evaluation: {error}") from error
    if answers is not None:
        write_file(json.dumps(found.answers_to_json(), ensure_ascii=False), answers)
    echo_json(found.to_json(), out)


def judge(
    answers: Annotated[Path, typer.Option(help="File that `plaudit evaluate --answers` wrote.")],
    picks: Annotated[Path, typer.Option(help="JSON list: for each prompt the places of its texts, best first.")],
    population: PopulationOption = "instruction",
    seed: SeedOption = 0,
    out: Annotated[Path | None, typer.Option(help="File for the figures, instead of standard output.")] = None,
) -> None:
    """Let the hidden preference judge what something else picked among the texts of an evaluation."""
    from plaudit.simulate.evaluate import judge_picks

    content, chosen = (json.loads(path.read_text(encoding="utf-8")) for path in (answers, picks))
    echo_json(judge_picks(population, content, chosen, seed).to_json(), out)


def judge_states(
    states: Annotated[
        list[Path], typer.Option(help="File of a turn that learn.compared_turns left; several may come.")
    ],
    population: PopulationOption = "instruction",
    seed: SeedOption = 0,
    out: Annotated[Path | None, typer.Option(help="File for the figures, instead of standard output.")] = None,
) -> None:
    """Let the hidden preference judge the states that turns compared, beside the reward that training saw."""
    from plaudit.simulate.states import judge_states as judged

    echo_json(judged(population, [json.loads(path.read_text(encoding="utf-8")) for path in states], seed), out)


def populations(
    out: Annotated[Path | None, typer.Option(help="File for the list, instead of standard output.")] = None,
) -> None:
    """List the installed populations and what they ask, as JSON."""
    from plaudit.simulate.population import described

    echo_json(described(lambda line: typer.echo(line, err=True)), out)


def _versions(text: str) -> tuple[int, ...]:
    """Versions, separated by commas; wrong usage for anything else."""
    parts = [part.strip() for part in text.split(",") if part.strip()]
    for part in parts:
        if not (part.isascii() and part.isdigit()):
            raise typer.BadParameter(f"{part!r} is not a version; give numbers with commas between, such as 1,2")
    return tuple(int(part) for part in parts)


def _say_now_and_then() -> Any:
    """Prints the counts every hundred interactions, so that a log shows that people are at work."""

    def progress(ledger: SimulationLedger) -> None:
        # Counting takes as long as the ledger has become, so it is not done for each interaction.
        if ledger.requests % 100 == 0:
            sys.stderr.write(_sentence(ledger.counts()) + "\n")

    return progress


def _sentence(counts: dict[str, Any]) -> str:
    return (
        f"{counts['replies']} replies to {counts['requests']} requests, {counts['requests_failed']} failed; "
        f"{counts['acknowledged']} pieces of feedback acknowledged, {counts['acts_failed']} failed"
    )
