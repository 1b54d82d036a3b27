"""A store that release 0.1.0 wrote (golden/store_0_1_0.sql, by scripts/old_store.py) is upgraded and read right."""

from __future__ import annotations

import dataclasses
import sqlite3
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from plaudit.eventlog.sqlite import SqliteEventLog
from plaudit.evidence.join import Join
from plaudit.evidence.rows import evidence_from_bytes, evidence_to_bytes
from plaudit.evidence.store import EvidenceStore, JoinCounts
from plaudit.release.registry import Registry
from plaudit.settings import JoinSettings
from plaudit.store import database as module
from plaudit.testing.evidence import CHANNEL, PlainDomain, append, join_all, make_feedback, make_interaction
from plaudit.types import Action, FeedbackKind, Passage, Purpose, Thumbs

SQL = (Path(__file__).parent / "golden" / "store_0_1_0.sql").read_text()
DIGEST = SQL.splitlines()[0].split()[-1]
SALT = b"salt"


@pytest.fixture
def old_url(store_url, tmp_path):
    """The URL of a database as 0.1.0 left it, on each kind of database."""
    source = sqlite3.connect(tmp_path / "old.sqlite")
    source.executescript(SQL)
    source.close()
    if store_url.startswith("sqlite"):
        (tmp_path / "old.sqlite").rename(sa.make_url(store_url).database)
        return store_url
    _copy(f"sqlite:///{tmp_path / 'old.sqlite'}", store_url)
    return store_url


def _copy(source_url, target_url):
    """0.1.0 had no migrations: the first one makes its tables, and what noted that goes again."""
    source, target = sa.create_engine(source_url), sa.create_engine(target_url)
    config = Config()
    config.set_main_option("script_location", str(Path(module.__file__).parent / "migrations"))
    with target.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "0001")
        connection.exec_driver_sql("DROP TABLE alembic_version")
        tables = sa.MetaData()
        tables.reflect(connection)
        with source.connect() as old:
            for table in tables.sorted_tables:
                typed = sa.text(f"SELECT * FROM {table.name}").columns(*table.columns)
                if rows := [dict(row) for row in old.execute(typed).mappings()]:
                    connection.execute(sa.insert(table), rows)
    source.dispose()
    target.dispose()


def expected():
    first = make_interaction("i1", candidates=3)
    second = make_interaction("i2", group="g2")
    option = dataclasses.replace(
        second.candidates[1],
        finish_reason=None,
        option_id="o",
        redacted=True,
        valid=False,
        probability=0.25,  # 0.1.0 wrote a choice's probabilities as propensities
        propensity=1.0,
    )
    second = dataclasses.replace(
        second,
        action=Action.CHOICE,
        passages=(Passage("p", "Text – 文", "source"),),
        end_user="end",
        rater="ann",
        candidates=(second.candidates[0], option),
    )
    return first, second


def test_evidence_and_interactions_are_what_they_were(old_url):
    store = EvidenceStore(old_url)
    frozen = store.freeze(CHANNEL, SALT)
    first, second = expected()
    assert frozen.digest == DIGEST
    assert dict(frozen.interactions) == {"i1": first}
    assert store.interaction("i2") == second
    assert [each.interaction_id for each in store.prompts(CHANNEL)] == ["i2", "i1"]
    assert store.counts(CHANNEL) == JoinCounts(interactions=2, acknowledged=4, joined=2, waiting=1, rejected=1)
    tally = store.tally(CHANNEL, SALT)
    assert sorted((each.kind, each.acts) for each in tally) == [(FeedbackKind.CHOICE, 1), (FeedbackKind.THUMBS, 1)]
    store.close()


def test_acts_of_old_that_name_nobody_share_one_name(old_url):
    old = sa.create_engine(old_url)
    with old.begin() as connection:
        payload = connection.execute(sa.text("SELECT payload FROM evidence LIMIT 1")).scalar_one()
        nobody = dataclasses.replace(evidence_from_bytes(bytes(payload)), who="interaction:i1")
        connection.execute(sa.text("UPDATE evidence SET payload = :bytes"), {"bytes": evidence_to_bytes(nobody)})
    old.dispose()
    store = EvidenceStore(old_url)
    assert {row.who for row in store.freeze(CHANNEL, SALT).rows} == {"nameless"}
    assert {each.raters for each in store.tally(CHANNEL, SALT)} == {0}
    store.close()


def test_the_registry_is_what_it_was(old_url, tmp_path):
    with Registry(old_url, str(tmp_path / "registry")) as registry:
        state = registry.state(CHANNEL)
        assert (state.generation, state.live, state.pinned) == (1, 0, True)
        assert [(row.move, row.actor) for row in registry.history(CHANNEL)] == [("begin", "registry"), ("pin", "ops")]


def test_the_join_goes_on_where_it_stood(old_url, tmp_path):
    log, store = SqliteEventLog(tmp_path / "log.sqlite"), EvidenceStore(old_url)
    interactions = [make_interaction("i1", candidates=3), make_interaction("i2"), make_interaction("i3")]
    acts = [make_feedback(f"f{n}", "i1", Thumbs("a", True)) for n in range(4)]
    append(log, *interactions, *acts)
    worker = Join(log, store, {"plain": PlainDomain()}, JoinSettings())
    assert worker.run_once(0) == 0  # all of that was read by 0.1.0
    # What the log brings again is a repeat and no conflict: the digest of a request is one for all releases.
    again = make_interaction("i1", candidates=3)
    append(log, again, make_interaction("not there"))
    join_all(worker)
    assert store.counts(CHANNEL) == JoinCounts(interactions=3, acknowledged=4, joined=3, rejected=1)
    worker.close()
    store.close()
    log.close()


def test_an_evaluate_interaction_of_old_keeps_no_text(old_url):
    store = EvidenceStore(old_url)
    with store.database.reading() as connection:
        query = sa.text("SELECT record FROM interactions WHERE purpose = :purpose")
        (record,) = connection.execute(query, {"purpose": Purpose.EVALUATE.value}).scalars()
    assert b"text a" not in bytes(record)
    store.close()
