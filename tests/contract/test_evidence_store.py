"""The evidence store as its readers see it: round trips, frozen data sets, prompts, counts."""

from __future__ import annotations

import dataclasses
import datetime as dt
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from plaudit.errors import Misconfigured
from plaudit.eventlog import Topic
from plaudit.eventlog.codec import encode_feedback, encode_interaction
from plaudit.eventlog.sqlite import SqliteEventLog
from plaudit.evidence.join import Join
from plaudit.evidence.rows import StoredEvidence, evidence_from_bytes, evidence_to_bytes
from plaudit.evidence.splits import Split, group_split, rater_split
from plaudit.evidence.store import EvidenceStore, JoinCounts, OffsetRange, digest_of
from plaudit.settings import JoinSettings
from plaudit.testing.evidence import CHANNEL, START, PlainDomain, make_feedback, make_interaction
from plaudit.types import (
    Action,
    Binary,
    Channel,
    Demo,
    Evidence,
    Feedback,
    FeedbackKind,
    Interaction,
    Label,
    Pair,
    PairOutcome,
    Passage,
    Purpose,
    RankingEvidence,
    Scalar,
    Thumbs,
)

SALT = bytes(range(32))
OTHER = Channel("plain", "other")
ATOMS: list[Evidence] = [
    Pair(first="a", second="b", outcome=PairOutcome.TIE, tie_offered=True, margin=0.25),
    Pair(first="a", second="b", outcome=PairOutcome.SECOND),
    RankingEvidence(order=("c", "a", "b")),
    Binary(candidate="a", positive=False),
    Scalar(candidate="a", value=0.1),
    Demo(candidate="a", text="besser – 更好", margin=0.5),
    Label(candidate="a", value="toxic"),
]


class Filled:
    """A store that a join fills from a log."""

    def __init__(self, folder: Path) -> None:
        self.url = f"sqlite:///{folder / 'evidence.sqlite'}"
        self.log = SqliteEventLog(folder / "log.sqlite")
        self.store = EvidenceStore(self.url)
        self.worker = Join(self.log, self.store, {"plain": PlainDomain()}, JoinSettings())

    def join(self, *items: Interaction | Feedback) -> None:
        for item in items:
            if isinstance(item, Interaction):
                self.log.append(Topic.INTERACTIONS, item.interaction_id, encode_interaction(item, producer="test"))
            else:
                self.log.append(Topic.FEEDBACK, item.interaction_id, encode_feedback(item, producer="test"))
        while self.worker.run_once(0):
            pass

    def close(self) -> None:
        self.worker.close()
        self.store.close()
        self.log.close()


@pytest.fixture
def filled(tmp_path: Path) -> Iterator[Filled]:
    filled = Filled(tmp_path)
    yield filled
    filled.close()


def test_an_interaction_comes_back_as_it_was(filled: Filled) -> None:
    whole = dataclasses.replace(
        make_interaction("i", candidates=3),
        action=Action.CHOICE,
        passages=(Passage("p", "Text – 文", "source"),),
        end_user="end",
        rater="ann",
    )
    option = dataclasses.replace(
        whole.candidates[1], finish_reason=None, option_id="o", redacted=True, valid=False, propensity=1 / 3
    )
    whole = dataclasses.replace(whole, candidates=(whole.candidates[0], option, whole.candidates[2]))
    filled.join(whole)
    assert filled.store.interaction("i") == whole
    assert filled.store.interaction("nobody's") is None


@pytest.mark.parametrize("atom", ATOMS, ids=lambda atom: type(atom).__name__)
def test_evidence_comes_back_from_its_bytes(atom: Evidence) -> None:
    row = StoredEvidence(
        interaction_id="i",
        feedback_id="f",
        index=1,
        kind=FeedbackKind.THUMBS,
        evidence=atom,
        who="ann",
        accepted_at=START + dt.timedelta(microseconds=1),
        prompt_group="group",
        channel=CHANNEL,
    )
    assert evidence_from_bytes(evidence_to_bytes(row)) == row


def test_golden_bytes_of_an_evidence_row_never_change() -> None:
    row = StoredEvidence(
        interaction_id="i",
        feedback_id="f",
        index=1,
        kind=FeedbackKind.THUMBS,
        evidence=Binary(candidate="a", positive=True),
        who="ann",
        accepted_at=START,
        prompt_group="g",
        channel=Channel("d", "t"),
    )
    golden = "0a0169120166180122067468756d62732a03616e6e32060890bfedd9063a01674201644a017462050a01611001"
    assert evidence_to_bytes(row).hex() == golden


def test_the_digest_tells_apart_lists_that_join_to_the_same_bytes() -> None:
    assert digest_of([b"ab", b"c"]) != digest_of([b"a", b"bc"])
    assert digest_of([]) == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


def test_a_frozen_data_set_holds_rows_interactions_offsets_and_splits(filled: Filled) -> None:
    filled.join(make_interaction("i2"), make_interaction("i1"), make_interaction("unrated"))
    filled.join(
        make_feedback("f2", "i1", Thumbs("a", True), rater="ann"),
        make_feedback("f1", "i1", Thumbs("b", True), rater="", session_id="s"),
        make_feedback("f3", "i2", Thumbs("a", False), rater=""),
    )
    frozen = filled.store.freeze(CHANNEL, SALT, START)
    assert [(row.interaction_id, row.feedback_id) for row in frozen.rows] == [("i1", "f1"), ("i1", "f2"), ("i2", "f3")]
    assert [row.who for row in frozen.rows] == ["session:s", "ann", "interaction:i2"]
    assert [row.rater_split for row in frozen.rows] == [rater_split(SALT, row.who) for row in frozen.rows]
    assert [row.group_split for row in frozen.rows] == [group_split(SALT, row.prompt_group) for row in frozen.rows]
    assert sorted(frozen.interactions) == ["i1", "i2"]
    assert frozen.interactions["i1"] == make_interaction("i1")
    assert frozen.offsets == (OffsetRange(Topic.FEEDBACK, 0, 0, 3), OffsetRange(Topic.INTERACTIONS, 0, 0, 3))
    assert (frozen.as_of, frozen.counts) == (START, {"thumbs": 3})


def test_few_raters_splits_prompt_groups_alone(filled: Filled) -> None:
    filled.join(*[make_interaction(f"i{index}") for index in range(60)])
    filled.join(*[make_feedback(f"f{index}", f"i{index}", Thumbs("a", True)) for index in range(60)])
    frozen = filled.store.freeze(CHANNEL, SALT, START, few_raters=True)
    assert all(row.rater_split is row.group_split for row in frozen.rows)
    assert {row.group_split for row in frozen.rows} == set(Split)


def test_the_digest_depends_on_what_was_said_and_not_on_salt_or_offsets(filled: Filled, tmp_path: Path) -> None:
    act = make_feedback("f", "i", Thumbs("a", True))
    filled.join(make_interaction("i"), act)
    digest = filled.store.freeze(CHANNEL, SALT).digest
    assert filled.store.freeze(CHANNEL, b"another").digest == digest
    (tmp_path / "again").mkdir()
    again = Filled(tmp_path / "again")
    again.join(make_interaction("unrated"), make_interaction("i"), act, act)
    assert again.store.freeze(CHANNEL, SALT).digest == digest
    again.join(make_feedback("g", "i", Thumbs("b", True)))
    assert again.store.freeze(CHANNEL, SALT).digest != digest
    again.close()


def test_prompts_are_the_newest_of_each_group_and_never_evaluate(filled: Filled) -> None:
    def at(seconds: int) -> dt.datetime:
        return START + dt.timedelta(seconds=seconds)

    filled.join(
        make_interaction("i1", group="b", completed_at=at(2)),
        make_interaction("i2", group="b", completed_at=at(1)),
        make_interaction("i3", group="a", purpose=Purpose.EXPLORE),
        make_interaction("i4", group="b", completed_at=at(3), purpose=Purpose.EVALUATE),
        make_interaction("i5", group="c", purpose=Purpose.EVALUATE),
        make_interaction("i6", group="d", channel=OTHER),
        make_interaction("i7", group="e", candidates=0),
    )
    prompts = filled.store.prompts(CHANNEL)
    assert [(each.group, each.interaction_id) for each in prompts] == [("a", "i3"), ("b", "i1"), ("e", "i7")]
    assert prompts[1].messages == make_interaction("i1", group="b").messages
    assert [each.prompt_tokens for each in prompts] == [(1, 2, 3)] * 3


def test_channels_do_not_see_each_other(filled: Filled) -> None:
    filled.join(make_interaction("i"), make_feedback("f", "i", Thumbs("a", True)))
    filled.join(make_interaction("j", channel=OTHER), make_feedback("f", "j", Thumbs("a", True), channel=OTHER))
    assert filled.store.channels() == [CHANNEL, OTHER]
    assert [row.interaction_id for row in filled.store.freeze(CHANNEL, SALT).rows] == ["i"]
    assert filled.store.counts(OTHER) == JoinCounts(interactions=1, acknowledged=1, joined=1)


def test_an_empty_store_answers(filled: Filled) -> None:
    assert filled.store.positions() == {}
    assert filled.store.channels() == []
    assert filled.store.prompts(CHANNEL) == []
    assert filled.store.counts(CHANNEL) == JoinCounts()
    assert filled.store.freeze(CHANNEL, SALT).rows == ()


def test_positions_survive_the_process(filled: Filled) -> None:
    filled.join(make_interaction("i"), make_feedback("f", "i", Thumbs("a", True)))
    again = EvidenceStore(filled.url)
    assert again.positions() == {(Topic.INTERACTIONS, 0): 1, (Topic.FEEDBACK, 0): 1}
    again.close()


def test_a_reader_keeps_its_moment_while_the_join_writes(filled: Filled) -> None:
    filled.join(make_interaction("i"))
    with filled.store.database.reading() as connection:
        before = connection.exec_driver_sql("SELECT count(*) FROM evidence").scalar_one()
        filled.join(make_feedback("f", "i", Thumbs("a", True)))
        assert connection.exec_driver_sql("SELECT count(*) FROM evidence").scalar_one() == before == 0
    assert len(filled.store.freeze(CHANNEL, SALT).rows) == 1


@pytest.mark.parametrize("url", ["nonsense", "sqlite:////dev/null/folder/evidence.sqlite", "oracledb3://host/name"])
def test_a_wrong_url_is_a_clear_refusal(url: str) -> None:
    with pytest.raises(Misconfigured, match=r"store\.url"):
        EvidenceStore(url)


def test_evidence_is_imported_without_torch() -> None:
    code = "import plaudit.evidence.join, plaudit.evidence.store, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
