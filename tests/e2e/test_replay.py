"""A release retrained from its manifest: the same adapter on this machine, and in words what differs if it is not."""

import json
import sqlite3

import pytest
import sqlalchemy as sa
import structlog
from plaudit.cli import app
from plaudit.errors import WrongState
from plaudit.eventlog import Topic, open_log
from plaudit.eventlog.codec import Retraction
from plaudit.eventlog.sealing import seal
from plaudit.evidence.join import Join
from plaudit.evidence.store import EvidenceStore
from plaudit.learner import replay as module
from plaudit.learner.look import Watch, look
from plaudit.learner.outcome import TurnOutcome
from plaudit.learner.replay import replay
from plaudit.plugins import load_plugins
from plaudit.privacy.forgotten import Forgotten
from plaudit.privacy.keys import PersonKeys
from plaudit.release.lineage import since
from plaudit.release.registry import Registry
from plaudit.settings.text import toml
from plaudit.store.database import METADATA, Database
from plaudit.testing.evidence import append, join_all
from plaudit.types import Channel
from typer.testing import CliRunner

CHANNEL = Channel("instruction", "default")


def seal_all(settings):
    """The log as it is if people's records were sealed with their keys from the first on."""
    keys = PersonKeys(Database(settings.store_url))
    with sqlite3.connect(settings.data_dir / "log.sqlite") as log:
        rows = log.execute("SELECT topic, offset, value FROM records").fetchall()
        sealed = [(seal(value, keys), topic, offset) for topic, offset, value in rows]
        log.executemany("UPDATE records SET value = ? WHERE topic = ? AND offset = ?", sealed)
    log.close()
    keys.close()
    assert sum(value != row[2] for (value, _, _), row in zip(sealed, rows, strict=True)) > 300


@pytest.fixture
def trained(settings_of, learner_of):
    """Settings of a deployment in which one turn was promoted and later feedback was withdrawn; its log is sealed."""
    settings = settings_of(privacy={"person_keys": True})
    seal_all(settings)
    learner = learner_of(settings)
    assert look(learner, CHANNEL, Watch()).outcome is TurnOutcome.PROMOTED
    row = learner.store.freeze(CHANNEL, learner.registry.salt(CHANNEL)).rows[0]
    log, store = open_log(settings), EvidenceStore(settings.store_url)
    join = Join(log, store, load_plugins(("instruction",)), settings.join, forgotten=Forgotten(opens=True))
    gone = Retraction(
        feedback_id=row.feedback_id,
        interaction_id=row.interaction_id,
        channel=CHANNEL,
        accepted_at=row.accepted_at,
        rater=row.who,
    )
    append(log, gone)
    join_all(join)
    assert since(store.database, CHANNEL, 1).counts == {"retracted": 1}
    for each in (join, store, log):
        each.close()
    return settings


def contents(settings):
    """Every row of the store, and every file of the registry and of what turns keep, as they are."""
    store = EvidenceStore(settings.store_url)
    with store.database.reading() as connection:
        rows = {
            name: sorted(map(repr, connection.execute(sa.select(table)).all()))
            for name, table in METADATA.tables.items()
            if name not in ("process", "lease")
        }
    store.close()
    files = sorted(p for name in ("registry", "kept") for p in (settings.data_dir / name).rglob("*") if p.is_file())
    return rows, {path: path.stat().st_mtime_ns for path in files}


def test_a_release_is_retrained_from_the_log_to_the_same_adapter_and_nothing_changes(trained, monkeypatch):
    before = contents(trained)
    assert any(path.parent.parent.name == "kept" for path in before[1])
    # What the manifest keeps decides, not what the settings of today are.
    changed = trained.model_copy(update={"policy": trained.policy.model_copy(update={"lr": 0.001, "prompts": 4})})
    found = replay(changed, CHANNEL, 1)
    assert found.differences == ()
    assert (found.same, found.evidence_found) == (True, found.evidence)
    assert found.reward_found == found.reward_model
    assert contents(trained) == before

    with Registry(trained.store_url, trained.registry_root) as registry:
        assert registry.state(CHANNEL).live == 1
    with pytest.raises(WrongState, match="made by no turn"):
        replay(trained, CHANNEL, 0)

    # Nothing is trained from other evidence: the log lost its first records.
    with sqlite3.connect(trained.data_dir / "log.sqlite") as log:
        log.execute("DELETE FROM records WHERE topic = ? AND offset < 3", (Topic.FEEDBACK.value,))
    log.close()
    real = module.versions
    monkeypatch.setattr(module, "versions", lambda declaration: {**real(declaration), "torch": "0.0.1"})
    config = trained.data_dir / "plaudit.toml"
    config.write_text(toml(trained.model_dump(mode="json", exclude_defaults=True, exclude={"serve"})))
    done = CliRunner().invoke(app, ["release", "replay", str(CHANNEL), "1", "--json", "--config", str(config)])
    structlog.reset_defaults()
    said = json.loads(done.stdout)
    assert (done.exit_code, said["same"], said["found"]) == (1, False, None)
    versions, gap, evidence = said["differences"]
    assert versions.startswith("torch: trained with ")
    assert gap == "plaudit.feedback[0]: 3 records (offsets 0 to 2) are no longer in the log"
    assert evidence.startswith("evidence: the log gives 327 of 330 ranking (its records are not all there)")
