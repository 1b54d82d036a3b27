"""Turns of the learner on a tiny real model with their real gates: how each ends, and what it leaves."""

import dataclasses
import datetime as dt
import json
import os
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path

import pytest
import structlog
from plaudit import waiting
from plaudit.demo.audit import read_log
from plaudit.domain import DecodeSpec
from plaudit.engine import adapters
from plaudit.engine.ranks import Alone
from plaudit.errors import StoreUnavailable
from plaudit.eventlog import Topic
from plaudit.eventlog.codec import ReleaseChange, decode
from plaudit.evidence.splits import Split, group_split
from plaudit.evidence.store import EvidenceStore
from plaudit.failpoints import EXIT_CODE, FAIL_POINT_VARIABLE
from plaudit.learner import actions, context, loop, staging
from plaudit.learner.actions import completions
from plaudit.learner.look import Watch, look
from plaudit.learner.outcome import TurnOutcome
from plaudit.learner.recover import recover
from plaudit.learner.report import as_text, deployment
from plaudit.learner.since import LEASE, learnt_until
from plaudit.learner.steps import promote
from plaudit.learner.turn import new_turn, run
from plaudit.plugins import count_failures, guard
from plaudit.privacy import erasure
from plaudit.privacy.sweep import finish
from plaudit.release.decision import Decision
from plaudit.release.manifest import Manifest
from plaudit.release.moves import Pin, Promote, ReleaseState, RollBack
from plaudit.release.registry import Registry
from plaudit.reward.calibration import RewardReport
from plaudit.settings.text import toml
from plaudit.store.leases import LEASE as LEASES
from plaudit.types import Action, Channel, Request, RewardTerms, Sampling

CHANNEL = Channel("instruction", "default")
THUMBS_ALONE = "thumbs alone"  # a world of tests/e2e/conftest.py


class Died(BaseException):
    """Stands for a process that ends: no handler of the learner catches it."""


class Wrapped:
    """Something with some members replaced."""

    def __init__(self, inner, **members):
        self._inner = inner
        self.__dict__.update(members)

    def __getattr__(self, name):
        return getattr(self._inner, name)


def states(learner):
    return [row.state for row in learner.registry.releases(CHANNEL)][1:]


def checks(learner, version):
    decision = json.loads(learner.registry.release(CHANNEL, version).decision_json)
    return {check["name"]: check for check in decision["checks"]}


def at_step(monkeypatch, number, act):
    """Lets `act` run once where the turn begins a step."""
    left = [act]

    def passed(name):
        if name == f"learn.{number}" and left:
            left.pop()()

    for module in (context, promote):
        monkeypatch.setattr(module, "fail_point", passed)


def change(learner, move):
    learner.registry.change(CHANNEL, move, expected_generation=None, actor="operator", reason="test")


# Promoted --------------------------------------------------------------------------------------------


def test_a_turn_takes_evidence_to_a_live_release_with_its_lineage(learner):
    result = look(learner, CHANNEL, Watch())
    assert result.outcome is TurnOutcome.PROMOTED, result.reason
    manifest = learner.registry.manifest(CHANNEL, 1)
    frozen = learner.store.freeze(CHANNEL, learner.registry.salt(CHANNEL))
    assert manifest.evidence_digest == frozen.digest
    assert manifest.newest_feedback_at == max(row.accepted_at for row in frozen.rows)
    assert (manifest.parent, manifest.generation) == (0, 0)
    assert {o.topic for o in manifest.offsets} == {Topic.INTERACTIONS, Topic.FEEDBACK}
    assert manifest.probes
    # A manifest travels to every replica: it holds nothing that people asked.
    asked = {each.interaction.prompt_tokens for each in read_log(learner.log, CHANNEL).replies}
    assert len(asked) > 50
    assert not asked & {probe.prompt_tokens for probe in manifest.probes}
    assert manifest.base_digest == learner.base.digest
    assert learner.registry.state(CHANNEL).live == 1
    changes = [decode(r.value) for r in learner.log.consumer((Topic.RELEASES,), "test", dict).poll(1.0, 10)]
    assert [c.live for c in changes if isinstance(c, ReleaseChange)] == [1]

    again = look(learner, CHANNEL, Watch())
    assert again.outcome is TurnOutcome.WAITED
    assert str(again.needs[0]) == "0 of 20 new training events"
    told = json.loads((learner.settings.data_dir / "learner.json").read_text())
    assert (told["step"], told["channel"]) == (0, str(CHANNEL))
    assert "0 of 20" in told["detail"]
    assert learner.registry.manifest(CHANNEL, 1).settings["policy"]["iterations"] == 10
    assert adapters.names(learner.base) == []
    assert not learner.engine.staged()

    # Who is erased takes the release along: the next turn begins from the base, and finds all evidence new.
    gone = frozen.rows[0].who
    erasure.request(learner.store.database, str(uuid.uuid4()), CHANNEL.tenant, gone, "test")
    (erased,) = finish(learner.settings, learner.registry, learner.log)
    assert erased.found.releases == [f"{CHANNEL}@1"]
    with learner.leases.take("test") as lease, new_turn(learner, CHANNEL, 2, lease) as turn:
        assert (turn.state.live, staging.live_adapter(turn)) == (0, None)
        assert learnt_until(learner.registry, learner.outcomes, turn.state, turn.digest) is None
    left = learner.store.freeze(CHANNEL, learner.registry.salt(CHANNEL)).rows
    assert 0 < len(left) < len(frozen.rows)
    assert gone not in {row.who for row in left}
    assert learner.registry.state(CHANNEL).live == 1


def test_accuracy_on_the_domain_s_slices_stands_in_both_reports(learner):
    plugin = learner.plugins[CHANNEL.domain]
    even = lambda interaction: ("even",) if int(interaction.messages[0].content.split()[1]) % 2 == 0 else ()  # noqa: E731
    sliced = dataclasses.replace(learner, plugins={CHANNEL.domain: Wrapped(plugin, slices=even)})
    result = look(sliced, CHANNEL, Watch())
    assert result.outcome is TurnOutcome.PROMOTED, result.reason
    found = checks(learner, 1)
    assert 0.5 < found["slice_even"]["low"] < found["slice_even"]["value"] < found["slice_even"]["high"]
    folder = learner.registry.fetch(CHANNEL, 1, learner.settings.data_dir / "fetched")
    (report,) = json.loads((folder / "reward_report.json").read_text())["facts"]["slices"]
    assert report["name"] == "even"
    assert report["accuracy"]["value"] == found["slice_even"]["value"]
    assert 0 < report["comparisons"] < found["reward_comparisons"]["value"]


def test_the_kl_of_a_domain_that_truncates_is_that_of_the_whole_distribution(settings_of, learner_of):
    """The candidate all but equals the base: on answers drawn from half of the distribution it looked nats away."""
    learner = learner_of(settings_of(policy={"iterations": 1, "lr": 1e-7}))
    spec = DecodeSpec(sampling=Sampling(max_tokens=8, top_p=0.5))
    plugin = Wrapped(learner.plugins[CHANNEL.domain], decode_spec=lambda prompt, mode: spec)
    result = look(dataclasses.replace(learner, plugins={CHANNEL.domain: plugin}), CHANNEL, Watch())
    assert result.version == 1, result.reason
    assert abs(checks(learner, 1)["kl_base"]["value"]) < 0.01


def test_prompts_that_the_domain_samples_in_a_way_of_their_own_are_served_and_not_learnt_from(learner):
    plain = learner.plugins[CHANNEL.domain].decode_spec

    def longer_for_some(prompt, mode):
        spec = plain(prompt, mode)
        number = next((int(word) for word in prompt.messages[-1].content.split() if word.isdigit()), 1)
        return dataclasses.replace(spec, temperature=0.25) if number % 2 == 0 else spec

    plugin = Wrapped(learner.plugins[CHANNEL.domain], decode_spec=longer_for_some)
    turns = dataclasses.replace(learner, plugins={CHANNEL.domain: plugin})
    with learner.leases.take(LEASE.format(channel=CHANNEL)) as lease, new_turn(turns, CHANNEL, 1, lease) as turn:
        found, left_out = actions.of(Action.COMPLETION).prompts(turn, learner.store.prompts(CHANNEL))
        every, none = actions.of(Action.COMPLETION).prompts(
            dataclasses.replace(turn, plugin=learner.plugins[CHANNEL.domain]), learner.store.prompts(CHANNEL)
        )
    assert len(every) == len(found) + sum(left_out.values())
    assert list(left_out) == ["are sampled in a way of their own (decode_spec)"]
    assert 0.3 < len(found) / len(every) < 0.7
    assert not none


def test_the_same_evidence_and_seed_give_the_same_adapter(settings_of, learner_of):
    digests = []
    as_of = dt.datetime.now(dt.UTC) + dt.timedelta(days=1000)  # the same for both, and later than all evidence
    for _ in range(2):
        learner = learner_of(settings_of())
        with learner.leases.take("test") as lease, new_turn(learner, CHANNEL, 7, lease, as_of) as turn:
            assert run(turn).version == 1
        manifest = learner.registry.manifest(CHANNEL, 1)
        digests.append((manifest.adapter.digest, manifest.reward_model, manifest.evidence_digest))
    assert digests[0] == digests[1]


def test_a_turn_asks_its_gate_prompts_that_no_update_has_seen(settings_of, learner_of):
    """Recorded at the engine: what was asked under weights of the turn, step by step; of practice cases likewise."""
    learner = learner_of(settings_of(policy={"practice_share": 0.25}))
    asked = {"policy": set(), "measure": set()}

    def submit(jobs):
        step = learner.status._name
        if step in asked:
            asked[step] |= {job.prompt.tokens for job in jobs if job.release.version != 0}
        return learner.engine.submit(jobs)

    engine = Wrapped(learner.engine, submit=submit)
    look(dataclasses.replace(learner, engine=engine, ranks=Alone(learner.base, engine)), CHANNEL, Watch())
    salt = learner.registry.salt(CHANNEL)
    groups = {}
    for row in learner.store.prompts(CHANNEL):
        prompt = learner.plugins[CHANNEL.domain].render(Request(messages=row.messages, passages=row.passages))
        groups[learner.engine.encode(prompt.messages).tokens] = group_split(salt, row.group)
    cases = {True: set(), False: set()}
    for case in learner.plugins[CHANNEL.domain].gates():
        prompt = learner.plugins[CHANNEL.domain].render(case.request)
        cases[case.practice].add(learner.engine.encode(prompt.messages).tokens)
    practised = asked["policy"] - set(groups)
    assert practised
    assert practised <= cases[True]
    assert cases[False] <= asked["measure"]
    assert not cases[True] & asked["measure"]
    assert {groups[tokens] for tokens in asked["policy"] & set(groups)} == {Split.TRAIN}
    ours = {tokens for tokens in asked["measure"] if tokens in groups}
    assert {groups[tokens] for tokens in ours} == {Split.GATE}
    assert len(ours) == min(24, sum(split is Split.GATE for split in groups.values()))


def test_the_plugins_reward_is_what_the_policy_is_paid(settings_of, learner_of):
    learner = learner_of(settings_of(policy={"iterations": 2}))
    plugin = Wrapped(
        learner.plugins[CHANNEL.domain], reward=lambda prompt, outcome, score: RewardTerms(terms=(("flat", 0.25),))
    )
    look(dataclasses.replace(learner, plugins={CHANNEL.domain: plugin}), CHANNEL, Watch())
    assert [each["reward"] for each in learner.registry.manifest(CHANNEL, 1).settings["iterations"]] == [0.25, 0.25]


# Refused ---------------------------------------------------------------------------------------------


def test_a_candidate_that_gate_raters_dislike_is_refused_whatever_the_training_model_thinks(settings_of, learner_of):
    """Gate raters are of the opposite taste: what pleases the training reward model must not go live."""
    learner = learner_of(settings_of(Split.GATE))
    result = look(learner, CHANNEL, Watch())
    assert result.outcome is TurnOutcome.REJECTED
    assert "win_base" in result.reason
    assert checks(learner, 1)["win_base"]["value"] < 0.5
    assert states(learner) == [ReleaseState.REJECTED]
    assert learner.registry.state(CHANNEL).live == 0


def test_a_planted_bad_candidate_is_refused_and_not_made_again(settings_of, learner_of, monkeypatch):
    learner = learner_of(settings_of())
    rewards = completions.ModelReward

    class Contrary(rewards):
        def __call__(self, samples):
            found = super().__call__(samples)
            return found._replace(totals=-found.totals)

    monkeypatch.setattr(completions, "ModelReward", Contrary)
    result = look(learner, CHANNEL, Watch())
    assert result.outcome is TurnOutcome.REJECTED, result.reason
    assert "win_base" in result.reason
    assert states(learner) == [ReleaseState.REJECTED]
    again = look(learner, CHANNEL, Watch(), force=True)
    assert again.outcome is TurnOutcome.WAITED
    assert states(learner) == [ReleaseState.REJECTED], "nothing is new, so nothing is made again"


def test_a_reward_model_that_calibration_raters_contradict_steers_nothing_and_is_not_fitted_again(
    settings_of, learner_of, monkeypatch
):
    settings = settings_of(Split.CALIBRATION)
    learner = learner_of(settings)
    result = look(learner, CHANNEL, Watch())
    assert result.outcome is TurnOutcome.REFUSED
    assert "reward_accuracy" in result.reason
    assert states(learner) == []
    remembered = learner.outcomes.last(CHANNEL)
    assert (remembered.outcome, remembered.reason) == ("refused", result.reason)

    def refit(*_, **__):
        raise AssertionError("fitted again from the same evidence")

    with monkeypatch.context() as patch:
        patch.setattr("plaudit.learner.steps.fit.fit_reward", refit)
        for force in (False, True):
            assert look(learner, CHANNEL, Watch(), force=force).outcome is TurnOutcome.WAITED
        with learner.leases.take("test") as lease, new_turn(learner, CHANNEL, 1, lease) as turn:
            assert "nothing new since it was refused" in run(turn).reason
        assert look(learner_of(settings), CHANNEL, Watch()).outcome is TurnOutcome.WAITED, "another process knows too"

    other = settings.model_copy(update={"reward": settings.reward.model_copy(update={"heads": 3})})
    assert look(learner_of(other), CHANNEL, Watch()).outcome is TurnOutcome.REFUSED, "other settings are worth a try"


def test_a_channel_of_thumbs_alone_makes_a_release(settings_of, learner_of):
    """Nobody ever compared two answers: the reward model is judged by thumbs up against thumbs down of one rater."""
    learner = learner_of(settings_of(THUMBS_ALONE))
    result = look(learner, CHANNEL, Watch())
    assert result.outcome is TurnOutcome.PROMOTED, result.reason
    with tempfile.TemporaryDirectory() as folder:
        release = learner.registry.fetch(CHANNEL, 1, Path(folder) / "release")
        report = RewardReport.from_json((release / "reward_report.json").read_text())
    assert report.facts["pairs"] == report.facts["rankings"] == 0
    assert report.facts["treatment_choice"]["judged_by"] == "thumbs"
    assert "no_reference" not in report.facts["left_out"], "what the log lacks was sampled"
    assert report.comparisons >= learner.settings.gate.reward_comparisons
    # Their spread within a prompt is about one, as that of any fitted head; it used to be arbitrary.
    assert all(0.05 < scale < 20 for scale in report.scales)


def test_too_few_thumbs_are_waited_for_by_their_name(settings_of, learner_of):
    learner = learner_of(settings_of(THUMBS_ALONE, gate={"reward_comparisons": 5_000}))
    assert "of 5000 calibration contrasts between one rater's thumbs" in look(learner, CHANNEL, Watch()).reason


# Waiting ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"learn": {"min_events": 10_000}}, " of 10000 new training events"),
        ({"gate": {"reward_comparisons": 5_000, "reward_raters": 40}}, " of 5000 calibration comparisons"),
        ({"gate": {"prompts": 500, "min_prompts": 500}}, " of 500 gate prompts"),
        ({"policy": {"max_tokens": 500}}, "more are too long for the context"),
    ],
)
def test_a_turn_that_waits_says_for_what_and_how_far_it_is(settings_of, learner_of, changes, words):
    learner = learner_of(settings_of(**changes))
    result = look(learner, CHANNEL, Watch())
    assert result.outcome is TurnOutcome.WAITED
    assert words in result.reason
    need = next(need for need in result.needs if not need.met)
    labels = {"channel": str(CHANNEL), "need": need.what}
    sample = learner.metrics.registry.get_sample_value
    assert (sample("plaudit_turn_have", labels), sample("plaudit_turn_want", labels)) == (need.have, need.want)
    assert states(learner) == []


def test_prompts_that_this_base_s_template_refuses_are_counted_and_end_no_turn(learner):
    learner.base.tokenizer.chat_template = "{{ raise_exception('no lists') }}"
    result = look(learner, CHANNEL, Watch())
    assert result.outcome is TurnOutcome.WAITED
    assert "more are refused by the plugin or the chat template" in result.reason


@pytest.mark.parametrize(
    ("asked", "rate"),
    [
        ({}, lambda reply, i: reply.choose(i % 2, 1 - i % 2, rater="one rater only")),
        ({}, lambda reply, i: reply.choose(0, 1, tie=True, tie_offered=True, rater=f"rater-{i}")),
        ({"temperature": 0.0}, lambda reply, i: reply.choose(0, 1, rater=f"rater-{i}")),
        ({}, lambda reply, i: reply.thumbs_up(0, rater="one rater only")),
    ],
    ids=["one rater", "all ties", "identical completions", "one rater's thumbs"],
)
def test_evidence_that_compares_nothing_makes_a_turn_wait_and_not_fail(settings_of_few, learner_of, asked, rate):
    learner = learner_of(settings_of_few(rate, **asked))
    result = look(learner, CHANNEL, Watch(), force=True)
    assert result.outcome in (TurnOutcome.WAITED, TurnOutcome.REFUSED), result.reason
    assert states(learner) == []


def test_a_look_that_read_everything_to_find_too_little_is_not_repeated_at_once(settings_of, learner_of):
    learner, watch = learner_of(settings_of(gate={"reward_comparisons": 5_000})), Watch()
    assert look(learner, CHANNEL, watch).outcome is TurnOutcome.WAITED
    assert look(learner, CHANNEL, watch) is None
    assert look(learner, CHANNEL, watch, force=True).outcome is TurnOutcome.WAITED


def test_new_events_are_those_of_train_raters_on_train_groups_since_the_last_turn(learner):
    salt = learner.registry.salt(CHANNEL)
    rows = learner.store.freeze(CHANNEL, salt).rows
    ours = [row for row in rows if (row.rater_split, row.group_split) == (Split.TRAIN, Split.TRAIN)]
    acts = {(row.interaction_id, row.feedback_id): row.accepted_at for row in ours}
    assert 0 < len(acts) < len({(row.interaction_id, row.feedback_id) for row in rows})
    assert learner.store.count_new(CHANNEL, salt, None) == len(acts)
    middle = sorted(acts.values())[len(acts) // 2]
    assert learner.store.count_new(CHANNEL, salt, middle) == sum(at > middle for at in acts.values())


def test_few_raters_split_prompts_alone(settings_of, learner_of):
    # Whether so little evidence makes a release better than the base is chance: the gate is asked for less here.
    learner = learner_of(settings_of(gate={"win_base": 0.3}))
    salt = learner.registry.salt(CHANNEL)
    rows = learner.store.freeze(CHANNEL, salt, few_raters=True).rows
    acts = {(row.interaction_id, row.feedback_id) for row in rows if row.group_split is Split.TRAIN}
    assert learner.store.count_new(CHANNEL, salt, None, few_raters=True) == len(acts)
    inner = learner.plugins[CHANNEL.domain]
    few = Wrapped(inner, declaration=dataclasses.replace(inner.declaration, few_raters=True))
    result = look(dataclasses.replace(learner, plugins={CHANNEL.domain: few}), CHANNEL, Watch())
    assert result.outcome is TurnOutcome.PROMOTED, result.reason
    judges = {row.who for row in rows if row.group_split is Split.CALIBRATION}
    assert checks(learner, 1)["reward_raters"]["value"] == len(judges)


# Overtaken -------------------------------------------------------------------------------------------


def test_a_turn_that_an_operator_overtook_stays_gated_and_says_so(learner, monkeypatch):
    """Pinned and unpinned while it trained: the channel is as it was, and still somebody touched it."""
    at_step(monkeypatch, 4, lambda: (change(learner, Pin(True)), change(learner, Pin(False))))
    result = look(learner, CHANNEL, Watch())
    assert result.outcome is TurnOutcome.OVERTAKEN
    assert states(learner) == [ReleaseState.GATED]
    assert learner.registry.state(CHANNEL).live == 0
    check = checks(learner, 1)["overtaken"]
    assert (check["threshold"], check["value"]) == (0.0, 2.0)
    for _ in range(2):
        look(learner, CHANNEL, Watch())
    assert learner.registry.state(CHANNEL).live == 0, "no later look promotes it either"
    change(learner, Promote(1))
    assert learner.registry.state(CHANNEL).live == 1, "an operator may"


def test_a_second_turn_starts_from_what_is_live_and_a_roll_back_meanwhile_wins(
    settings_of, learner_of, ask_more, monkeypatch
):
    # Whether so little evidence makes a release better than another is chance: the gate is asked for less here.
    settings = settings_of(reward={"layer": 2}, gate={"win_base": 0.3, "win_live": 0.3})
    first = look(learner_of(settings), CHANNEL, Watch())
    assert first.outcome is TurnOutcome.PROMOTED, first.reason
    ask_more(settings, range(200, 300))
    # Where the reward model reads is changed while a release is live.
    changed = settings.model_copy(update={"reward": settings.reward.model_copy(update={"layer": 1})})
    learner = learner_of(changed)
    at_step(monkeypatch, 5, lambda: change(learner, RollBack()))
    result = look(learner, CHANNEL, Watch())
    assert result.outcome is TurnOutcome.OVERTAKEN, result.reason
    assert learner.registry.manifest(CHANNEL, 2).parent == 1
    assert checks(learner, 2)["reward_against_live"]["note"] != "no reward model is live"
    assert states(learner) == [ReleaseState.ROLLED_BACK, ReleaseState.GATED]
    assert learner.registry.state(CHANNEL).live == 0
    third = look(learner, CHANNEL, Watch(), force=True)
    assert third.outcome is TurnOutcome.WAITED, "what both turns learnt from is not new"


def test_a_pinned_channel_is_trained_and_not_promoted(learner):
    change(learner, Pin(True))
    assert look(learner, CHANNEL, Watch()).outcome is TurnOutcome.GATED
    assert learner.registry.state(CHANNEL).live == 0


# Deaths ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", range(1, 8))
def test_a_death_at_any_step_is_made_good_by_the_next_look(settings_of, learner_of, monkeypatch, step):
    learner = learner_of(settings_of())

    def die():
        raise Died

    at_step(monkeypatch, step, die)
    with pytest.raises(Died):
        look(learner, CHANNEL, Watch())
    after_death = states(learner)
    if step < 5:
        # Nothing is left of it, so that the next turn is as the first one.
        assert (after_death, adapters.names(learner.base), learner.engine.staged()) == ([], [], {})
        assert learner.leases.holder(LEASE.format(channel=CHANNEL)) is None
        return
    result = look(learner, CHANNEL, Watch())
    live = learner.registry.state(CHANNEL).live
    if step == 5:
        assert (after_death, result.outcome, live) == ([], TurnOutcome.PROMOTED, 1)
    elif step == 6:
        # Registered without a decision: rejected, and its evidence makes another.
        assert after_death == [ReleaseState.TRAINED]
        assert (states(learner), live) == ([ReleaseState.REJECTED, ReleaseState.LIVE], 2)
    else:
        assert after_death == [ReleaseState.GATED]
        assert (result.outcome, states(learner), live) == (TurnOutcome.WAITED, [ReleaseState.LIVE], 1)


def test_what_a_dead_turn_left_gated_is_not_promoted_over_people(settings_of, learner_of, monkeypatch):
    learner = learner_of(settings_of())

    def die():
        raise Died

    at_step(monkeypatch, 7, die)
    with pytest.raises(Died):
        look(learner, CHANNEL, Watch())
    change(learner, Pin(True))
    look(learner, CHANNEL, Watch())
    change(learner, Pin(False))
    look(learner, CHANNEL, Watch())
    assert states(learner) == [ReleaseState.GATED]
    assert checks(learner, 1)["overtaken"]["value"] == 2.0


def test_a_gated_release_that_does_not_say_from_which_generation_it_came_is_left_to_people(learner, tmp_path):
    """As releases of 0.1.0: what happened since cannot be known."""
    empty = tmp_path / "empty"
    empty.mkdir()
    learner.registry.register(Manifest(channel=CHANNEL, parent=0, base_digest=learner.base.digest), empty)
    learner.registry.decide(CHANNEL, 1, Decision(True, (), dt.datetime.now(dt.UTC)))
    with learner.leases.take("test") as lease:
        recover(learner, CHANNEL, lease, may_promote=True)
    assert states(learner) == [ReleaseState.GATED]
    assert "overtaken" in checks(learner, 1)


@pytest.mark.slow
def test_a_killed_process_leaves_serving_as_it_was(settings_of, tmp_path):
    settings = settings_of()
    config = tmp_path / "plaudit.toml"
    table = settings.model_dump(mode="json")
    table["serve"].pop("handle_keys")
    table["serve"].pop("pseudonym_key")
    table["store"].pop("url")
    config.write_text(toml(table))
    environ = {**os.environ, FAIL_POINT_VARIABLE: "learn.2"}
    command = [sys.executable, "-m", "plaudit", "learn", "--once", "--config", str(config)]
    killed = subprocess.run(command, env=environ, capture_output=True, timeout=500, check=False)
    assert killed.returncode == EXIT_CODE, killed.stderr.decode()[-2000:]
    with Registry(settings.store_url, settings.registry_root) as registry:
        assert registry.state(CHANNEL).live == 0
        assert [row.version for row in registry.releases(CHANNEL)] == [0]


# Faults ----------------------------------------------------------------------------------------------


def raises(error):
    def raising(*_, **__):
        raise error

    return raising


@pytest.mark.parametrize(
    ("where", "error"),
    [
        ("plaudit.learner.actions.completions.Ppo.optimise", MemoryError()),
        ("plaudit.learner.steps.fit.measure", OSError(28, "No space left on device")),
        ("plaudit.learner.staging.adapters.load", ValueError("a secret that a person wrote")),
    ],
)
def test_what_breaks_a_turn_ends_it_by_name_backs_off_and_leaves_nothing_behind(
    settings_of, learner_of, monkeypatch, where, error
):
    learner, watch = learner_of(settings_of()), Watch()
    with monkeypatch.context() as patch:
        patch.setattr(where, raises(error))
        result = look(learner, CHANNEL, watch)
    assert result.outcome is TurnOutcome.FAILED
    assert type(error).__name__ in result.reason
    assert "secret" not in result.reason
    assert learner.outcomes.last(CHANNEL).outcome == "failed"
    assert look(learner, CHANNEL, watch) is None, "it rests"
    assert (watch.failures, adapters.names(learner.base), learner.engine.staged()) == (1, [], {})
    result = look(learner, CHANNEL, watch, force=True)
    assert result.outcome is TurnOutcome.PROMOTED, result.reason
    assert watch.failures == 0


def test_a_fit_that_broke_leaves_no_adapter_on_the_base(settings_of, learner_of, monkeypatch):
    learner = learner_of(settings_of(reward={"adapter": True}))
    monkeypatch.setattr("plaudit.reward.fit._features", raises(MemoryError()))
    assert look(learner, CHANNEL, Watch()).outcome is TurnOutcome.FAILED
    assert adapters.names(learner.base) == []


def test_a_plugin_that_raises_and_a_damaged_release_end_that_turn_alone(settings_of, learner_of, ask_more):
    settings = settings_of()
    learner = learner_of(settings)
    plugin = Wrapped(learner.plugins[CHANNEL.domain], parse=raises(KeyError("boom")))
    broken = dataclasses.replace(learner, plugins={CHANNEL.domain: plugin})
    assert look(broken, CHANNEL, Watch()).outcome is TurnOutcome.FAILED
    assert look(learner, CHANNEL, Watch()).outcome is TurnOutcome.PROMOTED
    ask_more(settings, range(200, 250))
    folder = next((settings.data_dir / "registry").rglob("adapter_model.safetensors"))
    folder.chmod(0o644)
    folder.write_bytes(folder.read_bytes()[:-7])
    result = look(learner, CHANNEL, Watch())
    assert result.outcome is TurnOutcome.FAILED
    assert "SHA-256" in result.reason
    assert learner.registry.state(CHANNEL).live == 1


@pytest.mark.parametrize(
    ("reward", "words", "why"),
    [(time.sleep, "has not returned", "late"), (lambda _: float("nan"), "a term of nan", "unusable")],
)
def test_a_reward_that_sleeps_or_is_no_number_ends_that_turn_alone(settings_of, learner_of, reward, words, why):
    learner = learner_of(settings_of())
    sound = learner.plugins[CHANNEL.domain].inner

    class Unsound(type(sound)):
        def reward(self, prompt, outcome, score):
            return RewardTerms(terms=(("score", reward(10)),))

    plugins = guard([Unsound()], budget_seconds=1.0)
    count_failures(plugins, learner.metrics)
    result = look(dataclasses.replace(learner, plugins=plugins), CHANNEL, Watch())
    assert result.outcome is TurnOutcome.FAILED
    assert words in result.reason
    labels = {"domain": CHANNEL.domain, "member": "reward", "why": why}
    assert learner.metrics.registry.get_sample_value("plaudit_plugin_failures_total", labels) == 1
    assert look(learner, CHANNEL, Watch()).outcome is TurnOutcome.PROMOTED, "what it left behind hurts nobody"


# Two learners ----------------------------------------------------------------------------------------


def test_of_two_learners_one_works_and_the_other_waits_and_says_so(settings_of, learner_of, monkeypatch):
    settings = settings_of()
    first, second = learner_of(settings), learner_of(settings)
    found = []
    # The first one's release stands there without a decision.
    at_step(monkeypatch, 6, lambda: found.append(look(second, CHANNEL, Watch())))
    result = look(first, CHANNEL, Watch())
    assert [each.outcome for each in found] == [TurnOutcome.WAITED]
    assert first.leases.owner in found[0].reason
    assert result.outcome is TurnOutcome.PROMOTED
    assert states(first) == [ReleaseState.LIVE]
    assert look(second, CHANNEL, Watch()).outcome is TurnOutcome.WAITED
    assert first.leases.holder(LEASE.format(channel=CHANNEL)) is None


def test_a_learner_that_lost_its_lease_writes_nothing_more(settings_of, learner_of, monkeypatch):
    """It was stopped for longer than its lease, and another began in the meantime."""
    settings = settings_of()
    first, second = learner_of(settings), learner_of(settings)

    def stopped():
        with first.store.database.writing() as connection:
            connection.execute(LEASES.update().values(owner="", expires_at=dt.datetime.now(dt.UTC)))
        second.leases.take(LEASE.format(channel=CHANNEL))

    at_step(monkeypatch, 5, stopped)
    result = look(first, CHANNEL, Watch())
    assert result.outcome is TurnOutcome.OVERTAKEN, result.reason
    assert states(first) == []
    counted = {"channel": str(CHANNEL), "outcome": "overtaken"}
    assert first.metrics.registry.get_sample_value("plaudit_turns_total", counted) == 1


# What people are told --------------------------------------------------------------------------------


def test_status_says_what_is_live_what_the_next_turn_waits_for_and_how_the_last_one_ended(settings_of, learner_of):
    settings = settings_of(gate={"reward_comparisons": 5_000, "reward_raters": 40})
    learner = learner_of(settings)
    plugins = learner.plugins
    (before,) = deployment(settings, plugins).channels
    events = learner.store.count_new(CHANNEL, learner.registry.salt(CHANNEL), None)
    assert (before.live, before.turns, str(before.needs[0])) == (0, (), f"{events} of 20 new training events")
    result = look(learner, CHANNEL, Watch())
    with learner.leases.take(LEASE.format(channel=CHANNEL)):
        found = deployment(settings, plugins, CHANNEL)
    (after,) = found.channels
    assert (after.said, after.learner) == (result.reason, learner.leases.owner)
    assert "a turn runs" in as_text(found)
    text = as_text(deployment(settings, plugins))
    assert "version 0, the base, since" in text
    # What is counted without the model is what the turn counted with it.
    counted = {need.what: need.have for need in after.needs}
    assert all(counted[need.what] == need.have for need in result.needs if "calibration" in need.what)
    assert " of 5000 calibration comparisons; " in text
    assert " of 40 calibration raters" in text
    assert deployment(settings, plugins, Channel("instruction", "nobody")).channels == ()


def test_a_channel_that_waits_is_logged_once_per_change_and_not_once_per_look(settings_of, learner_of):
    learner, watch = learner_of(settings_of(learn={"min_events": 10_000})), Watch()
    with structlog.testing.capture_logs() as lines:
        for _ in range(3):
            look(learner, CHANNEL, watch, force=False)
            watch.rest_until = 0.0
        assert [line["outcome"] for line in lines] == ["waited"]
        with learner.leases.take(LEASE.format(channel=CHANNEL)):
            look(learner, CHANNEL, watch, force=True)
        assert [line["reason"].split(":")[0] for line in lines][1:] == ["another learner works on it"]


def test_the_loop_goes_on_while_a_channel_or_the_store_fails(settings_of, monkeypatch):
    """One channel's database error and an unreadable store are no end of the process."""
    settings = settings_of(learn={"max_turns": 2})
    away = StoreUnavailable("the database is away")
    state, channels, asked = Registry.learning_state, EvidenceStore.channels, []

    def of_state(self, channel):
        if channel.tenant == "broken":
            raise away
        return state(self, channel)

    def some_channels(self):
        asked.append(self)
        if len(asked) == 1:
            raise away
        return [Channel("instruction", "broken"), *channels(self)]

    monkeypatch.setattr(Registry, "learning_state", of_state)
    monkeypatch.setattr(EvidenceStore, "channels", some_channels)
    with structlog.testing.capture_logs() as lines:
        results = loop.learn(settings)
    assert [result.outcome for result in results] == [TurnOutcome.FAILED, TurnOutcome.PROMOTED]
    assert results[0].reason == "the database is away"
    (waited,) = (line for line in lines if line["event"] == "learn.waits")
    assert (waited["why"], waited["seconds"]) == ("the database is away", waiting.FIRST_SECONDS)
