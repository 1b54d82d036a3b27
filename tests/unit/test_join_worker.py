"""The join's process: it counts what it does and ends when it is told to."""

import threading
from collections import Counter
from datetime import UTC, datetime

from plaudit.eventlog.protocol import Record, Topic
from plaudit.evidence.ingest import Outcome
from plaudit.evidence.worker import count, run_join
from plaudit.metrics import Metrics
from plaudit.settings import Settings
from plaudit.types import Channel, FeedbackKind
from prometheus_client import CollectorRegistry


def test_every_record_and_row_is_counted_under_its_labels():
    registry = CollectorRegistry()
    channel = Channel(domain="echo", tenant="default")
    record = Record(Topic.FEEDBACK, 0, 0, b"k", b"v", datetime.now(UTC))
    kind = FeedbackKind.THUMBS
    outcome = Outcome(Counter({channel: 3}), Counter({(channel, kind): 5}), Counter({"ID_CONFLICT": 1}))
    count(Metrics(registry), [record, record], outcome)
    of = registry.get_sample_value
    assert of("plaudit_join_records_total", {"topic": "plaudit.feedback"}) == 2
    assert of("plaudit_join_joined_total", {"channel": str(channel)}) == 3
    assert of("plaudit_join_evidence_total", {"channel": str(channel), "kind": kind.value}) == 5
    assert of("plaudit_join_rejected_total", {"reason": "ID_CONFLICT"}) == 1


def test_the_process_ends_when_told_to(tmp_path):
    stop = threading.Event()
    settings = Settings(data_dir=tmp_path)
    worker = threading.Thread(target=run_join, args=(settings, stop))
    worker.start()
    stop.set()
    worker.join(20)
    assert not worker.is_alive()
