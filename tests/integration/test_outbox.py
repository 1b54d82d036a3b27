"""The outbox in front of Kafka: what is acknowledged is durable, comes in order per key, and is bounded."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from plaudit.errors import LogUnavailable, MessageTooLarge, Misconfigured, OutboxFull, StoreUnavailable
from plaudit.eventlog import Topic, open_serving_log, with_person_keys
from plaudit.eventlog.codec import decode
from plaudit.eventlog.outbox import OUTBOX_FILE, PARTITION_UNKNOWN, OutboxLog
from plaudit.eventlog.sqlite import SqliteEventLog
from plaudit.failpoints import EXIT_CODE
from plaudit.settings import KafkaSettings, LogSettings, OutboxSettings, PrivacySettings, Settings, StoreSettings
from pydantic import SecretStr


class Brokers:
    """Stands for Kafka, as a log that keeps what it is sent: away, slow or back as the test says."""

    def __init__(self, folder):
        self.log = SqliteEventLog(folder / "brokers.sqlite")
        self.away = False
        self.denies = False
        self.refuses = 0
        self.refuses_rejected = False
        self.lock = threading.Lock()

    def connect(self):
        if self.away:
            raise LogUnavailable("no broker answers")
        return self

    def append_within(self, topic, items, seconds):
        return self.append_many(topic, items)

    def append(self, topic, key, value):
        return self.append_many(topic, [(key, value)])[0]

    def append_many(self, topic, items):
        with self.lock:
            if self.away:
                raise LogUnavailable("no broker answers")
            if self.denies:
                raise Misconfigured("the brokers refuse the user", setting="log.kafka.password")
            spared = topic is Topic.REJECTED and not self.refuses_rejected
            if self.refuses and not spared and any(len(v) > self.refuses for _, v in items):
                raise MessageTooLarge("too large for the topic")
            return self.log.append_many(topic, items)

    def values(self, topic=Topic.FEEDBACK):
        return [(r.key.decode(), r.value) for r in self.log.oldest(topic, 100_000, 1 << 30)]

    def close(self):
        pass


@pytest.fixture
def brokers(tmp_path):
    brokers = Brokers(tmp_path)
    yield brokers
    brokers.log.close()


def opened(tmp_path, brokers, **settings):
    return OutboxLog(tmp_path, brokers.connect, OutboxSettings(**settings))


def eventually(holds, seconds=300.0):
    deadline = time.monotonic() + seconds
    while not (found := holds()) and time.monotonic() < deadline:
        time.sleep(0.02)
    return found


def test_an_outage_is_answered_and_what_came_meanwhile_arrives_in_order_per_key(tmp_path, brokers):
    log = opened(tmp_path, brokers)
    assert log.append(Topic.FEEDBACK, "a", b"0") == (0, 0)
    brokers.away = True
    for n in range(1, 40):
        assert log.append(Topic.FEEDBACK, f"k{n % 3}", b"%d" % n)[0] == PARTITION_UNKNOWN
    state = log.state()
    assert (state.records, len(brokers.values())) == (39, 1)
    assert state.size > 0
    assert state.oldest_seconds >= 0
    brokers.away = False
    stop = threading.Event()

    def go_on():  # callers do not pause while the outbox drains
        n = 40
        while not stop.is_set():
            log.append(Topic.FEEDBACK, f"k{n % 3}", b"%d" % n)
            n += 1

    writer = threading.Thread(target=go_on)
    writer.start()
    assert eventually(lambda: log.state().records == 0 and len(brokers.values()) > 45)
    stop.set()
    writer.join()
    assert eventually(lambda: log.state().records == 0)
    values = brokers.values()
    assert len({value for _, value in values}) == len(values)
    for key in ("k0", "k1", "k2"):
        own = [int(value) for each, value in values if each == key]
        assert own == sorted(own)
    assert eventually(lambda: log.append(Topic.FEEDBACK, "a", b"x")[0] == 0), "appends go to Kafka again"
    log.close()


def test_a_start_whose_store_is_away_leaves_no_outbox_at_work(tmp_path, brokers):
    log, nobody = opened(tmp_path, brokers), SecretStr("postgresql+psycopg://nobody@127.0.0.1:9/none")
    keys = PrivacySettings(person_keys=True)
    with pytest.raises(StoreUnavailable):
        with_person_keys(Settings(data_dir=tmp_path, store=StoreSettings(url=nobody), privacy=keys), log)
    assert not log._thread.is_alive()


def test_brokers_that_deny_this_client_meanwhile_cost_its_callers_nothing(tmp_path, brokers):
    log = opened(tmp_path, brokers)
    brokers.denies = True  # a password was changed, or a certificate has ended
    assert log.append(Topic.FEEDBACK, "a", b"0")[0] == PARTITION_UNKNOWN
    brokers.denies = False
    assert eventually(lambda: brokers.values() == [("a", b"0")])
    log.close()


def test_the_outbox_is_left_although_its_callers_never_pause(tmp_path, brokers):
    brokers.away = True
    log = opened(tmp_path, brokers)
    stop, direct, in_box = threading.Event(), [], []

    def go_on(key):
        n = 0
        while not stop.is_set():
            # In the outbox's way there is always one more record of somebody, as long as nobody is held.
            (in_box if log.append(Topic.FEEDBACK, key, b"%d" % n)[0] == PARTITION_UNKNOWN else direct).append(n)
            n += 1

    writers = [threading.Thread(target=go_on, args=(key,)) for key in ("k0", "k1", "k2")]
    for writer in writers:
        writer.start()
    assert eventually(lambda: len(in_box) > 100)
    brokers.away = False
    assert eventually(lambda: len(direct) > 100), "appends go to Kafka again while callers go on"
    stop.set()
    for writer in writers:
        writer.join()
    assert log.state().records == 0
    for key in ("k0", "k1", "k2"):
        own = [int(value) for each, value in brokers.values() if each == key]
        assert own == list(range(len(own))), "in order, each once"
    log.close()


def test_in_an_outage_nobody_waits_for_records_that_another_process_moves(tmp_path, brokers):
    brokers.away = True
    first = opened(tmp_path, brokers)
    first.append(Topic.FEEDBACK, "a", b"0")
    brokers.away = False
    assert eventually(lambda: first.state().records == 0)  # from now on it is the one that moves records
    brokers.away = True
    first.append(Topic.FEEDBACK, "a", b"1")
    second = OutboxLog(tmp_path, lambda: brokers, OutboxSettings(patience_seconds=30))
    time.sleep(1.5)  # it sees that a few records are left, which it may not move
    started = time.monotonic()
    second.append(Topic.FEEDBACK, "a", b"2")
    assert time.monotonic() - started < 20
    brokers.away = False
    assert eventually(lambda: second.append(Topic.FEEDBACK, "a", b"3")[0] == 0), "it, too, goes to Kafka again"
    assert [value for _, value in brokers.values()][:3] == [b"0", b"1", b"2"]
    first.close()
    second.close()


def test_records_of_one_process_go_on_after_another_has_left_the_outbox(tmp_path, brokers):
    brokers.away = True
    both = [opened(tmp_path, brokers) for _ in range(2)]
    both[0].append(Topic.FEEDBACK, "a", b"0")
    brokers.away = False
    assert eventually(lambda: both[0].append(Topic.FEEDBACK, "a", b"1")[0] == 0)
    assert eventually(lambda: both[1].append(Topic.FEEDBACK, "a", b"2")[0] == 0, seconds=60)
    assert both[1].state().records == 0
    for each in both:
        each.close()


def test_processes_leave_the_outbox_although_the_callers_of_all_never_pause(tmp_path, brokers):
    brokers.away = True
    both = [opened(tmp_path, brokers, patience_seconds=0.5) for _ in range(2)]
    stop = threading.Event()
    direct, in_box = ([0, 0] for _ in range(2))

    def go_on(number, key):
        n = 0
        while not stop.is_set():
            place = both[number].append(Topic.FEEDBACK, f"{number}{key}", b"%d" % n)
            (in_box if place[0] == PARTITION_UNKNOWN else direct)[number] += 1
            n += 1

    writers = [threading.Thread(target=go_on, args=(number, key)) for number in range(2) for key in range(2)]
    for writer in writers:
        writer.start()
    assert eventually(lambda: min(in_box) > 20)
    brokers.away = False
    assert eventually(lambda: min(direct) > 20, seconds=120), (direct, in_box)
    stop.set()
    for writer in writers:
        writer.join()
    assert eventually(lambda: both[0].state().records == 0)
    for key in ("00", "01", "10", "11"):
        own = [int(value) for each, value in brokers.values() if each == key]
        assert own == list(range(len(own))), "in order, each once"
    for each in both:
        each.close()


def test_what_a_process_left_that_died_is_moved_by_another(tmp_path, brokers):
    alive = opened(tmp_path, brokers)
    left = SqliteEventLog(tmp_path / OUTBOX_FILE)
    left.append(Topic.FEEDBACK, "a", b"0")
    left.close()
    assert eventually(lambda: brokers.values() == [("a", b"0")], seconds=60)
    assert alive.append(Topic.FEEDBACK, "a", b"1") == (0, 1), "which needs no outbox itself"
    alive.close()


def test_a_broker_that_hangs_as_the_outbox_is_left_costs_its_callers_one_wait(tmp_path, brokers):
    brokers.away = True
    hangs = threading.Event()

    def drained(topic, records):
        if not hangs.is_set():  # one more comes as the last ones are moved, and it is not answered
            brokers.lock.acquire()
            log.append(topic, "a", b"1")
            hangs.set()

    log = OutboxLog(tmp_path, brokers.connect, OutboxSettings(patience_seconds=1), drained=drained)
    log.append(Topic.FEEDBACK, "a", b"0")
    brokers.away = False
    assert hangs.wait(300)
    waits = []
    for n in range(2, 6):
        started = time.monotonic()
        assert log.append(Topic.FEEDBACK, "a", b"%d" % n)[0] == PARTITION_UNKNOWN
        waits.append(time.monotonic() - started)
    brokers.lock.release()
    assert sum(wait > 0.5 for wait in waits) <= 1, waits
    assert eventually(lambda: log.state().records == 0)
    assert [value for _, value in brokers.values()] == [b"%d" % n for n in range(6)]
    log.close()


def test_what_lies_in_the_outbox_survives_its_process_and_comes_first(tmp_path, brokers):
    brokers.away = True
    log = opened(tmp_path, brokers)  # it opens although no broker answers
    log.append_many(Topic.INTERACTIONS, [("a", b"1"), ("a", b"2")])
    log.close()
    again = opened(tmp_path, brokers)
    again.append(Topic.INTERACTIONS, "a", b"3")
    brokers.away = False
    assert eventually(lambda: again.state().records == 0)
    assert brokers.values(Topic.INTERACTIONS) == [("a", b"1"), ("a", b"2"), ("a", b"3")]
    again.close()


def test_a_full_outbox_refuses_with_the_time_to_retry_and_takes_again_once_it_drained(tmp_path, brokers):
    brokers.away = True
    log = opened(tmp_path, brokers, max_mb=1)
    acknowledged = []

    def fill():
        for n in range(200):
            log.append(Topic.FEEDBACK, "k", b"%d" % n + b"x" * 20_000)
            acknowledged.append(n)

    with pytest.raises(OutboxFull, match=r"of 1 MiB") as refused:
        fill()
    assert refused.value.code == "RESOURCE_EXHAUSTED"
    assert refused.value.retryable
    assert refused.value.retry_seconds > 0
    assert len(acknowledged) > 10
    assert (tmp_path / OUTBOX_FILE).stat().st_size < 2 << 20
    brokers.away = False
    assert eventually(lambda: log.state().records == 0)
    assert len(brokers.values()) == len(acknowledged)
    log.append(Topic.FEEDBACK, "k", b"x" * 20_000)
    log.close()


def test_a_full_disk_refuses_and_loses_nothing(small_disk, brokers):
    brokers.away = True
    log = opened(small_disk, brokers)
    log.append(Topic.FEEDBACK, "k", b"kept")
    filler = small_disk / "filler"
    with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    with pytest.raises(OutboxFull, match="disk of the outbox"):
        log.append(Topic.FEEDBACK, "k", b"x" * 100_000)
    filler.unlink()
    log.append(Topic.FEEDBACK, "k", b"after")
    brokers.away = False
    assert eventually(lambda: log.state().records == 0)
    assert [value for _, value in brokers.values()] == [b"kept", b"after"]
    log.close()


def test_a_disk_that_stays_full_stops_nobody_once_the_brokers_are_back_and_nothing_is_sent_twice(small_disk, brokers):
    brokers.away = True
    log = opened(small_disk, brokers)
    log.append_many(Topic.FEEDBACK, [("k", b"%d" % n) for n in range(300)])  # more than are moved at once
    filler = small_disk / "filler"
    with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    with contextlib.suppress(LogUnavailable):  # takes what the side file of SQLite still has
        while True:
            log._box.trim(Topic.RELEASES, 1)
    brokers.away = False
    assert eventually(lambda: len(brokers.values()) >= 300)
    assert eventually(lambda: log._direct), "no caller needs the disk any more"
    assert log.append(Topic.FEEDBACK, "k", b"300")[0] == 0
    time.sleep(3)  # it looks again every second
    assert log.state().records == 300
    filler.unlink()
    assert eventually(lambda: log.state().records == 0)
    assert [value for _, value in brokers.values()] == [b"%d" % n for n in range(301)]
    log.close()


def test_a_record_that_the_brokers_refuse_goes_to_rejected_and_blocks_nothing(tmp_path, brokers):
    brokers.away, brokers.refuses = True, 1000
    log = opened(tmp_path, brokers)
    log.append_many(Topic.FEEDBACK, [("a", b"1"), ("a", b"x" * 2000), ("a", b"2")])
    brokers.away = False
    assert eventually(lambda: log.state().records == 0)
    log.close()
    assert [value for _, value in brokers.values()] == [b"1", b"2"]
    ((_, rejected),) = brokers.values(Topic.REJECTED)
    assert decode(rejected).value == b"x" * 2000
    assert decode(rejected).reason == "MESSAGE_TOO_LARGE"


def test_what_no_topic_takes_is_kept_in_a_file_and_blocks_nothing(tmp_path, brokers):
    brokers.away, brokers.refuses, brokers.refuses_rejected = True, 1000, True
    log = opened(tmp_path, brokers)
    log.append_many(Topic.FEEDBACK, [("a", b"1"), ("a", b"x" * 2000), ("a", b"2")])
    brokers.away = False
    assert eventually(lambda: log.state().records == 0)
    log.close()
    assert [value for _, value in brokers.values()] == [b"1", b"2"]
    ((_, rejected),) = brokers.values(Topic.REJECTED)
    (file,) = tmp_path.glob("outbox.sqlite.plaudit.feedback-*")
    assert (decode(rejected).value, file.name in decode(rejected).message) == (b"", True)
    assert (file.read_bytes(), file.stat().st_mode & 0o777) == (b"x" * 2000, 0o600)


def test_two_processes_over_one_folder_move_each_record_once(tmp_path, brokers):
    brokers.away = True
    one, two = opened(tmp_path, brokers), opened(tmp_path, brokers)
    for n in range(20):
        (one if n % 2 else two).append(Topic.FEEDBACK, "k", b"%d" % n)
    brokers.away = False
    assert eventually(lambda: one.state().records == 0)
    one.close()
    two.close()
    assert [value for _, value in brokers.values()] == [b"%d" % n for n in range(20)]


@pytest.mark.parametrize("step", [1, 2, 3, 4])
def test_a_kill_at_any_step_loses_nothing_that_was_acknowledged(tmp_path, step):
    environment = {**os.environ, "PLAUDIT_FAIL_POINT": f"outbox.{step}"}
    command = [sys.executable, __file__, str(tmp_path)]
    killed = subprocess.run(command, env=environment, check=False, timeout=500, capture_output=True, text=True)
    assert killed.returncode == EXIT_CODE, killed.stderr
    acknowledged = [word for word in killed.stdout.splitlines() if word.isdigit()]
    again = subprocess.run([*command, "drain"], check=False, timeout=500, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    brokers = Brokers(tmp_path)
    arrived = [value.decode() for _, value in brokers.values()]
    brokers.log.close()
    assert set(acknowledged) <= set(arrived)
    assert list(dict.fromkeys(arrived)) == sorted(set(arrived), key=int), "in order, whatever came twice"
    assert len(arrived) - len(set(arrived)) == (10 if step == 3 else 0)


@pytest.mark.needs_kafka
@pytest.mark.slow
@pytest.mark.usefixtures("kafka_leftovers")
@pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")
def test_a_broker_that_dies_and_comes_back_gets_everything(mortal_kafka, tmp_path):
    bootstrap, kill, start = mortal_kafka
    kafka = KafkaSettings(bootstrap=bootstrap, topic_prefix="outbox.", partitions=2, timeout_seconds=5)
    log = open_serving_log(Settings(data_dir=tmp_path, log=LogSettings(kind="kafka", kafka=kafka)))
    sent = [log.append(Topic.FEEDBACK, "k", b"%d" % n) and b"%d" % n for n in range(3)]
    assert eventually(lambda: log.state().records == 0), "a slow broker has them too"
    kill()
    began = time.monotonic()
    for n in range(3, 20):
        log.append(Topic.FEEDBACK, "k", b"%d" % n)
        sent.append(b"%d" % n)
    assert time.monotonic() - began < 60, "one caller waits for its patience, the others do not"
    assert log.state().records == 17
    start()
    assert eventually(lambda: log.state().records == 0)
    consumer = log.consumer([Topic.FEEDBACK], "test", dict)
    found = []
    deadline = time.monotonic() + 300
    while len(set(found)) < 20 and time.monotonic() < deadline:
        found += [record.value for record in consumer.poll(0.2, 100)]
    consumer.close()
    log.close()
    assert list(dict.fromkeys(found)) == sent


def main() -> None:
    """The process that the kill tests start: brokers are away, ten records are kept, the brokers come back."""
    folder = Path(sys.argv[1])
    brokers = Brokers(folder)
    draining = len(sys.argv) > 2
    brokers.away = not draining
    log = OutboxLog(folder, brokers.connect, OutboxSettings())
    if not draining:
        for n in range(10):
            log.append(Topic.FEEDBACK, "k", b"%d" % n)
            print(n, flush=True)
        brokers.away = False
    assert eventually(lambda: log.state().records == 0)
    log.close()
    brokers.log.close()


if __name__ == "__main__":
    main()
