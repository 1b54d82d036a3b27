"""How far a channel is from a turn: counted without a model, by the rules that the turn itself asks."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace

import pytest
from plaudit.eventlog.sqlite import SqliteEventLog
from plaudit.evidence.join import Join
from plaudit.evidence.splits import Split, group_bounds, rater_bounds, rater_split
from plaudit.evidence.store import EvidenceStore
from plaudit.learner import look as looking
from plaudit.learner import needs
from plaudit.learner.outcome import Need, Result, TurnOutcome
from plaudit.learner.survey import Survey, survey
from plaudit.release.moves import ChannelState
from plaudit.release.registry import Registry
from plaudit.settings import JoinSettings, Settings
from plaudit.store.outcomes import TurnOutcomes
from plaudit.testing.evidence import CHANNEL, PlainDomain, append, join_all, make_feedback, make_interaction
from plaudit.types import Choice, Ranking, Thumbs

PEOPLE = [f"rater {number}" for number in range(40)]


@pytest.fixture
def surveyed(tmp_path, monkeypatch):
    """The survey of a channel with these acts on its log."""
    with Registry(f"sqlite:///{tmp_path / 'store.sqlite'}", str(tmp_path / "registry")) as registry:
        with monkeypatch.context() as patched:  # of random salts some leave hardly anybody in a split
            patched.setattr("plaudit.release.registry.secrets.token_hex", lambda size: "5a" * size)
            registry.ensure_channel(CHANNEL, "ab" * 32)
        log, store = SqliteEventLog(tmp_path / "log.sqlite"), EvidenceStore(f"sqlite:///{tmp_path / 'store.sqlite'}")
        worker = Join(log, store, {CHANNEL.domain: PlainDomain()}, JoinSettings())

        def of(acts, candidates=2):
            for number, (who, act) in enumerate(acts):
                name = f"i{number}"
                asked = make_interaction(name, candidates=candidates)
                given = make_feedback(f"f{number}", name, act, rater=who)
                append(log, asked, given)
            join_all(worker)
            outcomes = TurnOutcomes(store.database)
            state = registry.state(CHANNEL)
            return survey(store, registry, outcomes, Settings(), PlainDomain().declaration, state)

        yield of, registry.salt(CHANNEL)
        worker.close()
        store.close()
        log.close()


def have(found):
    return {need.what: need.have for need in found.needs}


def test_comparisons_and_raters_are_those_of_calibration_and_prompts_go_by_their_groups(surveyed):
    of, salt = surveyed
    judges = [who for who in PEOPLE if rater_split(salt, who) is Split.CALIBRATION]
    acts = [(who, Ranking(("a", "b", "c"))) for who in PEOPLE] + [(who, Choice("b", "a")) for who in PEOPLE]
    found = of(acts, candidates=3)
    assert (have(found)[needs.COMPARISONS], have(found)[needs.RATERS]) == ((3 + 1) * len(judges), len(judges))
    assert have(found)[needs.TRAIN_PROMPTS] + have(found)[needs.GATE_PROMPTS] == len(acts)
    assert have(found)[needs.EVENTS] == have(found)[needs.TRAIN_ACTS] < len(acts) / 1.5
    assert sum(found.acts.values()) == len(acts)


def test_a_channel_of_thumbs_is_told_of_contrasts_and_what_thumbs_would_do(surveyed):
    of, _ = surveyed
    found = of([(who, Thumbs("ab"[number % 2], number % 2 == 0)) for number in range(6) for who in PEOPLE])
    contrasts = next(need for need in found.needs if need.what == needs.CONTRASTS)
    assert (contrasts.have % 9, contrasts.have > 0) == (0, True)
    if not contrasts.met:
        assert "thumbs, 9 per person" in found.advice


def test_nothing_yet_has_every_need_and_advice_in_what_people_can_do(surveyed):
    of, _ = surveyed
    found = of([])
    assert all(need.have == 0 for need in found.needs)
    assert "choices between two answers or 130 rankings of 4, for the comparisons" in found.advice
    assert "about 450 more pieces of feedback (45% count here)" in found.advice
    assert "feedback of about 25 more people (20% count here)" in found.advice
    assert "about 240 more different prompts (25% count here)" in found.advice
    assert found.words.startswith("0 of 200 new training events, ")


def test_what_is_met_is_not_advised():
    assert needs.advice([Need(needs.EVENTS, 200, 200), Need(needs.RATERS, 7, 5)], 600, PlainDomain().declaration) == ""


def test_the_present_mix_is_reckoned_on():
    said = needs.advice([Need(needs.COMPARISONS, 142, 150)], 1136, PlainDomain().declaration)
    assert said.startswith(
        "about 64 more pieces of feedback as they come now, or 40 choices between two answers or 7 rankings"
    )


def test_shares_come_from_the_bounds_of_the_splits():
    assert needs.share(rater_bounds(), Split.CALIBRATION) == pytest.approx(0.2)
    assert needs.share(group_bounds(True), Split.CALIBRATION) == pytest.approx(0.15)
    assert needs.share(group_bounds(), Split.CALIBRATION) == 0.0


@pytest.mark.apart
def test_a_survey_needs_no_torch():
    code = "import plaudit.learner.survey, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_what_is_said_of_a_channel_follows_people_who_go_though_the_join_reads_nothing(monkeypatch):
    """After an erasure, or with somebody in quarantine, fewer events count, and the log is where it was."""
    left = [Need(needs.EVENTS, 120, 200), Need(needs.EVENTS, 120, 200), Need(needs.EVENTS, 7, 200)]
    asked = []

    def surveyed(*_):
        asked.append(left[0].have)
        return Survey(needs=(left[0],), acts={}, advice="")

    monkeypatch.setattr(looking, "survey", surveyed)
    learner = SimpleNamespace(
        store=SimpleNamespace(positions=dict),
        plugins={CHANNEL.domain: PlainDomain()},
        settings=SimpleNamespace(for_channel=lambda channel: None),
        registry=None,
        outcomes=None,
    )
    state, watch, said = ChannelState(CHANNEL, 0, 0), looking.Watch(), []
    while left:
        waits = Result(outcome=TurnOutcome.WAITED, reason="", needs=(left[0],))
        said.append(looking._with_all_needs(learner, state, watch, waits).reason)
        left.pop(0)
    assert said == ["waits: 120 of 200 new training events"] * 2 + ["waits: 7 of 200 new training events"]
    assert asked == [120, 7]
