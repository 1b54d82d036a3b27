"""Whole loops on the tiny model in one process, one per seed: what each release gains, at which distance and cost.

Simulated people ask and rate over gRPC, the join and the learner's turns run as they do in service, and the hidden
gold judges every promoted release on questions that nobody asked. Per release: gold win-rate against the base, KL in
nats per answer, gain (win-rate less one half) per nat and per 1,000 completions that training sampled. Beside them
what costs no training: shorter and longer answers of the base, the question repeated, one constant answer, the best
filled-in pattern. Settings are given as for `plaudit`; two runs that differ in one setting show what it does.

    python benchmarks/turns.py --seeds 0 1 2 3 4
    python benchmarks/turns.py --seeds 0 1 2 --set policy.lr=3e-3 --set policy.update_kl=10 --out far.json
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import logging
import platform
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import structlog
import torch
from loop import PEOPLE_AT_ONCE, Life, lived, tiny_people
from plaudit.policy.train import HELD_OUT_SAMPLES
from plaudit.release.texts import VarietyCompared
from plaudit.simulate.evaluate_completions import CompletionEvaluation, evaluate_completions, judged
from plaudit.simulate.panel import EvaluateSettings, Panel
from plaudit.simulate.population import load_population


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--population", default="instruction-tiny", help="people whose domain makes completions")
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="section.name=value")
    parser.add_argument("--out", type=Path, help="write the JSON here, too")
    arguments = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    (who,) = (people for people in tiny_people() if people.name == arguments.population)
    runs = []
    for seed in arguments.seeds:
        begun = time.process_time()
        run = lived(who, seed, arguments.turns, arguments.overrides, judge)
        runs.append(run | {"cpu_seconds": round(time.process_time() - begun)})
        print(json.dumps(runs[-1]["releases"]), file=sys.stderr, flush=True)
    report = {
        "settings": arguments.overrides,
        "summary": summary(runs),
        "runs": runs,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    text = json.dumps(report, indent=1)
    print(text)
    if arguments.out:
        arguments.out.write_text(text, encoding="utf-8")


def judge(life: Life) -> dict[str, Any]:
    """Outcomes and figures of every release that went live."""
    judges = EvaluateSettings(
        target=life.server.target,
        releases=life.promoted,
        population=life.who.name,
        seed=life.seed,
        concurrency=PEOPLE_AT_ONCE,
    )
    with contextlib.closing(Panel(judges, lambda _: None)) as panel:
        found = evaluate_completions(panel)
    return {
        "seed": life.seed,
        "turns": [{"outcome": str(result.outcome), "reason": result.reason} for result in life.results],
        "releases": {version: release(life, version, found) for version in life.promoted},
        "base_again": round(found.releases[0].win_rate.all.estimate, 3),
        "baselines": baselines(found, life),
    }


def release(life: Life, version: int, found: CompletionEvaluation) -> dict[str, Any]:
    """Figures of one release; rollouts are all completions that its training sampled, comparisons included."""
    manifest = life.server.registry.manifest(life.who.channel, version)
    policy = life.settings.policy
    judgement = found.releases[version]
    made: Any = manifest.settings
    kept: Sequence[Mapping[str, float]] = made["iterates"]
    chosen = next(each for each in kept if each["iteration"] == made["chosen"])
    rollouts = len(made["iterations"]) * policy.prompts * policy.samples
    rollouts += len(kept) * policy.held_out * HELD_OUT_SAMPLES
    distance = manifest.kl or 0.0
    gain = judgement.win_rate.all.estimate - 0.5
    return {
        "gold_win_rate": [
            round(each, 3) for each in (gain + 0.5, judgement.win_rate.all.low, judgement.win_rate.all.high)
        ],
        "kl_base": round(distance, 2),
        "kl_live": round(chosen["kl_live_nats_per_sequence"], 2),
        "chosen": chosen["iteration"],
        "gain_per_nat": round(gain / max(distance, 0.1), 3),
        "gain_per_1000_rollouts": round(1000 * gain / rollouts, 3),
        "rollouts": rollouts,
        "words": round(judgement.mean_words, 1),
        "variety": variety(judgement.variety),
    }


def variety(found: VarietyCompared) -> dict[str, list[float]]:
    """Figures of variety, each with the base's on equal texts (and words) beside it."""
    own, bases = found.candidate, found.other
    return {
        "distinct_2": [round(own.distinct_2 or 0.0, 3), round(bases.distinct_2 or 0.0, 3)],
        "distinct_masked": [round(own.distinct_masked or 0.0, 3), round(bases.distinct_masked or 0.0, 3)],
        "commonest_opening": [round(own.opening_share, 3), round(bases.opening_share, 3)],
    }


def baselines(found: CompletionEvaluation, life: Life) -> dict[str, float]:
    echo = [[prompt.text] for prompt in found.prompts]
    population = load_population(life.who.name)
    repeated = judged(population, found.prompts, echo, found.base_answers, life.seed)
    others = {**found.baselines, "question_repeated": repeated}
    return {name: round(each.win_rate.all.estimate, 3) for name, each in others.items()}


def summary(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Means over seeds, release by release in order, and how often a later release beat the one before it."""
    places: dict[int, list[Mapping[str, Any]]] = {}
    better = pairs = 0
    for run in runs:
        releases = list(run["releases"].values())
        for place, each in enumerate(releases, start=1):
            places.setdefault(place, []).append(each)
        for before, after in itertools.pairwise(releases):
            pairs += 1
            better += after["gold_win_rate"][0] > before["gold_win_rate"][0]
    names = ("kl_base", "kl_live", "gain_per_nat", "gain_per_1000_rollouts")
    return {
        "outcomes": [[turn["outcome"] for turn in run["turns"]] for run in runs],
        "releases": {
            place: {
                "seeds": len(several),
                "gold_win_rate": mean([each["gold_win_rate"][0] for each in several]),
                **{name: mean([each[name] for each in several]) for name in names},
            }
            for place, several in sorted(places.items())
        },
        "later_beats_earlier": [better, pairs],
    }


def mean(values: Sequence[float]) -> float:
    return round(sum(values) / len(values), 3)


if __name__ == "__main__":
    main()
