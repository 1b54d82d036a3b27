"""What became of feedback, by command: `evidence show`, `rejected list`, `release list` and `release history`."""

from __future__ import annotations

import dataclasses
import datetime as dt
import json
import sys
from types import SimpleNamespace

import pytest
import structlog
from plaudit import cli
from plaudit.eventlog import Topic, open_log
from plaudit.eventlog.codec import Rejected, encode_rejected
from plaudit.evidence import rejected
from plaudit.evidence.join import Join
from plaudit.evidence.rejected import read_rejected
from plaudit.evidence.store import EvidenceStore
from plaudit.release.decision import Check, Decision
from plaudit.release.manifest import Manifest
from plaudit.release.registry import Promote, Registry, RollBack
from plaudit.settings import load_settings
from plaudit.testing.evidence import CHANNEL, START, PlainDomain, append, join_all, make_feedback, make_interaction
from plaudit.types import Choice, Comment, Correction, Thumbs


@pytest.fixture
def settings(tmp_path):
    made = load_settings(overrides=[f"data_dir={tmp_path}"], environ={})
    yield made
    structlog.reset_defaults()


@pytest.fixture
def run(monkeypatch, capsys, settings):
    def command(*arguments):
        where = ["--data-dir", str(settings.data_dir)] if not {"--version", "--help"} & {*arguments} else []
        monkeypatch.setattr(sys, "argv", ["plaudit", *arguments, *where])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return int(ended.value.code or 0), *capsys.readouterr()

    return command


@pytest.fixture
def registry(settings):
    with Registry(settings.store_url, settings.registry_root) as opened:
        opened.ensure_channel(CHANNEL, "ab" * 32)
        yield opened


@pytest.fixture
def joined(settings):
    """Puts interactions and acts on the embedded log and joins them."""

    def join(interactions=(), acts=(), garbage=()):
        log, store = open_log(settings), EvidenceStore(settings.store_url)
        append(log, *interactions, *acts)
        for value in garbage:
            log.append(Topic.FEEDBACK, "garbage", value)
        worker = Join(log, store, {CHANNEL.domain: PlainDomain()}, settings.join)
        join_all(worker)
        worker.close()
        store.close()
        log.close()

    return join


def test_reasons_are_counted_by_release_and_shown_with_their_act(run, registry, joined):
    def because(act, *reasons):
        return dataclasses.replace(act, reasons=reasons)

    newer = make_interaction("i2")
    newer = dataclasses.replace(
        newer, candidates=tuple(dataclasses.replace(each, release_version=7) for each in newer.candidates)
    )
    acts = [
        because(make_feedback("f1", "i1", Thumbs("a", False), rater="ann"), "unclear"),  # replaced by the next
        because(make_feedback("f2", "i1", Thumbs("a", False), rater="ann", seconds=60), "unclear", "too_long"),
        because(make_feedback("f3", "i1", Thumbs("b", False), rater="ben"), "too_long"),
        make_feedback("f4", "i1", Thumbs("a", True), rater="cem"),
        because(make_feedback("f5", "i2", Thumbs("a", False), rater="ann"), "unclear"),
    ]
    joined([make_interaction("i1"), newer], acts)
    first = make_interaction("i1").candidates[0].release_version
    code, out, _ = run("evidence", "reasons", str(CHANNEL), "--json")
    assert (code, json.loads(out)) == (
        0,
        [
            {"release": first, "said": "thumb down", "acts": 2, "reasons": {"too_long": 2, "unclear": 1}},
            {"release": first, "said": "thumb up", "acts": 1, "reasons": {}},
            {"release": 7, "said": "thumb down", "acts": 1, "reasons": {"unclear": 1}},
        ],
    )
    assert "thumb down: 2; too_long 2 (100%), unclear 1 (50%)" in run("evidence", "reasons", str(CHANNEL))[1]
    assert "nothing was said" in run("evidence", "reasons", f"{CHANNEL.domain}/nobody")[1]
    shown = json.loads(run("evidence", "show", "i2", "--json")[1])
    assert [act["reasons"] for act in shown["feedback"]] == [["unclear"]]


def test_what_feedback_became_is_shown_and_its_text_only_if_asked(run, registry, joined):
    acts = [
        make_feedback("f1", "i1", Thumbs("a", True), rater="ann"),
        make_feedback("f2", "i1", Thumbs("a", False), rater="ann", seconds=60),
        make_feedback("f3", "i1", Choice("b", "a"), rater="ben"),
        make_feedback("f4", "i1", Comment("a", "my secret"), rater="ben"),
        make_feedback("f5", "i1", Correction("a", "a better text"), rater="cem"),
    ]
    joined([make_interaction("i1")], acts)
    code, out, _ = run("evidence", "show", "i1", "--json")
    shown = json.loads(out)
    assert (code, shown["channel"], [each["place"] for each in shown["candidates"]]) == (0, str(CHANNEL), [0, 1])
    by_id = {act["feedback_id"]: act for act in shown["feedback"]}
    assert {name: act["status"] for name, act in by_id.items()} == {
        **{"f1": "superseded", "f2": "joined", "f3": "joined", "f4": "joined", "f5": "joined"}
    }
    assert by_id["f1"]["evidence"] == by_id["f4"]["evidence"] == []
    (pair,) = by_id["f3"]["evidence"]
    assert (pair["piece"], pair["first"], pair["second"], by_id["f3"]["chosen_id"]) == ("Pair", 1, 0, 1)
    assert pair["use"] in {
        *("trains the reward model", "counted, not used: a train rater on a gate prompt"),
        *("fits the gate's reward model", "judges the reward model"),
    }
    for text in (out, run("evidence", "show", "i1")[1]):
        assert "secret" not in text
        assert "better text" not in text
        assert "group of i1" not in text
    plain = run("evidence", "show", "i1", "--text")[1]
    assert "my secret" in plain
    assert "user: group of i1" in plain
    assert "-> Pair" in plain
    assert "no evidence: a comment" in plain


def test_feedback_that_waits_and_an_unknown_interaction_are_told_apart(run, registry, joined):
    joined(acts=[make_feedback("f1", "i1", Thumbs("a", True))])
    code, out, _ = run("evidence", "show", "i1")
    assert (code, "has not arrived" in out, "waiting" in out) == (0, True, True)
    code, _, err = run("evidence", "show", "nobody's")
    assert code == 1
    assert "plaudit status" in err


def test_rejections_are_listed_with_their_reason(run, settings, joined):
    joined([make_interaction("i1")])
    assert run("rejected", "list")[1] == "nothing was rejected\n"
    joined([], [make_feedback(f"f{n}", "i1", Thumbs("z", True)) for n in range(3)], [b"\xff"])
    code, out, _ = run("rejected", "list", "--last", "2", "--json")
    listed = json.loads(out)
    assert (code, listed["counts"]) == (0, {"UNDECODABLE": 1, "UNKNOWN_CANDIDATE": 3})
    assert len(listed["newest"]) == 2
    _, out, _ = run("rejected", "list", "--reason", "UNDECODABLE")
    lines = out.splitlines()
    assert (len(lines), "UNDECODABLE" in lines[0], "plaudit.feedback:0:3" in lines[0]) == (2, True, True)
    assert run("rejected", "list", "--reason", "NONE")[1] == "nothing was rejected as NONE\n"


def test_a_rejected_record_is_shown_and_sent_again_as_it_was(run, settings, joined, tmp_path):
    joined([make_interaction("i1")], [], [b"\xff"])
    code, out, _ = run("rejected", "show", "plaudit.feedback:0:0", "--out", str(tmp_path / "bytes"))
    assert (code, "UNDECODABLE" in out) == (0, True)
    assert (tmp_path / "bytes").read_bytes() == b"\xff"
    assert run("rejected", "replay", "plaudit.feedback:0:0")[1] == "1 records were sent again\n"
    assert run("rejected", "replay", "--reason", "UNDECODABLE")[1] == "1 records were sent again\n"
    joined()
    # What was sent again was rejected again, under other names: it is the same record, and goes once.
    assert run("rejected", "replay", "--reason", "UNDECODABLE")[1] == "1 records were sent again\n"
    log = open_log(settings)
    assert log.find(Topic.FEEDBACK, "garbage", 10) == [b"\xff"] * 4
    log.close()
    code, _, err = run("rejected", "show", "plaudit.feedback:0:9")
    assert (code, "plaudit rejected list" in err) == (1, True)


def test_a_slow_log_shortens_no_list_of_rejections(settings, monkeypatch):
    log, clock = open_log(settings), [0.0]
    for offset in range(5):
        log.append(Topic.REJECTED, f"{offset}", encode_rejected(conflict(offset), producer="test"))

    class Slow:
        """Each record takes two polls, and each poll ten seconds."""

        def __init__(self, inner):
            self._inner, self._polls = inner, 0

        def poll(self, timeout_seconds, max_records):
            clock[0] += 10
            self._polls += 1
            return self._inner.poll(0, 1) if self._polls % 2 else []

        def __getattr__(self, name):
            return getattr(self._inner, name)

    monkeypatch.setattr(rejected, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    slow = SimpleNamespace(consumer=lambda *asked: Slow(log.consumer(*asked)))
    assert read_rejected(slow, 9).counts == {"ID_CONFLICT": 5}
    log.close()


def conflict(offset):
    return Rejected(
        **{"reason": "ID_CONFLICT", "message": "why", "topic": "plaudit.feedback", "partition": 0},
        **{"offset": offset, "key": b"k", "value": b"v", "rejected_at": START},
    )


def test_rejections_of_a_kafka_log_are_read_too(kafka_bootstrap, kafka_leftovers):
    from plaudit.eventlog.kafka import KafkaEventLog
    from plaudit.settings import KafkaSettings

    log = KafkaEventLog(KafkaSettings(bootstrap=kafka_bootstrap, topic_prefix=f"list-{dt.datetime.now().timestamp()}-"))
    try:
        assert read_rejected(log, 5).newest == ()
        for offset in range(7):
            log.append(Topic.REJECTED, f"{offset}", encode_rejected(conflict(offset), producer="test"))
        found = read_rejected(log, 5)
        assert (found.counts, len(found.newest)) == ({"ID_CONFLICT": 7}, 5)
    finally:
        log.close()


def test_releases_are_listed_with_their_gain_and_why_they_were_refused(run, registry, tmp_path):
    (tmp_path / "empty").mkdir()
    for number, accepted in enumerate((True, False)):
        manifest = Manifest(channel=CHANNEL, parent=0, base_digest="ab" * 32, temperature=1.0 + number)
        row = registry.register(manifest, tmp_path / "empty")
        checks = (
            Check("win_base", True, 0.887, 0.5, 0.861, 0.912),
            Check("kl_base", accepted, 19.25, 16.0, note="nats a sequence, mean at most 16"),
        )
        registry.decide(CHANNEL, row.version, Decision(accepted, checks, START))
    registry.change(CHANNEL, Promote(1), expected_generation=0, actor="learner", reason="the gate accepted it")
    registry.change(CHANNEL, RollBack(), expected_generation=None, actor="operator:ada", reason="odd answers")

    first, base, one, two = run("release", "list", str(CHANNEL))[1].splitlines()
    assert "serves version 0" in first
    assert base.startswith("*    0")
    assert one.endswith("wins against the base: 0.887 [0.861, 0.912]")
    assert "refused: kl_base 19.2, bound 16 (nats a sequence, mean at most 16): the policy moved too far" in two

    lines = run("release", "history", str(CHANNEL))[1].splitlines()
    assert [line.split()[0] for line in lines] == ["0", "1", "2"]
    assert "promote 1" in lines[1]
    assert lines[1].endswith("-> version 1 live  by learner: the gate accepted it")
    assert lines[2].endswith("-> version 0 live  by operator:ada: odd answers")
    assert json.loads(run("release", "history", str(CHANNEL), "--json")[1])[2]["actor"] == "operator:ada"
    assert run("release", "history", "other/one")[0] == 1


def test_the_version_is_printed_and_no_flag_looks_as_if_it_took_a_value(run):
    assert run("--version")[1].startswith("plaudit 0")
    for words in ((), ("learn",), ("release", "list"), ("doctor",)):
        assert "<bool>" not in run(*words, "--help")[1]
