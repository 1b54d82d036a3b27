"""The learner's process: looks at each channel's evidence, runs a turn if enough is new, and again.

Enters: settings. Leaves: releases. What ends one channel's turn ends no other's; on few cores it yields to serving.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path

import structlog
import torch
from prometheus_client import CollectorRegistry

from plaudit.engine.base import Base
from plaudit.engine.torch_engine import TorchEngine
from plaudit.eventlog import open_log
from plaudit.evidence.splits import Split
from plaudit.evidence.store import EvidenceStore
from plaudit.learner.context import Learner
from plaudit.learner.outcome import Result, TurnOutcome
from plaudit.learner.recover import recover
from plaudit.learner.status import Status
from plaudit.learner.turn import new_turn, run
from plaudit.metrics import Metrics, expose
from plaudit.plugins import load_plugins
from plaudit.release.registry import Registry
from plaudit.settings import Settings
from plaudit.signals import stop_on_signals
from plaudit.types import Channel

log = structlog.get_logger(__name__)


def learn(settings: Settings, once: bool = False) -> list[Result]:
    """Run turns until a signal, `learn.max_turns`, or (with `once`) one pass over all channels."""
    os.nice(settings.learn.nice)
    learner = open_learner(settings)
    # Tests run it in a thread, where no signal comes.
    stop = stop_on_signals() if threading.current_thread() is threading.main_thread() else threading.Event()
    expose(learner.metrics, settings.learn.metrics_port, settings.serve.host)
    results: list[Result] = []
    try:
        while not stop.is_set():
            for channel in learner.store.channels():
                if stop.is_set():
                    break
                result = maybe_turn(learner, channel, force=once)
                if result is not None:
                    results.append(result)
            if once or (settings.learn.max_turns and len(results) >= settings.learn.max_turns):
                break
            stop.wait(settings.learn.poll_seconds)
    finally:
        learner.close()
    return results


def open_learner(settings: Settings) -> Learner:
    """Everything that turns share: base, engine, log, store, registry, plugins."""
    if settings.model.threads:
        torch.set_num_threads(settings.model.threads)
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    base = Base.of(settings)
    metrics = Metrics(CollectorRegistry())
    # Rollouts come in bursts: rows are filled before they decode, and nobody waits for the first token.
    rows = max(each.prompts * each.samples for each in settings.policies)
    engine = settings.engine.model_copy(
        update={"widths": (rows, 2 * rows), "prefill_chunk": rows * 64, "max_waiting": 1_000_000}
    )
    return Learner(
        settings=settings,
        base=base,
        engine=TorchEngine(base, engine, settings.model),
        log=open_log(settings),
        store=EvidenceStore(settings.store_url),
        registry=Registry(settings.store_url, settings.registry_root),
        plugins=load_plugins(settings.plugins.allow),
        metrics=metrics,
        status=Status(Path(settings.data_dir) / "learner.json", metrics),
    )


def new_events(learner: Learner, channel: Channel) -> int:
    """Training events (train raters on train groups) accepted since the last turn that made a release."""
    few_raters = learner.plugins[channel.domain].declaration.few_raters
    data = learner.store.freeze(channel, learner.registry.salt(channel), few_raters=few_raters)
    releases = learner.registry.releases(channel)
    last = learner.registry.manifest(channel, releases[-1].version).as_of
    used = {
        (row.interaction_id, row.feedback_id)
        for row in data.rows
        if row.rater_split is Split.TRAIN
        and row.group_split is Split.TRAIN
        and (last is None or row.accepted_at > last)
    }
    return len(used)


def maybe_turn(learner: Learner, channel: Channel, *, force: bool = False) -> Result | None:
    """A turn of a channel if enough is new; None if it is not, or the channel has not served."""
    if channel.domain not in learner.plugins or learner.registry.state(channel) is None:
        return None
    settings = learner.settings.for_channel(channel)
    try:
        recover(learner, channel, may_promote=settings.learn.promote)
        events = new_events(learner, channel)
        learner.metrics.turn_events.labels(str(channel)).set(events)
        if not events or (events < settings.learn.min_events and not force):
            learner.status.idle(f"{events} new training events, {settings.learn.min_events} start a turn")
            return None
        number = len(learner.registry.releases(channel))
        learner.status.turn(number)
        with new_turn(learner, channel, settings.learn.seed + number) as turn:
            result = run(turn)
    except Exception as error:  # the outermost loop: this channel's turn is lost, and others go on
        log.exception("turn failed", channel=str(channel))
        result = Result(outcome=TurnOutcome.FAILED, reason=f"{type(error).__name__}: {error}")
    learner.metrics.turns.labels(str(channel), str(result.outcome)).inc()
    learner.status.idle(f"{result.outcome}: {result.reason}")
    log.info("turn", channel=str(channel), outcome=str(result.outcome), seconds=learner.status.seconds)
    return result
