"""What the store keeps and forgets of people, on every database."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest
from plaudit.eventlog import Topic
from plaudit.eventlog.codec import decode, encode_feedback, encode_interaction
from plaudit.eventlog.sqlite import SqliteEventLog
from plaudit.evidence.join import Join
from plaudit.evidence.store import EvidenceStore, JoinCounts
from plaudit.evidence.trace import trace
from plaudit.settings import JoinSettings
from plaudit.testing.evidence import CHANNEL, START, PlainDomain, make_feedback, make_interaction
from plaudit.types import Consent, Correction, Feedback, Interaction, Thumbs, without_text

SALT = bytes(range(32))


class World:
    """A log, a store and a join between them."""

    def __init__(self, folder: Path, url: str) -> None:
        self.folder, self.url = folder, url
        self.log = SqliteEventLog(folder / "log.sqlite")
        self.store = EvidenceStore(url)
        self.worker = self.new_worker()

    def new_worker(self) -> Join:
        return Join(self.log, self.store, {"plain": PlainDomain()}, JoinSettings())

    def append(self, *items: Interaction | Feedback) -> None:
        for item in items:
            if isinstance(item, Interaction):
                self.log.append(Topic.INTERACTIONS, item.interaction_id, encode_interaction(item, producer="test"))
            else:
                self.log.append(Topic.FEEDBACK, item.interaction_id, encode_feedback(item, producer="test"))

    def join(self, *items: Interaction | Feedback) -> None:
        self.append(*items)
        while self.worker.run_once(0):
            pass

    def close(self) -> None:
        self.worker.close()
        self.store.close()
        self.log.close()


@pytest.fixture
def world(tmp_path: Path, store_url: str) -> Iterator[World]:
    world = World(tmp_path, store_url)
    yield world
    world.close()


def agreed(interaction_id: str, *, store: bool = True, train: bool = True, group: str = "") -> Interaction:
    return dataclasses.replace(
        make_interaction(interaction_id, group=group), consent=Consent(store=store, train=train), end_user="eve"
    )


def test_nothing_is_learnt_from_what_nobody_agreed_to_whichever_comes_first(world: World) -> None:
    world.join(agreed("yes"), agreed("no", train=False, group="a secret question"))
    world.join(*[make_feedback(f"f-{each}", each, Thumbs("a", True)) for each in ("yes", "no", "late")])
    world.join(agreed("late", train=False), without_text(agreed("gone", store=False)))
    world.join(make_feedback("f-gone", "gone", Correction("a", "boom")))
    frozen = world.store.freeze(CHANNEL, SALT)
    assert ({row.interaction_id for row in frozen.rows}, set(frozen.interactions)) == ({"yes"}, {"yes"})
    assert [each.interaction_id for each in world.store.prompts(CHANNEL)] == ["yes"]
    assert world.store.count_groups(CHANNEL, SALT).total() == 1
    assert world.store.interaction("no") is None
    assert world.store.counts(CHANNEL) == JoinCounts(interactions=1, acknowledged=4, joined=1, withheld=3, no_consent=3)
    shown = trace(world.store.database, "no", SALT, texts=True)
    assert (shown["consent"], shown["messages"]) == ({"store": True, "train": False}, [])
    assert [(act["status"], act["evidence"]) for act in shown["feedback"]] == [("withheld", [])]


def test_what_is_not_stored_is_in_the_log_without_text_or_person() -> None:
    kept = without_text(agreed("i", store=False))
    record = encode_interaction(kept, producer="test")
    assert decode(record) == kept
    assert kept.consent == Consent(store=False, train=False)
    for secret in (b"group of i", b"text a", b"eve", b"session"):
        assert secret not in record
    assert [each.candidate_id for each in kept.candidates] == ["a", "b"]
    assert kept.completed_at == START
