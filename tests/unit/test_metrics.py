"""Gauges tell what is, and no longer what was."""

import re
from pathlib import Path
from types import SimpleNamespace

from plaudit.learner.look import Watch, _tell
from plaudit.learner.outcome import Need, Result, TurnOutcome
from plaudit.learner.status import Status
from plaudit.learner.steps import decide as step
from plaudit.metrics import Metrics, set_only
from plaudit.release.decision import Check, Decision
from plaudit.testing.evidence import CHANNEL
from prometheus_client import CollectorRegistry, Gauge

ROOT = Path(__file__).resolve().parents[2]
NAME = str(CHANNEL)


def test_a_gauge_forgets_what_is_over_of_those_that_are_meant():
    registry = CollectorRegistry()
    gauge = Gauge("load", "Load.", ("channel", "what"), registry=registry)
    set_only(gauge, {("a", "x"): 1, ("a", "y"): 2}, among=("a",))
    set_only(gauge, {("ab", "x"): 3}, among=("ab",))
    set_only(gauge, {("a", "y"): 4}, among=("a",))
    found = {tuple(each.labels.values()): each.value for metric in registry.collect() for each in metric.samples}
    assert found == {("a", "y"): 4, ("ab", "x"): 3}


def test_the_gauges_of_a_gate_are_those_of_the_last_one(monkeypatch):
    metrics = Metrics(CollectorRegistry())
    learner = SimpleNamespace(metrics=metrics, registry=SimpleNamespace(decide=lambda *_, **__: None))
    settings = SimpleNamespace(gate=None)
    turn = SimpleNamespace(
        learner=learner, channel=CHANNEL, settings=settings, seed=0, guard=None, begin=lambda *_: None
    )
    gates = [
        (Check("win_base", True, 0.6, 0.5), Check("harm_old", True, 0.0, 0.05)),
        (Check("win_base", False, float("nan"), 0.5),),  # it could not be measured
    ]
    for checks in gates:
        monkeypatch.setattr(step.gate, "decide", lambda *_, checks=checks, **__: Decision(False, checks, "now"))
        step.decide(turn, SimpleNamespace(slices=()), SimpleNamespace(measurements=None), SimpleNamespace(version=1))
    of = metrics.registry.get_sample_value
    win, old = {"channel": NAME, "check": "win_base"}, {"channel": NAME, "check": "harm_old"}
    assert of("plaudit_gate_check_value", win) is None
    assert (of("plaudit_gate_check_bound", win), of("plaudit_gate_check_passed", win)) == (0.5, 0)
    for name in ("value", "bound", "passed"):
        assert of(f"plaudit_gate_check_{name}", old) is None


def test_a_turns_needs_are_told_until_others_take_their_place(tmp_path):
    metrics = Metrics(CollectorRegistry())
    learner = SimpleNamespace(metrics=metrics, status=Status(tmp_path / "learner.json", metrics))
    for need in (Need("comparisons", 10, 150), Need("thumb contrasts", 20, 150)):
        _tell(learner, CHANNEL, Watch(), Result(outcome=TurnOutcome.WAITED, reason="waits", needs=(need,)))
    _tell(learner, CHANNEL, Watch(), Result(outcome=TurnOutcome.FAILED, reason="broke"))
    of = metrics.registry.get_sample_value
    for name, value in (("have", 20), ("want", 150)):
        assert of(f"plaudit_turn_{name}", {"channel": NAME, "need": "thumb contrasts"}) == value
        assert of(f"plaudit_turn_{name}", {"channel": NAME, "need": "comparisons"}) is None


def test_every_metric_is_moved_somewhere_and_every_one_that_pages_and_alerts_name_is_there():
    metrics = Metrics(CollectorRegistry())
    code = [path for path in (ROOT / "service" / "plaudit").rglob("*.py") if path.name != "metrics.py"]
    moved = set(re.findall(r"metrics\.(\w+)", "\n".join(path.read_text() for path in code)))
    own = {name for name, each in vars(metrics).items() if hasattr(each, "collect") and name != "registry"}
    assert own - moved == {"release_info"}, "set_release_info moves that one"
    known = {each.name for each in metrics.descriptions}
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "helm").rglob("*.md")]
    pages += (ROOT / "helm").rglob("*.yaml")
    named = {
        name
        for page in pages
        for name in re.findall(
            r"\bplaudit_\w+_(?:total|seconds|bytes|records|info|waiting|behind|overdue)\b", page.read_text()
        )
    }
    assert len(named) > 40
    assert named <= known
