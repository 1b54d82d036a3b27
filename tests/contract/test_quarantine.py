"""Raters in quarantine: kept and not learnt from, as of a time, by an operator or by what they do."""

import dataclasses
import datetime as dt
import json
import random
from types import SimpleNamespace

import pytest
import structlog
from plaudit.cli import app
from plaudit.eventlog.sqlite import SqliteEventLog
from plaudit.evidence.anomalies import anomalies
from plaudit.evidence.join import Join
from plaudit.evidence.quarantine import Quarantine
from plaudit.evidence.splits import Split
from plaudit.evidence.store import EvidenceRow, EvidenceStore
from plaudit.serving.handle import pseudonym
from plaudit.serving.keys import pseudonym_key
from plaudit.settings import JoinSettings, LearnSettings, Settings
from plaudit.testing.evidence import CHANNEL, START, PlainDomain, append, join_all, make_feedback, make_interaction
from plaudit.types import Binary, Channel, FeedbackKind, Pair, PairOutcome, Thumbs
from typer.testing import CliRunner

SALT = bytes(range(32))
OTHER = Channel("plain", "other")


@pytest.fixture
def store(tmp_path, store_url):
    """Two raters, three acts each, joined."""
    log, store = SqliteEventLog(tmp_path / "log.sqlite"), EvidenceStore(store_url)
    for index in range(3):
        asked = make_interaction(f"i{index}")
        about = asked.interaction_id, Thumbs("a", up=True)
        append(log, asked, *(make_feedback(f"{rater}{index}", *about, rater=rater) for rater in ("ann", "bob")))
    worker = Join(log, store, {"plain": PlainDomain()}, JoinSettings())
    join_all(worker)
    yield store
    worker.close()
    store.close()
    log.close()


def raters(store, as_of=None):
    return {row.who for row in store.freeze(CHANNEL, SALT, as_of).rows}


def test_acts_of_a_rater_in_quarantine_are_kept_and_not_learnt_from_and_the_past_stays_as_it_was(store):
    quarantine = Quarantine(store.database)
    everything = store.freeze(CHANNEL, SALT)
    acts = sum(each.acts for each in store.tally(CHANNEL, SALT))
    before = dt.datetime.now(dt.UTC)
    assert quarantine.put(CHANNEL, "ann", "a bot", by="ops")
    assert not quarantine.put(CHANNEL, "ann", "again", by="ops")
    frozen = store.freeze(CHANNEL, SALT)
    assert ({row.who for row in frozen.rows}, frozen.quarantined) == ({"bob"}, 3)
    assert sum(each.acts for each in store.tally(CHANNEL, SALT)) == acts - 3
    assert store.counts(CHANNEL).joined == acts
    assert store.freeze(CHANNEL, SALT, before).digest == everything.digest
    (listed,) = quarantine.list(CHANNEL)
    assert (listed.rater, listed.reason, listed.by, listed.acts, listed.until) == ("ann", "a bot", "ops", 3, None)
    during = dt.datetime.now(dt.UTC)
    assert quarantine.release(CHANNEL, "ann", by="boss")
    assert not quarantine.release(CHANNEL, "ann", by="boss")
    assert store.freeze(CHANNEL, SALT).digest == everything.digest
    assert raters(store, during) == {"bob"}
    assert quarantine.list(CHANNEL) == []
    assert [each.released_by for each in quarantine.list(ended=True)] == ["boss"]
    assert quarantine.judged(CHANNEL) == {"ann"}


def test_a_quarantine_is_of_one_channel(store):
    Quarantine(store.database).put(OTHER, "ann", "a bot", by="ops")
    assert raters(store) == {"ann", "bob"}


def rows_of(who, evidence, seconds):
    """Rows as a data set holds them, one act each."""
    return [
        EvidenceRow(
            interaction_id=f"{who}-{index}",
            feedback_id="f",
            index=0,
            kind=FeedbackKind.THUMBS,
            evidence=each,
            who=who,
            accepted_at=START + dt.timedelta(seconds=seconds * index),
            rater_split=Split.TRAIN,
            group_split=Split.TRAIN,
            prompt_group="g",
        )
        for index, each in enumerate(evidence)
    ]


def crowd(positive=0.7, people=20, acts=60):
    draw = random.Random(0)
    return [
        row
        for person in range(people)
        for row in rows_of(
            f"p{person}", [Binary(candidate="a", positive=draw.random() < positive) for _ in range(acts)], 30
        )
    ]


CHECKS = {"acts_per_minute": 20, "one_answer": 30}


def test_bursts_and_one_answer_are_anomalies_and_people_are_not():
    honest = crowd()
    assert anomalies(honest, **CHECKS) == []
    bot = rows_of("bot", [Binary(candidate="a", positive=index % 3 > 0) for index in range(25)], 1)
    yes = rows_of("yes", [Binary(candidate="a", positive=True)] * 60, 30)
    sides = [Pair(first="a", second="b", outcome=list(PairOutcome)[index % 2]) for index in range(100)]
    pairs = rows_of("pairs", sides, 30)
    first = rows_of("first", [Pair(first="a", second="b", outcome=PairOutcome.FIRST)] * 40, 30)
    found = anomalies([*honest, *bot, *yes, *pairs, *first], **CHECKS)
    assert [each.rater for each in found] == ["bot", "first", "yes"]
    assert "25 acts within a minute" in found[0].why
    assert "40 comparisons, all for the first" in found[1].why
    assert anomalies([*honest, *bot, *yes], acts_per_minute=0, one_answer=0) == []


def test_who_agrees_with_nearly_everybody_or_has_said_little_is_no_anomaly():
    yes = rows_of("yes", [Binary(candidate="a", positive=True)] * 60, 30)
    assert anomalies([*crowd(positive=0.97), *yes], **CHECKS) == []
    assert anomalies([*crowd(), *yes[:29]], **CHECKS) == []
    assert anomalies(yes, **CHECKS) == []
    nameless = [dataclasses.replace(row, who="nameless") for row in yes]
    assert anomalies([*crowd(), *nameless], **CHECKS) == []


def test_what_people_do_is_no_one_answer():
    """Skips are all of one sign, whoever skips, and of an answer that was made again the last one was kept."""
    skips = rows_of("skips", [Binary(candidate="a", positive=False, source="skipped")] * 60, 30)
    again = rows_of("again", [Pair(first="a", second="b", outcome=PairOutcome.SECOND)] * 60, 30)
    done = [dataclasses.replace(row, kind=FeedbackKind.SIGNAL) for row in (*skips, *again)]
    sides = [Pair(first="a", second="b", outcome=list(PairOutcome)[index % 2]) for index in range(100)]
    others = [*crowd(), *rows_of("pairs", sides, 30)]
    assert anomalies([*others, *done], **CHECKS) == []
    assert [each.rater for each in anomalies([*others, *skips, *again], **CHECKS)] == ["again", "skips"]


@pytest.fixture
def own_log():
    """A command logs to the runner's standard error, which is gone after it."""
    yield
    structlog.reset_defaults()


def test_an_operator_lists_quarantines_and_lets_out(tmp_path, own_log):
    run, options = CliRunner().invoke, ["--data-dir", str(tmp_path)]

    def done(*args, code=0):
        result = run(app, ["raters", *args, *options])
        assert result.exit_code == code, result.output
        return result.output

    EvidenceStore(Settings(data_dir=tmp_path).store_url).close()
    assert "nobody" in done("list")
    pseudonym_key(Settings(data_dir=tmp_path))  # as a server made it that named people
    done("quarantine", "plain/acme", "ana", "--person", "--reason", "a bot")
    (row,) = json.loads(done("list", "plain/acme", "--json"))
    assert row["rater"] == pseudonym(pseudonym_key(Settings(data_dir=tmp_path)), "acme", "ana")
    assert row["by"].startswith("operator:")
    # A part of it would name nobody, and nothing would happen.
    assert "all its 32 digits" in done("quarantine", "plain/acme", row["rater"][:12], "--reason", "again", code=2)
    assert "already" in done("quarantine", "plain/acme", row["rater"], "--reason", "again")
    assert "needs --person" in done("quarantine", "plain/acme", "bob", "--reason", "a name, not a pseudonym")
    done("release", "plain/acme", "bob")
    assert "a bot" in done("list")
    done("release", "plain/acme", row["rater"])
    assert "not in quarantine" in done("release", "plain/acme", row["rater"], code=2)
    assert "let out" in done("list", "--ended")


def test_a_turn_puts_anomalies_in_quarantine_as_of_itself_and_leaves_whom_an_operator_let_out(store):
    from plaudit.learner.steps.freeze import put_in_quarantine

    quarantine = Quarantine(store.database)
    quarantine.put(CHANNEL, "ann", "looked odd", by="ops")
    quarantine.release(CHANNEL, "ann", by="ops")
    # What the step reads of a turn.
    turn = SimpleNamespace(
        settings=Settings(learn=LearnSettings(quarantine_acts_per_minute=2)),
        learner=SimpleNamespace(store=store),
        channel=CHANNEL,
        as_of=dt.datetime.now(dt.UTC),
    )
    data = store.freeze(CHANNEL, SALT, turn.as_of)
    assert put_in_quarantine(turn, data) == 1
    assert [(each.rater, each.by) for each in quarantine.list(CHANNEL)] == [("bob", "learner")]
    assert raters(store, turn.as_of) == {"ann"}
    assert put_in_quarantine(turn, data) == 0
