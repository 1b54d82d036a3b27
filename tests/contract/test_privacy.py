"""What the store keeps and forgets of people, on every database."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime as dt
import json
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog
from plaudit.cli import app
from plaudit.doctor import diagnose
from plaudit.eventlog import Topic
from plaudit.eventlog.codec import decode, encode_interaction
from plaudit.evidence.store import JoinCounts
from plaudit.evidence.tables import to_micros
from plaudit.evidence.trace import trace
from plaudit.metrics import Metrics
from plaudit.privacy.files import scrub
from plaudit.privacy.forgotten import Forgotten
from plaudit.privacy.retention import Retention
from plaudit.privacy.sweep import LEASE, Sweep
from plaudit.release.registry import PROBE_ANSWERS, Registry
from plaudit.settings import (
    ChannelPrivacySettings,
    ChannelSettings,
    KafkaSettings,
    LogSettings,
    Settings,
    StoreSettings,
)
from plaudit.store.kept import folder_of
from plaudit.store.leases import Leases
from plaudit.testing.evidence import (
    CHANNEL,
    START,
    JoinedStore,
    join_all,
    make_feedback,
    make_interaction,
)
from plaudit.types import Channel, Comment, Consent, Correction, Interaction, Thumbs, without_text
from prometheus_client import CollectorRegistry
from pydantic import SecretStr
from typer.testing import CliRunner

SALT = bytes(range(32))


@pytest.fixture
def world(tmp_path: Path, store_url: str) -> Iterator[JoinedStore]:
    world = JoinedStore(tmp_path, store_url)
    yield world
    world.close()


def agreed(interaction_id: str, *, store: bool = True, train: bool = True, group: str = "") -> Interaction:
    return dataclasses.replace(
        make_interaction(interaction_id, group=group), consent=Consent(store=store, train=train), end_user="eve"
    )


def test_nothing_is_learnt_from_what_nobody_agreed_to_whichever_comes_first(world: JoinedStore) -> None:
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


# What these tests make today, and what is dated START, is old by then, whatever the date is today.
NOW = max(START + dt.timedelta(days=40), dt.datetime.now(dt.UTC) + dt.timedelta(days=31))
SECRETS = (b"a very private question", b"a correction by ann", b"a comment that waits", b"never to be decoded")


def kept_for(folder: Path, url: str, **days: float) -> Settings:
    """Settings under which channels of these tenants keep what they have for so many days."""
    channels = {
        f"plain/{tenant}": ChannelSettings(privacy=ChannelPrivacySettings(retention_days=each))
        for tenant, each in days.items()
    }
    return Settings(data_dir=folder, store=StoreSettings(url=SecretStr(url)), channels=channels)


def on_disk(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())


def dated(folder: Path, moment: dt.datetime, key: str) -> None:
    """Lets the log have taken the records of a key at that moment."""
    with contextlib.closing(sqlite3.connect(folder / "log.sqlite")) as file, file:
        file.execute("UPDATE records SET ts = ? WHERE key = ?", (to_micros(moment), key.encode()))


def test_retention_deletes_what_is_old_from_log_store_and_registry_and_their_bytes(
    world: JoinedStore, tmp_path: Path
) -> None:
    other = Channel("plain", "other")
    world.join(
        make_interaction("old", group="a very private question"),
        make_feedback("f1", "old", Correction("a", "a correction by ann")),
        make_feedback("f2", "never", Comment("", "a comment that waits")),
        make_interaction("others", group="of another tenant", channel=other),
        make_interaction("young", completed_at=NOW),
        make_feedback("f3", "young", Thumbs("a", True)),
    )
    world.log.append(Topic.FEEDBACK, "bad", b"never to be decoded")
    join_all(world.worker)
    for key in ("old", "never", "others", "bad"):
        dated(tmp_path, START, key)
    dated(tmp_path, NOW, "young")
    settings = kept_for(tmp_path, world.url, acme=30)
    with Registry(world.url, str(tmp_path / "registry")) as registry:
        registry.ensure_channel(CHANNEL, "00" * 32)
        answers = registry._artifacts
        answers.keep_beside(CHANNEL, 0, registry.release(CHANNEL, 0).digest, PROBE_ANSWERS, "a probe's answer")
        later = NOW + dt.timedelta(seconds=1)
        planned = Retention(settings, registry, dry_run=True, now=lambda: later).run()
        few = {"interactions": 1, "feedback": 2, "evidence": 1, "rejections": 1, "probe_answers": 1}
        assert planned == Counter(few | {"log_records": 5})
        assert all(secret in on_disk(tmp_path) for secret in SECRETS[3:])
        assert Retention(settings, registry, now=lambda: later).run() == planned
        assert Retention(settings, registry, now=lambda: later).run() == Counter()
        assert registry.kept_beside(CHANNEL, 0, PROBE_ANSWERS) is None
        assert scrub(settings, registry.database)
    content = on_disk(tmp_path)
    assert b"of another tenant" in content
    assert not [secret for secret in SECRETS if secret in content]
    assert world.store.interaction("old") is None
    assert world.store.counts(CHANNEL) == JoinCounts(interactions=1, acknowledged=1, joined=1)
    # The log read again, from an older copy or from Kafka, brings nothing back.
    world.worker.close()
    world.append(
        make_interaction("old", group="a very private question"), make_feedback("f1", "old", Thumbs("a", True))
    )
    seen: Counter[str] = Counter()
    worker = world.new_worker(
        forgotten=Forgotten(lambda channel: settings.for_channel(channel).privacy.retention_days),
        observe=lambda records, outcome, seconds: seen.update(outcome.forgotten),
        now=lambda: later,
    )
    join_all(worker)
    worker.close()
    assert (seen["retention"], world.store.counts(CHANNEL).acknowledged) == (2, 1)


def test_retention_leaves_what_the_join_has_not_read(world: JoinedStore, tmp_path: Path) -> None:
    world.append(make_interaction("unread"))
    later = dt.datetime.now(dt.UTC) + dt.timedelta(days=400)
    with Registry(world.url, str(tmp_path / "registry")) as registry:
        retention = Retention(kept_for(tmp_path, world.url, acme=30), registry, now=lambda: later)
        assert retention.run() == Counter()
        world.join()
        assert retention.run() == Counter(interactions=1, log_records=1)


@pytest.fixture
def command() -> Callable[..., Any]:
    """Runs the command line here; its log goes to a stream that is closed afterwards, so the log is set back."""

    def run(*words: str) -> Any:
        try:
            return CliRunner().invoke(app, words)
        finally:
            structlog.reset_defaults()

    return run


def test_of_several_joins_one_sweeps_and_counts_and_the_command_sees_what_is_left(
    world: JoinedStore, tmp_path: Path, command: Callable[..., Any]
) -> None:
    settings = kept_for(tmp_path, world.url, acme=30)
    world.join(make_interaction("old", completed_at=dt.datetime.now(dt.UTC) - dt.timedelta(days=31)))
    clock, metrics = [0.0], Metrics(CollectorRegistry())
    sweep = Sweep(settings, metrics, clock=lambda: clock[0])
    with Leases(world.store.database).take(LEASE):
        sweep.look()
    assert metrics.privacy_deleted.labels("interactions")._value.get() == 0
    sweep.look()  # not yet time
    clock[0] += settings.privacy.sweep_seconds
    asked = ["privacy", "expire", "--dry-run", "--json", "--data-dir", str(tmp_path), "--set", f"store.url={world.url}"]
    asked += ["--set", "privacy.retention_days=30"]
    assert json.loads(command(*asked).stdout)["counts"] == {"interactions": 1}
    sweep.look()
    assert json.loads(command(*asked).stdout)["counts"] == {}
    assert metrics.privacy_deleted.labels("interactions")._value.get() == 1
    sweep.close()


def test_expire_forgets_what_turns_kept_of_the_channels_that_lost_something_and_of_no_other(
    world: JoinedStore, tmp_path: Path, command: Callable[..., Any]
) -> None:
    young, now = Channel("plain", "young"), dt.datetime.now(dt.UTC)
    world.join(
        make_interaction("old", completed_at=now - dt.timedelta(days=31)),
        make_interaction("young", channel=young, completed_at=now),
    )

    def kept() -> list[Channel]:
        return [channel for channel in (CHANNEL, young) if (folder_of(tmp_path, channel) / "features").exists()]

    for channel in (CHANNEL, young):
        folder_of(tmp_path, channel).mkdir(parents=True)
        (folder_of(tmp_path, channel) / "features").touch()
    asked = ["privacy", "expire", "--json", "--data-dir", str(tmp_path), "--set", f"store.url={world.url}"]
    asked += ["--set", "privacy.retention_days=30"]
    command(*asked, "--dry-run")
    assert kept() == [CHANNEL, young]
    assert json.loads(command(*asked).stdout)["counts"] == {"interactions": 1}
    assert kept() == [young]
    sweep = Sweep(kept_for(tmp_path, world.url, young=30), Metrics(CollectorRegistry()))
    sweep.look()  # a join that starts makes sure that the files' bytes are clean, and nothing has ended since
    sweep.close()
    assert kept() == [young]


def test_the_doctor_says_that_kafka_keeps_records_longer_than_a_channel_promises() -> None:
    kafka = KafkaSettings(bootstrap="", retention_days=90)
    promise = ChannelSettings(privacy=ChannelPrivacySettings(retention_days=30))
    settings = Settings(log=LogSettings(kind="kafka", kafka=kafka), channels={"plain/acme": promise})
    assert "30 days" in next(each.message for each in diagnose(settings, role="join") if each.check == "retention")
    whole = settings.model_copy(update={"channels": {}})
    assert "retention" not in {each.check for each in diagnose(whole, role="join")}
