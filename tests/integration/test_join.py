"""The join over the embedded log: nothing lost, nothing doubled, and every rejected record with its reason."""

from __future__ import annotations

import dataclasses
import datetime as dt
import multiprocessing
import os
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest
import sqlalchemy as sa
from plaudit.domain import DomainPlugin
from plaudit.errors import LogUnavailable
from plaudit.eventlog import Topic
from plaudit.eventlog.codec import (
    Rejected,
    ReleaseChange,
    Retraction,
    decode,
    encode_feedback,
    encode_interaction,
    encode_rejected,
    encode_release_changed,
)
from plaudit.eventlog.protocol import MAX_RECORD_BYTES, REJECTED_OVERHEAD_BYTES
from plaudit.evidence.join import Join
from plaudit.evidence.places import Overtaken
from plaudit.evidence.tables import RejectionRow
from plaudit.failpoints import EXIT_CODE, FAIL_POINT_VARIABLE
from plaudit.plugins import guard
from plaudit.serving.handle import answer_mark
from plaudit.settings import JoinSettings
from plaudit.testing.evidence import (
    CHANNEL,
    START,
    JoinedStore,
    PlainDomain,
    make_feedback,
    make_interaction,
)
from plaudit.types import (
    Binary,
    Channel,
    Choice,
    Comment,
    Correction,
    Demo,
    Feedback,
    Interaction,
    Pair,
    PairOutcome,
    Purpose,
    Ranking,
    RankingEvidence,
    Thumbs,
)

PLUGINS = guard([PlainDomain()])
STEPS = 9


class World(JoinedStore):
    """A log, a store and a join in one folder, with a clock that the test moves."""

    def __init__(self, folder: Path, batch: int = 500, url: str = "") -> None:
        self.settings = JoinSettings(batch_records=batch)
        self.clock = START
        super().__init__(folder, url)

    def new_worker(self, **options: Mapping[str, DomainPlugin]) -> Join:
        plugins = options.get("plugins", PLUGINS)
        return Join(self.log, self.store, plugins, self.settings, now=lambda: self.clock)

    def start(self, plugins: Mapping[str, DomainPlugin] = PLUGINS) -> Join:
        self.worker = self.new_worker(plugins=plugins)
        return self.worker

    def evidence(self) -> list[object]:
        return [row.evidence for row in self.store.freeze(CHANNEL, b"salt").rows]

    def rejected(self) -> list[Rejected]:
        consumer = self.log.consumer([Topic.REJECTED], "test", dict)
        found = [decode(record.value) for record in consumer.poll(0, 100_000)]
        consumer.close()
        assert all(isinstance(each, Rejected) for each in found)
        return [each for each in found if isinstance(each, Rejected)]

    def reasons(self) -> list[str]:
        return [each.reason for each in self.rejected()]


@pytest.fixture
def world(tmp_path: Path, store_url: str) -> Iterator[World]:
    world = World(tmp_path, url=store_url)
    yield world
    world.close()


def retraction(feedback_id: str, interaction_id: str, rater: str = "ann") -> Retraction:
    return Retraction(
        feedback_id=feedback_id, interaction_id=interaction_id, channel=CHANNEL, rater=rater, accepted_at=START
    )


def test_each_kind_of_act_becomes_its_evidence(world: World) -> None:
    world.join(
        make_interaction("i", candidates=3),
        make_feedback("f1", "i", Thumbs("a", True)),
        make_feedback("f2", "i", Choice("a", "b")),
        make_feedback("f3", "i", Ranking(("c", "a", "b"))),
        make_feedback("f4", "i", Correction("b", "better")),
        make_feedback("f5", "i", Comment("", "thanks")),
    )
    assert world.evidence() == [
        Binary(candidate="a", positive=True),
        Pair(first="a", second="b", outcome=PairOutcome.FIRST),
        RankingEvidence(order=("c", "a", "b")),
        Demo(candidate="b", text="better", margin=0.5),
    ]
    counts = world.store.counts(CHANNEL)
    assert (counts.interactions, counts.acknowledged, counts.joined) == (1, 5, 5)


def test_duplicate_feedback_changes_nothing(world: World) -> None:
    act = make_feedback("f", "i", Thumbs("a", True))
    world.join(make_interaction("i"), act, act)
    before = world.store.freeze(CHANNEL, b"salt").digest
    world.join(act, make_interaction("i"), make_feedback("f", "i", Thumbs("a", True), seconds=9))
    assert world.store.freeze(CHANNEL, b"salt").digest == before
    assert world.store.counts(CHANNEL).acknowledged == 1
    assert world.reasons() == []


def test_feedback_waits_for_its_interaction(world: World) -> None:
    world.join(make_feedback("f", "i", Thumbs("a", True)))
    assert world.evidence() == []
    assert world.store.counts(CHANNEL).waiting == 1
    world.join(make_interaction("i"))
    assert world.evidence() == [Binary(candidate="a", positive=True)]
    assert world.store.counts(CHANNEL).waiting == 0


def test_of_two_bodies_under_one_id_the_earlier_counts_in_either_order(world: World) -> None:
    early, late = Thumbs("a", True), Thumbs("a", False)
    world.join(make_interaction("i"), make_feedback("f", "i", late, seconds=2))
    assert world.evidence() == [Binary(candidate="a", positive=False)]
    world.join(make_feedback("f", "i", early, seconds=1))
    assert world.evidence() == [Binary(candidate="a", positive=True)]
    world.join(
        make_interaction("j"), make_feedback("f", "j", early, seconds=1), make_feedback("f", "j", late, seconds=2)
    )
    assert world.evidence() == [Binary(candidate="a", positive=True)] * 2
    assert world.reasons() == ["ID_CONFLICT", "ID_CONFLICT"]
    assert [decode(each.value).act for each in world.rejected()] == [late, late]  # type: ignore[union-attr]


def test_a_newer_act_on_the_same_subject_replaces_the_older_whatever_its_offset(world: World) -> None:
    world.join(
        make_interaction("i"),
        make_feedback("newer", "i", Thumbs("a", False), seconds=2),
        make_feedback("older", "i", Thumbs("a", True), seconds=1),
        make_feedback("other rater", "i", Thumbs("a", True), rater="bob", seconds=1),
        make_feedback("other subject", "i", Thumbs("b", True), seconds=1),
    )
    rows = {row.feedback_id: row for row in world.store.freeze(CHANNEL, b"salt").rows}
    assert sorted(rows) == ["newer", "other rater", "other subject"]
    assert world.store.counts(CHANNEL).superseded == 1


def test_a_repeat_that_was_accepted_earlier_moves_its_act_back(world: World) -> None:
    up, down = Thumbs("a", True), Thumbs("a", False)
    world.join(
        make_interaction("i"), make_feedback("f1", "i", up, seconds=3), make_feedback("f2", "i", down, seconds=2)
    )
    assert world.evidence() == [Binary(candidate="a", positive=True)]
    world.join(make_feedback("f1", "i", up, seconds=1))
    assert world.evidence() == [Binary(candidate="a", positive=False)]
    world.join(make_feedback("f1", "i", up, seconds=9))
    assert world.evidence() == [Binary(candidate="a", positive=False)]


def test_a_retraction_counts_only_from_the_same_rater(world: World) -> None:
    world.join(make_interaction("i"), make_feedback("f", "i", Thumbs("a", True)), retraction("f", "i", "bob"))
    assert world.evidence() == [Binary(candidate="a", positive=True)]
    assert world.reasons() == ["RETRACTION_BY_OTHER"]
    world.join(retraction("f", "i", "ann"))
    assert world.evidence() == []
    counts = world.store.counts(CHANNEL)
    assert (counts.retracted, counts.retractions, counts.retractions_rejected) == (1, 2, 1)


def test_a_retraction_may_come_before_its_feedback(world: World) -> None:
    world.join(retraction("f", "i"))
    world.join(make_interaction("i"))
    world.join(make_feedback("f", "i", Thumbs("a", True)))
    assert world.evidence() == []
    assert world.reasons() == []


def test_a_withdrawn_change_of_mind_does_not_revive_what_it_replaced(world: World) -> None:
    world.join(
        make_interaction("i"),
        make_feedback("f1", "i", Thumbs("a", True), seconds=1),
        make_feedback("f2", "i", Thumbs("a", False), seconds=2),
        retraction("f2", "i"),
    )
    assert world.evidence() == []


def test_feedback_whose_interaction_never_comes_is_rejected_once_it_waited_long_enough(world: World) -> None:
    world.join(make_feedback("f", "i", Thumbs("a", True)), retraction("g", "i"))
    world.clock += dt.timedelta(seconds=world.settings.max_wait_seconds - 1)
    world.join()
    assert world.reasons() == []
    world.clock += dt.timedelta(seconds=2)
    world.join()
    assert world.reasons() == ["NO_INTERACTION", "NO_INTERACTION"]
    world.join()
    assert len(world.rejected()) == 2


def test_feedback_counts_after_all_when_its_interaction_comes_too_late(world: World) -> None:
    world.join(make_feedback("f", "i", Thumbs("a", True)))
    world.clock += dt.timedelta(days=1)
    world.join()
    assert world.store.counts(CHANNEL).rejected == 1
    world.join(make_interaction("i"))
    assert world.evidence() == [Binary(candidate="a", positive=True)]


def test_feedback_on_evaluate_is_rejected_and_its_interaction_not_kept(world: World) -> None:
    world.join(make_interaction("i", purpose=Purpose.EVALUATE), make_feedback("f", "i", Thumbs("a", True)))
    assert world.evidence() == []
    assert world.reasons() == ["NOT_JOINED"]
    assert world.store.interaction("i") is None
    assert world.store.prompts(CHANNEL) == []


def test_an_unknown_candidate_is_rejected(world: World) -> None:
    world.join(make_interaction("i"), make_feedback("f", "i", Choice("a", "z")))
    assert world.reasons() == ["UNKNOWN_CANDIDATE"]
    assert "'z'" in world.rejected()[0].message


@pytest.mark.parametrize("text", ["boom", "stranger"])
def test_a_failing_plugin_rejects_one_act_and_no_other(world: World, text: str) -> None:
    world.join(
        make_interaction("i"),
        make_feedback("f1", "i", Correction("a", text)),
        make_feedback("f2", "i", Thumbs("a", True)),
    )
    assert world.evidence() == [Binary(candidate="a", positive=True)]
    assert world.reasons() == ["PLUGIN_FAILED"]


def test_a_mended_plugin_takes_up_again_what_it_failed_on(world: World) -> None:
    class Mended(PlainDomain):
        def to_evidence(self, interaction: Interaction, feedback: Feedback) -> Sequence[Binary]:
            return [Binary(candidate="a", positive=True)]

    world.join(make_interaction("i"), make_feedback("f", "i", Correction("a", "boom")))
    world.worker.close()
    world.start(guard([Mended()]))
    world.join()
    assert world.evidence() == [Binary(candidate="a", positive=True)]


def test_a_domain_without_a_plugin_is_rejected_until_one_is_there(world: World) -> None:
    world.worker.close()
    world.start({})
    world.join(make_interaction("i"), make_feedback("f", "i", Thumbs("a", True)))
    assert world.reasons() == ["UNKNOWN_DOMAIN"]
    world.worker.close()
    world.start()
    world.join()
    assert world.evidence() == [Binary(candidate="a", positive=True)]


def test_another_tenants_feedback_never_reaches_an_interaction(world: World) -> None:
    stranger = make_feedback("f", "i", Thumbs("a", True), channel=Channel("plain", "other"))
    world.join(make_interaction("i"), stranger)
    assert world.evidence() == []
    assert world.reasons() == ["NO_INTERACTION"]


def test_an_undecodable_record_is_rejected_with_its_bytes_and_stops_nothing(world: World) -> None:
    world.log.append(Topic.FEEDBACK, "key", b"\xff not protobuf")
    world.log.append(Topic.INTERACTIONS, "key", b"")
    misplaced = encode_feedback(make_feedback("f", "i", Thumbs("a", True)), producer="test")
    world.log.append(Topic.INTERACTIONS, "key", misplaced)
    world.join(make_interaction("i"), make_feedback("g", "i", Thumbs("a", True)))
    assert world.evidence() == [Binary(candidate="a", positive=True)]
    rejected = {(each.topic, each.offset): each for each in world.rejected()}
    assert {each.reason for each in rejected.values()} == {"UNDECODABLE"}
    assert rejected["plaudit.feedback", 0].value == b"\xff not protobuf"
    assert rejected["plaudit.feedback", 0].key == b"key"
    assert rejected["plaudit.interactions", 1].value == misplaced


def test_a_record_too_large_for_rejected_is_rejected_without_its_bytes_and_stops_nothing(world: World) -> None:
    huge = b"\xff" * MAX_RECORD_BYTES
    world.log.append(Topic.FEEDBACK, "k" * 2 * REJECTED_OVERHEAD_BYTES, huge)
    world.log.append(Topic.FEEDBACK, "key", b"\xff")
    world.join(make_interaction("i"), make_feedback("g", "i", Thumbs("a", True)))
    assert world.evidence() == [Binary(candidate="a", positive=True)]
    first, second = sorted(world.rejected(), key=lambda each: each.offset)
    assert (first.value, "16777216 bytes are too many" in first.message) == (b"", True)
    assert second.value == b"\xff"
    with world.store.database.reading() as connection:
        kept = connection.execute(sa.select(RejectionRow.value).where(RejectionRow.offset == 0)).scalar_one()
    assert kept == huge


def test_records_of_other_topics_and_ids_that_no_table_holds_are_rejected(world: World) -> None:
    change = ReleaseChange(
        channel=CHANNEL, generation=1, live=0, canary=None, pinned=False, version=0, digest="", state="live",
        created_at=START, changed_at=START,
    )  # fmt: skip
    world.log.append(Topic.FEEDBACK, "k", encode_release_changed(change, producer="test"))
    other = Rejected(
        reason="UNDECODABLE", message="", topic="t", partition=0, offset=0, key=b"", value=b"", rejected_at=START
    )
    world.log.append(Topic.FEEDBACK, "k", encode_rejected(other, producer="test"))
    world.join(
        make_feedback("f" * 600, "i", Thumbs("a", True)),
        make_feedback("f\0", "i", Thumbs("a", True)),
        make_interaction("nul\0"),
    )
    assert Counter(world.reasons()) == {"UNDECODABLE": 2, "INVALID_FIELD": 3}


def test_an_interaction_repeated_with_another_content_is_rejected(world: World) -> None:
    world.join(make_interaction("i", candidates=2), make_interaction("i", candidates=2))
    assert world.reasons() == []
    world.join(make_interaction("i", candidates=3))
    assert world.reasons() == ["ID_CONFLICT"]
    kept = world.store.interaction("i")
    assert kept is not None
    assert len(kept.candidates) == 2


def answered(interaction_id: str, text: str, version: int, seconds: float) -> Interaction:
    """One attempt to answer the same request: another text, release, time and log-probs."""
    whole = make_interaction(interaction_id, candidates=1, completed_at=START + dt.timedelta(seconds=seconds))
    candidate = dataclasses.replace(whole.candidates[0], displayed_text=text, text=text, release_version=version)
    return dataclasses.replace(
        whole, candidates=(candidate,), base_digest=f"{version:02}" * 32, answers=(answer_mark([candidate]),)
    )


def seen(act: Feedback, interaction: Interaction) -> Feedback:
    return dataclasses.replace(act, answer=interaction.answers[0])


def test_a_request_sent_again_is_no_conflict_whatever_its_second_answer(world: World) -> None:
    first, again = answered("i", "tea", 1, seconds=0), answered("i", "tea", 1, seconds=5)
    swapped = answered("i", "coffee", 2, seconds=9)
    world.join(first, again, swapped)
    assert world.reasons() == []
    assert world.store.interaction("i") == first


def test_feedback_lands_only_on_the_answer_that_its_rater_saw(world: World) -> None:
    first, again = answered("i", "tea", 1, seconds=0), answered("i", "tea", 1, seconds=5)
    swapped = answered("i", "coffee", 2, seconds=9)
    world.join(
        seen(make_feedback("f2", "i", Thumbs("a", False), rater="bo"), swapped),
        seen(make_feedback("f1", "i", Thumbs("a", True), rater="ann"), again),
        first,
        again,
        swapped,
    )
    assert world.evidence() == [Binary(candidate="a", positive=True)]
    assert world.reasons() == ["ANOTHER_ANSWER"]


def test_another_request_under_a_used_id_is_a_conflict(world: World) -> None:
    world.join(make_interaction("i", group="tea"), make_interaction("i", group="coffee"))
    assert world.reasons() == ["ID_CONFLICT"]


def test_late_and_disordered_arrival_gives_the_digest_of_orderly_arrival(tmp_path: Path) -> None:
    items: list[Interaction | Feedback | Retraction] = [make_interaction(f"i{index}") for index in range(20)]
    items += [
        make_feedback(f"f{n}", f"i{n % 20}", Thumbs("a", n % 3 > 0), rater=f"r{n % 7}", seconds=n) for n in range(60)
    ]
    items += [retraction("f3", "i3", "r3")]
    digests = []
    for name, order in (("orderly", items), ("backwards", items[::-1]), ("odd first", items[1::2] + items[::2])):
        (tmp_path / name).mkdir()
        world = World(tmp_path / name, batch=7)
        world.join(*order)
        digests.append(world.store.freeze(CHANNEL, b"salt").digest)
        world.close()
    assert len(set(digests)) == 1


def test_rejections_wait_in_the_store_while_the_log_takes_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise LogUnavailable("the disk is full")

    world.append(make_interaction("i"), make_feedback("f", "i", Choice("a", "z")))
    with monkeypatch.context() as patch:
        patch.setattr(world.log, "append_many", refuse)
        assert world.worker.run_once(0) == 2
    assert world.rejected() == []
    world.join()
    assert world.reasons() == ["UNKNOWN_CANDIDATE"]


def test_a_worker_that_was_overtaken_writes_nothing(world: World) -> None:
    zombie = Join(world.log, world.store, PLUGINS, world.settings, now=lambda: world.clock)
    world.append(make_interaction("i"))
    zombie.run_once(0)
    world.join(make_feedback("f", "i", Thumbs("a", True)))
    world.append(make_feedback("g", "i", Thumbs("b", True)))
    # The zombie still believes feedback begins at 0, and finds another worker's offset there.
    with pytest.raises(Exception, match=r"plaudit\.feedback\[0\]"):
        zombie.run_once(0)
    world.join()
    zombie.run_once(0)
    zombie.close()
    assert len(world.evidence()) == 2
    assert world.store.counts(CHANNEL).acknowledged == 2


def test_a_worker_whose_offset_moved_on_writes_nothing(world: World) -> None:
    zombie = Join(world.log, world.store, PLUGINS, world.settings, now=lambda: world.clock)
    world.append(make_interaction("i"), make_feedback("f", "i", Thumbs("a", True)))
    zombie.run_once(0)  # it knows where both partitions stand
    zombie.lag()
    world.join(make_feedback("g", "i", Thumbs("b", True)))
    places = world.store.positions()
    world.append(make_feedback("h", "i", Thumbs("a", False), rater="bob"))
    with pytest.raises(Overtaken, match=r"plaudit\.feedback\[0\] no longer stands at 1"):
        zombie.run_once(0)
    assert world.store.positions() == places
    assert world.store.counts(CHANNEL).acknowledged == 2
    zombie.run_once(0)  # from where the store stands
    zombie.close()
    assert world.store.counts(CHANNEL).acknowledged == 3
    assert len(world.evidence()) == 3


def test_two_workers_on_one_log_and_store_double_nothing(world: World) -> None:
    stop = threading.Event()
    settings = JoinSettings(batch_records=7, poll_seconds=0.01)
    workers = [threading.Thread(target=Join(world.log, world.store, PLUGINS, settings).run, args=(stop,)) for _ in "ab"]
    for worker in workers:
        worker.start()
    for index in range(40):
        world.append(make_feedback(f"f{index}", f"i{index}", Thumbs("a", True)), make_interaction(f"i{index}"))
    deadline = time.monotonic() + 300
    while world.store.counts(CHANNEL).joined < 40 and time.monotonic() < deadline:
        time.sleep(0.02)
    stop.set()
    for worker in workers:
        worker.join(300)
    assert world.store.counts(CHANNEL).joined == 40
    assert len(world.evidence()) == 40


def test_lag_counts_unread_records(world: World) -> None:
    world.append(make_interaction("i"), make_feedback("f", "i", Thumbs("a", True)))
    assert sum(world.worker.lag().values()) == 2
    world.join()
    assert sum(world.worker.lag().values()) == 0


# Its processes begin as copies of one that has imported everything.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload([__name__])


def run_worker(folder: Path, fail_point: str = "") -> int | None:
    """One join process that works until nothing is left, or dies at a fail point; its exit status."""
    process = PROCESSES.Process(target=work, args=(folder, fail_point))
    process.start()
    process.join()
    return process.exitcode


def work(folder: Path, fail_point: str) -> None:
    """The process that the kill tests start."""
    os.environ[FAIL_POINT_VARIABLE] = fail_point
    world = World(folder, batch=5)
    world.join()
    world.close()


@pytest.mark.parametrize("step", range(1, STEPS + 1))
def test_a_kill_at_any_step_loses_and_doubles_nothing(tmp_path: Path, step: int) -> None:
    world = World(tmp_path)
    for index in range(20):
        world.append(make_interaction(f"i{index}"), make_feedback(f"f{index}", f"i{index}", Thumbs("a", True)))
        world.append(make_feedback(f"bad{index}", f"i{index}", Thumbs("z", True), seconds=1))
    world.append(make_feedback("f0", "i0", Thumbs("a", False), seconds=-1), retraction("f1", "i1"))
    for passage in (1, 2):
        assert run_worker(tmp_path, f"join.{step}:{passage}") == EXIT_CODE
    assert run_worker(tmp_path) == 0
    evidence = {row.feedback_id: row.evidence for row in world.store.freeze(CHANNEL, b"salt").rows}
    expected = {f"f{index}": Binary(candidate="a", positive=True) for index in range(20) if index != 1}
    assert evidence == expected | {"f0": Binary(candidate="a", positive=False)}
    # A rejection between steps 7 and 8 may be published twice; its identity stays one.
    identities = Counter((each.topic, each.partition, each.offset, each.reason) for each in world.rejected())
    assert Counter(reason for *_, reason in identities) == {"UNKNOWN_CANDIDATE": 20, "ID_CONFLICT": 1}
    assert max(identities.values()) <= (3 if step == 7 else 1)
    assert world.store.counts(CHANNEL).acknowledged == 41
    world.close()


@pytest.mark.slow
def test_ten_times_as_many_records_take_about_ten_times_as_long(tmp_path: Path) -> None:
    def rate(count: int) -> float:
        """Records per second of CPU."""
        world = World(tmp_path / str(count))
        names = [f"i{index}" for index in range(count // 2)]
        interactions = [(name, encode_interaction(make_interaction(name), producer="t")) for name in names]
        given = [make_feedback(f"of {name}", name, Thumbs("a", True)) for name in names]
        acts = [(act.interaction_id, encode_feedback(act, producer="t")) for act in given]
        world.log.append_many(Topic.INTERACTIONS, interactions)
        world.log.append_many(Topic.FEEDBACK, acts)
        began = time.process_time()
        world.join()
        seconds = time.process_time() - began
        world.close()
        return count / seconds

    few, many = rate(1_000), rate(10_000)
    # About 4,000 each where they were measured; with something quadratic many are ten times as slow as few.
    assert many > few / 3, f"{few:.0f} and {many:.0f} records per second"
