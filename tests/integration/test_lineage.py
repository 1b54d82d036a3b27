"""From a withdrawn act to the releases that learnt from it, over a real log, store and registry of both kinds."""

import dataclasses
import json

import pytest
import structlog
from plaudit.cli import app
from plaudit.eventlog.codec import Retraction
from plaudit.eventlog.sqlite import SqliteEventLog
from plaudit.evidence.join import Join
from plaudit.evidence.quarantine import Quarantine
from plaudit.evidence.store import EvidenceStore
from plaudit.release.lineage import learnt, since
from plaudit.release.manifest import Manifest
from plaudit.release.registry import Registry
from plaudit.settings import JoinSettings
from plaudit.testing.evidence import CHANNEL, START, PlainDomain, append, join_all, make_feedback, make_interaction
from plaudit.types import Choice, Comment, Thumbs
from typer.testing import CliRunner

SALT = bytes(32)


class World:
    """A log, what a join makes of it, and releases made of that."""

    def __init__(self, folder, url):
        self.folder, self.url = folder, url
        self.log = SqliteEventLog(folder / "log.sqlite")
        self.store = EvidenceStore(url)
        self.registry = Registry(url, str(folder / "registry"))
        self.registry.ensure_channel(CHANNEL, "ab" * 32)
        self._join = Join(self.log, self.store, {CHANNEL.domain: PlainDomain()}, JoinSettings())

    def say(self, *items):
        append(self.log, *items)
        join_all(self._join)

    def ask(self, *interactions):
        append(self.log, *interactions)

    def freeze(self):
        return self.store.freeze(CHANNEL, SALT)

    def release(self, parent=0):
        """Registers a release of all evidence there is, as step 5 of a turn does."""
        data = self.freeze()
        folder = self.folder / "trained"
        (folder / "policy").mkdir(parents=True, exist_ok=True)
        manifest = Manifest(
            channel=CHANNEL,
            base_digest="ab" * 32,
            parent=parent,
            as_of=data.as_of,
            evidence_digest=data.digest,
            evidence_counts=data.counts,
        )
        acts = {(row.interaction_id, row.feedback_id) for row in data.rows}
        return self.registry.register(manifest, folder, acts=acts).version

    def close(self):
        for each in (self._join, self.store, self.registry, self.log):
            each.close()


@pytest.fixture
def world(tmp_path, store_url):
    made = World(tmp_path, store_url)
    yield made
    made.close()
    structlog.reset_defaults()  # commands configure it


def retraction(feedback_id, interaction_id, rater="ann"):
    return Retraction(
        feedback_id=feedback_id, interaction_id=interaction_id, channel=CHANNEL, accepted_at=START, rater=rater
    )


def versions(world, **named):
    return {each.feedback_id: each.versions for each in learnt(world.registry.database, **named)}


def test_what_is_withdrawn_after_its_turn_is_in_no_later_frozen_set_and_leads_to_its_releases(world):
    world.ask(*(make_interaction(f"i{number}") for number in range(4)))
    world.say(*(make_feedback(f"f{number}", f"i{number}", Thumbs("a", True)) for number in range(4)))
    first = world.release()
    whole = world.freeze()

    # One is withdrawn, one replaced by a newer act, one taken away by an operator.
    world.say(retraction("f0", "i0"), make_feedback("f9", "i1", Thumbs("a", False), seconds=60))
    world.say(make_feedback("c", "i2", Comment("a", "said beside it")))
    later = world.freeze()
    assert [row.feedback_id for row in later.rows] == ["f9", "f2", "f3"]
    assert later.digest != whole.digest
    second = world.release(parent=first)
    world.say(make_feedback("f0b", "i0", Choice("a", "b"), seconds=120))
    third = world.release(parent=second)

    assert versions(world, feedback_id="f0") == {"f0": (first,)}
    assert versions(world, feedback_id="f9") == {"f9": (second, third)}
    assert versions(world, interaction_id="i0") == {"f0": (first,), "f0b": (third,)}
    assert versions(world, feedback_id="f2") == {"f2": (first, second, third)}
    assert versions(world, feedback_id="c") == {}, "a comment teaches nothing"

    gone = since(world.registry.database, CHANNEL, first)
    assert (gone.acts, gone.counts) == (4, {"retracted": 1, "superseded": 1})
    assert gone.first == (("i0", "f0", "retracted"), ("i1", "f1", "superseded"))
    assert since(world.registry.database, CHANNEL, third).counts == {}

    Quarantine(world.store.database).put(CHANNEL, "ann", "test", by="test")
    assert since(world.registry.database, CHANNEL, third).counts == {"quarantined": 4}


def test_a_set_that_is_frozen_after_withdrawals_is_that_of_a_log_read_anew(world, tmp_path):
    world.ask(*(make_interaction(f"i{number}") for number in range(3)))
    world.say(make_feedback("f0", "i0", Thumbs("a", True)), make_feedback("f1", "i1", Thumbs("a", True)))
    world.release()
    world.say(retraction("f0", "i0"), make_feedback("f2", "i1", Thumbs("a", False), seconds=1))
    fresh = EvidenceStore(f"sqlite:///{tmp_path / 'fresh.sqlite'}")
    join = Join(world.log, fresh, {CHANNEL.domain: PlainDomain()}, JoinSettings())
    join_all(join)
    assert fresh.freeze(CHANNEL, SALT).digest == world.freeze().digest
    join.close()
    fresh.close()


def test_an_act_that_comes_back_names_only_the_releases_that_had_it(world):
    world.ask(make_interaction("i"))
    world.say(make_feedback("f", "i", Thumbs("a", True)), make_feedback("g", "i", Thumbs("b", True), rater="ben"))
    world.release()
    quarantine = Quarantine(world.store.database)
    quarantine.put(CHANNEL, "ann", "test", by="test")
    world.release()
    quarantine.release(CHANNEL, "ann", by="test")
    world.release()
    assert versions(world, interaction_id="i") == {"f": (1, 3), "g": (1, 2, 3)}


def test_the_command_says_both_ways(world, tmp_path):
    world.ask(make_interaction("i"), make_interaction("j"))
    world.say(make_feedback("f", "i", Thumbs("a", True)), make_feedback("g", "j", Thumbs("a", True)))
    world.release()
    world.release(parent=1)
    world.say(retraction("f", "i"))

    def command(*words):
        where = ["--data-dir", str(tmp_path), "--set", f"store.url={world.url}"]
        done = CliRunner().invoke(app, ["release", "lineage", *words, *where])
        return done.exit_code, done.stdout

    code, said = command(str(CHANNEL), "2", "--json")
    found = json.loads(said)
    assert code == 0
    assert [row["version"] for row in found["parents"]] == [1, 0]
    assert found["evidence_digest"] == world.registry.manifest(CHANNEL, 2).evidence_digest
    assert (found["acts"], found["withdrawn"]) == (2, {"retracted": 1})
    code, said = command("--act", "f")
    assert code == 0
    assert [line.split()[1] for line in said.splitlines() if line.startswith("  version")] == ["1", "2"]
    assert command("--act", "nobody's")[1].startswith("no release learnt from it")
    assert command(str(CHANNEL), "2")[1].splitlines()[-1].split() == ["retracted:", "f", "on", "i"]
    assert command()[0] == command(str(CHANNEL), "2", "--act", "f")[0] == 2
    assert dataclasses.asdict(since(world.registry.database, CHANNEL, 0))["acts"] is None
