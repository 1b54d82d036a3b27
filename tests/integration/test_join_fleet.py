"""Several workers of the join on a real Kafka and PostgreSQL: they share, they come and go, and none counts twice."""

from __future__ import annotations

import threading
import time
import uuid
from collections import Counter

import pytest
from plaudit.eventlog import Topic, open_log
from plaudit.eventlog.codec import encode_feedback, encode_interaction
from plaudit.evidence import join as join_module
from plaudit.evidence.join import Join
from plaudit.evidence.places import Overtaken
from plaudit.evidence.store import EvidenceStore
from plaudit.plugins import guard
from plaudit.settings import JoinSettings, KafkaSettings, LogSettings, Settings
from plaudit.testing.evidence import CHANNEL, PlainDomain, make_feedback, make_interaction
from plaudit.types import Thumbs

pytestmark = [
    pytest.mark.needs_kafka,
    pytest.mark.usefixtures("kafka_leftovers"),
    pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning"),
]
SETTINGS = JoinSettings(batch_records=20, poll_seconds=0.1)
SECONDS = 300


class Fleet:
    """A log of two partitions, a store, and workers that run in threads."""

    def __init__(self, bootstrap, url, folder):
        self.prefix = f"t{uuid.uuid4().hex[:12]}."
        kafka = KafkaSettings(bootstrap=bootstrap, topic_prefix=self.prefix, partitions=2)
        self.settings = Settings(data_dir=folder, log=LogSettings(kind="kafka", kafka=kafka))
        self.log = open_log(self.settings)
        self.url = url
        self.store = EvidenceStore(url)
        self.given = 0
        self.read = Counter()
        self.running = {}

    def give(self, count):
        names = [str(uuid.uuid4()) for _ in range(count)]
        acts = [make_feedback(str(uuid.uuid4()), name, Thumbs("a", True)) for name in names]
        heads = [(name, encode_interaction(make_interaction(name), producer="test")) for name in names]
        self.log.append_many(Topic.INTERACTIONS, heads)
        self.log.append_many(
            Topic.FEEDBACK, [(act.interaction_id, encode_feedback(act, producer="test")) for act in acts]
        )
        self.given += count

    def worker(self, name):
        """A join with a store of its own, as a process has."""

        def observe(records, outcome, seconds):
            self.read[name] += len(records)

        return Join(self.log, EvidenceStore(self.url), guard([PlainDomain()]), SETTINGS, observe=observe)

    def start(self, name):
        stop, join = threading.Event(), self.worker(name)
        thread = threading.Thread(target=join.run, args=(stop,))
        self.running[name] = (stop, thread, join)
        thread.start()

    def stop(self, name):
        stop, thread, join = self.running.pop(name)
        stop.set()
        thread.join(SECONDS)
        join._store.close()

    def wait(self, holds):
        deadline = time.monotonic() + SECONDS
        while not (found := holds()) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert found

    def assigned(self):
        """How many partitions each worker has; none before it has begun."""
        consumers = [join._consumer for _, _, join in self.running.values()]
        return [len(consumer.assigned()) if consumer else 0 for consumer in consumers]

    def all_joined(self):
        return self.store.counts(CHANNEL).joined >= self.given

    def close(self):
        for name in list(self.running):
            self.stop(name)
        self.store.close()
        self.log.close()


@pytest.fixture
def fleet(kafka_bootstrap, postgres_url, tmp_path):
    fleet = Fleet(kafka_bootstrap, postgres_url, tmp_path)
    yield fleet
    fleet.close()


def test_workers_come_and_go_and_partitions_are_added_and_every_act_counts_once(fleet):
    from kafka import KafkaAdminClient
    from kafka.admin import NewPartitions

    for name in ("one", "two"):
        fleet.start(name)
    fleet.give(40)
    fleet.wait(fleet.all_joined)
    fleet.wait(lambda: fleet.assigned() == [2, 2])
    admin = KafkaAdminClient(bootstrap_servers=fleet.settings.log.kafka.bootstrap)
    topics = [fleet.prefix + topic for topic in (Topic.INTERACTIONS, Topic.FEEDBACK)]
    admin.create_partitions({topic: NewPartitions(total_count=4) for topic in topics})
    admin.close()
    fleet.start("three")
    fleet.stop("one")
    # What is keyed to an old partition and what comes to a new one may be of one interaction: both are found.
    other = open_log(fleet.settings)
    fleet.log, old = other, fleet.log
    fleet.give(60)
    fleet.wait(fleet.all_joined)
    # The new worker may have come when all was read: then it gets its share of what comes later.
    fleet.wait(lambda: min(fleet.assigned()) > 0)
    while not fleet.read["three"]:
        fleet.give(10)
        fleet.wait(fleet.all_joined)
    old.close()
    places = fleet.store.positions()
    assert {partition for _, partition in places} == {0, 1, 2, 3}
    assert sum(place.next for place in places.values()) == 2 * fleet.given
    rows = fleet.store.freeze(CHANNEL, b"salt").rows
    assert len(rows) == len({row.interaction_id for row in rows}) == fleet.given
    assert fleet.read["two"] and fleet.read["three"], "the partitions are shared"  # noqa: PT018


def test_a_worker_whose_partitions_went_to_another_while_it_stood_still_writes_nothing(fleet, monkeypatch):
    to_stand, stands, goes_on, said = threading.Event(), threading.Event(), threading.Event(), []
    advance = join_module.places.advance

    def stand_still(*given):
        if threading.current_thread().name == "zombie" and to_stand.is_set() and given[2]:
            stands.set()
            goes_on.wait(SECONDS)
        return advance(*given)

    monkeypatch.setattr(join_module.places, "advance", stand_still)
    zombie = fleet.worker("zombie")

    def work():
        try:
            while not stands.is_set():
                zombie.run_once(0.2)
        except Exception as error:
            said.append(error)

    fleet.give(10)
    thread = threading.Thread(target=work, name="zombie")
    thread.start()
    fleet.wait(fleet.all_joined)
    to_stand.set()
    fleet.give(10)
    assert stands.wait(SECONDS)
    # To the group it is gone, as after a pause longer than its session.
    zombie._consumer._consumer.close(autocommit=False)
    fleet.start("heir")
    fleet.wait(fleet.all_joined)
    before = fleet.store.positions(), fleet.store.freeze(CHANNEL, b"salt").digest
    goes_on.set()
    thread.join(SECONDS)
    zombie._store.close()
    assert [type(error) for error in said] == [Overtaken]
    assert (fleet.store.positions(), fleet.store.freeze(CHANNEL, b"salt").digest) == before
