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
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import structlog
import torch
from plaudit.demo import plan
from plaudit.engine.base import Base
from plaudit.engine.torch_engine import TorchEngine
from plaudit.eventlog import open_log
from plaudit.evidence.join import Join
from plaudit.evidence.store import EvidenceStore
from plaudit.learner.loop import learn
from plaudit.learner.outcome import Result, TurnOutcome
from plaudit.plugins import load_plugins
from plaudit.policy.train import HELD_OUT_SAMPLES
from plaudit.release.texts import VarietyCompared
from plaudit.settings import Settings, load_settings
from plaudit.settings_text import toml
from plaudit.simulate.evaluate_completions import CompletionEvaluation, evaluate_completions, judged
from plaudit.simulate.panel import EvaluateSettings, Panel
from plaudit.simulate.population import load_population
from plaudit.simulate.run import SimulateSettings, simulate
from plaudit.testing import models
from plaudit.testing.serving import LocalServer, local_server

SCALE = plan.QUICK
PEOPLE = 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="section.name=value")
    parser.add_argument("--out", type=Path, help="write the JSON here, too")
    arguments = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    model = plan.cache_dir() / SCALE.model
    models.pretrained_tiny(model)
    runs = []
    for seed in arguments.seeds:
        runs.append(loop(seed, arguments.turns, arguments.overrides, model))
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


def loop(seed: int, turns: int, overrides: Sequence[str], model: Path) -> dict[str, Any]:
    """One channel's life: people, a turn, people who rate the release, a turn, ..., gold."""
    begun = time.process_time()
    with tempfile.TemporaryDirectory(prefix="plaudit-turns-", ignore_cleanup_errors=True) as folder:
        options = plan.DemoOptions(out=Path(folder), quick=True, seed=seed)
        options.config.write_text(toml(plan.settings_table(options, model)), encoding="utf-8")
        # One thread: on a tiny model a second one mostly waits, and several seeds may run side by side.
        own = [f"data_dir={options.data_dir}", "learn.nice=0", "model.threads=1"]
        settings = load_settings(options.config, [*own, *overrides])
        torch.set_num_threads(1)
        engine = TorchEngine(Base.of(settings), settings.engine, settings.model)
        try:
            plugins = load_plugins(settings.plugins.allow)
            with local_server(settings.data_dir, engine, plugins, settings=settings) as server:
                return live(seed, turns, settings, server) | {"cpu_seconds": round(time.process_time() - begun)}
        finally:
            engine.close()


def live(seed: int, turns: int, settings: Settings, server: LocalServer) -> dict[str, Any]:
    results: list[Result] = []
    for number in range(turns):
        people(seed, number, settings, server)
        joined(settings)
        results += learn(settings, once=True)
        server.server.router.look()
    promoted = [result.version for result in results if result.outcome is TurnOutcome.PROMOTED]
    versions = tuple(version for version in promoted if version is not None)
    judges = EvaluateSettings(
        target=server.target, releases=versions, population=SCALE.population, seed=seed, concurrency=PEOPLE
    )
    with contextlib.closing(Panel(judges, lambda _: None)) as panel:
        found = evaluate_completions(panel)
    return {
        "seed": seed,
        "turns": [{"outcome": str(result.outcome), "reason": result.reason} for result in results],
        "releases": {version: release(server, version, found) for version in versions},
        "base_again": round(found.releases[0].win_rate.all.estimate, 3),
        "baselines": baselines(found, seed),
    }


def people(seed: int, number: int, settings: Settings, server: LocalServer) -> None:
    simulate(
        SimulateSettings(
            target=server.target,
            population=SCALE.population,
            seed=seed,
            round=number,
            events=SCALE.own_acts if number else SCALE.first_acts,
            acts_per_interaction=SCALE.acts_per_interaction,
            base_share=SCALE.own_base_share if number else 0.0,
            concurrency=PEOPLE,
            temperature=settings.policy.temperature,
        )
    )


def joined(settings: Settings) -> None:
    log, store = open_log(settings), EvidenceStore(settings.store_url)
    join = Join(log, store, load_plugins(settings.plugins.allow), settings.join)
    while join.run_once(0.1):
        pass
    join.close()
    store.close()
    log.close()


def release(server: LocalServer, version: int, found: CompletionEvaluation) -> dict[str, Any]:
    """Figures of one release; rollouts are all completions that its training sampled, comparisons included."""
    manifest = server.registry.manifest(plan.CHANNEL, version)
    policy = server.settings.policy
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


def baselines(found: CompletionEvaluation, seed: int) -> dict[str, float]:
    echo = [[prompt.text] for prompt in found.prompts]
    population = load_population(SCALE.population)
    repeated = judged(population, found.prompts, echo, found.base_answers, seed)
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
