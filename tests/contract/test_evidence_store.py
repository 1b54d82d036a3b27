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
from plaudit.evidence import counts
from plaudit.evidence.places import next_offsets
from plaudit.evidence.rows import StoredEvidence, evidence_from_bytes, evidence_to_bytes
from plaudit.evidence.splits import Split, group_split, rater_split
from plaudit.evidence.store import EvidenceStore, JoinCounts, OffsetRange, digest_of
from plaudit.testing.evidence import (
    CHANNEL,
    START,
    JoinedStore,
    make_feedback,
    make_interaction,
)
from plaudit.types import (
    Action,
    Binary,
    Channel,
    Demo,
    Evidence,
    FeedbackKind,
    Label,
    Message,
    Option,
    Pair,
    PairOutcome,
    Passage,
    Purpose,
    Ranking,
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
    RankingEvidence(order=("c", "a", "b"), observed=1),
    Binary(candidate="a", positive=False),
    Binary(candidate="a", positive=False, source="skip"),
    Scalar(candidate="a", value=0.1),
    Scalar(candidate="a", value=0.1, source="short"),
    Demo(candidate="a", text="besser – 更好", margin=0.5),
    Label(candidate="a", value="toxic"),
]


@pytest.fixture
def filled(tmp_path: Path, store_url: str) -> Iterator[JoinedStore]:
    filled = JoinedStore(tmp_path, store_url)
    yield filled
    filled.close()


def test_an_interaction_comes_back_as_it_was(filled: JoinedStore) -> None:
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


def test_a_frozen_data_set_holds_rows_interactions_offsets_and_splits(filled: JoinedStore) -> None:
    filled.join(make_interaction("i2"), make_interaction("i1"), make_interaction("unrated"))
    filled.join(
        make_feedback("f2", "i1", Thumbs("a", True), rater="ann"),
        make_feedback("f1", "i1", Thumbs("b", True), rater="", session_id="s"),
        make_feedback("f3", "i2", Thumbs("a", False), rater=""),
    )
    frozen = filled.store.freeze(CHANNEL, SALT, START)
    assert [(row.interaction_id, row.feedback_id) for row in frozen.rows] == [("i1", "f1"), ("i1", "f2"), ("i2", "f3")]
    assert [row.who for row in frozen.rows] == ["session:s", "ann", "nameless"]
    assert [row.rater_split for row in frozen.rows] == [rater_split(SALT, row.who) for row in frozen.rows]
    assert [row.group_split for row in frozen.rows] == [group_split(SALT, row.prompt_group) for row in frozen.rows]
    assert sorted(frozen.interactions) == ["i1", "i2"]
    assert frozen.interactions["i1"] == make_interaction("i1")
    (identity,) = {each.topic_id for each in frozen.offsets}
    assert frozen.offsets == tuple(
        OffsetRange(topic, 0, 0, 3, identity) for topic in (Topic.FEEDBACK, Topic.INTERACTIONS)
    )
    assert len(identity) == 36
    assert (frozen.as_of, frozen.counts) == (START, {"thumbs": 3})


def test_acts_that_name_nobody_share_one_name_and_are_no_raters(filled: JoinedStore) -> None:
    for index in range(30):
        asked = dataclasses.replace(make_interaction(f"i{index}"), end_user="eve" if index % 3 == 0 else "")
        act = make_feedback(f"f{index}", f"i{index}", Thumbs("a", index % 2 == 0), rater="")
        filled.join(asked, act)
    filled.join(make_feedback("g", "i0", Thumbs("b", True), rater="", session_id="s"))
    rows = filled.store.freeze(CHANNEL, SALT, START).rows
    # None replaces one on another interaction, and all of one name are in one split.
    assert len(rows) == 31
    assert {row.who for row in rows} == {"nameless", "nameless:eve", "session:s"}
    assert len({row.rater_split for row in rows if row.who == "nameless"}) == 1
    tallied = filled.store.tally(CHANNEL, SALT)
    assert (sum(each.acts for each in tallied), sum(each.raters for each in tallied)) == (31, 1)


def test_of_acts_that_name_nobody_on_one_interaction_the_newest_counts(filled: JoinedStore) -> None:
    older = make_feedback("f1", "i", Thumbs("a", True), rater="")
    newer = make_feedback("f2", "i", Thumbs("a", False), rater="", seconds=1)
    filled.join(make_interaction("i"), make_interaction("other"), older, newer)
    filled.join(make_feedback("f3", "other", Thumbs("a", True), rater=""))
    rows = filled.store.freeze(CHANNEL, SALT, START).rows
    assert [(row.interaction_id, row.feedback_id) for row in rows] == [("i", "f2"), ("other", "f3")]


def test_few_raters_splits_prompt_groups_alone(filled: JoinedStore) -> None:
    filled.join(*[make_interaction(f"i{index}") for index in range(60)])
    filled.join(*[make_feedback(f"f{index}", f"i{index}", Thumbs("a", True)) for index in range(60)])
    frozen = filled.store.freeze(CHANNEL, SALT, START, few_raters=True)
    assert all(row.rater_split is row.group_split for row in frozen.rows)
    assert {row.group_split for row in frozen.rows} == set(Split)


def test_the_digest_depends_on_what_was_said_and_not_on_salt_or_offsets(filled: JoinedStore, tmp_path: Path) -> None:
    act = make_feedback("f", "i", Thumbs("a", True))
    filled.join(make_interaction("i"), act)
    digest = filled.store.freeze(CHANNEL, SALT).digest
    assert filled.store.freeze(CHANNEL, b"another").digest == digest
    (tmp_path / "again").mkdir()
    again = JoinedStore(tmp_path / "again")
    again.join(make_interaction("unrated"), make_interaction("i"), act, act)
    assert again.store.freeze(CHANNEL, SALT).digest == digest
    again.join(make_feedback("g", "i", Thumbs("b", True)))
    assert again.store.freeze(CHANNEL, SALT).digest != digest
    again.close()


def test_prompts_are_the_newest_of_each_group_and_never_evaluate(filled: JoinedStore) -> None:
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


def test_evidence_of_another_policy_version_is_left_out_and_counted(filled: JoinedStore) -> None:
    old, new = make_interaction("old", group="a"), make_interaction("new", group="b")
    filled.join(dataclasses.replace(old, policy_version="1"), dataclasses.replace(new, policy_version="2"))
    filled.join(*[make_feedback(f"f-{each}", each, Thumbs("a", True)) for each in ("old", "new")])
    frozen = filled.store.freeze(CHANNEL, SALT, policy_version="2")
    assert ([row.interaction_id for row in frozen.rows], list(frozen.interactions)) == (["new"], ["new"])
    assert frozen.left_out == 1
    assert filled.store.freeze(CHANNEL, SALT, policy_version="").rows == ()
    everything = filled.store.freeze(CHANNEL, SALT)
    assert (len(everything.rows), everything.left_out) == (2, 0)
    assert frozen.digest != everything.digest
    assert [each.policy_version for each in filled.store.prompts(CHANNEL)] == ["1", "2"]


def test_a_prompts_options_come_in_the_requests_order_and_not_as_they_were_shown(filled: JoinedStore) -> None:
    asked = make_interaction("i1", candidates=3)
    shown = tuple(
        dataclasses.replace(each, option_id=f"o{place}", place=place)
        for each, place in zip(asked.candidates, (2, 0, 1), strict=True)
    )
    filled.join(dataclasses.replace(asked, action=Action.CHOICE, candidates=shown), make_interaction("i2"))
    first, second = filled.store.prompts(CHANNEL)
    assert first.options == (Option("o0", "text b"), Option("o1", "text c"), Option("o2", "text a"))
    assert second.options == ()


def test_what_a_data_set_holds_does_not_depend_on_the_order_of_arrival(tmp_path: Path) -> None:
    names = [f"i{index}" for index in range(6)]
    seen = []
    for number, order in enumerate((names, names[::-1], names[3:] + names[:3])):
        (tmp_path / str(number)).mkdir()
        filled = JoinedStore(tmp_path / str(number))
        for name in order:
            filled.join(
                make_interaction(name, group="same"),
                make_feedback(f"g{name}", name, Thumbs("b", False), rater="bob"),
                make_feedback(f"f{name}", name, Thumbs("a", True)),
            )
        frozen = filled.store.freeze(CHANNEL, SALT, START)
        prompts = [each.interaction_id for each in filled.store.prompts(CHANNEL)]
        seen.append((frozen.digest, frozen.rows, list(frozen.interactions.items()), prompts))
        filled.close()
    assert seen[0] == seen[1] == seen[2]
    assert list(dict(seen[0][2])) == names


def test_new_evidence_is_counted_as_a_data_set_would_be(filled: JoinedStore) -> None:
    filled.join(*[make_interaction(f"i{index}", candidates=3, group=f"g{index % 17}") for index in range(80)])
    for index in range(80):
        ranked = make_feedback(f"r{index}", f"i{index}", Ranking(("c", "a", "b")), rater=f"rater {index % 13}")
        thumb = make_feedback(f"f{index}", f"i{index}", Thumbs("a", True), rater=f"rater {index % 11}")
        accepted = START + dt.timedelta(seconds=index)
        filled.join(*[dataclasses.replace(act, accepted_at=accepted) for act in (ranked, thumb)])
    for few_raters in (False, True):
        rows = filled.store.freeze(CHANNEL, SALT, few_raters=few_raters).rows
        for since in (None, START + dt.timedelta(seconds=40)):
            new = [row for row in rows if since is None or row.accepted_at > since]
            trained_on = [row for row in new if row.rater_split is row.group_split is Split.TRAIN]
            count = filled.store.count_new(CHANNEL, SALT, since, few_raters=few_raters)
            assert count == len({(row.interaction_id, row.feedback_id) for row in trained_on}) > 0
            cells = {(row.kind, row.rater_split, row.group_split) for row in new}
            tally = filled.store.tally(CHANNEL, SALT, since, few_raters=few_raters)
            assert [(each.kind, each.rater_split, each.group_split) for each in tally] == sorted(cells)
            for each in tally:
                mine = [
                    row
                    for row in new
                    if (row.kind, row.rater_split, row.group_split) == (each.kind, each.rater_split, each.group_split)
                ]
                assert each.acts == len({(row.interaction_id, row.feedback_id) for row in mine})
                assert each.raters == len({row.who for row in mine})
    assert filled.store.count_new(OTHER, SALT) == 0


def test_acts_under_older_rules_are_not_counted_as_new(filled: JoinedStore) -> None:
    """A turn began on them, and then had too little."""
    for index in range(40):
        asked = dataclasses.replace(make_interaction(f"i{index}", group=f"g{index}"), policy_version=str(index % 3))
        filled.join(asked, make_feedback(f"f{index}", f"i{index}", Thumbs("a", True), rater=f"rater {index}"))
    counts_of = {}
    for version in (None, "0", "1", "none of these"):
        rows = filled.store.freeze(CHANNEL, SALT, policy_version=version).rows
        trained_on = sum(row.rater_split is row.group_split is Split.TRAIN for row in rows)
        counts_of[version] = filled.store.count_new(CHANNEL, SALT, policy_version=version)
        assert counts_of[version] == trained_on
        assert sum(each.acts for each in filled.store.tally(CHANNEL, SALT, policy_version=version)) == len(rows)
    assert counts_of[None] > counts_of["0"] > 0 == counts_of["none of these"]


def test_evidence_that_is_derived_anew_is_counted_anew(filled: JoinedStore) -> None:
    filled.join(make_interaction("i"))
    who = next(f"rater {n}" for n in range(100) if rater_split(SALT, f"rater {n}") is Split.TRAIN)
    other = next(f"rater {n}" for n in range(100) if rater_split(SALT, f"rater {n}") is Split.GATE)
    salt_of_group = make_interaction("i").prompt_group
    assert group_split(SALT, salt_of_group) is Split.TRAIN, "choose another id for the interaction"
    filled.join(make_feedback("f1", "i", Thumbs("a", True), rater=who))
    assert filled.store.count_new(CHANNEL, SALT) == 1
    filled.join(
        make_feedback("f2", "i", Thumbs("b", True), rater=who), make_feedback("f3", "i", Thumbs("b", True), rater=other)
    )
    assert filled.store.count_new(CHANNEL, SALT) == 2
    with filled.store.database.reading() as connection:
        decoded = connection.exec_driver_sql("SELECT count(*) FROM evidence WHERE rater_unit IS NULL").scalar_one()
    assert decoded == 0


def test_a_count_does_not_read_evidence_again(filled: JoinedStore, monkeypatch: pytest.MonkeyPatch) -> None:
    filled.join(make_interaction("i"), make_feedback("f", "i", Thumbs("a", True)))
    before = filled.store.count_new(CHANNEL, SALT)
    monkeypatch.setattr(counts, "evidence_from_bytes", lambda payload: pytest.fail("decoded again"))
    assert filled.store.count_new(CHANNEL, SALT) == before


def test_nothing_that_anybody_wrote_is_kept_of_an_evaluate_interaction(filled: JoinedStore) -> None:
    secrets = ("Ein Geheimnis", "und noch eins", "die Antwort darauf", "g-geheim", "wer-fragt", "sitzung-9")
    asked = make_interaction("i", purpose=Purpose.EVALUATE)
    candidate = dataclasses.replace(asked.candidates[0], text=secrets[2], displayed_text=secrets[2])
    asked = dataclasses.replace(
        asked,
        messages=(Message("user", secrets[0]),),
        passages=(Passage("p", secrets[1], "s"),),
        candidates=(candidate,),
        prompt_group=secrets[3],
        rater=secrets[4],
        end_user=secrets[4],
        session_id=secrets[5],
    )
    filled.join(asked, make_feedback("f", "i", Thumbs("a", True)))
    with filled.store.database.reading() as connection:
        (row,) = map(dict, connection.exec_driver_sql("SELECT * FROM interactions").mappings())
    # An erasure finds by them what is to be erased.
    assert {row.pop("end_user"), row.pop("rater")} == {secrets[4]}
    kept = b"\0".join(
        bytes(value) if not isinstance(value, str | int) else str(value).encode() for value in row.values()
    )
    assert [secret for secret in secrets if secret.encode() in kept] == []
    assert filled.store.interaction("i") is None
    assert filled.store.counts(CHANNEL).rejected == 1  # and feedback on it is refused


def test_channels_do_not_see_each_other(filled: JoinedStore) -> None:
    filled.join(make_interaction("i"), make_feedback("f", "i", Thumbs("a", True)))
    filled.join(make_interaction("j", channel=OTHER), make_feedback("f", "j", Thumbs("a", True), channel=OTHER))
    assert filled.store.channels() == [CHANNEL, OTHER]
    assert [row.interaction_id for row in filled.store.freeze(CHANNEL, SALT).rows] == ["i"]
    assert filled.store.counts(OTHER) == JoinCounts(interactions=1, acknowledged=1, joined=1)


def test_an_empty_store_answers(filled: JoinedStore) -> None:
    assert filled.store.positions() == {}
    assert filled.store.channels() == []
    assert filled.store.prompts(CHANNEL) == []
    assert filled.store.counts(CHANNEL) == JoinCounts()
    assert filled.store.freeze(CHANNEL, SALT).rows == ()


def test_positions_survive_the_process(filled: JoinedStore) -> None:
    filled.join(make_interaction("i"), make_feedback("f", "i", Thumbs("a", True)))
    again = EvidenceStore(filled.url)
    assert next_offsets(again.positions()) == {(Topic.INTERACTIONS, 0): 1, (Topic.FEEDBACK, 0): 1}
    again.close()


def test_a_reader_keeps_its_moment_while_the_join_writes(filled: JoinedStore) -> None:
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


@pytest.mark.apart
def test_evidence_is_imported_without_torch() -> None:
    code = "import plaudit.evidence.join, plaudit.evidence.store, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
