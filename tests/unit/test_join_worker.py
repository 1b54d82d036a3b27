"""The join's process: it counts what it does and ends when it is told to."""

import contextlib
import threading
import time
import uuid
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pytest
from plaudit import waiting
from plaudit.errors import StoreUnavailable
from plaudit.eventlog.deleting import EmbeddedRecords
from plaudit.eventlog.protocol import Record, Topic
from plaudit.eventlog.sqlite import SqliteEventLog
from plaudit.evidence import ingest, places, worker
from plaudit.evidence import join as join_module
from plaudit.evidence.ingest import Outcome
from plaudit.evidence.join import Join
from plaudit.evidence.store import EvidenceStore
from plaudit.evidence.worker import Progress, count, run_join
from plaudit.metrics import Metrics
from plaudit.settings import JoinSettings, Settings
from plaudit.testing.evidence import CHANNEL, PlainDomain, append, join_all, make_feedback, make_interaction
from plaudit.types import Channel, FeedbackKind, Thumbs
from prometheus_client import CollectorRegistry
from structlog.testing import capture_logs

QUIET = {"metrics_port": 0}


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


@pytest.fixture
def started(tmp_path):
    """A log, a store and a join of PlainDomain with its progress, and a clock that the test moves."""
    clock = [0.0]
    registry = CollectorRegistry()
    log, store = SqliteEventLog(tmp_path / "log.sqlite"), EvidenceStore(f"sqlite:///{tmp_path / 'store.sqlite'}")
    progress = Progress(Metrics(registry), store, clock=lambda: clock[0])
    settings = JoinSettings(batch_records=2)
    join = Join(log, store, {"plain": PlainDomain()}, settings, observe=progress.observe, look=progress.look)
    yield SimpleNamespace(log=log, store=store, join=join, progress=progress, of=registry.get_sample_value, clock=clock)
    join.close()
    store.close()
    log.close()


def test_lag_waiting_acts_and_batch_time_are_measured(started):
    of, labels = started.of, {"topic": "plaudit.feedback", "partition": "0"}
    append(started.log, *[make_feedback(f"f{n}", "late", Thumbs("a", True)) for n in range(5)])
    started.join.run_once(0)
    started.progress.look(started.join)
    assert of("plaudit_join_lag_records", labels) == 3
    assert of("plaudit_join_waiting", {"channel": str(CHANNEL)}) == 2
    assert of("plaudit_join_batch_seconds_count") == 1
    assert of("plaudit_join_batch_seconds_sum") > 0
    append(started.log, make_interaction("late"))
    join_all(started.join)
    started.progress.look(started.join)
    assert of("plaudit_join_lag_records", labels) == 3, "looks are rare"
    started.clock[0] += 6
    started.progress.look(started.join)
    assert of("plaudit_join_lag_records", labels) == 0
    assert of("plaudit_join_waiting", {"channel": str(CHANNEL)}) == 0
    assert of("plaudit_join_batch_seconds_count") == 3


def test_the_lag_of_a_partition_that_another_join_took_over_is_told_no_longer(started):
    def lag(partition):
        return started.of("plaudit_join_lag_records", {"topic": "plaudit.feedback", "partition": str(partition)})

    held = {(Topic.FEEDBACK, 0): 7, (Topic.FEEDBACK, 1): 9000}
    started.progress.look(SimpleNamespace(lag=lambda: held))
    assert (lag(0), lag(1)) == (7, 9000)
    del held[Topic.FEEDBACK, 1]
    started.clock[0] += 6
    started.progress.look(SimpleNamespace(lag=lambda: held))
    assert (lag(0), lag(1)) == (7, None)


def test_feedback_that_waited_too_long_is_counted_as_rejected(started):
    now = [datetime.now(UTC)]
    settings = JoinSettings(max_wait_seconds=60)
    join = Join(
        started.log,
        started.store,
        {"plain": PlainDomain()},
        settings,
        observe=started.progress.observe,
        now=lambda: now[0],
    )
    append(started.log, make_feedback("f", "nowhere", Thumbs("a", True)))
    join_all(join)
    assert not started.of("plaudit_join_rejected_total", {"reason": "NO_INTERACTION"})
    now[0] += timedelta(seconds=61)
    join_all(join)
    join_all(join)
    join.close()
    assert started.of("plaudit_join_rejected_total", {"reason": "NO_INTERACTION"}) == 1


def test_a_healthy_join_says_what_it_did_at_most_once_a_minute(started):
    with capture_logs() as lines:
        for minute in range(3):
            for second in range(0, 60, 10):
                started.clock[0] = minute * 60 + second
                if minute < 2:
                    append(started.log, make_interaction(f"i{minute}.{second}"))
                join_all(started.join)
                started.progress.look(started.join)
    assert [line["event"] for line in lines] == ["join.progress"] * 3
    assert [line["records"] for line in lines] == [1, 6, 5]


def test_a_join_started_on_a_full_disk_says_so_and_goes_on_once_there_is_room(small_disk, monkeypatch):
    monkeypatch.setattr(waiting, "FIRST_SECONDS", 0.05)
    filler, stop, folder = small_disk / "filler", threading.Event(), small_disk / "data"
    folder.mkdir()
    with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    with capture_logs() as lines:
        thread = threading.Thread(target=run_join, args=(Settings(data_dir=folder, join=QUIET), stop))
        thread.start()
        assert eventually(lambda: [line for line in lines if line["event"] == "join.waits"])
        filler.unlink()
        ready = eventually(lambda: [line for line in lines if line["event"] == "join.ready"])
        stop.set()
        thread.join(300)
    assert ready
    assert "full" in lines[0]["why"]
    assert str(folder) in lines[0]["why"]


def test_metrics_say_that_a_join_waits_for_its_store_and_why(tmp_path, monkeypatch):
    monkeypatch.setattr(waiting, "FIRST_SECONDS", 0.05)
    served, stop, told = [], threading.Event(), []
    monkeypatch.setattr(worker, "expose", lambda metrics, port, host: served.append(metrics.registry))
    away = StoreUnavailable("away")

    def positions(self):
        told.append(why())
        if len(told) < 3:
            raise away
        return {}

    def why():
        return [each.labels["why"] for metric in served[0].collect() for each in metric.samples if "waits" in each.name]

    monkeypatch.setattr(EvidenceStore, "positions", positions)
    thread = threading.Thread(target=run_join, args=(Settings(data_dir=tmp_path, join=QUIET), stop))
    thread.start()
    assert eventually(lambda: len(told) >= 3 and not why())
    stop.set()
    thread.join(300)
    assert told[:3] == [["START"], ["STORE_UNAVAILABLE"], ["STORE_UNAVAILABLE"]]


def test_a_join_whose_disk_fills_up_waits_and_loses_nothing(small_disk, tmp_path, monkeypatch):
    monkeypatch.setattr(waiting, "FIRST_SECONDS", 0.05)
    filler, stop = small_disk / "filler", threading.Event()
    log = SqliteEventLog(tmp_path / "log.sqlite")
    store = EvidenceStore(f"sqlite:///{small_disk / 'store.sqlite'}")
    with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    append(log, *[make_interaction(f"i{n}", group="x" * 2000) for n in range(200)])
    with capture_logs() as lines:
        join = Join(log, store, {"plain": PlainDomain()}, JoinSettings())
        thread = threading.Thread(target=join.run, args=(stop,))
        thread.start()
        assert eventually(lambda: [line for line in lines if line["event"] == "join.waits"])
        filler.unlink()
        assert eventually(lambda: store.counts(CHANNEL).interactions == 200)
        stop.set()
        thread.join(300)
    assert "store.sqlite cannot grow: its disk is full" in lines[0]["why"]
    store.close()
    log.close()


def eventually(holds, seconds=300.0):
    deadline = time.monotonic() + seconds
    while not (found := holds()) and time.monotonic() < deadline:
        time.sleep(0.02)
    return found


def test_what_a_model_wrote_may_hold_any_character(started):
    asked = make_interaction("i1")
    odd = replace(asked.candidates[0], text="a\0b", displayed_text="a\0b")
    append(started.log, replace(asked, candidates=(odd, asked.candidates[1])))
    append(started.log, make_feedback("f1", "i1", Thumbs("a", True)))
    join_all(started.join)
    assert started.of("plaudit_join_joined_total", {"channel": str(CHANNEL)}) == 1


@pytest.mark.parametrize("kind", ["embedded", "kafka"])
def test_it_starts_on_a_folder_that_is_not_there_yet(tmp_path, request, kind):
    folder, stop, more = tmp_path / "not" / "there", threading.Event(), {}
    if kind == "kafka":
        bootstrap = request.getfixturevalue("kafka_bootstrap")
        request.getfixturevalue("kafka_leftovers")
        more = {"log": {"kind": "kafka", "kafka": {"bootstrap": bootstrap, "topic_prefix": f"{uuid.uuid4().hex}."}}}
    with capture_logs() as lines:
        thread = threading.Thread(target=run_join, args=(Settings(data_dir=folder, join=QUIET, **more), stop))
        thread.start()
        ready = eventually(lambda: [line for line in lines if line["event"] == "join.ready"])
        stop.set()
        thread.join(300)
    assert ready
    assert not thread.is_alive()
    assert folder.stat().st_mode & 0o777 == 0o700


def test_the_process_ends_when_told_to(tmp_path):
    stop = threading.Event()
    settings = Settings(data_dir=tmp_path, join=QUIET)
    thread = threading.Thread(target=run_join, args=(settings, stop))
    thread.start()
    stop.set()
    thread.join(300)
    assert not thread.is_alive()


class Forming:
    """A member of a group that forms slowly, as Kafka's: it has nothing for some polls, then what its log has."""

    def __init__(self, make, polls):
        self._make, self._left, self._inner = make, polls, None

    def poll(self, timeout_seconds, max_records):
        if self._left:
            self._left -= 1
            return []
        if self._inner is None:
            self._inner = self._make()
            return []
        return self._inner.poll(timeout_seconds, max_records)

    def assigned(self):
        return self._inner.assigned() if self._inner else frozenset()

    def end_positions(self):
        return self._inner.end_positions() if self._inner else {}

    def lose(self):
        """Another member gets its partitions."""
        self.close()
        self._inner, self._left = None, 1

    def close(self):
        if self._inner is not None:
            self._inner.close()

    def __getattr__(self, name):
        return getattr(self._inner, name)


class FormingLog:
    def __init__(self, log, polls=0):
        self._log, self.polls, self.members = log, polls, []

    def consumer(self, *asked):
        self.members.append(Forming(lambda: self._log.consumer(*asked), self.polls))
        return self.members[-1]

    def __getattr__(self, name):
        return getattr(self._log, name)


def forming(started, log, **options):
    settings = JoinSettings(poll_seconds=0.01, batch_records=2, max_wait_seconds=60)
    return Join(log, started.store, {"plain": PlainDomain()}, settings, **options)


def test_a_join_whose_batch_fails_each_time_does_not_say_in_between_that_it_goes_on(started, monkeypatch):
    monkeypatch.setattr(waiting, "FIRST_SECONDS", 0.01)
    monkeypatch.setattr(waiting, "LONGEST_SECONDS", 0.01)
    said, stop, write = [], threading.Event(), ingest.write_interactions

    def full(connection, arrived):
        if arrived:
            raise StoreUnavailable("its disk is full")
        return write(connection, arrived)

    append(started.log, make_interaction("i"))
    join = forming(started, FormingLog(started.log, polls=3), waits=said.append)
    thread = threading.Thread(target=join.run, args=(stop,), daemon=True)
    with monkeypatch.context() as patch:
        patch.setattr(ingest, "write_interactions", full)
        thread.start()
        assert eventually(lambda: said.count("STORE_UNAVAILABLE") >= 4)
        so_far = set(said)
    assert eventually(lambda: not said[-1])
    stop.set()
    thread.join(300)
    assert so_far == {"STORE_UNAVAILABLE"}
    assert started.store.counts(CHANNEL).interactions == 1


def test_a_join_without_a_partition_goes_on_once_nothing_failed_for_a_while(started, monkeypatch):
    monkeypatch.setattr(waiting, "FIRST_SECONDS", 0.01)
    monkeypatch.setattr(join_module, "CALM_SECONDS", 0.05)
    said, stop, fails = [], threading.Event(), [StoreUnavailable("away")]

    def look(join):
        if fails:
            raise fails.pop()

    join = forming(started, FormingLog(started.log, polls=1_000_000), waits=said.append, look=look)
    thread = threading.Thread(target=join.run, args=(stop,), daemon=True)
    thread.start()
    assert eventually(lambda: said and not said[-1])
    stop.set()
    thread.join(300)
    assert said[0] == "STORE_UNAVAILABLE"


@pytest.mark.parametrize("how", ["its partitions went to another", "it begins anew after an error"])
def test_who_has_no_partition_finds_no_interaction_missing(started, how):
    now = [datetime.now(UTC)]
    log = FormingLog(started.log)
    join = forming(started, log, now=lambda: now[0])
    append(started.log, make_feedback("f", "not read yet", Thumbs("a", True)))
    for _ in range(3):
        join.run_once(0)
    now[0] += timedelta(seconds=61)
    if how == "its partitions went to another":
        log.members[-1].lose()
    else:
        join.close()
        log.polls = 1
    join.run_once(0)
    assert started.store.counts(CHANNEL).waiting == 1
    for _ in range(3):
        join.run_once(0)
    join.close()
    assert started.store.counts(CHANNEL).rejected == 1, "once it has read all"


def test_who_waits_for_partitions_moves_no_place_that_is_anothers_by_now(started, tmp_path, monkeypatch):
    def away(*_):
        raise StoreUnavailable("away")

    log = FormingLog(started.log)
    join = forming(started, log)
    append(started.log, *[make_feedback(f"f{n}", "late", Thumbs("a", True)) for n in range(4)])
    while not join.run_once(0):
        pass
    join.close()
    EmbeddedRecords(tmp_path / "log.sqlite").delete(Topic.FEEDBACK, range(3))  # the third is lost: nobody read it
    with monkeypatch.context() as patch:
        patch.setattr(places, "skip", away)
        assert join.run_once(0) == 0
        with pytest.raises(StoreUnavailable):
            join.run_once(0)
    join_all(started.join)
    log.polls = 1
    assert join.run_once(0) == 0
    join.close()
    assert started.store.lost_to_retention() == 1


def test_what_was_gone_before_it_was_ever_read_is_no_lag(started, tmp_path):
    append(started.log, *[make_feedback(f"f{n}", "late", Thumbs("a", True)) for n in range(5)])
    EmbeddedRecords(tmp_path / "log.sqlite").delete(Topic.FEEDBACK, range(5))
    started.join.run_once(0)
    assert sum(started.join.lag().values()) == 0
    append(started.log, make_interaction("late"))
    assert sum(started.join.lag().values()) == 1
