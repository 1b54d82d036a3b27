"""The join's process: opens log and store, exposes metrics, joins until it is told to end.

What enters: settings. What leaves: evidence in the store, and counts of what each transaction changed. Never answers
a call: the metrics port is the only one it opens.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

from prometheus_client import CollectorRegistry

from plaudit.eventlog import open_log
from plaudit.eventlog.protocol import Record
from plaudit.evidence.ingest import Outcome
from plaudit.evidence.join import Join
from plaudit.evidence.store import EvidenceStore
from plaudit.metrics import Metrics, expose
from plaudit.plugins import load_plugins
from plaudit.settings import Settings


def run_join(settings: Settings, stop: threading.Event) -> None:
    """Joins until `stop` is set."""
    metrics = Metrics(CollectorRegistry())
    expose(metrics, settings.join.metrics_port, settings.serve.host)
    log = open_log(settings)
    try:
        store = EvidenceStore(settings.store_url)
        plugins = load_plugins(settings.plugins.allow)

        def observe(records: Sequence[Record], outcome: Outcome) -> None:
            count(metrics, records, outcome)

        Join(log, store, plugins, settings.join, observe=observe).run(stop)
    finally:
        log.close()


def count(metrics: Metrics, records: Sequence[Record], outcome: Outcome) -> None:
    """Adds what one transaction read and changed."""
    for record in records:
        metrics.join_records.labels(record.topic.value).inc()
    for channel, joined in outcome.joined.items():
        metrics.join_joined.labels(str(channel)).inc(joined)
    for (channel, kind), rows in outcome.evidence.items():
        metrics.join_evidence.labels(str(channel), kind.value).inc(rows)
    for reason, rejected in outcome.rejected.items():
        metrics.join_rejected.labels(reason).inc(rejected)
