"""A turn of the learner on a tiny real model: from feedback over gRPC to a live release, and deaths on the way."""

import datetime as dt
import json
import os
import random
import shutil
import subprocess
import sys
import tomllib

import pytest
from plaudit.client import Plaudit
from plaudit.engine.base import Base
from plaudit.engine.torch_engine import TorchEngine
from plaudit.errors import BadArtifact
from plaudit.eventlog import Topic, open_log
from plaudit.eventlog.codec import ReleaseChange, decode
from plaudit.evidence.join import Join
from plaudit.evidence.store import EvidenceStore
from plaudit.failpoints import EXIT_CODE, FAIL_POINT_VARIABLE
from plaudit.learner import context
from plaudit.learner.loop import maybe_turn, new_events, open_learner
from plaudit.learner.outcome import TurnOutcome
from plaudit.learner.steps import promote
from plaudit.learner.turn import new_turn, run
from plaudit.plugins import load_plugins
from plaudit.release import gate
from plaudit.release.moves import ReleaseState
from plaudit.release.registry import Registry
from plaudit.settings import Settings
from plaudit.settings_text import toml
from plaudit.testing.models import tiny_model
from plaudit.testing.serving import local_server
from plaudit.types import Channel

CHANNEL = Channel("instruction", "default")
# Nothing here measures quality: every threshold is one that a turn on random weights can pass.
SETTINGS = {
    "model": {"adapter_layers": 2, "threads": 2},
    "engine": {"widths": [4, 16]},
    "serve": {"port": 0, "metrics_port": 0, "poll_seconds": 0.05},
    "reward": {"epochs": 1.0, "heads": 2},
    # Nothing is held out: on random weights no state of the policy need be better than its start.
    "policy": {
        **{"iterations": 2, "prompts": 4, "samples": 4, "held_out": 0, "epochs": 1, "minibatch": 8},
        **{"max_tokens": 8, "lr": 1e-2},
    },
    "gate": {
        **{"prompts": 8, "min_prompts": 4, "samples": 2, "kl_base": 1000.0, "kl_live": 1000.0, "win_base": 0.0},
        **{"win_live": 0.0, "distinct_ratio": 0.0, "reward_comparisons": 20, "reward_raters": 2},
    },
    "learn": {"min_events": 20, "nice": 0},
}


class Died(BaseException):
    """Stands for a process that ends: no handler of the learner catches it."""


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    """A data directory in which people have asked and rated; tests copy it."""
    folder = tmp_path_factory.mktemp("asked")
    model = tiny_model(folder / "model")
    settings = Settings.model_validate({**SETTINGS, "data_dir": folder / "data"})
    engine = TorchEngine(Base.load(model), settings.engine, settings.model)
    with local_server(folder / "data", engine, load_plugins(("instruction",)), settings=settings) as server:
        _people(server.target)
    engine.close()
    _join(settings)
    return folder


def _people(target):
    """Forty raters of one taste: the letter e. They choose between two and give thumbs."""
    rng = random.Random(0)
    with Plaudit(target) as client:
        for i in range(60):
            reply = client.generate("instruction", f"list {i} kinds of tea", n=4, seed=i, max_tokens=8)
            shares = [c.text.lower().count("e") / (len(c.text) + 1) for c in reply.completions]
            for rater in rng.sample(range(40), 5):
                a, b = rng.sample(range(4), 2)
                better, worse = (a, b) if shares[a] >= shares[b] else (b, a)
                reply.choose(better, worse, rater=f"rater-{rater}")
            reply.rank(sorted(range(4), key=lambda j: -shares[j]), rater=f"rater-{rng.randrange(40)}")


def _join(settings):
    log, store = open_log(settings), EvidenceStore(settings.store_url)
    join = Join(log, store, load_plugins(("instruction",)), settings.join)
    while join.run_once(0.1):
        pass
    join.close()
    store.close()
    log.close()


@pytest.fixture
def settings(asked, tmp_path):
    shutil.copytree(asked / "data", tmp_path / "data")
    table = {**SETTINGS, "data_dir": str(tmp_path / "data")}
    table["model"] = {**SETTINGS["model"], "path": str(asked / "model")}
    (tmp_path / "plaudit.toml").write_text(toml(table))
    return Settings.model_validate(tomllib.loads((tmp_path / "plaudit.toml").read_text()))


@pytest.fixture
def shop(settings):
    made = open_learner(settings)
    yield made
    made.close()


@pytest.fixture(autouse=True)
def _gates_are_open(monkeypatch):
    """Random weights may miss the bounds that no setting can lower; decisions have tests of their own."""
    monkeypatch.setattr(gate, "reward_outcome", lambda _: gate.Outcome.ACCEPT)
    decide = gate.decide

    def lenient(measurements, settings, **options):
        found = decide(measurements, settings, **options)
        return gate.Decision(True, found.checks, found.decided_at)

    monkeypatch.setattr(gate, "decide", lenient)


def test_a_turn_takes_evidence_to_a_live_release_with_its_lineage(shop):
    assert new_events(shop, CHANNEL) > 20
    assert maybe_turn(shop, CHANNEL).outcome is TurnOutcome.PROMOTED
    manifest = shop.registry.manifest(CHANNEL, 1)
    frozen = shop.store.freeze(CHANNEL, shop.registry.salt(CHANNEL))
    assert manifest.evidence_digest == frozen.digest
    assert {o.topic for o in manifest.offsets} == {Topic.INTERACTIONS, Topic.FEEDBACK}
    assert manifest.probes
    assert manifest.base_digest == shop.base.digest
    assert shop.registry.state(CHANNEL).live == 1
    changes = [decode(r.value) for r in shop.log.consumer((Topic.RELEASES,), "test", dict).poll(1.0, 10)]
    assert [c.live for c in changes if isinstance(c, ReleaseChange)] == [1]
    assert maybe_turn(shop, CHANNEL) is None, "nothing is new, so no turn begins"
    assert json.loads((shop.settings.data_dir / "learner.json").read_text())["step"] == 0


def test_the_same_evidence_and_seed_give_the_same_adapter(settings, asked, tmp_path):
    digests = []
    for name in ("one", "two"):
        copy = tmp_path / name
        shutil.copytree(asked / "data", copy)
        shop = open_learner(settings.model_copy(update={"data_dir": copy}))
        as_of = dt.datetime(2030, 1, 1, tzinfo=dt.UTC)
        with new_turn(shop, CHANNEL, 7, as_of) as turn:
            assert run(turn).outcome is TurnOutcome.PROMOTED
        manifest = shop.registry.manifest(CHANNEL, 1)
        digests.append((manifest.adapter.digest, manifest.reward_model, manifest.evidence_digest))
        shop.close()
    assert digests[0] == digests[1]


@pytest.mark.parametrize("step", range(1, 8))
def test_a_death_at_any_step_is_made_good_by_the_next_look(shop, monkeypatch, step):
    def die(name):
        if name == f"learn.{step}":
            raise Died

    monkeypatch.setattr(context, "fail_point", die)
    monkeypatch.setattr(promote, "fail_point", die)
    with pytest.raises(Died):
        maybe_turn(shop, CHANNEL)
    monkeypatch.setattr(context, "fail_point", lambda _: None)
    monkeypatch.setattr(promote, "fail_point", lambda _: None)
    result = maybe_turn(shop, CHANNEL)
    live = shop.registry.state(CHANNEL).live
    states = [row.state for row in shop.registry.releases(CHANNEL)]
    if step <= 5:
        assert result.outcome is TurnOutcome.PROMOTED
        assert (live, states[1:]) == (1, [ReleaseState.LIVE])
    elif step == 6:
        # Registered without a decision: rejected. Its evidence counts as used, so the next turn waits for more.
        assert (live, states[1:]) == (0, [ReleaseState.REJECTED])
    else:
        assert (live, states[1:]) == (1, [ReleaseState.LIVE])


@pytest.mark.slow
def test_a_killed_process_leaves_serving_as_it_was(settings, tmp_path):
    # Before the reward model is judged: whether it passes depends on the salt that sorts raters.
    environ = {**os.environ, FAIL_POINT_VARIABLE: "learn.2"}
    command = [sys.executable, "-m", "plaudit.cli", "learn", "--once", "--config", str(tmp_path / "plaudit.toml")]
    killed = subprocess.run(command, env=environ, capture_output=True, timeout=120, check=False)
    assert killed.returncode == EXIT_CODE, killed.stderr.decode()[-2000:]
    with Registry(settings.store_url, settings.registry_root) as registry:
        assert registry.state(CHANNEL).live == 0
        assert [row.version for row in registry.releases(CHANNEL)] == [0]


def test_a_pinned_channel_is_trained_and_not_promoted(shop):
    from plaudit.release.moves import Pin

    shop.registry.change(CHANNEL, Pin(True), expected_generation=None, actor="test", reason="hold")
    assert maybe_turn(shop, CHANNEL).outcome is TurnOutcome.GATED
    assert shop.registry.state(CHANNEL).live == 0


def test_a_release_that_was_damaged_in_the_registry_stops_the_turn_and_not_serving(shop):
    assert maybe_turn(shop, CHANNEL).outcome is TurnOutcome.PROMOTED
    folder = next((shop.settings.data_dir / "registry").rglob("adapter_model.safetensors"))
    folder.chmod(0o644)
    folder.write_bytes(folder.read_bytes()[:-7])
    assert maybe_turn(shop, CHANNEL, force=True) is None, "nothing is new"
    with pytest.raises(BadArtifact), new_turn(shop, CHANNEL, 5) as turn:
        run(turn)
    assert shop.registry.state(CHANNEL).live == 1
