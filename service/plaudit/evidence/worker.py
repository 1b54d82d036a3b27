"""The join's process: opens log and store, exposes metrics, joins until it is told to end.

What enters: settings. What leaves: evidence in the store, metrics, a row that says that it runs, and a line in the log
of what it did, at most one each minute. Never answers a call: the metrics port is the only one it opens.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

import structlog
from prometheus_client import CollectorRegistry

from plaudit.eventlog import open_log
from plaudit.eventlog.protocol import Record
from plaudit.evidence.ingest import Outcome
from plaudit.evidence.join import Join
from plaudit.evidence.store import EvidenceStore
from plaudit.metrics import Metrics, expose, set_only
from plaudit.plugins import count_failures, load_plugins
from plaudit.privacy.forgotten import Forgotten
from plaudit.privacy.sweep import Sweep
from plaudit.settings import Settings
from plaudit.store.processes import Beat
from plaudit.waiting import opened

LOOK_SECONDS = 5.0  # between looks at lag and waiting acts: one question to the log, one to the store
LINE_SECONDS = 60.0

_log = structlog.get_logger(__name__)


def run_join(settings: Settings, stop: threading.Event) -> None:
    """Joins until `stop` is set; waits for a log or a store that is away or full, at its start too."""
    metrics = Metrics(CollectorRegistry())
    expose(metrics, settings.join.metrics_port, settings.serve.host)
    plugins = load_plugins(settings.plugins.allow, budget_seconds=settings.plugins.budget_seconds)
    count_failures(plugins, metrics)

    def waits(why: str) -> None:
        set_only(metrics.join_waits, {(why,): 1} if why else {})

    waits("START")
    if (log := opened("join", lambda: open_log(settings), stop)) is None:
        return
    try:
        if (store := opened("join", lambda: EvidenceStore(settings.store_url), stop)) is None:
            return
        beat = Beat(store.database, "join")
        progress = Progress(metrics, store, beat=beat)
        sweep = Sweep(settings, metrics, log)
        forgotten = Forgotten(
            lambda channel: settings.for_channel(channel).privacy.retention_days, opens=settings.privacy.person_keys
        )
        try:

            def look(join: Join) -> None:
                progress.look(join)
                sweep.look()

            def start() -> Join:
                return Join(
                    log,
                    store,
                    plugins,
                    settings.join,
                    observe=progress.observe,
                    look=look,
                    waits=waits,
                    forgotten=forgotten,
                )

            if (join := opened("join", start, stop)) is not None:
                _log.info("join.ready", plugins=sorted(plugins))
                join.run(stop)
        finally:
            sweep.close()
            beat.end()
            store.close()
    finally:
        log.close()


class Progress:
    """What a join did, as metrics and as a line each minute in which it read something."""

    def __init__(
        self,
        metrics: Metrics,
        store: EvidenceStore,
        *,
        beat: Beat | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._beat = beat
        self._metrics = metrics
        self._store = store
        self._clock = clock
        self._next_look = self._next_line = clock()
        self._records = self._joined = self._rejected = 0
        self._waiting: set[str] = set()

    def observe(self, records: Sequence[Record], outcome: Outcome, seconds: float) -> None:
        """Adds what one transaction read and changed, and how long it took if it read anything."""
        count(self._metrics, records, outcome)
        if records:
            self._metrics.join_seconds.observe(seconds)
        self._records += len(records)
        self._joined += outcome.joined.total()
        self._rejected += outcome.rejected.total()

    def look(self, join: Join) -> None:
        """Measures lag and waiting acts, if it is time to. Raises LogUnavailable or StoreUnavailable."""
        if self._clock() < self._next_look:
            return
        self._next_look = self._clock() + LOOK_SECONDS
        lag = join.lag()
        # Another join has the partitions that this one lost, and tells of them.
        set_only(self._metrics.join_lag, {(topic.value, str(at)): records for (topic, at), records in lag.items()})
        waiting = {str(channel): acts for channel, acts in self._store.waiting().items()}
        for channel in self._waiting - waiting.keys():
            self._metrics.join_waiting.labels(channel).set(0)
        for channel, acts in waiting.items():
            self._metrics.join_waiting.labels(channel).set(acts)
        self._waiting |= waiting.keys()
        if self._beat is not None:
            self._beat.beat({"unread": sum(lag.values()), "waiting": sum(waiting.values())})
        if self._records and self._clock() >= self._next_line:
            self._next_line = self._clock() + LINE_SECONDS
            _log.info(
                "join.progress",
                records=self._records,
                joined=self._joined,
                rejected=self._rejected,
                waiting=sum(waiting.values()),
                unread=sum(lag.values()),
            )
            self._records = self._joined = self._rejected = 0


def count(metrics: Metrics, records: Sequence[Record], outcome: Outcome) -> None:
    """Adds what one transaction read and changed."""
    for record in records:
        metrics.join_records.labels(record.topic.value).inc()
    for channel, joined in outcome.joined.items():
        metrics.join_joined.labels(str(channel)).inc(joined)
    for (channel, kind), rows in outcome.evidence.items():
        metrics.join_evidence.labels(str(channel), kind.value).inc(rows)
    for topic, expired in outcome.expired.items():
        metrics.join_expired.labels(topic).inc(expired)
    for why, forgotten in outcome.forgotten.items():
        metrics.join_forgotten.labels(why).inc(forgotten)
    for reason, rejected in outcome.rejected.items():
        metrics.join_rejected.labels(reason).inc(rejected)
