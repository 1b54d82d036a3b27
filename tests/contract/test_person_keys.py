"""What the log keeps of a person, sealed with a key that an erasure destroys."""

from __future__ import annotations

import dataclasses
import datetime as dt
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from plaudit.errors import Misconfigured
from plaudit.eventlog import Topic, open_log
from plaudit.eventlog.codec import encode_feedback, encode_interaction
from plaudit.eventlog.sealing import SealingLog, opened
from plaudit.eventlog.sqlite import SqliteEventLog
from plaudit.evidence import places
from plaudit.evidence.join import Join
from plaudit.evidence.rebuild import rebuild
from plaudit.evidence.store import EvidenceStore
from plaudit.privacy import erasure
from plaudit.privacy.erasure import DONE, MODELS, Eraser
from plaudit.privacy.forgotten import Forgotten
from plaudit.privacy.keys import REMEMBERED_SECONDS, PersonKeys
from plaudit.release.registry import Registry
from plaudit.settings import JoinSettings, KafkaSettings, LogSettings, PrivacySettings, Settings, StoreSettings
from plaudit.store.database import Database
from plaudit.testing.evidence import CHANNEL, PlainDomain, append, join_all, make_feedback, make_interaction
from plaudit.types import Comment, Feedback, Interaction
from plaudit.v1 import events_pb2
from pydantic import SecretStr

ID = "0195521a-7c3b-7a10-8000-00000000000a"
PAST = dt.datetime.now(dt.UTC) - dt.timedelta(days=1)
QUESTION = make_interaction("e1", group="a question of eve", completed_at=PAST)
OF_EVE = (
    dataclasses.replace(QUESTION, end_user="eve"),
    dataclasses.replace(make_feedback("f1", "b1", Comment("", "words of eve"), rater="eve"), accepted_at=PAST),
)
OF_OTHERS = (
    dataclasses.replace(make_interaction("b1", group="a question of bob", completed_at=PAST), end_user="bob"),
    dataclasses.replace(make_feedback("f2", "e1", Comment("", "what ann says"), rater="ann"), accepted_at=PAST),
    dataclasses.replace(make_feedback("f3", "e1", Comment("", "nobody's words"), rater=""), accepted_at=PAST),
)


class World:
    """A log that seals, beside the bare file that it writes to, and a store."""

    def __init__(self, folder: Path, url: str) -> None:
        self.folder = folder
        self.settings = Settings(
            data_dir=folder, store=StoreSettings(url=SecretStr(url)), privacy=PrivacySettings(person_keys=True)
        )
        self.log = open_log(self.settings)
        assert isinstance(self.log, SealingLog)
        self.bare = SqliteEventLog(folder / "log.sqlite")
        self.store = EvidenceStore(url)
        self.registry = Registry(url, self.settings.registry_root)
        self.seen: Counter[str] = Counter()

    def append(self, *items: Interaction | Feedback) -> None:
        append(self.log, *items)

    def join(self, *, opens: bool = True) -> None:
        worker = Join(
            self.log if opens else self.bare,
            self.store,
            {"plain": PlainDomain()},
            JoinSettings(),
            forgotten=Forgotten(opens=opens),
            observe=lambda records, outcome, seconds: self.seen.update(outcome.forgotten + outcome.rejected),
        )
        try:
            join_all(worker)
        finally:
            worker.close()

    def sealed(self) -> list[tuple[Topic, str, bytes]]:
        """The records as they lie in the log."""
        found = self.bare.consumer((Topic.INTERACTIONS, Topic.FEEDBACK), "test", dict)
        try:
            return [(each.topic, each.key.decode(), each.value) for each in found.poll(1.0, 100)]
        finally:
            found.close()

    def close(self) -> None:
        for each in (self.log, self.bare, self.store, self.registry):
            each.close()


@pytest.fixture
def world(tmp_path: Path, store_url: str) -> Iterator[World]:
    world = World(tmp_path, store_url)
    yield world
    world.close()


def test_the_log_holds_no_word_of_whoever_is_named_and_readers_have_all_of_it(world: World) -> None:
    world.append(*OF_EVE, *OF_OTHERS)
    lies = b"".join(value for _, _, value in world.sealed())
    assert b"nobody's words" in lies
    for secret in (b"a question of", b"words of eve", b"what ann says", b"text a", b"ann"):
        assert secret not in lies
    found = world.log.find(Topic.INTERACTIONS, "e1", 1)
    assert found is not None
    assert b"a question of eve" in found[0]
    world.join()
    assert world.store.interaction("e1") == OF_EVE[0]
    assert (world.store.counts(CHANNEL).joined, world.seen) == (3, Counter())
    with_keys = Forgotten(opens=True)
    again = rebuild(world.log, world.store, {"plain": PlainDomain()}, JoinSettings(), fix=False, forgotten=with_keys)
    assert (again.same, again.read.records, again.read.gaps) == (True, 5, ())


def test_a_destroyed_key_leaves_nothing_to_read_wherever_the_records_lie(world: World) -> None:
    world.append(*OF_EVE, *OF_OTHERS)
    copies = world.sealed()  # as Kafka keeps them, whatever becomes of this log
    world.join()
    asked = erasure.request(world.store.database, ID, "acme", "eve", "ops")
    soon = asked.requested_at + dt.timedelta(seconds=REMEMBERED_SECONDS)
    assert Eraser(world.settings, world.registry, now=lambda: soon).work(asked).step == MODELS
    later = asked.requested_at + dt.timedelta(seconds=2 * REMEMBERED_SECONDS + 1)
    done = Eraser(world.settings, world.registry, now=lambda: later).work(erasure.read(world.store.database, ID))
    assert (done.step, done.found.counts["keys"]) == (DONE, 1)
    keys = PersonKeys(Database(world.settings.store_url))
    readable = b"".join(opened([value for _, _, value in copies], keys))
    keys.close()
    assert b"what ann says" in readable
    assert not [each for each in (b"a question of eve", b"words of eve") if each in readable]
    for topic, key, value in copies:
        world.bare.append(topic, key, value)
    world.join()
    # Both records of eve say nothing any more; the others' words about her question are left out with it.
    assert world.seen == Counter({"erasure": 4})
    counts = world.store.counts(CHANNEL)
    assert (counts.interactions, counts.acknowledged) == (1, 0)
    # Made anew from what the log holds, the evidence is the same: the destroyed records are left out there too.
    again = rebuild(
        world.log, world.store, {"plain": PlainDomain()}, JoinSettings(), fix=False, forgotten=Forgotten(opens=True)
    )
    assert again.same
    # Another life: another key, once those who had the first one in memory have let go of it, as these have here.
    world.log.close()
    world.log = open_log(world.settings)
    world.append(dataclasses.replace(make_interaction("e2", completed_at=later), end_user="eve"))
    (again,) = (value for _, key, value in world.sealed() if key == "e2")
    assert _key(again) not in {"", *(_key(value) for _, _, value in copies)}
    world.join()
    assert world.store.counts(CHANNEL).interactions == 2


def _key(value: bytes) -> str:
    return str(events_pb2.Envelope.FromString(value).sealed.key_id)


def test_sealed_records_are_never_skipped_because_keys_are_not_asked_for_or_do_not_fit(world: World) -> None:
    world.append(OF_EVE[0])
    with pytest.raises(Misconfigured, match="person_keys"):
        world.join(opens=False)
    (topic, _, value) = world.sealed()[0]
    changed = events_pb2.Envelope.FromString(value)
    changed.sealed.ciphertext = changed.sealed.ciphertext[:-1] + bytes([changed.sealed.ciphertext[-1] ^ 1])
    world.bare.append(topic, "e9", changed.SerializeToString(deterministic=True))
    world.join()
    assert world.seen == Counter({"UNDECODABLE": 1})
    assert world.store.counts(CHANNEL).interactions == 1


def test_a_closed_key_is_out_of_use_once_its_time_is_over(world: World) -> None:
    clock = [0.0]
    keys = PersonKeys(Database(world.settings.store_url), clock=lambda: clock[0])
    first = keys.to_seal("acme", "eve")
    assert keys.to_seal("acme", "eve") == first
    assert keys.to_seal("rival", "eve")[0] != first[0]
    erasure.request(world.store.database, ID, "acme", "eve", "ops")
    clock[0] += REMEMBERED_SECONDS + 1
    assert keys.to_seal("acme", "eve")[0] != first[0]
    assert dict(keys.to_open([first[0], "unknown"])) == {first[0]: first[1]}
    keys.close()


def test_what_kafka_keeps_of_an_erased_person_cannot_be_read_and_does_not_come_back(
    tmp_path: Path, kafka_bootstrap: str, kafka_leftovers: None
) -> None:
    kafka = KafkaSettings(bootstrap=kafka_bootstrap, topic_prefix=f"keys-{uuid.uuid4().hex[:8]}-", partitions=2)
    url = f"sqlite:///{tmp_path / 'store.sqlite'}"
    settings = Settings(
        data_dir=tmp_path,
        store=StoreSettings(url=SecretStr(url)),
        privacy=PrivacySettings(person_keys=True),
        log=LogSettings(kind="kafka", kafka=kafka),
    )
    log, store, registry = open_log(settings), EvidenceStore(url), Registry(url, settings.registry_root)
    seen: Counter[str] = Counter()

    def join(records: int) -> None:
        read, deadline = 0, time.monotonic() + 300
        worker = Join(
            log,
            store,
            {"plain": PlainDomain()},
            JoinSettings(),
            forgotten=Forgotten(opens=True),
            observe=lambda _, outcome, __: seen.update(outcome.forgotten + outcome.rejected),
        )
        while read < records and time.monotonic() < deadline:
            read += worker.run_once(0.2)
        worker.close()

    for item in (*OF_EVE, *OF_OTHERS):
        of_interaction = isinstance(item, Interaction)
        topic = Topic.INTERACTIONS if of_interaction else Topic.FEEDBACK
        value = (encode_interaction if of_interaction else encode_feedback)(item, producer="test")  # type: ignore[operator]
        log.append(topic, item.interaction_id, value)
    join(5)
    assert (store.counts(CHANNEL).interactions, store.counts(CHANNEL).joined) == (2, 3)
    asked = erasure.request(store.database, ID, "acme", "eve", "ops")
    later = asked.requested_at + dt.timedelta(seconds=2 * REMEMBERED_SECONDS + 1)
    done = Eraser(settings, registry, now=lambda: later).work(asked)
    assert (done.step, done.found.counts["keys"], done.found.counts["log_records"]) == (DONE, 1, 0)
    with store.database.writing() as connection:
        places.reset(connection, (Topic.INTERACTIONS, Topic.FEEDBACK), {})  # plaudit join reset --from earliest
    join(5)
    assert seen == Counter({"erasure": 4})
    assert (store.counts(CHANNEL).interactions, store.counts(CHANNEL).acknowledged) == (1, 0)
    for each in (log, store, registry):
        each.close()
