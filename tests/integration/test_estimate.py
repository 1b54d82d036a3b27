"""`plaudit release estimate`: orders drawn over gRPC, likes, and what another release would have been given."""

from __future__ import annotations

import json
import random
import sys

import pytest
import structlog
from plaudit import cli
from plaudit.client import Plaudit
from plaudit.engine.protocol import EncodedPrompt, ReleaseKey
from plaudit.errors import UnknownDomain, UnknownRelease, WrongAction
from plaudit.evidence.join import Join
from plaudit.evidence.splits import Split, group_split
from plaudit.evidence.store import EvidenceStore
from plaudit.learner.off_policy import Shows
from plaudit.learner.valuing import value
from plaudit.ordering import first_probabilities
from plaudit.plugins import load_plugins
from plaudit.release.registry import Registry
from plaudit.settings import ModelSettings
from plaudit.testing.models import tiny_model
from plaudit.testing.serving import local_server, serve_settings
from plaudit.types import Channel, Message, Option

CHANNEL = Channel("echo-choice", "default")
# As long as each other: none is sure to win.
OPTIONS = ("a", "b", "c", "d")
OFFERED = [Option(text, text) for text in OPTIONS]
CHANCES = {"a": 0.9, "b": 0.6, "c": 0.3, "d": 0.1}


class World:
    """A channel whose base has drawn orders, with likes of what was shown first, and one release beside the base."""

    def __init__(self, folder, engine, make_release, interactions=240):
        model = ModelSettings(path=str(tiny_model(folder / "model")), adapter_layers=2)
        self.settings = serve_settings(folder / "data").model_copy(update={"model": model})
        self.engine, self.plugins = engine, load_plugins(("echo-choice",))
        with local_server(folder / "data", engine, self.plugins, settings=self.settings) as server:
            server.registry.ensure_channel(CHANNEL, engine.base_digest)
            make_release(server.registry, CHANNEL, 5, strength=0.1)
            self.salt = server.registry.salt(CHANNEL)
            prompts = {split: [p for p in map(str, range(400)) if self.split(p) is split] for split in Split}
            self.gate = prompts[Split.GATE][:12]
            with Plaudit(server.target) as client:
                self._ask(client, prompts[Split.TRAIN][:3], 30, liked=lambda text, rng: True)
                self._ask(client, self.gate, interactions, liked=lambda text, rng: rng.random() < CHANCES[text])
            join = Join(server.log, store := EvidenceStore(self.settings.store_url), self.plugins, self.settings.join)
            while join.run_once(0.1):
                pass
            join.close()
            store.close()

    def split(self, prompt):
        return group_split(self.salt, prompt, few_raters=True)

    def _ask(self, client, prompts, count, liked):
        rng = random.Random(0)
        for i in range(count):
            answer = client.choose(CHANNEL.domain, prompts[i % len(prompts)], OFFERED, purpose="explore")
            answer.signal("like", float(liked(answer.ranking[0].option_id, rng)), 0, rater=f"rater-{i}")

    def truth(self, version):
        """Value of a release that draws, from its exact probabilities."""
        with Registry(self.settings.store_url, self.settings.registry_root) as registry:
            row = registry.release(CHANNEL, version)
            temperature = registry.manifest(CHANNEL, version).temperature if version else 1.0
            folder = registry.fetch(CHANNEL, version, self.settings.data_dir / "fetched") if version else None
        key = ReleaseKey(str(CHANNEL), version, row.digest)
        self.engine.stage(key, folder / "policy" if folder else None, temperature=temperature)
        tokens = [self.engine.encode_text(text) for text in OPTIONS]
        worth = []
        for prompt in self.gate:
            encoded: EncodedPrompt = self.engine.encode([Message("user", prompt)])
            scores = [sum(each) for each in self.engine.score_options(encoded, tokens, key).result()]
            worth.append(sum(p * CHANCES[o] for p, o in zip(first_probabilities(scores), OPTIONS, strict=True)))
        self.engine.unstage(key)
        return sum(worth) / len(worth)


@pytest.fixture(autouse=True)
def plain_logs():
    """The command configures logging for the whole process."""
    yield
    structlog.reset_defaults()


def is_near(interval, truth):
    """Within three times the 90% interval's half-width, 4.9 standard errors: orders are drawn by random ids."""
    return abs(interval.value - truth) <= 1.5 * (interval.high - interval.low)


def test_what_people_gave_to_drawn_orders_values_releases_that_they_never_saw(tmp_path, tiny_engine, make_release):
    world = World(tmp_path, tiny_engine, make_release)
    found = value(world.settings, CHANNEL, 1)
    assert (found.live, found.reactions, found.raters) == (0, 240, 240), "reactions on train prompts do not count"
    by = {(each.version, each.shows): each for each in found.values}
    assert set(by) == {(version, how) for version in (0, 1) for how in Shows}
    own = by[0, Shows.DRAWN].estimates
    # What drew the log is the base itself.
    assert own.ess == pytest.approx(240, rel=1e-3)
    assert own.snips.value == pytest.approx(own.observed.value, abs=1e-4)
    assert own.dr is None, "no release has a reward model here"
    for version in (0, 1):
        assert is_near(by[version, Shows.DRAWN].estimates.snips, world.truth(version))
    assert is_near(by[1, Shows.DRAWN].gain, world.truth(1) - world.truth(0))
    assert by[0, Shows.DRAWN].gain is None


def test_the_command_says_in_words_and_in_json_what_it_found(tmp_path, tiny_engine, make_release, monkeypatch, capsys):
    world = World(tmp_path, tiny_engine, make_release, interactions=60)

    def run(*arguments):
        data = ["--data-dir", str(world.settings.data_dir), "--set", f"model.path={world.settings.model.path}"]
        monkeypatch.setattr(sys, "argv", ["plaudit", "release", "estimate", *arguments, *data])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert not ended.value.code
        return capsys.readouterr().out

    words = run(str(CHANNEL), "--version", "1", "--clip", "10", "--set", "model.adapter_layers=2")
    assert "60 reactions of 60 raters to drawn orders on gate prompts" in words
    assert "base (live), as it draws: SNIPS" in words
    assert "version 1, as it draws:" in words
    assert "DR needs a reward model" in words
    # A release that always shows one option has few drawn interactions with it.
    assert "as it serves: the log says too little about this policy" in words
    found = json.loads(run(str(CHANNEL), "--json"))
    assert (found["channel"], found["live"]) == (str(CHANNEL), 0)
    assert found["values"][0]["estimates"]["clip"] is None, "infinity is not JSON"


def test_what_cannot_be_estimated_is_refused_with_its_reason(tmp_path, tiny_engine, make_release):
    world = World(tmp_path, tiny_engine, make_release, interactions=0)
    found = value(world.settings, CHANNEL)
    assert (found.reactions, found.values) == (0, ())
    with pytest.raises(UnknownRelease):
        value(world.settings, CHANNEL, 7)
    with pytest.raises(WrongAction, match="propensity"):
        value(world.settings, Channel("instruction", "default"))
    with pytest.raises(UnknownDomain):
        value(world.settings, Channel("nothing", "default"))
