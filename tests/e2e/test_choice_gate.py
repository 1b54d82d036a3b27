"""The gate of choices on whole turns: an honest candidate goes live, planted bad ones are refused, each by its check.

What is planted is what the policy is paid for. Evidence, reward models, optimiser and gate are the real ones.
"""

import contextlib
import dataclasses
import json
import shutil
import uuid

import pytest
import torch
from plaudit.client import Plaudit
from plaudit.client.replies import drafts
from plaudit.domain import GateProbe
from plaudit.engine.base import Base
from plaudit.engine.protocol import ReleaseKey
from plaudit.engine.torch_engine import TorchEngine
from plaudit.eventlog import open_log
from plaudit.evidence.join import Join
from plaudit.evidence.splits import Split, group_split
from plaudit.evidence.store import EvidenceStore
from plaudit.learner import valuing
from plaudit.learner.actions import choice_measure, choices
from plaudit.learner.look import Watch, look
from plaudit.learner.off_policy import Shows
from plaudit.learner.outcome import TurnOutcome
from plaudit.learner.rewards import OptionRewards
from plaudit.plugins import guard
from plaudit.policy.choose import Judged
from plaudit.release import registry
from plaudit.serving.proof import EXACT, prove
from plaudit.testing.serving import local_server
from plaudit.types import Channel, Message, Option, Request
from plaudit_echo.plugin import EchoChoice

from tests.e2e.conftest import SALT, counted_ids, send, settings_for

CHANNEL = Channel("verdicts", "default")
VERDICTS = ("fine", "rude", "threat")
# One token each, of about equal chances.
OPTIONS = tuple(Option(name, text) for name, text in zip(VERDICTS, ("cup", " And", " is"), strict=True))
SUBJECTS = {"fine": "list {} kinds of tea", "rude": "want {} big books", "threat": "how is {} sea"}
ITEMS = 240
TABLES = {
    "reward": {"layer": 2, "adapter": True, "adapter_layers": 1},
    "policy": {
        **{"iterations": 10, "choice_prompts": 32, "minibatch": 16, "held_out": 16, "lr": 0.01, "temperature": 1.0},
        # Planted rewards must outweigh what people labelled.
        **{"label_coef": 0.1, "choice_update_kl": 0.2},
    },
    "gate": {
        **{"prompts": 36, "min_prompts": 20, "choice_kl_base": 50.0, "choice_kl_live": 50.0, "min_labelled": 20},
        **{"reward_comparisons": 15, "reward_raters": 3, "missed_severe": 0.5},
    },
}


class Verdicts(EchoChoice):
    """Three verdicts, of which a threat must not be missed."""

    @property
    def declaration(self):
        return dataclasses.replace(
            super().declaration,
            name=CHANNEL.domain,
            labels=frozenset(VERDICTS),
            costs=(("threat", "fine", 2.0),),
            severe=frozenset({"threat"}),
        )

    def render(self, request):
        return super().render(dataclasses.replace(request, options=OPTIONS))

    def gates(self):
        asked = Request(messages=(Message("user", SUBJECTS["threat"].format(1000)),))
        return (GateProbe(probe_id="threat", request=asked, forbidden=("cup",), harm="missed_threat"),)


def truth(number):
    return VERDICTS[number % 3]


def text(number):
    return SUBJECTS[truth(number)].format(number)


@pytest.fixture(scope="module")
def world(tmp_path_factory, model):
    """A data directory of labelled items, whose requests all had their order drawn; made once."""
    folder = tmp_path_factory.mktemp("verdicts")
    (folder / "model").symlink_to(model)
    settings, plugins = settings_for(folder, **TABLES), guard([Verdicts()])
    engine = TorchEngine(Base.load(settings.model.path), settings.engine, settings.model)
    with pytest.MonkeyPatch.context() as patch, contextlib.closing(engine):
        patch.setattr(registry.secrets, "token_hex", lambda _: SALT)
        served = local_server(settings.data_dir, engine, plugins, settings=settings)
        with counted_ids(), served as server, Plaudit(server.target) as client:
            acts = []
            for number in range(ITEMS):
                answer = client.choose(CHANNEL.domain, text(number), [], purpose="explore")
                give = drafts(answer.handle, answer.candidate_ids)
                acts.append(give.label(truth(number), rater=f"rater-{number % 7}"))
            send(client, acts)
    log, store = open_log(settings), EvidenceStore(settings.store_url)
    join = Join(log, store, plugins, settings.join)
    while join.run_once(0.1):
        pass
    for each in (join, store, log):
        each.close()
    return folder


@pytest.fixture
def learner(world, model, tmp_path, learner_of):
    """A learner on a fresh copy of the world's data."""
    folder = tmp_path / uuid.uuid4().hex
    folder.mkdir()
    (folder / "model").symlink_to(model)
    shutil.copytree(world / "data", folder / "data")
    return learner_of(settings_for(folder, **TABLES), plugins=guard([Verdicts()]))


def checks(learner, version=1):
    return {c["name"]: c for c in json.loads(learner.registry.release(CHANNEL, version).decision_json)["checks"]}


def failed(learner):
    return {name for name, check in checks(learner).items() if not check["passed"]}


def spy(monkeypatch, module, asked):
    """Notes the reward models that a module judges by, and the prompts it asks about."""

    class Noted(OptionRewards):
        def __init__(self, model, *more, **named):
            super().__init__(model, *more, **named)
            self.model = model

        def __call__(self, prompts):
            asked.append((self.model, {prompt.group for prompt in prompts}))
            return super().__call__(prompts)

    monkeypatch.setattr(module, "OptionRewards", Noted)


def plant(monkeypatch, paid):
    """Pays the policy `paid(truth, verdict)` for a verdict, whatever people said."""

    class Planted:
        def __init__(self, model, plugin, **more):
            pass

        def __call__(self, prompts):
            return [
                Judged(torch.tensor([paid(_truth_of(p), o) for o in VERDICTS]).double(), (True,) * 3) for p in prompts
            ]

    monkeypatch.setattr(choices, "OptionRewards", Planted)
    monkeypatch.setattr(choices, "labels", lambda *_: {})


def _truth_of(prompt):
    asked = prompt.rendered.messages[-1].content
    return next(name for name, subject in SUBJECTS.items() if asked.startswith(subject.split("{")[0]))


def test_a_candidate_that_learnt_the_labels_goes_live_by_prompts_and_a_judge_that_training_did_not_see(
    learner, monkeypatch, tmp_path
):
    policy, gate = [], []
    spy(monkeypatch, choices, policy)
    spy(monkeypatch, choice_measure, gate)
    result = look(learner, CHANNEL, Watch())
    assert result.outcome is TurnOutcome.PROMOTED, result.reason
    found = checks(learner)
    assert found["reward_base"]["low"] > 0
    assert found["label_accuracy"]["value"] > 0.8
    assert found["missed_severe"]["passed"]
    assert found["harm_missed_threat"]["value"] == 0
    assert "for information" in found["off_policy"]["note"]

    assert not {id(model) for model, _ in policy} & {id(model) for model, _ in gate}
    salt = learner.registry.salt(CHANNEL)
    for asked, split in ((policy, Split.TRAIN), (gate, Split.GATE)):
        groups = set().union(*(groups for _, groups in asked))
        assert {group_split(salt, group, few_raters=True) for group in groups} == {split}

    # What is served is what was trained.
    manifest = learner.registry.manifest(CHANNEL, 1)
    folder = learner.registry.fetch(CHANNEL, 1, tmp_path / "release")
    base, key = (ReleaseKey(str(CHANNEL), n, learner.registry.release(CHANNEL, n).digest) for n in (0, 1))
    learner.engine.stage(key, folder / "policy", temperature=manifest.temperature)
    learner.engine.stage(base, None)
    proof = prove(learner.engine, key, base, manifest, tolerance=EXACT)
    assert len(manifest.probes) == 8
    assert {each.completion_tokens[-1] for each in manifest.probes} == {learner.engine.end_of_turn}
    assert proof.greatest < 1e-3 < proof.from_base

    # The release's own reward model makes the estimate of its value doubly robust.
    monkeypatch.setattr(valuing, "load_plugins", lambda *_, **__: learner.plugins)
    few = learner.settings.gate.model_copy(update={"estimate_ess": 1.5})
    valued = valuing.value(learner.settings.model_copy(update={"gate": few}), CHANNEL)
    told = {(each.version, each.shows): each.estimates for each in valued.values}
    drawn = told[1, Shows.DRAWN]
    assert drawn.interactions == found["labelled_items"]["value"]
    assert drawn.dr.value > told[0, Shows.DRAWN].dr.value


@pytest.mark.parametrize(
    ("paid", "refused_by"),
    [
        # Always the same verdict.
        (lambda truth, verdict: float(verdict == "rude"), "commonest_choice"),
        # Right about everything but threats, which are let through.
        (lambda truth, verdict: float(verdict == ("fine" if truth == "threat" else truth)), "missed_severe"),
        # Another verdict than the true one.
        (lambda truth, verdict: float(VERDICTS.index(verdict) == (VERDICTS.index(truth) + 1) % 3), "reward_base"),
    ],
    ids=["one verdict", "missed threats", "worse reward"],
)
def test_a_planted_bad_candidate_is_refused_by_its_check(learner, monkeypatch, paid, refused_by):
    plant(monkeypatch, paid)
    result = look(learner, CHANNEL, Watch())
    assert result.outcome is TurnOutcome.REJECTED, result.reason
    assert refused_by in failed(learner)
    assert refused_by in result.reason
    assert learner.registry.state(CHANNEL).live == 0
