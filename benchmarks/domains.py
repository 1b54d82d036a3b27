"""Whole loops of every installed domain on the tiny model: what hidden gold says of the base and the last release.

Simulated people ask and rate over gRPC, the join and the learner run as they do in service, and the population's
hidden gold judges on requests that nobody made before. One process, one loop per population and seed; a file given by
--out keeps the runs of other populations and seeds, so that the runs may be made one by one. scripts/results.py writes
docs/results.md of it.

    python benchmarks/domains.py --seeds 0 1 2 3 4 --out benchmarks/results/domains.json
    python benchmarks/domains.py --population echo-choice --seeds 0 --set policy.iterations=4
"""

from __future__ import annotations

import argparse
import datetime as dt
import fcntl
import json
import logging
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import structlog
from loop import PEOPLE_AT_ONCE, Life, lived, tiny_people
from plaudit.demo.orchestrate import versions
from plaudit.simulate.evaluate import evaluate
from plaudit.simulate.panel import EvaluateSettings

FIGURES = ("gold", "gold_gain", "gold_win_rate", "accuracy", "cost")
KEPT = frozenset(f"{name}{part}" for name in FIGURES for part in ("", "_seen", "_unseen")) | {
    *("commonest_decision", "commonest_decision_text", "distinct_masked", "distinct_masked_base")
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known = {people.name: people for people in tiny_people()}
    parser.add_argument("--population", nargs="+", choices=sorted(known), default=sorted(known))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="section.name=value")
    parser.add_argument("--out", type=Path, help="JSON file to write into; runs of other seeds and populations stay")
    arguments = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    for name in arguments.population:
        for seed in arguments.seeds:
            begun = time.process_time()
            run = lived(known[name], seed, arguments.turns, arguments.overrides, judge)
            run["cpu_seconds"] = round(time.process_time() - begun)
            run["command"] = command(name, seed, arguments.turns, arguments.overrides)
            print(json.dumps(told(run)), file=sys.stderr, flush=True)
            keep(run, arguments.out)


def judge(life: Life) -> dict[str, Any]:
    """Outcomes, and figures of the base, the last release that went live and the baselines."""
    found = evaluate(
        EvaluateSettings(
            target=life.server.target,
            releases=life.promoted,
            population=life.who.name,
            seed=life.seed,
            concurrency=PEOPLE_AT_ONCE,
        )
    ).to_json()
    last = life.promoted[-1] if life.promoted else 0
    return {
        "population": life.who.name,
        "domain": life.who.domain,
        "seed": life.seed,
        "prompts": found["prompts"],
        "headline": found["headline"],
        "turns": [outcome(life, number) for number in range(len(life.results))],
        "promoted": list(life.promoted),
        "base": kept(found["releases"]["0"]),
        "last": kept(found["releases"][str(last)]),
        "baselines": {name: kept(row) for name, row in found["baselines"].items()},
        "versions": versions(),
        "made_at": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
    }


def outcome(life: Life, number: int) -> dict[str, Any]:
    """What became of a turn, and which checks of the gate failed."""
    result = life.results[number]
    failed: list[str] = []
    for row in life.server.registry.releases(life.who.channel):
        if row.version == result.version and row.decision_json:
            checks = json.loads(row.decision_json)["checks"]
            failed = [f"{each['name']} {each['value']} ({each['threshold']})" for each in checks if not each["passed"]]
    return {"outcome": str(result.outcome), "reason": result.reason, "version": result.version, "failed": failed}


def kept(row: Mapping[str, Any]) -> dict[str, Any]:
    """The figures of one source that the page shows, to four digits."""

    def rounded(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {name: rounded(each) for name, each in value.items()}
        return round(value, 4) if isinstance(value, float) else value

    return {name: rounded(value) for name, value in row.items() if name in KEPT and value is not None}


def told(run: Mapping[str, Any]) -> dict[str, Any]:
    """One line for whoever waits."""
    best = max(run["baselines"].items(), key=lambda item: float(item[1]["gold"]["estimate"]))
    return {
        "population": run["population"],
        "seed": run["seed"],
        "turns": [[turn["outcome"], *turn["failed"][:3]] for turn in run["turns"]],
        **{name: run[name]["gold"]["estimate"] for name in ("base", "last")},
        "gain": [run["last"]["gold_gain"][name] for name in ("estimate", "low", "high")],
        "accuracy": [run[name]["accuracy"]["estimate"] for name in ("base", "last") if "accuracy" in run[name]],
        "best_baseline": [best[0], best[1]["gold"]["estimate"]],
        "cpu_seconds": run["cpu_seconds"],
    }


def command(name: str, seed: int, turns: int, overrides: Sequence[str]) -> str:
    """The command line that makes this run again."""
    more = "".join(f" --set {each}" for each in overrides)
    return f"python benchmarks/domains.py --population {name} --seeds {seed} --turns {turns}{more}"


def keep(run: Mapping[str, Any], out: Path | None) -> None:
    """Put a run into the file in place of the one of the same population and seed; print it where there is no file."""
    if out is None:
        print(json.dumps(run, indent=1))
        return
    # Several processes may write into one file.
    with out.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        before = json.loads(out.read_text(encoding="utf-8"))["runs"] if out.exists() else []
        key = (run["population"], run["seed"])
        runs = [each for each in before if (each["population"], each["seed"]) != key] + [run]
        runs.sort(key=lambda each: (each["population"], each["seed"]))
        out.write_text(json.dumps({"runs": runs}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
