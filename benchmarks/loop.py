"""A channel's whole life in one process: simulated people ask and rate over gRPC, the join and the learner run.

For benchmarks that run many loops: the demo's sizes and settings, without its processes.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

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
from plaudit.settings import Settings, load_settings
from plaudit.settings.text import toml
from plaudit.simulate.population import described
from plaudit.simulate.run import SimulateSettings, simulate
from plaudit.testing.serving import LocalServer, local_server
from sized import named

PEOPLE_AT_ONCE = 16

Found = TypeVar("Found")


@dataclass(frozen=True, slots=True, kw_only=True)
class Life:
    """What a channel has become, while its service still answers."""

    who: plan.People
    seed: int
    settings: Settings
    server: LocalServer
    results: tuple[Result, ...]

    @property
    def promoted(self) -> tuple[int, ...]:
        """Versions that went live, oldest first."""
        return tuple(
            each.version for each in self.results if each.outcome is TurnOutcome.PROMOTED and each.version is not None
        )


def _told(line: str) -> None:
    print(line, file=sys.stderr)


def tiny_people() -> list[plan.People]:
    """Every installed population that speaks the tiny model's language."""
    return [people for people in plan.people_of(described(_told)) if people.model == "tiny"]


def lived(who: plan.People, seed: int, turns: int, overrides: Sequence[str], judge: Callable[[Life], Found]) -> Found:
    """People, a turn, people who rate the release, a turn, ...; then what `judge` finds."""
    model = named(who.model)
    with tempfile.TemporaryDirectory(prefix="plaudit-loop-", ignore_cleanup_errors=True) as folder:
        options = plan.DemoOptions(out=Path(folder), quick=who.model == "tiny", seed=seed)
        options.config.write_text(toml(plan.settings_table(options, who, model)), encoding="utf-8")
        # One thread: on a tiny model a second one mostly waits, and several seeds may run side by side.
        threads = 1 if who.model == "tiny" else plan.threads()
        own = [f"data_dir={options.data_dir}", "learn.nice=0", f"model.threads={threads}"]
        settings = load_settings(options.config, [*own, *overrides])
        torch.set_num_threads(threads)
        engine = TorchEngine(Base.of(settings), settings.engine, settings.model)
        try:
            plugins = load_plugins(settings.plugins.allow)
            with local_server(settings.data_dir, engine, plugins, settings=settings) as server:
                results: list[Result] = []
                for turn in range(1, turns + 1):
                    _people(who, seed, turn, settings, server)
                    _joined(settings)
                    results += learn(settings, once=True)
                    server.server.router.look()
                return judge(Life(who=who, seed=seed, settings=settings, server=server, results=tuple(results)))
        finally:
            engine.close()


def _people(who: plan.People, seed: int, turn: int, settings: Settings, server: LocalServer) -> None:
    scale = plan.scale(who)
    first = turn == 1
    simulate(
        SimulateSettings(
            target=server.target,
            population=who.name,
            seed=seed,
            round=turn - 1,
            events=scale.acts(turn, who),
            acts_per_interaction=scale.acts_per_interaction if first else scale.own_acts_per_interaction,
            base_share=0.0 if first else scale.own_base_share,
            concurrency=PEOPLE_AT_ONCE,
            temperature=settings.policy.temperature,
        )
    )


def _joined(settings: Settings) -> None:
    log, store = open_log(settings), EvidenceStore(settings.store_url)
    join = Join(log, store, load_plugins(settings.plugins.allow), settings.join)
    while join.run_once(0.1):
        pass
    join.close()
    store.close()
    log.close()
