"""Turns of a channel of choices on a tiny real model with its real gate: what people label is what is decided."""

import dataclasses
import json
import math

import pytest
import torch
from plaudit.engine import adapters
from plaudit.engine.protocol import ReleaseKey
from plaudit.evidence.splits import Split, group_split
from plaudit.learner.actions import choices
from plaudit.learner.look import Watch, look
from plaudit.learner.outcome import TurnOutcome
from plaudit.plugins import guard
from plaudit.policy.choose import Judged
from plaudit.policy.option_scores import OptionScorer
from plaudit.policy.rollout import TrainPrompt
from plaudit.types import Channel, Message, Option, Prompt, RewardTerms

CHANNEL = Channel("echo-choice", "default")
OPTIONS = [Option("yes", "cup"), Option("no", " And")]


def checks(learner, version):
    decision = json.loads(learner.registry.release(CHANNEL, version).decision_json)
    return {check["name"]: check for check in decision["checks"]}


def trainers_probabilities(learner, settings, texts, temperature):
    """Probability of each text's first option by the trainer's own pass over the release's adapter."""
    engine = learner.engine
    prompts = [
        TrainPrompt(
            rendered=Prompt(messages=(Message("user", text),), group=text),
            encoded=engine.encode([Message("user", text)]),
            options=tuple(engine.encode_text(option.text) for option in OPTIONS),
        )
        for text in texts
    ]
    layers = learner.base.num_layers - settings.model.adapter_layers
    scorer = OptionScorer(learner.base, layers, temperature=temperature, end_of_turn=engine.end_of_turn)
    folder = learner.registry.fetch(CHANNEL, 1, settings.data_dir / "fetched")
    adapters.load(learner.base, "trained", folder / "policy")
    scores = torch.stack(scorer.scores(prompts, "trained"))
    adapters.remove(learner.base, "trained")
    return torch.softmax(scores, -1)[:, 0].tolist()


def test_labels_change_what_is_decided_and_what_is_served_is_what_was_trained(
    verdict_settings, learner_of, served_by, monkeypatch
):
    settings = verdict_settings()
    learner = learner_of(settings)
    tasks = []
    optimise = choices.ChoiceOptimizer.optimise
    monkeypatch.setattr(
        choices.ChoiceOptimizer, "optimise", lambda self, task: tasks.append(task) or optimise(self, task)
    )
    result = look(learner, CHANNEL, Watch())
    assert result.outcome is TurnOutcome.PROMOTED, result.reason
    # No update has seen a gate prompt, nor its labels.
    salt = learner.registry.salt(CHANNEL)
    task = tasks[0]
    trained = {prompt.group for prompt in [*task.train, *task.held_out]} | set(task.labels)
    assert {group_split(salt, group, True) for group in trained} == {Split.TRAIN}
    assert len(task.labels) == len(task.train) + len(task.held_out)
    assert all(0.8 < max(weights) <= 1.0 and min(weights) == 0.0 for weights in task.labels.values())
    found = checks(learner, 1)
    assert found["label_accuracy"]["value"] > 0.9
    assert found["reward_base"]["low"] > 0.0
    assert adapters.names(learner.base) == []
    assert not learner.engine.staged()
    manifest = learner.registry.manifest(CHANNEL, 1)
    assert manifest.probes
    asked = {row.prompt_tokens for row in learner.store.prompts(CHANNEL)}
    assert not asked & {probe.prompt_tokens for probe in manifest.probes}
    assert [each["labelled"] for each in manifest.settings["iterations"]] == [32] * 8

    # A replica that starts proves the release before it serves it.
    texts = [f"list {number} kinds of tea" for number in range(300, 306)]
    texts += [f"want {number} big books" for number in range(300, 306)]
    with served_by(settings) as client:
        decisions = [client.choose(CHANNEL.domain, text, OPTIONS) for text in texts]
    assert {each.release_version for each in decisions} == {1}
    assert [each.decided.option_id for each in decisions] == ["yes"] * 6 + ["no"] * 6
    wanted = trainers_probabilities(learner, settings, texts, manifest.temperature)
    served = [next(o.probability for o in each.ranking if o.option_id == "yes") for each in decisions]
    assert served == pytest.approx(wanted, abs=1e-3)
    again = look(learner, CHANNEL, Watch())
    assert again.outcome is TurnOutcome.WAITED


def test_a_second_turn_starts_from_the_live_release_and_is_held_against_it(verdict_settings, learner_of, label_more):
    # The first turn stops early, so that there is something left to learn.
    settings = verdict_settings(policy={"iterations": 1, "choice_update_kl": 0.05})
    learner = learner_of(settings)
    first = look(learner, CHANNEL, Watch())
    assert first.outcome is TurnOutcome.PROMOTED, first.reason
    label_more(settings, range(400, 440))
    second = look(learner, CHANNEL, Watch())
    assert second.outcome is TurnOutcome.PROMOTED, second.reason
    manifest = learner.registry.manifest(CHANNEL, 2)
    assert manifest.parent == 1
    start = manifest.settings["iterates"][0]
    assert start["kl_live_nats_per_sequence"] == pytest.approx(0.0, abs=1e-6)
    assert start["kl_base_nats_per_sequence"] > 1e-3
    found = checks(learner, 2)
    assert found["kl_live"]["value"] != found["kl_base"]["value"]
    assert found["reward_live"]["value"] != found["reward_base"]["value"]


def test_a_candidate_that_gate_groups_contradict_is_refused(verdict_settings, learner_of, monkeypatch):
    """Planted: the policy is paid for the opposite of what people labelled."""
    learner = learner_of(verdict_settings(policy={"label_coef": 0.0}))
    paid = choices.OptionRewards

    class Contrary(paid):
        def __call__(self, prompts):
            return [Judged(1.0 - each.rewards, each.valid) for each in super().__call__(prompts)]

    monkeypatch.setattr(choices, "OptionRewards", Contrary)
    result = look(learner, CHANNEL, Watch())
    assert result.outcome is TurnOutcome.REJECTED, result.reason
    failed = {name for name, check in checks(learner, 1).items() if not check["passed"]}
    assert {"reward_base", "label_base"} <= failed
    assert learner.registry.state(CHANNEL).live == 0


@pytest.mark.parametrize("total", [math.nan, math.inf, 2.5])
def test_a_reward_of_options_that_is_no_bounded_number_ends_the_turn_alone(verdict_settings, learner_of, total):
    learner = learner_of(verdict_settings())
    plugin = learner.plugins[CHANNEL.domain].inner

    class Unbounded(type(plugin)):
        def reward(self, prompt, outcome, score):
            return RewardTerms(terms=(("wild", total),))

    broken = dataclasses.replace(learner, plugins=guard([Unbounded()]))
    result = look(broken, CHANNEL, Watch())
    assert result.outcome is TurnOutcome.FAILED
    assert "reward" in result.reason
    assert learner.registry.state(CHANNEL).live == 0
    assert adapters.names(learner.base) == []
    assert ReleaseKey(str(CHANNEL), 0, "") not in learner.engine.staged()
