"""Writes the domains' part of docs/results.md out of benchmarks/results/domains.json (benchmarks/domains.py).

Enters: that file, and the page with its two marks. Leaves: the page, whose other parts are written by hand. With
--check it writes nothing and exits with 1 where the page would change.
"""

from __future__ import annotations

import itertools
import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RUNS = ROOT / "benchmarks" / "results" / "domains.json"
PAGE = ROOT / "docs" / "results.md"

BEGIN, END = "<!-- domains: begin -->", "<!-- domains: end -->"

HEAD = """## What the loop learns, domain by domain

<!-- Written by scripts/results.py out of benchmarks/results/domains.json; do not edit down to the end mark. -->

Every shipped domain goes through the same core: simulated people ask and rate over gRPC, the join makes evidence of
their feedback, the learner fits a reward model and a policy, the gate decides, and what it accepts goes live; then the
same people rate that, and a second turn follows. At the end the hidden preference of the people judges
the base and the last release that went live, on requests that nobody had made before. The model is the tiny one (about
a million parameters, pretrained on a toy language: `plaudit model prepare tiny`), so that a run takes minutes on two
cores. These figures show that the loop learns what people mean; they say nothing about how good a real model would be.

- **Gold** is what the hidden preference says of an answer, in the units of each population. Of completions it is the
  mean over sampled answers; of a verdict the gold of the option that was decided; of a slate the mean over its places
  by their weights.
- **Gain** is the last release's gold less the base's on the same requests, with a 95% interval over requests (a
  bootstrap). With nothing promoted the base is judged against itself.
- **Turns** end as `promoted` (the candidate went live), `rejected` (the gate refused it, by the checks that are named:
  [release.md](release.md#what-the-gate-asks)), `refused` (the reward model failed its own checks and steered nothing)
  or `no_progress` (no state of the policy beat what was live). All but the first leave what was live before.
- **Win-rate** is the share of requests whose answer the hidden preference holds for better than the base's; a tie
  counts half. **Accuracy** is the share of decisions that are the right label, **cost** their mean cost by the
  domain's costs.
- **Baselines** cost no training and meet the same judge. The best constant, the constant answer and the filled-in
  pattern were searched for with the hidden preference on requests of the channel, which no one outside of a simulation
  could do. A baseline that comes close or wins is printed as it is.
- **Instruction** stands in [the quick loop, ten seeds](#the-quick-loop-ten-seeds). The rationales that the
  moderation domain writes have no simulated people, and are not in the table.

All of it again: `python benchmarks/domains.py --out benchmarks/results/domains.json && python scripts/results.py`."""


def main() -> None:
    """Write the page, or compare it."""
    before = PAGE.read_text(encoding="utf-8")
    after = filled(before, part(json.loads(RUNS.read_text(encoding="utf-8"))["runs"]))
    if "--check" in sys.argv:
        sys.exit(int(after != before))
    PAGE.write_text(after, encoding="utf-8")


def filled(page: str, between: str) -> str:
    """The page with a new text between its marks; raises ValueError where it has none."""
    head, begin, rest = page.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"{PAGE} needs the marks {BEGIN} and {END}, one behind the other")
    return f"{head}{BEGIN}\n{between}\n{END}{tail}"


def part(runs: Sequence[Mapping[str, Any]]) -> str:
    """What stands between the marks; `runs` in the order of population and seed."""
    groups = [(name, list(group)) for name, group in itertools.groupby(runs, key=lambda run: str(run["population"]))]
    parts = [HEAD, summary(groups)]
    for name, group in groups:
        parts += [f"### {name}", domain(group)]
    return "\n\n".join(parts)


def summary(groups: Sequence[tuple[str, Sequence[Mapping[str, Any]]]]) -> str:
    """One row per population."""
    rows = []
    for name, runs in groups:
        best, worth = best_baseline(runs)
        rows.append(
            [
                f"[{name}](#{name})",
                f"{sum(gained(run) > 0 for run in runs)} of {len(runs)}",
                f"{sum(run['last']['gold_gain']['low'] > 0 for run in runs)} of {len(runs)}",
                f"{mean(runs, 'base', 'gold'):.3f}",
                f"{mean(runs, 'last', 'gold'):.3f}",
                f"{statistics.fmean(map(gained, runs)):+.3f}",
                f"{worth:.3f} ({best.replace('_', ' ')})",
            ]
        )
    heads = ["population", "seeds that gain", "interval above 0", "base", "last release", "gain", "best baseline"]
    return table(heads, rows)


def domain(runs: Sequence[Mapping[str, Any]]) -> str:
    """Seeds and baselines of one population."""
    judged_labels = "accuracy" in runs[0]["base"]
    rows = []
    for run in runs:
        row = [
            str(run["seed"]),
            ", ".join(turn_of(turn) for turn in run["turns"]),
            rate(run["base"]["gold"]),
            rate(run["last"]["gold"]),
            rate(run["last"]["gold_gain"], signed=True),
            split(run["last"], "gold_gain"),
        ]
        if judged_labels:
            row += [both(run, "accuracy"), both(run, "cost")]
        else:
            row.append(rate(run["last"]["gold_win_rate"]))
        rows.append(row)
    heads = ["seed", "turns", "base", "last release", "gain", "seen / unseen kinds"]
    heads += ["accuracy, base to last", "cost, base to last"] if judged_labels else ["win-rate"]
    one = runs[0]
    versions = ", ".join(f"{package} {version}" for package, version in one["versions"].items())
    seeds = " ".join(str(run["seed"]) for run in runs)
    again = str(one["command"]).replace(f"--seeds {one['seed']} ", f"--seeds {seeds} ")
    return "\n\n".join(
        [
            f"Domain `{one['domain']}`, {one['prompts']} requests that nobody made before, mean "
            f"{statistics.fmean(run['cpu_seconds'] for run in runs):.0f} s of CPU per seed.",
            table(heads, rows),
            baselines(runs),
            f"`{again}` ({versions}).",
        ]
    )


def baselines(runs: Sequence[Mapping[str, Any]]) -> str:
    """Means over seeds of what costs no training, best first, with the last release among them."""
    names = list(runs[0]["baselines"])
    sources = {
        name.replace("_", " "): [run["baselines"][name] for run in runs if name in run["baselines"]] for name in names
    }
    sources["**last release**"] = [run["last"] for run in runs]
    sources["base"] = [run["base"] for run in runs]
    figures = [each for each in ("gold", "gold_win_rate", "accuracy", "cost") if each in runs[0]["base"]]
    ordered = sorted(sources.items(), key=lambda item: -mean_of(item[1], "gold"))
    rows = [[name, *(f"{mean_of(several, figure):.3f}" for figure in figures)] for name, several in ordered]
    return table(["means over seeds", *(figure.replace("_", " ") for figure in figures)], rows)


def turn_of(turn: Mapping[str, Any]) -> str:
    """A turn's outcome, and the checks that a refused candidate failed."""
    failed = [str(each).partition(" ")[0] for each in turn["failed"]]
    return f"{turn['outcome']}: {', '.join(failed)}" if failed else str(turn["outcome"])


def best_baseline(runs: Sequence[Mapping[str, Any]]) -> tuple[str, float]:
    """The baseline with the highest mean gold over the seeds."""
    worths = {
        name: mean_of([run["baselines"][name] for run in runs if name in run["baselines"]], "gold")
        for name in runs[0]["baselines"]
    }
    return max(worths.items(), key=lambda item: item[1])


def gained(run: Mapping[str, Any]) -> float:
    """How much gold the last release gained."""
    return float(run["last"]["gold_gain"]["estimate"])


def mean(runs: Sequence[Mapping[str, Any]], source: str, figure: str) -> float:
    """Mean of a figure of one source over the runs."""
    return mean_of([run[source] for run in runs], figure)


def mean_of(rows: Sequence[Mapping[str, Any]], figure: str) -> float:
    """Mean of a figure over rows."""
    return statistics.fmean(float(row[figure]["estimate"]) for row in rows)


def both(run: Mapping[str, Any], figure: str) -> str:
    """A figure of the base, and of the last release with its interval."""
    return f"{run['base'][figure]['estimate']:.3f} to {rate(run['last'][figure])}"


def split(row: Mapping[str, Any], figure: str) -> str:
    """A figure over requests of kinds that the channel asked, and of kinds that it never did."""
    parts = (row.get(f"{figure}_seen"), row.get(f"{figure}_unseen"))
    return " / ".join(f"{part['estimate']:+.3f}" if part else "none" for part in parts)


def rate(value: Mapping[str, float], *, signed: bool = False) -> str:
    """A rate with its interval."""
    form = "+.3f" if signed else ".3f"
    return f"{value['estimate']:{form}} [{value['low']:{form}}, {value['high']:{form}}]"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


if __name__ == "__main__":
    main()
