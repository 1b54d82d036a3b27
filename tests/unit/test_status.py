"""`plaudit status`: from real stores, in words, as JSON and again and again; and which processes run."""

from __future__ import annotations

import datetime as dt
import functools
import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest
import sqlalchemy as sa
import structlog
from plaudit import cli
from plaudit.errors import LogUnavailable
from plaudit.eventlog import LOG_FILE, Topic, open_log
from plaudit.eventlog.deleting import EmbeddedRecords
from plaudit.eventlog.outbox import OutboxLog
from plaudit.eventlog.sqlite import SqliteEventLog
from plaudit.evidence.join import Join
from plaudit.evidence.store import EvidenceStore
from plaudit.evidence.tables import to_micros
from plaudit.learner import report
from plaudit.learner.outcome import Result, TurnOutcome
from plaudit.learner.report import as_text, deployment
from plaudit.learner.status import Status
from plaudit.metrics import Metrics
from plaudit.privacy import erasure
from plaudit.privacy.sweep import finish
from plaudit.privacy.tables import ERASURE
from plaudit.release.decision import Check, Decision
from plaudit.release.manifest import Manifest
from plaudit.release.reading import refusals
from plaudit.release.registry import Promote, Registry, RollBack
from plaudit.serving.router import Router
from plaudit.settings import OutboxSettings, load_settings
from plaudit.store import processes as module
from plaudit.store.outcomes import TurnOutcomes
from plaudit.store.processes import Beat, current, processes
from plaudit.testing.evidence import CHANNEL, PlainDomain, append, join_all, make_feedback, make_interaction
from plaudit.types import Channel, Thumbs
from prometheus_client import CollectorRegistry

PLUGINS = {CHANNEL.domain: PlainDomain()}


@pytest.fixture(autouse=True)
def slow_machine(monkeypatch):
    """A machine that other programs keep busy: seconds pass between two lines of a test."""
    monkeypatch.setattr(module, "BEAT_SECONDS", 3600.0)
    monkeypatch.setattr(module, "LOST_SECONDS", 3600.0)


@pytest.fixture
def settings(tmp_path):
    return load_settings(overrides=[f"data_dir={tmp_path}"], environ={})


@pytest.fixture
def registry(settings):
    with Registry(settings.store_url, settings.registry_root) as opened:
        opened.ensure_channel(CHANNEL, "ab" * 32)
        yield opened


def put(settings, count, *, joined):
    """Interactions with a thumb each on the embedded log, some of them joined."""
    log, store = open_log(settings), EvidenceStore(settings.store_url)
    now = dt.datetime.now(dt.UTC)
    worker = Join(log, store, PLUGINS, settings.join)
    if not count:
        join_all(worker)
    for number in range(count):
        asked = make_interaction(f"i{number}", completed_at=now)
        act = make_feedback(f"f{number}", f"i{number}", Thumbs("a", number % 2 == 0), rater=f"rater {number % 10}")
        append(log, asked, act)
        if number == joined - 1:
            join_all(worker)
    worker.close()
    store.close()
    log.close()


def test_status_has_traffic_feedback_what_is_unread_and_what_is_short(settings, registry):
    put(settings, 12, joined=8)
    found = deployment(settings, PLUGINS)
    (channel,) = found.channels
    assert (channel.requests, channel.requests_last_hour, dict(channel.feedback)) == (8, 8, {"thumbs": 8})
    assert found.unread == 8
    text = as_text(found)
    assert "version 0, the base, since" in text
    assert "8 requests since then" in text
    assert "8 thumbs" in text
    assert " of 200 new training events; " in text
    assert "to do     about " in text
    assert "join   does not run" in text
    log = open_log(settings)
    log.append(Topic.FEEDBACK, "garbage", b"\xff")
    log.close()
    put(settings, 0, joined=0)
    assert dict(deployment(settings, PLUGINS).rejected) == {"UNDECODABLE": 1}
    assert "rejected by the join: 1 UNDECODABLE (plaudit rejected list)" in as_text(deployment(settings, PLUGINS))
    json.dumps(found.as_dict(), default=str)


def test_records_that_were_gone_before_the_first_was_read_are_not_unread(settings, registry):
    put(settings, 3, joined=0)
    assert deployment(settings, PLUGINS).unread == 6
    for topic in (Topic.INTERACTIONS, Topic.FEEDBACK):
        EmbeddedRecords(settings.data_dir / LOG_FILE).delete(topic, range(3))
    assert deployment(settings, PLUGINS).unread == 0


def test_a_refusal_is_shown_with_check_value_bound_and_next_step(settings, registry, tmp_path):
    (tmp_path / "empty").mkdir()
    put(settings, 2, joined=2)
    good = registry.register(Manifest(channel=CHANNEL, parent=0, base_digest="ab" * 32), tmp_path / "empty")
    win = Check("win_base", True, 0.887, 0.5, 0.861, 0.912)
    registry.decide(CHANNEL, good.version, Decision(True, (win,), dt.datetime.now(dt.UTC)))
    registry.change(CHANNEL, Promote(1), expected_generation=0, actor="learner", reason="the gate accepted it")
    failed = refusals([Check("kl_live", False, 15.9, 12.0, 15.1, 16.8, "nats a sequence, mean at most 12")])
    result = Result(outcome=TurnOutcome.REJECTED, reason=str(failed[0]), version=2, refusals=failed)
    outcomes = TurnOutcomes(registry.database)
    outcomes.remember(CHANNEL, "e1", "s", "promoted", "the gate accepted it", facts={"version": 1})
    outcomes.remember(CHANNEL, "e2", "s", str(result.outcome), result.reason, facts=result.facts)

    found = deployment(settings, PLUGINS)
    newest, before = found.channels[0].turns
    assert (newest.outcome, newest.version, before.version) == ("rejected", 2, 1)
    (check,) = found.as_dict()["channels"][0]["turns"][0]["refusals"]
    assert (check["check"], check["value"], check["bound"]) == ("kl_live", 15.9, 12.0)
    assert "policy.kl_target" in check["next_step"]
    text = as_text(found)
    assert "gain      wins against the base: 0.887 [0.861, 0.912]" in text
    assert "kl_live: 15.9 [15.1, 16.8], bound 12 (nats a sequence, mean at most 12)" in text
    assert "next step: the policy moved too far: lower policy.kl_target" in text
    assert "(by learner: the gate accepted it)" in text

    registry.change(CHANNEL, RollBack(), expected_generation=None, actor="operator:ada", reason="odd answers")
    assert "(by operator:ada: odd answers)" in as_text(deployment(settings, PLUGINS))


def test_a_replica_says_which_of_its_vllm_servers_take_requests(settings, registry):
    found = {
        "http://a:8000": {"up": True, "max_loras": None},
        "http://b:8000": {"up": False, "max_loras": None},
        "http://c:8000": {"up": True, "max_loras": 7},
    }
    router = Router(
        registry,
        None,
        Metrics(CollectorRegistry()),
        base_digest="ab" * 32,
        domains=(),
        poll_seconds=0.05,
        ready_at_start=0,
        beat=Beat(registry.database, "serve"),
        engine_servers=lambda: found,
    )
    router.look()
    said = "; 2 of 3 vLLM servers take requests, NOT http://b:8000; --max-loras unknown of http://a:8000 (docs/vllm.md)"
    assert said in as_text(deployment(settings, PLUGINS))


def test_a_replica_says_what_waits_in_its_outbox_and_nothing_once_that_is_empty(settings, registry, tmp_path):
    away = True

    def connect():
        if away:
            raise LogUnavailable("no broker answers")
        return SqliteEventLog(tmp_path / "brokers.sqlite")

    log = OutboxLog(tmp_path, connect, OutboxSettings())
    router = Router(
        registry,
        None,
        Metrics(CollectorRegistry()),
        base_digest="ab" * 32,
        domains=(),
        poll_seconds=0.05,
        ready_at_start=0,
        beat=Beat(registry.database, "serve"),
        outbox=log.state,
    )
    log.append_many(Topic.FEEDBACK, [("k", b"1"), ("k", b"2")])
    router.look()
    found = deployment(settings, PLUGINS)
    assert re.search(r"serve  runs, .*; 2 records wait in its outbox for Kafka, the oldest for \d+ s", as_text(found))
    (serve,) = found.as_dict()["processes"]
    assert (serve["facts"]["outbox"]["records"], serve["facts"]["outbox"]["size"] > 0) == (2, True)
    away = False
    give_up = time.monotonic() + 300
    while log.state().records and time.monotonic() < give_up:
        time.sleep(0.05)
    router._beat._next = 0.0
    router.look()
    assert "outbox" not in as_text(deployment(settings, PLUGINS))
    log.close()


def test_processes_are_seen_until_they_end_and_missed_if_they_fall_silent(settings, registry, monkeypatch):
    join, learn = Beat(registry.database, "join"), Beat(registry.database, "learn")
    join.beat({"unread": 3})
    join.beat({"unread": 9})  # too soon to be written
    status = Status(settings.data_dir / "learner.json", Metrics(CollectorRegistry()), learn)
    status.turn(CHANNEL, 1)
    status.step(2, "reward")
    found = processes(registry.database)
    assert [(each.kind, each.lost) for each in found] == [("join", False), ("learn", False)]
    assert found[0].facts["unread"] == 3
    (channel,) = deployment(settings, PLUGINS).channels
    assert channel.step == "step 2 reward"
    assert "a turn runs: step 2 reward" in as_text(deployment(settings, PLUGINS))
    status.idle(CHANNEL, Result(outcome=TurnOutcome.WAITED, reason="waits: for a contrast"))
    assert deployment(settings, PLUGINS).channels[0].said == "waits: for a contrast"

    monkeypatch.setattr(module, "LOST_SECONDS", -1.0)
    assert "join   NOT SEEN for " in as_text(deployment(settings, PLUGINS))
    join.end()
    status.close()
    assert current(processes(registry.database), "join") == []


def test_a_process_at_a_long_step_is_seen_all_the_same(settings, registry, monkeypatch):
    monkeypatch.setattr(module, "BEAT_SECONDS", 0.05)
    beat, rows = Beat(registry.database, "learn"), functools.partial(processes, registry.database)
    beat.beat({"step": 2}, now=True)
    assert rows()[0].facts["step"] == 2
    give_up = time.monotonic() + 300
    while rows()[0].quiet < 0.2:  # written again, although nobody calls `beat` meanwhile
        assert time.monotonic() < give_up
        time.sleep(0.02)
    assert "busy with one thing" not in as_text(deployment(settings, PLUGINS))
    monkeypatch.setattr(report, "_LONG_SECONDS", 0.1)
    assert "; busy with one thing, or hanging, for 0 min" in as_text(deployment(settings, PLUGINS))
    beat.end()
    time.sleep(0.2)
    assert rows() == [], "a beat that ended is not written again"


def test_people_who_are_being_erased_are_counted_until_nothing_of_them_is_left(settings, registry):
    def report():
        found = deployment(settings, PLUGINS)
        return found.as_dict()["erasures"], as_text(found)

    assert report()[0] == {"deleting": 0, "retiring": 0, "overdue": 0, "oldest": ""}
    assert "erasures" not in report()[1]
    asked = erasure.request(registry.database, "", "acme", "eve" * 10, "ops")
    counts, text = report()
    assert (counts["deleting"], counts["overdue"]) == (1, 0)
    assert "erasures: 1 whose data are being deleted; the oldest asked " in text
    with registry.database.writing() as connection:  # nobody has worked on it for longer than is promised
        ago = to_micros(asked.requested_at - dt.timedelta(days=settings.privacy.retrain_days, hours=1))
        connection.execute(sa.update(ERASURE).values(requested_at=ago))
    assert report()[0]["overdue"] == 1
    assert "1 OVERDUE (does a join run?)" in report()[1]
    metrics = Metrics(CollectorRegistry())
    finish(settings, registry, None, metrics)
    gauges = [metrics.erasures_waiting, metrics.erasures_overdue]
    assert [gauge._value.get() for gauge in gauges] == [1, 1]
    assert report()[0] == {"deleting": 0, "retiring": 0, "overdue": 0, "oldest": ""}


def test_a_pin_does_not_change_since_when_a_version_is_live(settings, registry):
    from plaudit.release.registry import Pin

    before = deployment(settings, PLUGINS).channels[0].live_since
    time.sleep(1.1)
    registry.change(CHANNEL, Pin(True), expected_generation=0, actor="operator:ada", reason="an audit")
    after = deployment(settings, PLUGINS).channels[0]
    assert (after.live_since, after.pinned, after.live_by) == (before, True, "registry: the channel's first request")


def test_one_channel_may_be_asked_for_and_an_unknown_one_is_named(settings, registry, monkeypatch, capsys):
    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["plaudit", "status", *arguments, "--data-dir", str(settings.data_dir)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return int(ended.value.code or 0), *capsys.readouterr()

    assert deployment(settings, PLUGINS, Channel("plain", "nobody")).channels == ()
    code, out, _ = run(str(CHANNEL))
    assert code == 0
    assert "the domain plain is not installed here" in out
    assert json.loads(run("--json")[1])["channels"][0]["channel"] == str(CHANNEL)
    code, out, err = run("plain/nobody")
    assert (code, "nobody has asked" in err) == (1, True)
    assert not out, "it knows nothing of the others"
    assert run("nonsense")[0] == 2
    structlog.reset_defaults()


def test_a_folder_that_holds_nothing_is_said_and_stays_empty(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["plaudit", "status", "--data-dir", str(tmp_path / "typo")])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert (ended.value.code, "nothing has run in this data directory" in capsys.readouterr().err) == (1, True)
    assert not (tmp_path / "typo").exists()
    structlog.reset_defaults()


@pytest.mark.apart
def test_watch_looks_again_until_it_is_ended(settings, registry):
    code = "import sys; from plaudit.cli import main; sys.argv = ['plaudit', *sys.argv[1:]]; main()"
    words = ["status", "--watch", "--json", "--every", "0.2", "--data-dir", str(settings.data_dir)]
    process = subprocess.Popen([sys.executable, "-c", code, *words], stdout=subprocess.PIPE, env=os.environ)
    try:
        lines = [json.loads(process.stdout.readline()) for _ in range(2)]
        process.send_signal(signal.SIGINT)
        assert process.wait(300) == 0
    finally:
        process.kill()
        process.stdout.close()
    assert [each["channels"][0]["live"] for each in lines] == [0, 0]
