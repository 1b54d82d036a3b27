"""Erasure of a person: what it reaches, what it leaves, and that it survives a death at each of its steps."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime as dt
import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import sqlalchemy as sa
from plaudit.errors import IdConflict, InvalidField, UnknownErasure, WrongState
from plaudit.evidence.join import Join
from plaudit.evidence.quarantine import Quarantine
from plaudit.evidence.store import JoinCounts
from plaudit.failpoints import EXIT_CODE, FAIL_POINT_VARIABLE
from plaudit.privacy import erasure, models
from plaudit.privacy.erasure import DONE, Eraser
from plaudit.privacy.receipts import receipt, signing_key, verified
from plaudit.privacy.sweep import finish
from plaudit.release.decision import Check, Decision
from plaudit.release.manifest import Manifest
from plaudit.release.registry import Pin, Promote, Registry, ReleaseState, RollBack
from plaudit.settings import JoinSettings, PrivacySettings, Settings, StoreSettings
from plaudit.store import kept
from plaudit.testing.evidence import (
    CHANNEL,
    JoinedStore,
    PlainDomain,
    make_feedback,
    make_interaction,
)
from plaudit.types import Channel, Choice, Comment, Correction, Feedback, Interaction, Thumbs
from pydantic import SecretStr

SALT = bytes(range(32))
ID = "0195521a-7c3b-7a10-8000-00000000000a"
EVE, ANN, BOB = "eve" * 10, "ann" * 10, "bob" * 10  # pseudonyms
PAST = dt.datetime.now(dt.UTC) - dt.timedelta(days=1)
OF_EVE = (
    b"a question of eve",
    b"what ann thinks of it",
    b"rejected words of eve",
    b"what waits of eve",
    b"unread of eve",
)
OF_OTHERS = (b"a question of bob", b"what ann thinks of bob's")
YES = Decision(True, (Check("win_base", True, 0.6, 0.5, 0.55, 0.65),), PAST)


class World(JoinedStore):
    """A log, a store and a registry, with a join between them."""

    def __init__(self, folder: Path, url: str) -> None:
        self.settings = Settings(
            data_dir=folder, store=StoreSettings(url=SecretStr(url)), privacy=PrivacySettings(retrain_days=7)
        )
        self.registry = Registry(url, self.settings.registry_root)
        self.seen: Counter[str] = Counter()
        super().__init__(folder, url)

    def new_worker(self, **options: object) -> Join:
        def observe(records: object, outcome: object, seconds: float) -> None:
            self.seen.update(outcome.forgotten)  # type: ignore[attr-defined]

        return Join(self.log, self.store, {"plain": PlainDomain()}, JoinSettings(max_wait_seconds=1e6), observe=observe)

    def on_disk(self) -> bytes:
        files = [path.read_bytes() for path in self.folder.rglob("*") if path.is_file()]
        if not self.url.startswith("sqlite"):  # what every reader of the server sees
            with self.store.database.reading() as connection:
                tables = sa.inspect(connection).get_table_names()
                for name in tables:
                    for row in connection.execute(sa.text(f"SELECT * FROM {name}")):
                        files += [bytes(value) for value in row if isinstance(value, bytes | memoryview)]
                        files += [value.encode() for value in row if isinstance(value, str)]
        return b"\n".join(files)

    def close(self) -> None:
        self.registry.close()
        super().close()


@pytest.fixture
def world(tmp_path: Path, store_url: str) -> Iterator[World]:
    world = World(tmp_path, store_url)
    yield world
    world.close()


def of(person: str, interaction_id: str, text: str = "", *, at: dt.datetime = PAST, rater: str = "") -> Interaction:
    made = make_interaction(interaction_id, group=text or f"group of {interaction_id}", completed_at=at)
    return dataclasses.replace(made, end_user=person, rater=rater)


def act(name: str, about: str, said: object, rater: str, at: dt.datetime = PAST) -> Feedback:
    return dataclasses.replace(make_feedback(name, about, said, rater=rater), accepted_at=at)  # type: ignore[arg-type]


ITEMS = (
    of(EVE, "e1", "a question of eve"),
    of(BOB, "e2", "her own", rater=EVE),
    of(BOB, "b1", "a question of bob"),
    act("f1", "e1", Correction("a", "what ann thinks of it"), ANN),
    act("f2", "e1", Thumbs("a", True), ""),
    act("f3", "b1", Correction("a", "what ann thinks of bob's"), ANN),
    act("f4", "b1", Thumbs("a", False), EVE),
    act("f5", "b1", Correction("b", "rejected words of eve"), EVE),
    act("f5", "b1", Correction("b", "another body of eve"), EVE, PAST + dt.timedelta(seconds=1)),
    act("f6", "late", Comment("", "what waits of eve"), EVE),
)
COUNTS = {"interactions": 2, "feedback": 6, "evidence": 4, "rejections": 1, "quarantine": 1, "log_records": 9}


def fill(world: World) -> None:
    world.join(*ITEMS)
    Quarantine(world.store.database).put(CHANNEL, EVE, "an anomaly", by="test")


def check_gone(world: World) -> None:
    content = world.on_disk()
    assert not [each for each in OF_EVE if each in content]
    assert not [each for each in OF_OTHERS if each not in content]
    assert world.store.counts(CHANNEL) == JoinCounts(interactions=1, acknowledged=1, joined=1)


def test_what_a_person_left_is_nowhere_and_does_not_come_back(world: World) -> None:
    fill(world)
    asked = erasure.request(world.store.database, ID, "acme", EVE, "ops")
    assert erasure.request(world.store.database, ID, "acme", EVE, "ops") == asked
    with pytest.raises(IdConflict):
        erasure.request(world.store.database, ID, "acme", BOB, "ops")
    (done,) = finish(world.settings, world.registry, world.log)
    assert (done.step, dict(done.found.counts)) == (DONE, COUNTS)
    assert None not in (done.erased_at, done.models_retired_at)
    check_gone(world)
    # Read again from an older copy of the log, or from Kafka, with what is new since: another life of the person.
    later = done.requested_at + dt.timedelta(seconds=1)
    world.join(*ITEMS, of(EVE, "e9", "a new question", at=later), act("f9", "b1", Choice("a", "b"), EVE, later))
    assert world.seen["erasure"] == 8
    counts = world.store.counts(CHANNEL)
    assert (counts.interactions, counts.joined, counts.rejected, counts.waiting) == (2, 2, 0, 0)
    assert finish(world.settings, world.registry, world.log) == []
    with pytest.raises(UnknownErasure):
        erasure.read(world.store.database, "another")


def test_a_receipt_names_counts_and_ids_and_cannot_be_changed(world: World) -> None:
    fill(world)
    erasure.request(world.store.database, ID, "acme", EVE, "ops")
    early = receipt(world.settings, world.store.database, erasure.read(world.store.database, ID))
    assert early.facts["state"] == "requested"
    finish(world.settings, world.registry, world.log)
    text = receipt(world.settings, world.store.database, erasure.read(world.store.database, ID)).to_json()
    facts = verified(text, signing_key(world.settings).public_key().public_bytes_raw())
    assert (facts["state"], facts["deleted"], facts["interactions"]) == ("done", COUNTS, ["e1", "e2"])
    assert not [each for each in (*OF_EVE, *OF_OTHERS) if each in text.encode()]
    changed = json.loads(text)
    changed["receipt"]["deleted"]["interactions"] = 3
    other = signing_key(world.settings.model_copy(update={"privacy": PrivacySettings(receipt_key=SecretStr("k" * 32))}))
    for forged, key in ((json.dumps(changed), None), (text, other.public_key().public_bytes_raw()), ("{}", None)):
        with pytest.raises(InvalidField):
            verified(forged, key)


@pytest.mark.parametrize("step", range(1, 7))
def test_an_erasure_that_dies_behind_a_step_goes_on_and_counts_once(world: World, step: int) -> None:
    fill(world)
    child = os.fork()
    if child == 0:  # with connections of its own, and no way back into the test
        os.environ[FAIL_POINT_VARIABLE] = f"erase.{step}"
        with contextlib.suppress(BaseException):
            mine = Registry(world.url, world.settings.registry_root)
            finish_of(world.settings, mine)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == EXIT_CODE
    assert erasure.read(world.store.database, ID).step in (max(1, step - 1), step)
    (done,) = [Eraser(world.settings, world.registry).work(each) for each in erasure.unfinished(world.store.database)]
    assert (done.step, dict(done.found.counts)) == (DONE, COUNTS)
    check_gone(world)


def finish_of(settings: Settings, registry: Registry) -> None:
    Eraser(settings, registry).work(erasure.request(registry.database, ID, "acme", EVE, "ops"))


def test_records_that_the_join_has_not_read_are_waited_for_and_never_joined(world: World) -> None:
    fill(world)
    world.append(of(EVE, "e3", "unread of eve"), act("f7", "e3", Thumbs("a", True), ANN))
    erasure.request(world.store.database, ID, "acme", EVE, "ops")
    (waits,) = finish(world.settings, world.registry, world.log)
    assert waits.step == erasure.MODELS
    assert b"unread of eve" in world.on_disk()
    world.join()
    assert world.seen["erasure"] == 2
    (done,) = finish(world.settings, world.registry, world.log)
    assert done.found.counts == Counter(COUNTS | {"log_records": COUNTS["log_records"] + 2})
    check_gone(world)


def register(world: World, as_of: dt.datetime, parent: int, acts: Sequence[tuple[str, str]] = ()) -> int:
    folder = world.folder / f"release-{as_of:%s}-{parent}"
    folder.mkdir()
    (folder / "weights.json").write_text(json.dumps([as_of.isoformat(), parent]))
    draft = Manifest(channel=CHANNEL, base_digest="00" * 32, parent=parent, as_of=as_of)
    version = world.registry.register(draft, folder, acts=acts).version
    world.registry.decide(CHANNEL, version, YES)
    return version


def promote(world: World, version: int) -> None:
    world.registry.change(CHANNEL, Promote(version), expected_generation=None, actor="test", reason="")


def states(world: World) -> list[str]:
    return [str(row.state) for row in world.registry.releases(CHANNEL)]


def test_releases_that_learnt_from_the_person_go_and_never_come_back(world: World) -> None:
    world.registry.ensure_channel(CHANNEL, "00" * 32)
    before = register(world, PAST - dt.timedelta(days=1), 0)
    promote(world, before)
    fill(world)
    learnt = register(world, PAST + dt.timedelta(hours=1), before)
    promote(world, learnt)
    onwards = register(world, PAST - dt.timedelta(days=2), learnt)  # trained on from it
    other = world.registry.ensure_channel(Channel("plain", "other"), "00" * 32)
    with world.store.database.reading() as connection:
        began_with = models.erasures_of(connection, CHANNEL)
    erasure.request(world.store.database, ID, "acme", EVE, "ops")
    (erased,) = finish(world.settings, world.registry, world.log)
    assert erased.found.releases == [f"{CHANNEL}@{learnt}", f"{CHANNEL}@{onwards}"]
    assert states(world) == ["retired", "retired", "live", "rejected"]
    assert erased.models_retired_at is None
    # A turn begins from the base, and one that had begun before writes nothing.
    learning, state = world.registry.learning_state(CHANNEL), world.registry.state(CHANNEL)
    assert learning is not None
    assert state is not None
    assert (learning.live, state.live, learning.generation) == (0, learnt, state.generation)
    with world.store.database.writing() as connection, pytest.raises(models.ErasedMeanwhile):
        models.check_nobody_erased(world.store.database, connection, CHANNEL, began_with)
    for move in (Promote(onwards), RollBack(onwards)):
        with pytest.raises(WrongState):
            world.registry.change(CHANNEL, move, expected_generation=None, actor="test", reason="")
    # Its time is over: also a channel that is pinned goes back, to the newest one that did not learn from the person.
    world.registry.change(CHANNEL, Pin(True), expected_generation=None, actor="test", reason="")
    over = erased.requested_at + dt.timedelta(days=7)
    assert models.retire_overdue(world.registry, world.log, over - dt.timedelta(seconds=1)) == []
    assert models.retire_overdue(world.registry, world.log, over) == [f"{CHANNEL}@{learnt}"]
    state = world.registry.state(CHANNEL)
    assert state is not None
    assert (state.live, state.pinned) == (before, True)
    assert states(world) == ["retired", "live", "rejected", "rejected"]
    with pytest.raises(WrongState):
        world.registry.change(CHANNEL, RollBack(learnt), expected_generation=None, actor="test", reason="")
    (done,) = finish(world.settings, world.registry, world.log)
    assert done.models_retired_at is not None
    assert world.registry.state(other.channel) == other


def test_a_new_release_in_place_of_the_marked_one_ends_the_erasure(world: World) -> None:
    world.registry.ensure_channel(CHANNEL, "00" * 32)
    fill(world)
    promote(world, register(world, PAST + dt.timedelta(hours=1), 0))
    erasure.request(world.store.database, ID, "acme", EVE, "ops")
    finish(world.settings, world.registry, world.log)
    promote(world, register(world, dt.datetime.now(dt.UTC), 0))
    (done,) = finish(world.settings, world.registry, world.log)
    assert done.models_retired_at is not None
    assert states(world) == ["retired", str(ReleaseState.REJECTED), "live"]


def test_interactions_of_an_older_store_are_found_by_what_their_records_name(world: World) -> None:
    world.join(*ITEMS)
    with world.store.database.writing() as connection:
        connection.execute(sa.text("UPDATE interactions SET end_user = NULL, rater = NULL"))
    erasure.request(world.store.database, ID, "acme", EVE, "ops")
    (done,) = finish(world.settings, world.registry, world.log)
    assert done.found.counts["interactions"] == 2


def test_of_acts_on_others_questions_the_lineage_tells_which_releases_learnt_from_them(world: World) -> None:
    world.registry.ensure_channel(CHANNEL, "00" * 32)
    theirs = (of(BOB, "b1"), of(BOB, "b2"), act("f1", "b1", Thumbs("a", True), ANN))
    world.join(*theirs, act("f2", "b1", Thumbs("a", False), EVE), act("f3", "b2", Thumbs("a", True), EVE))
    later = PAST + dt.timedelta(hours=1)
    f1, f2, f3 = ("b1", "f1"), ("b1", "f2"), ("b2", "f3")
    first = register(world, later, 0, acts=[f1])
    learnt = register(world, later + dt.timedelta(hours=1), 0, acts=[f1, f2])
    onwards = register(world, later + dt.timedelta(hours=2), learnt, acts=[f1])
    after = register(world, later + dt.timedelta(hours=3), 0, acts=[f1])
    again = register(world, later + dt.timedelta(hours=4), 0, acts=[f1, f3])
    untold = register(world, later + dt.timedelta(hours=5), 0, acts=[f1])
    with world.store.database.writing() as connection:  # as of a release of v0.1.0
        connection.execute(sa.text(f"UPDATE release SET acts = NULL WHERE version = {untold}"))
    left = [kept.folder_of(world.folder, channel) for channel in (CHANNEL, Channel("plain", "other"))]
    for folder in left:  # what turns left for the next one
        folder.mkdir(parents=True)
    erasure.request(world.store.database, ID, "acme", EVE, "ops")
    (done,) = finish(world.settings, world.registry, world.log)
    assert done.found.releases == [f"{CHANNEL}@{each}" for each in (learnt, onwards, again, untold)]
    assert [folder.exists() for folder in left] == [False, True]
    assert not {first, after} & world.registry.erased(CHANNEL)


def test_a_question_of_the_person_marks_what_may_have_been_trained_to_answer_it(world: World) -> None:
    world.registry.ensure_channel(CHANNEL, "00" * 32)
    world.join(of(BOB, "b1"), of(EVE, "e1"), act("f1", "b1", Thumbs("a", True), ANN))
    before = register(world, PAST - dt.timedelta(hours=1), 0, acts=[("b1", "f1")])
    learnt = register(world, PAST + dt.timedelta(hours=1), 0, acts=[("b1", "f1")])
    erasure.request(world.store.database, ID, "acme", EVE, "ops")
    (done,) = finish(world.settings, world.registry, world.log)
    assert done.found.releases == [f"{CHANNEL}@{learnt}"] != [f"{CHANNEL}@{before}"]
