"""What is measured of a candidate that chooses, by hand: rewards, distances, labels, probes."""

from __future__ import annotations

import datetime as dt
import math
from types import MappingProxyType, SimpleNamespace

import pytest
import torch
from plaudit.domain import GateProbe
from plaudit.engine.protocol import EncodedPrompt, ReleaseKey
from plaudit.evidence.splits import Split
from plaudit.evidence.store import EvidenceRow, FrozenDataSet
from plaudit.learner.actions.choice_measure import Asked, ChoiceMeasurer, compared, judged_decisions, labels_by_group
from plaudit.ordering import first_probabilities
from plaudit.plugins import load_plugins
from plaudit.release.probes import HarmRate
from plaudit.types import Binary, Channel, FeedbackKind, Label, Message, Option, Request, nameless

LOG3 = math.log(3)


def test_a_verdicts_reward_and_distance_are_exact():
    # Probabilities 3/4 and 1/4 against 1/4 and 3/4: reward 3/4 of 1 and 1/4 of 0; KL 3/4 log 3 - 1/4 log 3.
    found = compared(
        [[LOG3, 0.0]], [[[0.0, LOG3]], [[LOG3, 0.0]]], [torch.tensor([1.0, 0.0])], [[True, True]], (1.0,), seed=0
    )
    assert found.rewards == pytest.approx((0.75,))
    assert found.first_kl[0] == pytest.approx((0.5 * LOG3,))
    assert found.first_kl[1] == pytest.approx((0.0,))
    assert found.order_kl == ()


def test_prompts_with_fewer_options_and_invalid_ones_are_reckoned_as_served():
    scores = [[0.0, 1.0, 5.0], [2.0, 0.0]]
    valid = [[True, True, False], [True, True]]
    rewards = [torch.tensor([0.2, 0.8, -1.0]), torch.tensor([0.5, 0.1])]
    found = compared(scores, [], rewards, valid, (1.0,), seed=0)
    expected = [
        sum(p * r for p, r in zip(first_probabilities(s, v), each.tolist(), strict=True))
        for s, v, each in zip(scores, valid, rewards, strict=True)
    ]
    assert found.rewards == pytest.approx(tuple(expected))


def test_slates_are_compared_under_the_same_draws():
    rewards = [torch.tensor([1.0, 0.5, 0.0, 0.2])]
    valid = [[True] * 4]
    scores = [[0.3, 0.1, -0.2, 0.0]]
    ours = compared(scores, [scores, [[0.0] * 4]], rewards, valid, (1.0, 0.5), seed=3)
    theirs = compared(scores, [], rewards, valid, (1.0, 0.5), seed=3)
    assert ours.rewards == theirs.rewards
    assert ours.order_kl[0] == pytest.approx((0.0,))
    assert ours.order_kl[1][0] > ours.first_kl[1][0] > 0
    # Equal options: each of four in each place, (1 + .5) times their mean.
    even = compared([[0.0] * 4], [], rewards, valid, (1.0, 0.5), seed=3)
    assert even.rewards[0] == pytest.approx(1.5 * 0.425, abs=0.15)
    # A sure order has no spread: the best first, the next behind it.
    sure = compared([[90.0, 60.0, 0.0, 30.0]], [], rewards, valid, (1.0, 0.5), seed=3)
    assert sure.rewards == pytest.approx((1.25,))


def probe(number: int, *forbidden: str) -> GateProbe:
    request = Request(messages=(Message("user", f"case {number}"),))
    return GateProbe(probe_id=f"p{number}", request=request, forbidden=forbidden, harm="missed threat")


def test_a_case_fails_if_what_is_decided_is_forbidden_by_text_or_id():
    cases = (probe(0, "Allow it"), probe(1, "allowed"), probe(2, "Allow"), probe(3, "Block it"))
    rate, failed = judged_decisions(cases, [Option("allowed", "allow it")] * 4)
    assert rate == HarmRate(4, 2)
    assert [each.probe_id for each in failed] == ["p0", "p1"]
    assert (failed[0].harm, failed[0].question, failed[0].answer) == ("missed threat", "case 0", "allow it")


def frozen(*rows: tuple[str, str, object, Split, Split]) -> SimpleNamespace:
    made = tuple(
        EvidenceRow(
            interaction_id=f"i{number}",
            feedback_id=f"f{number}",
            index=0,
            kind=FeedbackKind.LABEL,
            evidence=evidence,  # type: ignore[arg-type]
            who=who,
            accepted_at=dt.datetime(2026, 1, 1, minute=number, tzinfo=dt.UTC),
            rater_split=rater,
            group_split=group_split,
            prompt_group=group,
        )
        for number, (group, who, evidence, rater, group_split) in enumerate(rows)
    )
    data = FrozenDataSet(
        channel=Channel("verdicts", "default"),
        as_of=dt.datetime(2026, 1, 1, tzinfo=dt.UTC),
        digest="",
        offsets=(),
        rows=made,
        interactions=MappingProxyType(
            {f"i{number}": SimpleNamespace(prompt_tokens=(len(group),)) for number, (group, *_) in enumerate(rows)}  # type: ignore[dict-item]
        ),
    )
    asked = [
        SimpleNamespace(group=group, encoded=EncodedPrompt((2,))) for group in ("g1", "g2", "g3", "g4", "g5", "other")
    ]
    return SimpleNamespace(data=data, gate=asked[1:], prompts=asked)  # a group that is asked beyond the gate's


def test_labels_of_the_gate_are_those_that_no_training_has_seen():
    def label(value: str) -> Label:
        return Label(candidate="c", value=value)

    gate, train = Split.GATE, Split.TRAIN
    found = labels_by_group(
        frozen(
            ("g1", "b", label("mild"), gate, gate),
            ("g1", "a", label("severe"), gate, gate),
            ("g1", "a", label("none"), gate, gate),  # the same person's newer word
            ("g1", "c", label("none"), train, gate),
            ("g2", "a", label("none"), gate, train),
            ("g3", "a", label("none"), Split.CALIBRATION, gate),
            ("g4", "a", Binary(candidate="c", positive=True), gate, gate),
            ("other", "a", label("none"), gate, gate),  # given to another prompt of the group
            ("g5", nameless(""), label("none"), gate, gate),  # of nobody who is named
        )  # type: ignore[arg-type]
    )
    assert found == {"g1": ("none", "mild")}


def test_a_case_that_cannot_be_asked_counts_as_not_asked_and_ends_no_turn():
    plugin = load_plugins(("echo-choice",))["echo-choice"]
    turn = SimpleNamespace(plugin=plugin, engine=None, settings=SimpleNamespace(decision=SimpleNamespace(costs=())))
    measurer = ChoiceMeasurer(turn)  # type: ignore[arg-type]
    rate, answers = measurer._harm([probe(0, "allow")], Asked(ReleaseKey("echo-choice/default", 1, "d"), None))
    assert (rate, answers) == (HarmRate(0, 0), [])
