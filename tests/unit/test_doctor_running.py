"""The doctor on a deployment that runs: its own ports are fine, and what stopped, lags or fills up is found."""

from __future__ import annotations

import socket

import pytest
import sqlalchemy as sa
from plaudit.doctor import diagnose
from plaudit.doctor import running as doctor_running
from plaudit.eventlog import Topic, open_log
from plaudit.evidence.tables import OffsetRow
from plaudit.release.registry import Registry
from plaudit.settings import load_settings
from plaudit.store import processes
from plaudit.store.outcomes import TurnOutcomes
from plaudit.store.processes import Beat
from plaudit.types import Channel

CHANNEL = Channel("echo", "default")


@pytest.fixture(autouse=True)
def slow_machine(monkeypatch):
    """A machine that other programs keep busy: seconds pass between two lines of a test."""
    monkeypatch.setattr(processes, "LOST_SECONDS", 3600.0)


@pytest.fixture
def make(tmp_path):
    def settings(*overrides):
        ports = [f"{process}.metrics_port=0" for process in ("serve", "join", "learn")]
        return load_settings(
            overrides=[f"data_dir={tmp_path}", "serve.port=0", *ports, 'plugins.allow=["echo"]', *overrides], environ={}
        )

    return settings


@pytest.fixture
def database(make):
    settings = make()
    with Registry(settings.store_url, settings.registry_root) as registry:
        registry.ensure_channel(CHANNEL, "ab" * 32)
        yield registry.database


def by_check(settings):
    return {finding.check: finding for finding in diagnose(settings)}


def beat(database, kind, **facts):
    made = Beat(database, kind)
    made.beat(facts)
    return made


def test_a_deployment_that_never_ran_has_nothing_to_be_missed(make):
    assert not {"serve", "join", "learn", "learning", "replica"} & {*by_check(make())}


def test_a_port_that_its_own_server_holds_is_fine_and_another_program_s_is_not(make, database):
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        settings = make(f"serve.port={holder.getsockname()[1]}")
        assert by_check(settings)["ports"].status == "bad"
        beat(database, "join")
        assert by_check(settings)["ports"].status == "bad", "a join does not serve"
        beat(database, "serve", serves={})
        found = by_check(settings)
        assert (found["ports"].status, "held by this deployment: serve.port" in found["ports"].message) == (
            "good",
            True,
        )
        assert found["serve"].status == "good"


def test_a_join_that_stopped_is_found_with_what_waits_for_it(make, database, monkeypatch):
    settings = make()
    log = open_log(settings)
    log.append(Topic.FEEDBACK, "i", b"unread")
    log.close()
    beat(database, "serve", serves={})
    found = by_check(settings)["join"]
    assert (found.status, "1 records wait" in found.message, "plaudit join" in found.remedy) == ("bad", True, True)
    beat(database, "join", unread=1)
    assert by_check(settings)["join"].status == "good"
    monkeypatch.setattr(processes, "LOST_SECONDS", -1.0)
    assert "was not seen for" in by_check(settings)["join"].message


def test_records_that_retention_took_unread_are_told(make, database):
    assert "retention" not in by_check(make())
    with database.writing() as connection:
        row = {"topic": "plaudit.feedback", "partition": 3, "first": 0, "next": 9, "expired": 4}
        connection.execute(sa.insert(OffsetRow).values(row))
    found = by_check(make())["retention"]
    assert (found.status, "deleted 4 records" in found.message) == ("note", True)


def test_a_learner_that_waits_is_a_note_with_what_to_do_and_a_failed_turn_is_bad(make, database):
    beat(database, "learn", said={})
    found = by_check(make())["learning"]
    assert (found.status, "0 of 200 new training events" in found.message) == ("note", True)
    assert found.remedy.startswith("about 450 more pieces of feedback")
    TurnOutcomes(database).remember(CHANNEL, "", "", "failed", "the adapter is damaged")
    found = by_check(make())["learning"]
    assert (found.status, "the adapter is damaged" in found.message) == ("bad", True)


def test_a_replica_that_is_behind_is_found(make, database):
    beat(database, "serve", serves={str(CHANNEL): {"version": 0, "generation": 0, "behind": True}})
    found = by_check(make())["replica"]
    assert (found.status, "rollback echo/default" in found.remedy) == ("bad", True)


def test_a_replica_that_has_just_not_heard_of_a_change_is_none_behind(make, database, monkeypatch):
    beat(database, "serve", serves={str(CHANNEL): {"version": 7, "generation": 9, "behind": False}})
    assert "replica" not in by_check(make())
    monkeypatch.setattr(doctor_running, "_HEARD_SECONDS", -1.0)
    assert by_check(make())["replica"].status == "bad"


def test_a_disk_that_is_nearly_full_is_found(small_disk):
    settings = load_settings(overrides=[f"data_dir={small_disk / 'data'}", "serve.port=0"], environ={})
    found = by_check(settings)["disk"]
    assert (found.status, "GB free" in found.message, "stops the log" in found.remedy) == ("bad", True, True)
