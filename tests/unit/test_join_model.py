"""The join against a one-page reference: any order, batching, repetition and crash gives the same evidence."""

from __future__ import annotations

import datetime as dt
import random
import shutil
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st
from plaudit.eventlog import Topic
from plaudit.eventlog.codec import Retraction, body_digest, encode_feedback, encode_interaction, encode_retraction
from plaudit.eventlog.sqlite import SqliteEventLog
from plaudit.evidence import join as join_module
from plaudit.evidence.join import Join
from plaudit.evidence.store import EvidenceStore, FrozenDataSet
from plaudit.plugins import guard
from plaudit.settings import JoinSettings
from plaudit.testing.evidence import CHANNEL, START, PlainDomain, make_feedback, make_interaction
from plaudit.types import Act, Choice, Comment, Correction, Feedback, Interaction, Purpose, Ranking, Thumbs

SALT = b"salt"
PLUGIN = PlainDomain()
PLUGINS = guard([PLUGIN])
Item = Interaction | Feedback | Retraction

# Few of everything, so that ids, bodies, raters and subjects meet often.
INTERACTIONS = ("i1", "i2")
FEEDBACK_IDS = ("f1", "f2", "f3")
RATERS = ("ann", "bob", "")
ACTS: tuple[Act, ...] = (
    Thumbs("a", True),
    Thumbs("a", False),
    Thumbs("b", True),
    Thumbs("nobody", True),
    Choice("a", "b"),
    Choice("b", "a", tie=True),
    Ranking(("b", "a")),
    Comment("", "hm"),
    Correction("a", "better"),
    Correction("a", "boom"),
    Correction("a", "stranger"),
)


def random_history(chance: random.Random) -> list[Item]:
    """Up to thirty acts and withdrawals, some on an interaction that may be missing."""
    items: list[Item] = [make_interaction(each) for each in INTERACTIONS if chance.random() < 0.9]
    acts = chance.sample(ACTS, k=chance.randint(1, 4))
    for _ in range(chance.randrange(30)):
        about, rater = chance.choice((*INTERACTIONS, "evaluated")), chance.choice(RATERS[: chance.randint(1, 3)])
        feedback_id = chance.choice(FEEDBACK_IDS)
        if chance.random() < 0.15:
            items.append(
                Retraction(
                    feedback_id=feedback_id, interaction_id=about, channel=CHANNEL, rater=rater, accepted_at=START
                )
            )
        else:
            seconds = chance.randrange(5)
            items.append(make_feedback(feedback_id, about, chance.choice(acts), rater=rater, seconds=seconds))
    return items


def reference(items: list[Item]) -> dict[tuple[str, str, int], object]:
    """What counts, written from the design without a database, batches or order."""
    known = {item.interaction_id: item for item in items if isinstance(item, Interaction)}
    bodies: dict[tuple[str, str], dict[bytes, Feedback]] = {}
    for item in items:
        if isinstance(item, Feedback):
            same_id = bodies.setdefault((item.interaction_id, item.feedback_id), {})
            first = same_id.get(body_digest(item), item)
            same_id[body_digest(item)] = min(first, item, key=lambda each: each.accepted_at)
    counting = {key: min(same.values(), key=age) for key, same in bodies.items()}
    withdrawn = {
        (item.interaction_id, item.feedback_id)
        for item in items
        if isinstance(item, Retraction)
        and (item.interaction_id, item.feedback_id) in counting
        and counting[item.interaction_id, item.feedback_id].who == item.who
    }
    newest: dict[tuple[str, str, str], Feedback] = {}
    for act in sorted(counting.values(), key=age):
        interaction = known.get(act.interaction_id)
        if interaction and interaction.purpose is not Purpose.EVALUATE and "nobody" not in str(act.act):
            newest[act.interaction_id, act.who, act.subject] = act
    evidence: dict[tuple[str, str, int], object] = {}
    for act in newest.values():
        fails = isinstance(act.act, Correction) and act.act.text in ("boom", "stranger")
        if (act.interaction_id, act.feedback_id) not in withdrawn and not fails:
            for index, atom in enumerate(PLUGIN.to_evidence(known[act.interaction_id], act)):
                evidence[act.interaction_id, act.feedback_id, index] = (
                    atom,
                    act.who if act.rater else "nameless",
                    act.accepted_at,
                )
    return evidence


def age(act: Feedback) -> tuple[dt.datetime, str, bytes]:
    return (act.accepted_at, act.feedback_id, body_digest(act))


def found(frozen: FrozenDataSet) -> dict[tuple[str, str, int], object]:
    return {
        (row.interaction_id, row.feedback_id, row.index): (row.evidence, row.who, row.accepted_at)
        for row in frozen.rows
    }


class Crash(BaseException):
    """Stands for kill -9 within one process: the transaction under way is lost."""


@dataclass
class CrashAt:
    """A fail point that raises instead of ending the process, a few times."""

    points: list[str]

    def __call__(self, name: str) -> None:
        if self.points and self.points[0] == name:
            self.points.pop(0)
            raise Crash(name)


# A crash ends a transaction and no machine, so the files may lie in memory, where no write waits for a disk.
MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty store, copied for each history: making one takes longer than joining one."""
    file = tmp_path_factory.mktemp("store") / "evidence.sqlite"
    EvidenceStore(f"sqlite:///{file}").close()
    return file


def joined(items: list[Item], empty: Path, *, batch: int, crashes: list[str], cuts: list[int]) -> FrozenDataSet:
    """Appends the items in pieces, joins after each piece, and goes through the crashes on the way."""
    with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
        shutil.copy(empty, folder)
        log = SqliteEventLog(Path(folder) / "log.sqlite")
        store = EvidenceStore(f"sqlite:///{folder}/evidence.sqlite")
        crash = CrashAt(list(crashes))
        patch = pytest.MonkeyPatch()
        patch.setattr(join_module, "fail_point", crash)
        try:
            worker = None
            for start, end in zip([0, *cuts], [*cuts, len(items)], strict=True):
                append(log, items[start:end])
                while True:
                    worker = worker or Join(log, store, PLUGINS, JoinSettings(batch_records=batch))
                    try:
                        # A new worker may be given one record that the store has already, and none beside it.
                        if worker.run_once(0) == 0 and not any(worker.lag().values()):
                            break
                    except Crash:
                        worker = None
            if worker:
                worker.close()
            return store.freeze(CHANNEL, SALT, START)
        finally:
            patch.undo()
            store.close()
            log.close()


def append(log: SqliteEventLog, items: list[Item]) -> None:
    interactions, feedback = [], []
    for item in items:
        if isinstance(item, Interaction):
            interactions.append((item.interaction_id, encode_interaction(item, producer="test")))
        elif isinstance(item, Feedback):
            feedback.append((item.interaction_id, encode_feedback(item, producer="test")))
        else:
            feedback.append((item.interaction_id, encode_retraction(item, producer="test")))
    log.append_many(Topic.INTERACTIONS, interactions)
    log.append_many(Topic.FEEDBACK, feedback)


@settings(
    max_examples=40,
    suppress_health_check=[HealthCheck.too_slow],
    phases=(Phase.explicit, Phase.reuse, Phase.generate),  # a seed does not get simpler by shrinking
)
@given(
    batch=st.integers(1, 8),
    crashes=st.lists(st.sampled_from([f"join.{step}" for step in range(1, 10)]), max_size=5),
    seed=st.integers(0, 2**32),
)
@example(batch=1, crashes=["join.8"], seed=205)
def test_any_order_repetition_and_crash_gives_the_evidence_of_the_reference(
    empty: Path, batch: int, crashes: list[str], seed: int
) -> None:
    chaos = random.Random(seed)
    items = [*random_history(chaos), make_interaction("evaluated", purpose=Purpose.EVALUATE)]
    shuffled = [*items, *chaos.choices(items, k=3)]
    chaos.shuffle(shuffled)
    cuts = sorted(chaos.randrange(len(shuffled) + 1) for _ in range(3))
    frozen = joined(shuffled, empty, batch=batch, crashes=crashes, cuts=cuts)
    assert found(frozen) == reference(items)
    assert frozen.digest == joined(items, empty, batch=500, crashes=[], cuts=[]).digest


def test_the_reference_itself_replaces_and_withdraws() -> None:
    up = make_feedback("f1", "i1", Thumbs("a", True), seconds=1)
    down = replace(up, feedback_id="f2", act=Thumbs("a", False), accepted_at=START + dt.timedelta(seconds=2))
    withdrawal = Retraction(
        feedback_id="f2", interaction_id="i1", channel=CHANNEL, rater="ann", accepted_at=START + dt.timedelta(seconds=3)
    )
    assert list(reference([make_interaction("i1"), up])) == [("i1", "f1", 0)]
    assert list(reference([make_interaction("i1"), down, up])) == [("i1", "f2", 0)]
    assert reference([make_interaction("i1"), down, up, withdrawal]) == {}
