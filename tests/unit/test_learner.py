"""The learner's small parts: pauses, reasons, the status file, what counts as new."""

import datetime as dt
import json
import threading

import pytest
from plaudit.errors import BadArtifact
from plaudit.learner.look import _pause
from plaudit.learner.outcome import Need, Result, TurnEnded, TurnOutcome, failed, require
from plaudit.learner.since import learnt_until, settings_digest
from plaudit.learner.status import Status
from plaudit.metrics import Metrics
from plaudit.release.decision import Check, Decision
from plaudit.release.manifest import Manifest
from plaudit.release.moves import Promote, RollBack
from plaudit.release.registry import Registry
from plaudit.settings import Settings
from plaudit.store.outcomes import TurnOutcomes
from plaudit.testing.evidence import CHANNEL, PlainDomain
from prometheus_client import CollectorRegistry

BASE = "ab" * 32
NOON = dt.datetime(2027, 1, 4, 12, tzinfo=dt.UTC)


def test_a_pause_doubles_with_each_failure_and_has_a_longest():
    for failures, least in ((1, 2.0), (2, 4.0), (5, 32.0)):
        assert least <= _pause(600.0, failures) <= least + 1.0
    assert _pause(600.0, 50) == 600.0


def test_what_is_short_is_told_as_a_whole():
    require(Need("raters", 5, 5))
    with pytest.raises(TurnEnded) as ended:
        require(Need("comparisons", 142, 150), Need("raters", 4, 5, "2 more gave thumbs alone"))
    assert ended.value.reason == "waits: 142 of 150 comparisons, 4 of 5 raters (2 more gave thumbs alone)"
    assert ended.value.outcome is TurnOutcome.WAITED


def test_a_reason_repeats_our_own_words_and_nobody_elses():
    assert failed(BadArtifact("the adapter is damaged")).reason == "the adapter is damaged"
    assert "secret" not in failed(ValueError("my secret")).reason
    assert "ValueError" in failed(ValueError("my secret")).reason


def test_two_learners_write_one_status_file_without_colliding(tmp_path):
    path, wrong = tmp_path / "learner.json", []

    def write(name):
        status = Status(path, Metrics(CollectorRegistry()))
        try:
            for number in range(200):
                status.idle(CHANNEL, Result(outcome=TurnOutcome.WAITED, reason=f"{name} {number}"))
                json.loads(path.read_text())
        except Exception as error:
            wrong.append(error)

    threads = [threading.Thread(target=write, args=(name,)) for name in ("one", "two")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert [each.name for each in tmp_path.iterdir()] == ["learner.json"]


def test_a_full_disk_costs_the_status_file_alone(tmp_path):
    status = Status(tmp_path / "not there" / "learner.json", Metrics(CollectorRegistry()))
    status.turn(CHANNEL, 1)
    status.step(1, "freeze")
    status.idle(CHANNEL, Result(outcome=TurnOutcome.WAITED, reason=""))


@pytest.fixture
def registry(tmp_path):
    with Registry(f"sqlite:///{tmp_path / 'store.sqlite'}", str(tmp_path / "registry")) as opened:
        opened.ensure_channel(CHANNEL, BASE)
        yield opened


def release(registry, folder, hours, accepted):
    folder.mkdir(exist_ok=True)
    row = registry.register(
        Manifest(channel=CHANNEL, parent=0, base_digest=BASE, as_of=NOON + dt.timedelta(hours=hours)), folder
    )
    checks = (Check("any", accepted, 0.0, 0.0),)
    registry.decide(CHANNEL, row.version, Decision(accepted, checks, NOON))
    return row.version


def test_new_is_what_came_after_the_last_release_or_the_last_refusal_under_these_settings(registry, tmp_path):
    outcomes, folder = TurnOutcomes(registry.database), tmp_path / "empty"

    def until(digest="now"):
        return learnt_until(registry, outcomes, registry.state(CHANNEL), digest)

    assert until() is None
    release(registry, folder, 1, accepted=True)
    release(registry, folder, 2, accepted=False)
    assert until() == NOON + dt.timedelta(hours=1), "what was rejected is new again under other settings"
    outcomes.remember(CHANNEL, "e1", "now", "rejected", "", at=NOON + dt.timedelta(hours=2))
    outcomes.remember(CHANNEL, "e2", "now", "waited", "", at=NOON + dt.timedelta(hours=5))
    outcomes.remember(CHANNEL, "e3", "then", "refused", "", at=NOON + dt.timedelta(hours=4))
    assert until("now") == NOON + dt.timedelta(hours=2)
    assert until("then") == NOON + dt.timedelta(hours=4)


def test_the_digest_of_settings_changes_with_whatever_decides_a_turn(registry, tmp_path):
    declaration = PlainDomain().declaration

    def digest(**changes):
        return settings_digest(Settings.model_validate(changes), declaration, registry, registry.state(CHANNEL))

    first = digest()
    assert digest(serve={"port": 1}) == digest(learn={"min_events": 5}) == first
    assert len({first, digest(gate={"kl_base": 3}), digest(learn={"seed": 2}), digest(reward={"layer": 1})}) == 4
    version = release(registry, tmp_path / "empty", 1, accepted=True)
    for move in (Promote(version), RollBack()):
        registry.change(CHANNEL, move, expected_generation=None, actor="test", reason="test")
        assert (digest() == first) is isinstance(move, RollBack)


def test_manifests_from_before_a_field_keep_their_text():
    old = Manifest(channel=CHANNEL, version=1, base_digest=BASE, created_at=NOON)
    assert "generation" not in old.to_json()
    assert "newest_feedback_at" not in old.to_json()
    new = old.replace(generation=0, newest_feedback_at=NOON)
    assert Manifest.from_json(new.to_json()) == new
    assert '"generation":0' in new.to_json()
