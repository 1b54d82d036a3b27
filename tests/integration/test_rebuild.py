"""Evidence that is made anew from the log is the evidence that is stored, over what the log retains; on both logs."""

import json
import sqlite3
import time
import uuid

import pytest
import sqlalchemy as sa
import structlog
from kafka import KafkaAdminClient, TopicPartition
from plaudit import plugins as plugins_module
from plaudit.cli import app
from plaudit.eventlog import Topic, open_log
from plaudit.eventlog.codec import Retraction
from plaudit.evidence.join import Join
from plaudit.evidence.rebuild import rebuild
from plaudit.evidence.store import EvidenceStore
from plaudit.evidence.tables import EvidenceTable, FeedbackRow
from plaudit.settings import JoinSettings, KafkaSettings, LogSettings, Settings
from plaudit.testing.evidence import CHANNEL, START, PlainDomain, append, make_feedback, make_interaction
from plaudit.types import Comment, Ranking, Thumbs
from typer.testing import CliRunner

PLUGINS = {CHANNEL.domain: PlainDomain()}
ACTS = 24


class World:
    """A log with interactions and acts of every kind, joined into a store."""

    def __init__(self, settings):
        self.settings = settings
        self.log, self.store = open_log(settings), EvidenceStore(settings.store_url)

    def say(self, *items):
        append(self.log, *items)

    def fill(self):
        for number in range(ACTS):
            # Some acts come before what they are about.
            act = Thumbs("a", number % 3 > 0) if number % 4 else Ranking(("b", "a"))
            self.say(make_feedback(f"f{number}", f"i{number}", act, rater=f"r{number % 5}"))
            self.say(make_interaction(f"i{number}"))
        self.say(
            make_feedback("g", "i1", Thumbs("a", False), rater="r1", seconds=9),
            make_feedback("c", "i2", Comment("a", "said"), rater="r2"),
            Retraction(feedback_id="f5", interaction_id="i5", channel=CHANNEL, accepted_at=START, rater="r0"),
            Retraction(feedback_id="f6", interaction_id="i6", channel=CHANNEL, accepted_at=START, rater="not r1"),
        )
        self.join()

    def join(self):
        join, deadline = Join(self.log, self.store, PLUGINS, JoinSettings()), time.monotonic() + 300
        while sum(each.next for each in self.store.positions().values()) < 2 * ACTS + 4:
            assert time.monotonic() < deadline
            join.run_once(0.2)
        join.close()

    def rebuild(self, fix=False):
        # However long a group takes to form: nothing here ends because no record came.
        return rebuild(self.log, self.store, PLUGINS, JoinSettings(), fix=fix, idle_seconds=3600.0)

    def digest(self):
        return self.store.freeze(CHANNEL, bytes(32)).digest

    def close(self):
        self.log.close()
        self.store.close()


@pytest.fixture(params=["embedded", pytest.param("kafka", marks=pytest.mark.needs_kafka)])
def world(request, tmp_path):
    settings = Settings(data_dir=tmp_path)
    if request.param == "kafka":
        bootstrap = request.getfixturevalue("kafka_bootstrap")
        request.getfixturevalue("kafka_leftovers")
        kafka = KafkaSettings(bootstrap=bootstrap, topic_prefix=f"t{uuid.uuid4().hex[:12]}.", partitions=2)
        settings = settings.model_copy(update={"log": LogSettings(kind="kafka", kafka=kafka)})
    made = World(settings)
    made.fill()
    yield made
    made.close()
    structlog.reset_defaults()


@pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")
def test_the_log_gives_the_digest_of_the_store_and_mends_one_that_differs(world):
    digest, places = world.digest(), dict(world.store.positions())
    world.say(make_feedback("unread", "i10", Thumbs("a", False), rater="somebody who comes later"))
    found = world.rebuild()
    assert (found.same, found.read.records, found.read.gaps) == (True, 2 * ACTS + 4, ())
    (channel,) = found.channels
    assert (channel.rebuilt, channel.rows, channel.beyond) == (digest, ACTS - 1, 0)

    with world.store.database.writing() as connection:  # a row too few, one too many, one that says something else
        rows = connection.execute(sa.select(EvidenceTable.__table__)).mappings().all()
        lost, odd = (next(row for row in rows if row["feedback_id"] == name) for name in ("f7", "f8"))
        gone = (EvidenceTable.feedback_id == "f7") | (EvidenceTable.feedback_id == "f8")
        connection.execute(sa.delete(EvidenceTable).where(gone))
        connection.execute(sa.insert(EvidenceTable).values({**odd, "payload": lost["payload"]}))
        connection.execute(sa.delete(FeedbackRow).where(FeedbackRow.feedback_id == "f9"))
    assert world.digest() != digest
    assert not world.rebuild().same
    fixed = world.rebuild(fix=True)
    assert (fixed.same, fixed.fixed) == (False, 2)
    assert world.digest() == digest
    assert world.rebuild().same
    assert dict(world.store.positions()) == places, "the join goes on where it stood"


@pytest.mark.parametrize("world", ["embedded"], indirect=True)
def test_what_the_log_no_longer_holds_is_counted_and_kept(world):
    digest = world.digest()
    with sqlite3.connect(world.settings.data_dir / "log.sqlite") as log:
        log.execute("DELETE FROM records WHERE topic = ? AND offset < 6", (Topic.INTERACTIONS.value,))
        log.execute("DELETE FROM records WHERE topic = ? AND offset < 8", (Topic.FEEDBACK.value,))
    log.close()
    found = world.rebuild(fix=True)
    assert found.same
    assert [str(gap) for gap in found.read.gaps] == [
        "plaudit.feedback[0]: 8 records (offsets 0 to 7) are no longer in the log",
        "plaudit.interactions[0]: 6 records (offsets 0 to 5) are no longer in the log",
    ]
    # The first eight acts, of which two were on retained interactions; the newer act on i1 is retained and its
    # interaction is not.
    assert (found.channels[0].beyond, found.channels[0].rows) == (7, ACTS - 1 - 7)
    assert world.digest() == digest


@pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")
def test_nothing_is_waited_for_where_the_last_records_are_gone(world):
    if world.settings.log.kind == "kafka":
        kafka = world.settings.log.kafka
        name = kafka.topic_prefix + Topic.FEEDBACK
        admin = KafkaAdminClient(bootstrap_servers=kafka.bootstrap)
        admin.delete_records({TopicPartition(name, partition): -1 for partition in range(kafka.partitions)})
        admin.close()
    else:
        with sqlite3.connect(world.settings.data_dir / "log.sqlite") as log:
            log.execute("DELETE FROM records WHERE topic = ?", (Topic.FEEDBACK.value,))
        log.close()
    found = world.rebuild()
    assert (found.same, found.channels[0].rows) == (True, 0)
    gone = [gap for gap in found.read.gaps if gap.topic == Topic.FEEDBACK]
    assert sum(gap.next - gap.first for gap in gone) == ACTS + 4
    assert {gap.why for gap in gone} == {"are no longer in the log"}


@pytest.mark.parametrize("world", ["embedded"], indirect=True)
def test_the_command_checks_and_tells(world, monkeypatch):
    monkeypatch.setattr(plugins_module, "load_plugins", lambda *_, **__: PLUGINS)

    def command(*words):
        done = CliRunner().invoke(app, ["evidence", "rebuild", *words, "--data-dir", str(world.settings.data_dir)])
        return done.exit_code, done.stdout

    code, said = command("--check")
    assert code == 0
    assert f"{CHANNEL}: {ACTS - 1} rows of evidence, digest {world.digest()[:12]}: the same" in said
    with world.store.database.writing() as connection:
        connection.execute(sa.delete(EvidenceTable).where(EvidenceTable.feedback_id == "f7"))
    assert command("--check")[0] == 1
    code, said = command("--json")
    assert (code, json.loads(said)["fixed"]) == (0, 1)
    assert command("--check")[0] == 0
