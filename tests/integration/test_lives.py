"""A place belongs to a life of a topic: one made anew, cut or restored is refused, never read from the middle."""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
import time
import uuid
from collections import Counter

import pytest
from plaudit.errors import LogUnavailable, Misconfigured
from plaudit.eventlog import Topic, open_log
from plaudit.evidence.join import Join
from plaudit.evidence.places import next_offsets
from plaudit.evidence.rejected import read_rejected
from plaudit.evidence.reset import reset
from plaudit.evidence.store import EvidenceStore
from plaudit.plugins import guard
from plaudit.settings import JoinSettings, KafkaSettings, LogSettings, Settings
from plaudit.testing.evidence import CHANNEL, PlainDomain, append, make_feedback, make_interaction
from plaudit.types import Thumbs

PLUGINS = guard([PlainDomain()])


class World:
    """A log whose topics can be made anew, and a store that stays."""

    def __init__(self, settings):
        self.settings = settings
        self.store = EvidenceStore(settings.store_url)
        self.log = open_log(settings)

    def act(self, first, count):
        """Interactions with one act each; each is acknowledged."""
        for n in range(first, first + count):
            interaction, act = make_interaction(f"i{n}"), make_feedback(f"f{n}", f"i{n}", Thumbs("a", True))
            append(self.log, interaction, act)

    def join(self, wanted, worker=None, seconds=300.0):
        """Joins until so many acts are counted."""
        own = worker or Join(self.log, self.store, PLUGINS, JoinSettings())
        deadline = time.monotonic() + seconds
        try:
            while self.joined() < wanted and time.monotonic() < deadline:
                own.run_once(0.2)
        finally:
            if worker is None:
                own.close()
        assert self.joined() == wanted

    def joined(self):
        return self.store.counts(CHANNEL).joined

    def make_anew(self):
        """Topics, or the file, go and come back empty under their names."""
        self.log.close()
        if self.settings.log.kind == "sqlite":
            for file in self.settings.data_dir.glob("log.sqlite*"):
                file.unlink()
        else:
            from kafka import KafkaAdminClient

            kafka = self.settings.log.kafka
            admin = KafkaAdminClient(bootstrap_servers=kafka.bootstrap)
            names = [kafka.topic_prefix + topic for topic in Topic]
            admin.delete_topics(names)
            while any(not each["error_code"] for each in admin.describe_topics(names)):
                time.sleep(0.1)
            admin.close()
        deadline = time.monotonic() + 300
        while True:
            with contextlib.suppress(LogUnavailable):
                self.log = open_log(self.settings)
                return
            assert time.monotonic() < deadline

    def expire_all(self):
        """As retention does it: records go, offsets stay."""
        if self.settings.log.kind == "sqlite":
            with contextlib.closing(sqlite3.connect(self.settings.data_dir / "log.sqlite")) as file:
                file.execute("DELETE FROM records")
                file.commit()
            return
        from kafka import KafkaAdminClient, KafkaConsumer, TopicPartition

        kafka = self.settings.log.kafka
        admin, reader = (kind(bootstrap_servers=kafka.bootstrap) for kind in (KafkaAdminClient, KafkaConsumer))
        names = [kafka.topic_prefix + topic for topic in (Topic.INTERACTIONS, Topic.FEEDBACK)]
        partitions = [TopicPartition(name, each) for name in names for each in range(kafka.partitions)]
        admin.delete_records(reader.end_offsets(partitions))
        admin.close()
        reader.close()

    def close(self):
        self.log.close()
        self.store.close()


@pytest.fixture(params=["embedded", pytest.param("kafka", marks=pytest.mark.needs_kafka)])
def world(request, tmp_path):
    settings = Settings(data_dir=tmp_path / "data")
    if request.param == "kafka":
        bootstrap = request.getfixturevalue("kafka_bootstrap")
        request.getfixturevalue("kafka_leftovers")
        prefix = f"t{uuid.uuid4().hex[:12]}."
        kafka = KafkaSettings(bootstrap=bootstrap, topic_prefix=prefix, partitions=2)
        settings = settings.model_copy(update={"log": LogSettings(kind="kafka", kafka=kafka)})
    world = World(settings)
    yield world
    world.close()


@pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")
def test_topics_made_anew_are_refused_until_an_operator_decides(world):
    world.act(0, 30)
    world.join(30)
    before = {place.topic_id for place in world.store.positions().values()}
    world.make_anew()
    world.act(30, 90)  # longer than what was read: from the middle, the first 30 of these would be lost
    with pytest.raises(Misconfigured, match=r"plaudit join reset --from earliest") as refused:
        world.join(120)
    assert any(identity in refused.value.message for identity in before)
    assert world.joined() == 30, "nothing was read from the middle"
    moved = reset(world.settings, "earliest")
    assert {each.before.topic_id for each in moved} == before
    world.join(120)
    after = {place.topic_id for place in world.store.positions().values()}
    assert not after & before
    assert any(identity in refused.value.message for identity in after)


@pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")
def test_reset_to_the_latest_leaves_out_what_is_there(world):
    world.act(0, 3)
    world.join(3)
    world.make_anew()
    world.act(10, 5)
    moved = reset(world.settings, "latest")
    assert sum(each.after.next for each in moved) == 10
    assert sum(next_offsets(world.store.positions()).values()) == 10
    worker = Join(world.log, world.store, PLUGINS, JoinSettings())
    for _ in range(10):
        worker.run_once(0.1)
    world.act(20, 4)
    world.join(7, worker)
    worker.close()


@pytest.mark.needs_kafka
@pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")
@pytest.mark.parametrize("world", ["kafka"], indirect=True)
def test_a_topic_that_is_made_anew_under_a_running_join_is_refused(world):
    world.act(0, 30)
    worker = Join(world.log, world.store, PLUGINS, JoinSettings())
    world.join(30, worker)
    old = world.log
    world.make_anew()
    worker._log = world.log
    world.act(30, 90)

    def go_on():
        deadline = time.monotonic() + 300
        while time.monotonic() < deadline:
            with contextlib.suppress(LogUnavailable):
                worker.run_once(0.2)

    with pytest.raises(Misconfigured, match="plaudit join reset"):
        go_on()
    assert world.joined() == 30
    old.close()


@pytest.mark.parametrize("world", ["embedded"], indirect=True)
def test_a_log_restored_from_an_older_copy_is_told_by_the_record_before(world):
    world.act(0, 5)
    world.join(5)
    folder = world.settings.data_dir
    world.log.close()
    shutil.copy(folder / "log.sqlite", folder / "backup")
    world.log = open_log(world.settings)
    world.act(5, 5)
    world.join(10)
    world.log.close()
    shutil.copy(folder / "backup", folder / "log.sqlite")
    world.log = open_log(world.settings)
    with pytest.raises(Misconfigured, match="ends at offset 5"):
        world.join(11)
    world.act(20, 8)  # it has grown past the place since
    with pytest.raises(Misconfigured, match=r"holds record .* restored from an older copy"):
        world.join(11)
    reset(world.settings, "earliest")
    world.join(18)


@pytest.mark.parametrize("world", ["embedded"], indirect=True)
def test_records_that_expired_unread_are_counted(world):
    world.act(0, 5)
    world.join(5)
    world.act(5, 5)
    file = sqlite3.connect(world.settings.data_dir / "log.sqlite")
    file.execute("DELETE FROM records WHERE offset < 8")
    file.commit()
    file.close()
    seen = []
    worker = Join(world.log, world.store, PLUGINS, JoinSettings(), observe=lambda *args: seen.append(args[1].expired))
    world.join(7, worker)
    worker.close()
    assert sum(dict(each).get(Topic.FEEDBACK.value, 0) for each in seen) == 3


@pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")
def test_what_retention_took_is_counted_though_no_record_comes_after(world):
    world.act(0, 5)
    world.join(5)
    world.act(5, 5)
    world.expire_all()
    seen = []
    worker = Join(world.log, world.store, PLUGINS, JoinSettings(), observe=lambda *args: seen.append(args[1].expired))
    deadline = time.monotonic() + 300
    while (sum(worker.lag().values()) or not seen) and time.monotonic() < deadline:
        worker.run_once(0.1)
    assert world.store.lost_to_retention() == 10
    assert sum(seen, start=Counter()) == {Topic.INTERACTIONS.value: 5, Topic.FEEDBACK.value: 5}
    assert not sum(worker.lag().values()), "what is gone waits for nobody"
    world.act(10, 2)
    world.join(7, worker)
    worker.close()
    assert world.store.lost_to_retention() == 10, "each is counted once"


@pytest.mark.needs_kafka
@pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")
@pytest.mark.parametrize("world", ["kafka"], indirect=True)
def test_a_poison_record_is_rejected_with_its_headers(world):
    from kafka import KafkaProducer

    kafka = world.settings.log.kafka
    headers = [("traceparent", b"00-ab"), ("x", b"\x00\xff"), ("x", b"")]
    producer = KafkaProducer(bootstrap_servers=kafka.bootstrap)
    producer.send(kafka.topic_prefix + Topic.FEEDBACK, key=b"k", value=b"\xff", headers=headers).get(30)
    producer.close()
    worker = Join(world.log, world.store, PLUGINS, JoinSettings())
    deadline = time.monotonic() + 300
    while not worker.run_once(0.2) and time.monotonic() < deadline:
        pass
    worker.close()
    (rejected,) = read_rejected(world.log, 5).newest
    assert (rejected.value, rejected.key, rejected.headers) == (b"\xff", b"k", tuple(headers))


@pytest.mark.needs_kafka
@pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")
@pytest.mark.parametrize("world", ["kafka"], indirect=True)
def test_a_topic_that_was_lost_comes_back_with_as_many_partitions_as_its_twin(world):
    from kafka import KafkaAdminClient
    from kafka.admin import NewPartitions

    kafka = world.settings.log.kafka
    admin = KafkaAdminClient(bootstrap_servers=kafka.bootstrap)
    names = [kafka.topic_prefix + topic for topic in (Topic.INTERACTIONS, Topic.FEEDBACK)]
    for name in names:
        admin.create_partitions({name: NewPartitions(total_count=4)})
    admin.delete_topics(names[1:])
    while not admin.describe_topics(names[1:])[0]["error_code"]:
        time.sleep(0.1)
    open_log(world.settings).close()
    assert [len(each["partitions"]) for each in admin.describe_topics(names)] == [4, 4]
    admin.close()
