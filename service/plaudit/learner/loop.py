"""The learner's process: looks at each channel's evidence, runs a turn if enough is new, and again.

Enters: settings. Leaves: releases. What ends one channel's turn ends no other's; on few cores it yields to serving.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import structlog
import torch
from prometheus_client import CollectorRegistry

from plaudit.engine.base import Base
from plaudit.engine.frozen import quicken
from plaudit.engine.observing import observe
from plaudit.engine.opening import open_engine
from plaudit.engine.packed import number_format
from plaudit.engine.ranks import Alone, Here
from plaudit.engine.torch_engine import TorchEngine
from plaudit.engine.torchrun import begin, follow, lead, place
from plaudit.errors import Misconfigured, StoreUnavailable
from plaudit.eventlog import open_log
from plaudit.evidence.store import EvidenceStore
from plaudit.learner.context import Learner, rollout_engine
from plaudit.learner.look import Watch, look
from plaudit.learner.outcome import Result, TurnOutcome
from plaudit.learner.status import Status
from plaudit.metrics import Metrics, expose
from plaudit.plugins import count_failures, load_plugins
from plaudit.release.registry import Registry
from plaudit.settings import EngineSettings, Settings
from plaudit.signals import StopEvent
from plaudit.store.files import private_folder
from plaudit.store.leases import Leases
from plaudit.store.outcomes import TurnOutcomes
from plaudit.store.processes import Beat
from plaudit.telemetry import places
from plaudit.types import Channel
from plaudit.waiting import opened_at_last, pause

_T = TypeVar("_T")

log = structlog.get_logger(__name__)


def learn(settings: Settings, once: bool = False) -> list[Result]:
    """Look at every channel until `learn.max_turns` turns, or (with `once`) once; the results.

    A signal ends it by SystemExit. With `once` any new evidence is enough for a turn. Without it a log or a store that
    is away is waited for, at the start too; with it that ends the look, by LogUnavailable or StoreUnavailable.
    Of processes that `torchrun` started only rank 0 looks, the others compute for it until it ends. One that is lost
    ends them all, by LearnerProcessLost.
    """
    os.nice(settings.learn.nice)
    rank, processes = place()
    if rank:
        _follow(settings, rollout_engine(settings, processes))
        return []
    learner = open_learner(settings, wait=not once, processes=processes)
    results: list[Result] = []
    watches: defaultdict[Channel, Watch] = defaultdict(Watch)
    # Never set: it waits in slices, between which a signal's SystemExit comes through. One that comes within a turn
    # ends that too, for a turn may die at any step.
    stop, losses = StopEvent(), 0
    try:
        if not once:  # that runs beside a learner that goes on, and is over before anybody asks
            expose(learner.metrics, settings.learn.metrics_port, settings.serve.host)
        log.info("learn.ready", plugins=sorted(learner.plugins))
        while True:
            try:
                channels, losses = _channels(learner), 0
            except StoreUnavailable as error:
                if once:
                    raise
                losses += 1
                pause("learn", stop, error, losses)
                continue
            for channel in channels:
                result = look(learner, channel, watches[channel], force=once)
                if result is not None and (once or result.outcome is not TurnOutcome.WAITED):
                    results.append(result)
                learner.ranks.check()
            learner.status.rest()
            if once or (settings.learn.max_turns and len(results) >= settings.learn.max_turns):
                return results
            stop.wait(settings.learn.poll_seconds)
    finally:
        learner.close()


def _channels(learner: Learner) -> list[Channel]:
    """Channels that have been asked; none while the store cannot be read. Raises StoreUnavailable."""
    try:
        return learner.store.channels()
    except StoreUnavailable:
        raise
    except Exception as error:  # the outermost loop: other channels and later looks go on
        log.error("the store cannot be read", places=places(error))
        return []


def _own_format(name: str, engine: EngineSettings) -> torch.dtype:
    """Of the linears in the learner's own passes."""
    if name == "engine":
        # No gradient passes weights of eight bits.
        return torch.float32 if engine.dtype == "int8" else number_format(engine.dtype)
    return number_format(name, "model.learner_dtype")


def _follow(settings: Settings, rollouts: EngineSettings) -> None:
    """Compute for rank 0 until it ends. Nothing is open here that a signal may not end at once."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)
    if settings.model.threads:
        torch.set_num_threads(settings.model.threads)
    here = _model(settings, rollouts)
    try:
        follow(here)
    finally:
        if not settings.model.shard:
            here.engine.close()


def _model(settings: Settings, rollouts: EngineSettings) -> Here:
    if settings.model.shard:
        return _sliced(settings, rollouts)
    base = Base.of(settings)
    engine = TorchEngine(base, rollouts, settings.model)
    # Behind the engine, which compares its own way with the model's plain one.
    quicken(base, _own_format(settings.model.learner_dtype, rollouts))
    return Here(base, engine)


def _sliced(settings: Settings, rollouts: EngineSettings) -> Here:
    """A slice of the base, and at rank 0 the engine over vLLM servers."""
    rank, processes = place()
    if processes == 1:
        raise Misconfigured(
            "model.shard cuts the base into slices for several processes and this learner is one process; start it by "
            "torchrun, or unset model.shard",
            setting="model.shard",
        )
    from plaudit.engine import sliced

    begin(settings.learn.process_seconds)
    base = sliced.load(settings, rank, processes)
    if rank:
        return Here(base, None)  # type: ignore[arg-type]
    return Here(base, open_engine(settings.model_copy(update={"engine": rollouts})))


def open_learner(
    settings: Settings, *, wait: bool = False, rollouts: EngineSettings | None = None, processes: int = 1
) -> Learner:
    """Everything that turns share: base, engine, log, store, registry, plugins.

    `rollouts`: settings of the engine; by default those that suit the settings (`rollout_engine`). `processes`: as many
    compute together, and this is rank 0 (`engine.torchrun`).
    With `wait` it comes when log and store do; without it raises LogUnavailable or StoreUnavailable.
    """

    def ready(make: Callable[[], _T]) -> _T:
        return opened_at_last("learn", make) if wait else make()

    if settings.model.threads:
        torch.set_num_threads(settings.model.threads)
    private_folder(settings.data_dir)
    plugins = load_plugins(settings.plugins.allow, budget_seconds=settings.plugins.budget_seconds)
    with contextlib.ExitStack() as unless_whole:
        store = ready(lambda: EvidenceStore(settings.store_url))
        unless_whole.callback(store.close)
        registry = ready(lambda: Registry(settings.store_url, settings.registry_root))
        unless_whole.callback(registry.close)
        event_log = ready(lambda: open_log(settings))
        unless_whole.callback(event_log.close)
        rollouts = rollouts or rollout_engine(settings, processes)
        here = _model(settings, rollouts)
        unless_whole.callback(here.engine.close)
        ranks = lead(here, settings.learn.process_seconds) if processes > 1 else Alone(*here)
        unless_whole.pop_all()
    metrics = Metrics(CollectorRegistry())
    count_failures(plugins, metrics)
    observe(here.engine, metrics)
    return Learner(
        settings=settings,
        rollouts=rollouts,
        base=here.base,
        engine=here.engine,
        ranks=ranks,
        log=event_log,
        store=store,
        registry=registry,
        plugins=plugins,
        metrics=metrics,
        status=Status(Path(settings.data_dir) / "learner.json", metrics, Beat(store.database, "learn")),
        leases=Leases(store.database),
        outcomes=TurnOutcomes(store.database),
    )
