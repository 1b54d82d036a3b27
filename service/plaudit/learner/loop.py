"""The learner's process: looks at the evidence, runs a turn where enough is new, and again.

Enters: settings. Leaves: releases. One learner a channel; on few cores it yields to serving.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path

import structlog
import torch
from prometheus_client import CollectorRegistry, start_http_server

from plaudit.engine.base import Base
from plaudit.engine.torch_engine import TorchEngine
from plaudit.errors import PlauditError
from plaudit.eventlog import open_log
from plaudit.evidence.splits import Split
from plaudit.evidence.store import EvidenceStore
from plaudit.learner.status import Status
from plaudit.learner.turn import Turn, TurnOutcome, Workshop, recover
from plaudit.metrics import Metrics
from plaudit.plugins import load_plugins
from plaudit.release.registry import Registry
from plaudit.settings import Settings
from plaudit.signals import stop_on_signals
from plaudit.types import Channel

log = structlog.get_logger(__name__)


def learn(settings: Settings, once: bool = False) -> list[TurnOutcome]:
    """Run turns until a signal, `learn.max_turns`, or (with `once`) one pass over all channels."""
    # Tests run it in a thread, where no signal comes.
    stop = stop_on_signals() if threading.current_thread() is threading.main_thread() else threading.Event()
    os.nice(settings.learn.nice)
    shop = open_workshop(settings)
    if settings.learn.metrics_port:
        start_http_server(settings.learn.metrics_port, registry=shop.metrics.registry)
    outcomes: list[TurnOutcome] = []
    failed: PlauditError | None = None
    try:
        while not stop.is_set():
            for channel in shop.store.channels():
                try:
                    outcome = maybe_turn(shop, channel, force=once)
                except PlauditError as error:
                    # The outermost loop: this channel's turn is lost, and others go on.
                    log.exception("turn failed", channel=str(channel), reason=error.reason)
                    failed = error
                    continue
                if outcome is not None:
                    outcomes.append(outcome)
            if once or (settings.learn.max_turns and len(outcomes) >= settings.learn.max_turns):
                break
            stop.wait(settings.learn.poll_seconds)
    finally:
        shop.engine.close()
        shop.registry.close()
        shop.store.close()
        shop.log.close()
    if once and failed is not None:
        raise failed
    return outcomes


def open_workshop(settings: Settings) -> Workshop:
    """Everything that turns share: base, engine, log, store, registry, plugins."""
    if settings.model.threads:
        torch.set_num_threads(settings.model.threads)
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    base = Base.load(settings.model.path, device=settings.model.device, dtype=settings.model.dtype)
    metrics = Metrics(CollectorRegistry())
    # Rollouts come in bursts: rows are filled before they decode, and nobody waits for the first token.
    rows = settings.policy.prompts * settings.policy.samples
    engine = settings.engine.model_copy(
        update={"widths": (rows, 2 * rows), "prefill_chunk": rows * 64, "max_waiting": 1_000_000}
    )
    return Workshop(
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


def new_events(shop: Workshop, channel: Channel) -> int:
    """Training events (train raters on train groups) accepted since the last turn that made a release."""
    data = shop.store.freeze(channel, shop.registry.salt(channel))
    releases = shop.registry.releases(channel)
    last = shop.registry.manifest(channel, releases[-1].version).as_of
    used = {
        (row.interaction_id, row.feedback_id)
        for row in data.rows
        if row.rater_split is Split.TRAIN
        and row.group_split is Split.TRAIN
        and (last is None or row.accepted_at > last)
    }
    return len(used)


def maybe_turn(shop: Workshop, channel: Channel, *, force: bool = False) -> TurnOutcome | None:
    """A turn of a channel where enough is new; None where it is not, or the channel has not served."""
    if channel.domain not in shop.plugins or shop.registry.state(channel) is None:
        return None
    recover(shop, channel)
    events = new_events(shop, channel)
    shop.metrics.turn_events.labels(str(channel)).set(events)
    if not events or (events < shop.settings.learn.min_events and not force):
        shop.status.idle(f"{events} new training events, {shop.settings.learn.min_events} start a turn")
        return None
    turn = len(shop.registry.releases(channel))
    shop.status.turn(turn)
    outcome = Turn(shop, channel, shop.settings.learn.seed * 1000 + turn).run()
    shop.metrics.turns.labels(str(channel), str(outcome)).inc()
    shop.status.idle(f"turn {turn}: {outcome}")
    log.info("turn", channel=str(channel), outcome=str(outcome), seconds=shop.status.seconds)
    return outcome
