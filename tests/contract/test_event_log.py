"""What every event log promises, run over the embedded log and over a real Kafka."""

import contextlib
import datetime as dt
import inspect
import multiprocessing
import sqlite3
import threading
import time
import uuid
from types import SimpleNamespace

import pytest
import structlog
from kafka import TopicPartition
from kafka.coordinator.base import BaseCoordinator, Generation
from kafka.structs import MemberState
from plaudit.errors import LogUnavailable, MessageTooLarge, Misconfigured
from plaudit.eventlog import Place, Topic, kafka_producer, open_log
from plaudit.eventlog import kafka as kafka_log
from plaudit.eventlog import sqlite as sqlite_log
from plaudit.eventlog.codec import record_mark
from plaudit.eventlog.kafka_clients import JOINING, keep_finished_joins
from plaudit.eventlog.protocol import record_limit
from plaudit.settings import KafkaSettings, LogSettings, Settings

THREADS = 16
EACH = 20


def read(consumer, count, seconds=300.0):
    """Records until `count` have come; fewer where time runs out."""
    records = []
    deadline = time.monotonic() + seconds
    while len(records) < count and time.monotonic() < deadline:
        records += consumer.poll(0.2, 1000)
    return records


def until(holds, seconds=300.0):
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.005)


def settled(consumer):
    """The consumer once it has partitions (a group of Kafka takes its time to form)."""
    deadline = time.monotonic() + 300
    while not consumer.assigned():
        assert time.monotonic() < deadline, "the group has not formed"
        assert consumer.poll(0.2, 1) == []
    return consumer


def after(records):
    """Positions behind these records."""
    positions = {}
    for record in records:
        place = (record.topic, record.partition)
        positions[place] = max(positions.get(place, 0), record.offset + 1)
    return positions


def append_from_another_process(settings, count):
    log = open_log(settings)
    for index in range(count):
        log.append(Topic.FEEDBACK, "other", f"other-{index}".encode())
    log.close()


class EventLogContract:
    """Subclasses bring `settings`, with which each test opens a log of its own."""

    @pytest.fixture
    def log(self, settings):
        log = open_log(settings)
        yield log
        log.close()

    @pytest.fixture
    def consume(self, log):
        """Opens consumers and closes them at the end."""
        opened = []

        def consume(*topics, group="test", positions=None, log=log):
            places = {at: Place(offset) for at, offset in (positions or {}).items()}
            opened.append(log.consumer(topics or (Topic.FEEDBACK,), group, lambda: places))
            return opened[-1]

        yield consume
        for consumer in opened:
            consumer.close()

    def test_a_record_comes_back_as_it_was(self, log, consume):
        before = dt.datetime.now(dt.UTC) - dt.timedelta(seconds=1)
        value = bytes(range(256))
        partition, offset = log.append(Topic.FEEDBACK, "schlüssel", value)
        (record,) = read(consume(), 1)
        assert (record.topic, record.partition, record.offset) == (Topic.FEEDBACK, partition, offset)
        assert (record.key, record.value) == ("schlüssel".encode(), value)
        assert before <= record.timestamp <= dt.datetime.now(dt.UTC) + dt.timedelta(seconds=1)

    def test_records_survive_the_log_that_wrote_them(self, settings, log, consume):
        places = log.append_many(Topic.FEEDBACK, [(f"k{index}", b"%d" % index) for index in range(10)])
        log.close()
        reopened = open_log(settings)
        records = read(consume(log=reopened), 10)
        reopened.close()
        assert sorted((record.partition, record.offset) for record in records) == sorted(places)

    def test_one_key_keeps_one_partition_and_its_order(self, log, consume):
        places = {}
        for n in range(10):
            for key in "abcdef":
                places.setdefault(key, []).append(log.append(Topic.FEEDBACK, key, b"%d" % n))
        records = read(consume(), 60)
        for key, appended in places.items():
            assert len({partition for partition, _ in appended}) == 1
            of_key = [record for record in records if record.key == key.encode()]
            assert [record.value for record in of_key] == [b"%d" % n for n in range(10)]
            assert [(record.partition, record.offset) for record in of_key] == appended

    def test_an_interaction_and_its_feedback_share_a_partition(self, log):
        for index in range(20):
            key = str(uuid.UUID(int=index))
            assert log.append(Topic.INTERACTIONS, key, b"i")[0] == log.append(Topic.FEEDBACK, key, b"f")[0]

    def test_records_are_found_by_their_key_or_the_log_says_that_it_cannot(self, log):
        for n in range(3):
            log.append(Topic.INTERACTIONS, "mine", b"%d" % n)
            log.append(Topic.INTERACTIONS, "another's", b"x")
            log.append(Topic.FEEDBACK, "mine", b"y")
        found = log.find(Topic.INTERACTIONS, "mine", 2)
        assert found in (None, [b"0", b"1"])
        assert log.find(Topic.INTERACTIONS, "nobody's", 2) in (None, [])

    def test_offsets_are_dense_in_each_partition(self, log, consume):
        log.append(Topic.INTERACTIONS, "k", b"elsewhere")
        places = log.append_many(Topic.FEEDBACK, [(f"k{index % 7}", b"v") for index in range(30)])
        for partition in {partition for partition, _ in places}:
            offsets = [offset for each, offset in places if each == partition]
            assert offsets == list(range(len(offsets)))

    @pytest.mark.apart
    def test_every_thread_and_every_process_gets_its_own_offset(self, settings, log, consume):
        places = []

        def append(name):
            for index in range(EACH):
                places.append(log.append(Topic.FEEDBACK, name, f"{name}-{index}".encode()))

        process = multiprocessing.get_context("spawn").Process(target=append_from_another_process, args=(settings, 40))
        process.start()
        threads = [threading.Thread(target=append, args=(f"t{index}",)) for index in range(THREADS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        process.join(300)
        assert process.exitcode == 0
        records = read(consume(), THREADS * EACH + 40)
        at = {(record.partition, record.offset): record for record in records}
        assert len(at) == len(records) == THREADS * EACH + 40
        assert len(set(places)) == len(places)
        for name in {record.key for record in records}:
            own = [record.value for record in records if record.key == name]
            assert own == [name + b"-%d" % index for index in range(len(own))]

    def test_reading_goes_on_where_the_positions_say(self, log, consume):
        log.append_many(Topic.FEEDBACK, [(f"k{index}", b"%d" % index) for index in range(20)])
        first = read(consume(), 20)
        positions = after(first[:12])
        rest = read(consume(group="again", positions=positions), 8)
        assert {record.value for record in rest} == {record.value for record in first[12:]}
        assert after(first) == positions | after(rest)

    def test_the_group_forgets_nothing_that_the_positions_do_not_name(self, log, consume):
        log.append_many(Topic.FEEDBACK, [(f"k{index}", b"v") for index in range(10)])
        consumer = consume(group="same")
        records = read(consumer, 10)
        consumer.acknowledge(after(records))
        consumer.close()
        assert len(read(consume(group="same"), 10)) == 10

    def test_two_groups_each_read_everything(self, log, consume):
        one, two = consume(group="one"), consume(group="two")
        log.append_many(Topic.FEEDBACK, [(f"k{index}", b"%d" % index) for index in range(20)])
        wanted = {b"%d" % index for index in range(20)}
        assert {record.value for record in read(one, 20)} == wanted
        assert {record.value for record in read(two, 20)} == wanted

    def test_a_consumer_sees_what_is_appended_while_it_waits(self, log, consume):
        consumer = settled(consume())
        threading.Timer(0.3, log.append, (Topic.FEEDBACK, "k", b"late")).start()
        (record,) = consumer.poll(10.0, 10) or read(consumer, 1)
        assert record.value == b"late"

    def test_an_empty_poll_returns_within_its_time(self, consume):
        consumer = settled(consume())
        begin = time.monotonic()
        assert consumer.poll(0.1, 10) == []
        assert time.monotonic() - begin < 60.0

    def test_a_poll_gives_no_more_records_than_asked(self, log, consume):
        log.append_many(Topic.FEEDBACK, [("k", b"v")] * 30)
        consumer = consume()
        sizes = []
        while sum(sizes) < 30:
            sizes.append(len(consumer.poll(0.5, 7)))
        assert max(sizes) == 7

    def test_end_positions_are_those_of_the_next_records(self, log, consume):
        consumer = settled(consume())
        log.append_many(Topic.FEEDBACK, [(f"k{index}", b"v") for index in range(20)])
        ends = consumer.end_positions()
        assert ends.keys() == consumer.assigned()
        assert sum(ends.values()) == 20
        partition, offset = log.append(Topic.FEEDBACK, "next", b"v")
        assert ends[Topic.FEEDBACK, partition] == offset

    def test_a_place_behind_the_end_is_refused(self, log, consume):
        partition, offset = log.append(Topic.FEEDBACK, "k", b"v")

        def read_from_the_future():
            read(consume(positions={(Topic.FEEDBACK, partition): offset + 2}), 1)

        with pytest.raises(Misconfigured, match=r"ends at offset .*plaudit join reset"):
            read_from_the_future()

    def test_a_place_of_another_life_of_its_topic_is_refused_with_both_identities(self, log, consume):
        partition, _ = log.append(Topic.FEEDBACK, "k", b"v")
        identity = settled(consume()).topic_ids()[Topic.FEEDBACK]
        assert identity

        def poll_with(place):
            consumer = log.consumer((Topic.FEEDBACK,), "other", lambda: {(Topic.FEEDBACK, partition): place})
            try:
                return read(consumer, 1)
            finally:
                consumer.close()

        with pytest.raises(Misconfigured, match=rf"{identity}.*elsewhere.*plaudit join reset --from earliest"):
            poll_with(Place(1, "elsewhere"))
        # The record before the place comes again, for the reader to see whether it is the same.
        (again,) = poll_with(Place(1, identity, record_mark(b"v")))
        assert again.value == b"v"

    def test_appending_nothing_gives_nothing(self, log):
        assert log.append_many(Topic.FEEDBACK, []) == []

    def test_large_records_pass_and_too_large_ones_are_refused(self, log, consume):
        value = b"x" * (5 * 1024 * 1024)
        log.append(Topic.FEEDBACK, "k", value)
        with pytest.raises(MessageTooLarge, match="exceeds"):
            log.append(Topic.FEEDBACK, "k", b"x" * (record_limit(Topic.FEEDBACK) + 1))
        assert [len(record.value) for record in read(consume(), 1)] == [len(value)]

    def test_a_rejected_record_of_the_greatest_size_still_fits(self, log):
        log.append(Topic.REJECTED, "k", b"x" * (record_limit(Topic.FEEDBACK) + 1024))

    def test_a_closed_log_takes_nothing(self, log):
        log.close()
        with pytest.raises(LogUnavailable, match="closed"):
            log.append(Topic.FEEDBACK, "k", b"v")
        log.close()


class TestEmbedded(EventLogContract):
    @pytest.fixture
    def settings(self, tmp_path):
        return Settings(data_dir=tmp_path / "data")

    @pytest.fixture
    def patient(self, settings):
        """A log that waits for as long as the machine needs while somebody else holds the file, and who holds it."""
        log = sqlite_log.SqliteEventLog(settings.data_dir / "log.sqlite", busy_seconds=600)
        blocker = sqlite3.connect(settings.data_dir / "log.sqlite", isolation_level=None)
        blocker.execute("BEGIN IMMEDIATE")
        yield log, blocker
        blocker.close()
        log.close()

    def test_concurrent_appends_share_a_commit(self, patient):
        # Somebody else holds the file, so that all callers gather behind the first, and none of them is written alone.
        log, blocker = patient
        commits = []
        log._connection.set_trace_callback(lambda sql: commits.append(sql) if sql == "COMMIT" else None)
        threads = [threading.Thread(target=log.append, args=(Topic.FEEDBACK, "k", b"v")) for _ in range(64)]
        threads[0].start()
        until(lambda: log._gathering._writing and not log._gathering._waiting)
        for thread in threads[1:]:
            thread.start()
        until(lambda: len(log._gathering._waiting) == 63)
        blocker.execute("ROLLBACK")
        for thread in threads:
            thread.join()
        assert len(commits) == 2

    def test_a_caller_who_is_interrupted_when_its_turn_comes_hands_it_on(self, patient, monkeypatch):
        log, blocker = patient

        class Interrupted(sqlite_log._Batch):
            def __init__(self, *given):
                super().__init__(*given)
                self.woken = self

            def acquire(self):
                while not self.leads:
                    time.sleep(0.001)
                raise KeyboardInterrupt

            def release(self):
                """Its turn comes, or its record is written."""

        def append():
            with contextlib.suppress(KeyboardInterrupt):
                log.append(Topic.FEEDBACK, "k", b"v")

        # Patched once, by this thread: patches of several threads would undo each other in any order.
        kinds = iter((sqlite_log._Batch, Interrupted, sqlite_log._Batch, sqlite_log._Batch))
        monkeypatch.setattr(sqlite_log, "_Batch", lambda *given: next(kinds)(*given))
        threads = []
        for waiting in range(3):
            threads.append(threading.Thread(target=append))
            threads[-1].start()
            # The first one writes alone: only once it has taken its own record are the others of a later turn.
            until(lambda waiting=waiting: log._gathering._writing and len(log._gathering._waiting) == waiting)
        blocker.execute("ROLLBACK")
        for thread in threads:
            thread.join(300)
        assert log.append(Topic.FEEDBACK, "k", b"v") == (0, 2), "the interrupted record is not there, the others are"

    def test_a_log_of_0_1_0_gets_its_index_and_keeps_its_records(self, settings):
        settings.data_dir.mkdir(parents=True)
        old = sqlite3.connect(settings.data_dir / "log.sqlite", isolation_level=None)
        old.execute("PRAGMA journal_mode = WAL")
        old.execute(
            "CREATE TABLE records (topic TEXT NOT NULL, offset INTEGER NOT NULL, key BLOB NOT NULL,"
            " value BLOB NOT NULL, ts INTEGER NOT NULL, PRIMARY KEY (topic, offset))"
        )
        old.execute("CREATE TABLE ends (topic TEXT PRIMARY KEY, next INTEGER NOT NULL) WITHOUT ROWID")
        old.execute("INSERT INTO records VALUES ('plaudit.feedback', 0, ?, ?, 7)", (b"k", b"old"))
        old.execute("INSERT INTO ends VALUES ('plaudit.feedback', 1)")
        old.execute("PRAGMA user_version = 1")
        old.close()
        log = open_log(settings)
        assert log.append(Topic.FEEDBACK, "k", b"new") == (0, 1)
        assert log.find(Topic.FEEDBACK, "k", 9) == [b"old", b"new"]
        plan = log._reader.execute(
            "EXPLAIN QUERY PLAN SELECT value FROM records WHERE topic = 't' AND key = x'00' ORDER BY offset LIMIT 1"
        ).fetchall()
        assert "records_by_key" in str(plan)
        log.close()

    def test_every_connection_waits_for_the_disk_before_a_commit_returns(self, log, consume):
        # In WAL mode anything less than FULL (2) acknowledges what a power cut takes back. Asked of the very
        # connections that append and read, because the pragma holds for one connection alone.
        for connection in (log._connection, consume()._connection):
            pragmas = {
                name: connection.execute(f"PRAGMA {name}").fetchone()[0]
                for name in ("journal_mode", "synchronous", "locking_mode")
            }
            assert pragmas == {"journal_mode": "wal", "synchronous": 2, "locking_mode": "normal"}

    def test_the_write_ahead_log_is_folded_in_as_it_grows_and_at_the_end(self, settings, log):
        side = settings.data_dir / "log.sqlite-wal"
        for _ in range(40):
            log.append_many(Topic.FEEDBACK, [("k", b"x" * 4000)] * 100)
        assert side.stat().st_size < 12_000_000  # of the 16 MB that were written
        log.close()
        assert not side.exists()
        log = open_log(settings)
        assert log.append(Topic.FEEDBACK, "k", b"v") == (0, 4000)
        log.close()

    def test_only_the_owner_reads_its_folder_and_files(self, settings, log):
        log.append(Topic.FEEDBACK, "k", b"v")
        assert settings.data_dir.stat().st_mode & 0o777 == 0o700
        assert {each.stat().st_mode & 0o777 for each in settings.data_dir.iterdir()} == {0o600}

    def test_a_disk_that_is_full_is_named_at_the_start_and_at_an_append(self, small_disk):
        settings = Settings(data_dir=small_disk / "data")
        log = open_log(settings)
        filler = small_disk / "filler"
        with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
        with pytest.raises(LogUnavailable, match="disk is full"):
            log.append(Topic.FEEDBACK, "k", b"x" * 100_000)
        with pytest.raises(LogUnavailable, match=r"other.*full"):
            open_log(Settings(data_dir=small_disk / "other"))
        filler.unlink()
        assert log.append(Topic.FEEDBACK, "k", b"v") == (0, 0)
        log.close()

    def test_a_long_backlog_of_one_topic_does_not_starve_another(self, log, consume):
        log.append_many(Topic.INTERACTIONS, [("k", b"v")] * 200)
        log.append(Topic.FEEDBACK, "k", b"v")
        consumer = consume(Topic.INTERACTIONS, Topic.FEEDBACK)
        topics = {record.topic for _ in range(2) for record in consumer.poll(0.1, 20)}
        assert topics == {Topic.INTERACTIONS, Topic.FEEDBACK}

    def test_a_locked_file_is_unavailable_and_later_taken(self, tmp_path):
        from plaudit.eventlog.sqlite import SqliteEventLog

        log = SqliteEventLog(tmp_path / "log.sqlite", busy_seconds=0.1)
        blocker = sqlite3.connect(tmp_path / "log.sqlite", isolation_level=None)
        blocker.execute("BEGIN IMMEDIATE")
        with pytest.raises(LogUnavailable, match="locked"):
            log.append(Topic.FEEDBACK, "k", b"v")
        blocker.execute("ROLLBACK")
        blocker.close()
        assert log.append(Topic.FEEDBACK, "k", b"v") == (0, 0)
        log.close()

    def test_a_full_disk_is_unavailable_and_loses_nothing(self, log, consume):
        log.append(Topic.FEEDBACK, "k", b"kept")
        pages = log._connection.execute("PRAGMA page_count").fetchone()[0]
        log._connection.execute(f"PRAGMA max_page_count = {pages + 4}")
        with pytest.raises(LogUnavailable, match="full"):
            log.append_many(Topic.FEEDBACK, [("k", b"x" * 3000)] * 20)
        log._connection.execute("PRAGMA max_page_count = 1000000")
        assert log.append(Topic.FEEDBACK, "k", b"after") == (0, 1)
        assert [record.value for record in read(consume(), 2)] == [b"kept", b"after"]

    def test_an_offset_is_never_given_twice(self, settings, log, consume):
        log.append_many(Topic.FEEDBACK, [("k", b"v")] * 3)
        other = sqlite3.connect(settings.data_dir / "log.sqlite", isolation_level=None)
        other.execute("DELETE FROM records")
        other.close()
        assert log.append(Topic.FEEDBACK, "k", b"v") == (0, 3)
        assert [record.offset for record in read(consume(), 1)] == [3]

    def test_a_file_that_is_no_log_is_left_alone(self, settings):
        settings.data_dir.mkdir()
        file = settings.data_dir / "log.sqlite"
        file.write_bytes(b"not a database, and longer than the hundred bytes of a header" * 4)
        with pytest.raises(Misconfigured, match="not an event log"):
            open_log(settings)
        file.unlink()
        other = sqlite3.connect(file)
        other.execute("CREATE TABLE something (x)")
        other.close()
        with pytest.raises(Misconfigured, match="not an event log"):
            open_log(settings)

    def test_a_folder_that_cannot_be_made_is_named(self, tmp_path):
        (tmp_path / "file").write_text("")
        with pytest.raises(Misconfigured, match="data_dir"):
            open_log(Settings(data_dir=tmp_path / "file" / "data"))


@pytest.mark.needs_kafka
@pytest.mark.usefixtures("kafka_leftovers")
@pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")
class TestKafka(EventLogContract):
    @pytest.fixture
    def settings(self, kafka_bootstrap, tmp_path):
        prefix = f"t{uuid.uuid4().hex[:12]}."
        kafka = KafkaSettings(bootstrap=kafka_bootstrap, topic_prefix=prefix, partitions=3, timeout_seconds=60)
        return Settings(data_dir=tmp_path, log=LogSettings(kind="kafka", kafka=kafka))

    @pytest.fixture
    def unhurried(self, monkeypatch):
        """A group that forms slowly keeps its members: a new client would be one more that comes and goes."""
        monkeypatch.setattr(kafka_log, "FORMING_SECONDS", 600.0)

    @pytest.mark.usefixtures("unhurried")
    def test_one_group_shares_the_partitions_and_takes_over(self, log, consume):
        stored = {}
        one = settled(consume(Topic.INTERACTIONS, Topic.FEEDBACK, group="join", positions=stored))
        assert len(one.assigned()) == 6
        two = consume(Topic.INTERACTIONS, Topic.FEEDBACK, group="join", positions=stored)

        def shared():  # not in the midst of forming, when a member has nothing
            return one.assigned() and two.assigned() and len(one.assigned()) + len(two.assigned()) == 6

        deadline = time.monotonic() + 300
        while not shared() and time.monotonic() < deadline:
            one.poll(0.1, 100)
            two.poll(0.1, 100)
        assert not one.assigned() & two.assigned()
        assert len(one.assigned() | two.assigned()) == 6
        for member in (one, two):
            partitions = {topic: {p for t, p in member.assigned() if t == topic} for topic, _ in member.assigned()}
            assert partitions[Topic.INTERACTIONS] == partitions[Topic.FEEDBACK]
        log.append_many(Topic.FEEDBACK, [(f"k{index}", b"%d" % index) for index in range(30)])
        taken = set()
        deadline = time.monotonic() + 300
        while len(taken) < 30 and time.monotonic() < deadline:
            taken |= {record.value for member in (one, two) for record in member.poll(0.1, 100)}
        assert taken == {b"%d" % index for index in range(30)}
        two.close()
        while len(one.assigned()) < 6 and time.monotonic() < deadline + 60:
            one.poll(0.1, 100)
        assert len(one.assigned()) == 6
        assert one._consumer.group_metadata().generation_id <= 4, (
            "a group forms once for each member that comes or goes"
        )

    @pytest.mark.usefixtures("unhurried")
    def test_what_joining_comes_to_between_two_polls_counts(self, consume):
        # A worker that is busy with its records polls now and then: its group must not be formed anew each time.
        members = [consume(Topic.INTERACTIONS, Topic.FEEDBACK, group="join") for _ in range(2)]
        deadline = time.monotonic() + 300
        while sorted(len(each.assigned()) for each in members) != [2, 4] and time.monotonic() < deadline:
            for each in members:
                assert each.poll(0.02, 100) == []
            time.sleep(0.3)
        assert sorted(len(each.assigned()) for each in members) == [2, 4]
        assert members[0]._consumer.group_metadata().generation_id <= 3

    def test_a_group_that_takes_too_long_to_form_is_joined_by_a_new_client(self, log, consume, monkeypatch):
        log.append(Topic.FEEDBACK, "k", b"v")
        idle = settled(consume(group="join"))  # is polled no more, so that the group waits for it
        late = consume(group="join")
        client = late._consumer
        for name in ("SILENT_SECONDS", "FORMING_SECONDS"):
            monkeypatch.setattr(kafka_log, name, 0.0)  # over at once, on any machine
        deadline = time.monotonic() + 300
        with structlog.testing.capture_logs() as lines:
            while not lines and time.monotonic() < deadline:
                assert late.poll(0.01, 10) == []
        assert [(line["event"], line["group_forms"]) for line in lines] == [("event_log_consumer_made_anew", True)]
        assert late._consumer is not client
        for name in ("SILENT_SECONDS", "FORMING_SECONDS"):
            monkeypatch.setattr(kafka_log, name, 600.0)
        client = late._consumer
        idle.close()
        (record,) = read(late, 1)
        assert (record.value, late._consumer) == (b"v", client)

    def test_acknowledged_places_are_visible_to_lag_tools(self, settings, log, consume):
        from kafka import KafkaConsumer, TopicPartition

        log.append_many(Topic.FEEDBACK, [("k", b"v")] * 5)
        consumer = consume(group="join")
        records = read(consumer, 5)
        consumer.acknowledge(after(records))
        prefix = settings.log.kafka.topic_prefix
        tool = KafkaConsumer(bootstrap_servers=settings.log.kafka.bootstrap, group_id=prefix + "join")
        place = TopicPartition(prefix + Topic.FEEDBACK, records[0].partition)
        deadline = time.monotonic() + 300
        while tool.committed(place) != 5 and time.monotonic() < deadline:
            time.sleep(0.1)
        assert tool.committed(place) == 5
        tool.close(autocommit=False)

    def test_releases_are_compacted_in_one_partition(self, settings, log):
        from kafka import KafkaAdminClient
        from kafka.admin import ConfigResource, ConfigResourceType

        name = settings.log.kafka.topic_prefix + Topic.RELEASES
        admin = KafkaAdminClient(bootstrap_servers=settings.log.kafka.bootstrap)
        resource = ConfigResource(ConfigResourceType.TOPIC, name)
        configs = admin.describe_configs([resource], config_filter="all")["topic"][name]
        (topic,) = admin.describe_topics([name])
        admin.close()
        assert configs["cleanup.policy"]["value"] == "compact"
        assert configs["max.compaction.lag.ms"]["value"] == "3600000"
        assert len(topic["partitions"]) == 1

    def test_topics_that_do_not_fit_are_refused_with_what_to_change(self, settings):
        from kafka import KafkaAdminClient

        kafka = settings.log.kafka
        admin = KafkaAdminClient(bootstrap_servers=kafka.bootstrap)
        admin.create_topics({kafka.topic_prefix + Topic.RELEASES: {"num_partitions": 1, "replication_factor": 1}})
        with pytest.raises(Misconfigured, match=r"cleanup\.policy=delete"):
            open_log(settings)
        other = kafka.model_copy(update={"topic_prefix": kafka.topic_prefix + "b."})
        for topic, partitions in ((Topic.FEEDBACK, 5), (Topic.INTERACTIONS, 3)):
            wanted = {"num_partitions": partitions, "replication_factor": 1}
            admin.create_topics({other.topic_prefix + topic: wanted})
        admin.close()
        with pytest.raises(Misconfigured, match=r"3 partitions and .* has 5"):
            open_log(settings.model_copy(update={"log": LogSettings(kind="kafka", kafka=other)}))

    def test_a_record_that_the_broker_refuses_does_not_stop_the_next(self, settings, log):
        from kafka import KafkaAdminClient
        from kafka.admin import ConfigResource, ConfigResourceType

        name = settings.log.kafka.topic_prefix + Topic.FEEDBACK
        admin = KafkaAdminClient(bootstrap_servers=settings.log.kafka.bootstrap)
        admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, name, {"max.message.bytes": "2000"})])
        admin.close()
        taken = []

        def append_until_refused():  # the broker takes its new setting when it pleases
            while True:
                taken.append(log.append(Topic.FEEDBACK, "k", b"x" * 5000))

        with pytest.raises(MessageTooLarge, match=r"max\.message\.bytes"):
            append_until_refused()
        assert log.append(Topic.FEEDBACK, "k", b"small")[1] == len(taken)
        with pytest.raises(MessageTooLarge):
            log.append(Topic.FEEDBACK, "k", b"x" * 5000)
        assert log.append(Topic.FEEDBACK, "k", b"small")[1] == len(taken) + 1, "nobody waits for brokers that are well"

    def test_whoever_shares_a_send_with_what_is_too_large_is_not_refused(self, settings, log):
        from kafka import KafkaAdminClient
        from kafka.admin import ConfigResource, ConfigResourceType

        name = settings.log.kafka.topic_prefix + Topic.FEEDBACK
        admin = KafkaAdminClient(bootstrap_servers=settings.log.kafka.bootstrap)
        admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, name, {"max.message.bytes": "2000"})])
        admin.close()
        with contextlib.suppress(MessageTooLarge):
            while True:  # the broker takes its new setting when it pleases
                log.append(Topic.FEEDBACK, "k", b"x" * 5000)
        sizes = (10, 20, 5000, 30, 40)
        group = [kafka_producer._Sending(Topic.FEEDBACK, [(b"k", b"x" * size)], 60.0) for size in sizes]
        log._producer._write(group)
        refused = [type(batch.error) if batch.error else None for batch in group]
        assert refused == [None, None, MessageTooLarge, None, None]
        places = [batch.places[0] for batch in group if batch.error is None]
        assert places == sorted(places), "in the order in which they came"
        together = log.append_many(Topic.FEEDBACK, [("k", b"x" * 700)] * 20)
        assert together == sorted(together), "none is too large, only all together are"
        assert together[0] > places[-1]

    def test_a_key_goes_where_other_clients_send_it(self, settings, log):
        from kafka.partitioner import default

        count = settings.log.kafka.partitions
        for key in (b"a", b"interaction-17", "schlüssel".encode()):
            wanted = (default.murmur2(key) & 0x7FFFFFFF) % count
            assert log.append(Topic.FEEDBACK, key.decode(), b"v")[0] == wanted

    def test_too_many_replicas_are_refused(self, settings):
        kafka = settings.log.kafka.model_copy(update={"replication": 99})
        with pytest.raises(Misconfigured, match="99 replicas"):
            open_log(settings.model_copy(update={"log": LogSettings(kind="kafka", kafka=kafka)}))


@pytest.mark.needs_kafka
@pytest.mark.slow
@pytest.mark.usefixtures("kafka_leftovers")
@pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")
def test_an_outage_is_answered_at_once_and_forgotten_when_it_ends(mortal_kafka, tmp_path, monkeypatch):
    bootstrap, kill, start = mortal_kafka
    kafka = KafkaSettings(bootstrap=bootstrap, timeout_seconds=5)
    log = open_log(Settings(data_dir=tmp_path, log=LogSettings(kind="kafka", kafka=kafka)))

    def append_at_last(value):
        deadline = time.monotonic() + 300
        while time.monotonic() < deadline:
            with contextlib.suppress(LogUnavailable):
                return log.append(Topic.FEEDBACK, "k", value)
            time.sleep(0.2)
        pytest.fail(f"nobody takes {value!r}")

    consumer = log.consumer([Topic.FEEDBACK], "join", dict)
    append_at_last(b"before")
    assert {record.value for record in read(consumer, 1)} == {b"before"}
    kill()
    # Between two attempts to connect, however long this machine takes from one line to the next.
    monkeypatch.setattr(kafka_producer, "RECONNECT_SECONDS", 3600.0)
    for _ in range(2):  # the first waits for its record, the second for a new connection
        with pytest.raises(LogUnavailable):
            log.append(Topic.FEEDBACK, "k", b"unknown")
    begin = time.monotonic()
    with pytest.raises(LogUnavailable, match="away"):
        log.append(Topic.FEEDBACK, "k", b"refused")
    assert time.monotonic() - begin < kafka.timeout_seconds
    monkeypatch.undo()
    log._producer._retry_at = 0.0
    start()
    append_at_last(b"after")
    assert b"after" in {record.value for record in read(consumer, 1)}
    consumer.close()
    log.close()


@pytest.mark.parametrize("bootstrap", ["", " , ", "localhost", "localhost:port", "localhost:70000", ":9092"])
def test_a_bootstrap_that_is_no_address_is_refused(bootstrap, tmp_path):
    kafka = KafkaSettings(bootstrap=bootstrap)
    with pytest.raises(Misconfigured, match=r"log\.kafka\.bootstrap"):
        open_log(Settings(data_dir=tmp_path, log=LogSettings(kind="kafka", kafka=kafka)))


@pytest.mark.usefixtures("kafka_leftovers")
@pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")
def test_brokers_that_do_not_answer_are_named_with_what_to_check(tmp_path):
    kafka = KafkaSettings(bootstrap="127.0.0.1:9", timeout_seconds=1)
    with pytest.raises(LogUnavailable, match=r"can be reached .127\.0\.0\.1:9: Connection refused"):
        open_log(Settings(data_dir=tmp_path, log=LogSettings(kind="kafka", kafka=kafka)))


def test_the_tested_client_has_what_joining_needs_and_another_is_left_as_it_is():
    made = inspect.getsource(BaseCoordinator.__init__)
    assert [name for name in JOINING if not hasattr(BaseCoordinator, name) and f"self.{name} =" not in made] == []
    assert Generation.NO_GENERATION.is_lost()
    other = SimpleNamespace(_coordinator=SimpleNamespace(join_group_async=None))
    with structlog.testing.capture_logs() as lines:
        for _ in range(2):
            keep_finished_joins(other)
    assert other._coordinator.join_group_async is None
    (line,) = lines
    assert (line["event"], line["missing"]) == ("kafka_client_unknown", JOINING[1:])


class SlowClient:
    """Stands for Kafka's client, whose polls bring nothing: a group of one partition, with a record that waits."""

    def __init__(self):
        self.state, self.partition, self.closed = MemberState.STABLE, TopicPartition("plaudit.feedback", 0), False

    def poll(self, timeout_ms, max_records):
        self.clock.now += timeout_ms / 1000
        return {}

    def group_metadata(self):
        return SimpleNamespace(state=self.state)

    def assignment(self):
        return {self.partition} if self.state is MemberState.STABLE else set()

    def beginning_offsets(self, partitions):
        return dict.fromkeys(partitions, 0)

    def end_offsets(self, partitions):
        return dict.fromkeys(partitions, 1)

    def position(self, partition):
        return 0

    def seek(self, partition, offset):
        pass

    def close(self, **_):
        self.closed = True


@pytest.fixture
def slow(monkeypatch):
    made = []

    def subscribed(self):
        made.append(SlowClient())
        made[-1].clock = clock
        return made[-1]

    clock = SimpleNamespace(now=0.0, monotonic=lambda: clock.now)
    monkeypatch.setattr(kafka_log, "time", clock)
    monkeypatch.setattr(kafka_log.KafkaLogConsumer, "_subscribed", subscribed)
    return clock, made, kafka_log.KafkaLogConsumer(KafkaSettings(bootstrap="none:1"), [Topic.FEEDBACK], "test", dict)


def test_a_worker_that_was_busy_keeps_its_client_whatever_the_first_poll_brings(slow):
    clock, made, consumer = slow
    consumer.poll(0.1, 10)
    clock.now += 60  # a batch in the store
    for state in (MemberState.STABLE, MemberState.REBALANCING):
        made[-1].state = state
        consumer.poll(0.1, 10)
        clock.now += 60
        consumer.poll(0.1, 10)
    assert [client.closed for client in made] == [False]


def test_a_group_that_took_long_to_form_gives_its_first_records_time(slow):
    _, made, consumer = slow
    made[-1].state = MemberState.REBALANCING
    for _ in range(29):
        consumer.poll(1.0, 10)
    made[-1].state = MemberState.STABLE
    for _ in range(4):
        consumer.poll(1.0, 10)
    assert [client.closed for client in made] == [False]


@pytest.mark.parametrize(("state", "polls"), [(MemberState.STABLE, 8), (MemberState.REBALANCING, 32)])
def test_a_client_that_brings_nothing_poll_after_poll_is_made_anew(slow, state, polls):
    _, made, consumer = slow
    made[-1].state = state
    for _ in range(polls):
        consumer.poll(1.0, 10)
    assert [client.closed for client in made] == [True, False]
