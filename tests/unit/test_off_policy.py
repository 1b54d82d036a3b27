"""Reactions to drawn orders: what they are worth, which count, and what they say about another release."""

from __future__ import annotations

import dataclasses
import datetime as dt
import math
from types import MappingProxyType

import pytest
from plaudit.domain import Declaration, OptionScore
from plaudit.evidence.splits import Split
from plaudit.evidence.store import EvidenceRow, FrozenDataSet
from plaudit.learner.off_policy import OffPolicyLog, Reacted, Shows, reactions, rewards_of
from plaudit.ordering import draw, first_probabilities
from plaudit.release.estimate import estimate
from plaudit.types import (
    Action,
    Binary,
    Candidate,
    Channel,
    FeedbackKind,
    Interaction,
    Label,
    Message,
    Pair,
    PairOutcome,
    Purpose,
    RankingEvidence,
    Sampling,
    Scalar,
)

NOW = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
VERDICTS = Declaration(
    name="verdicts",
    version="1",
    action=Action.CHOICE,
    kinds=frozenset({FeedbackKind.LABEL}),
    labels=frozenset({"a", "b", "c"}),
)
SLATES = Declaration(
    name="slates",
    version="1",
    action=Action.CHOICE,
    kinds=frozenset({FeedbackKind.CHOICE}),
    place_weights=(1.0, 0.5),
)
COSTS = {("a", "b"): 4.0}


def interaction(number=0, scores=(1.0, 0.0, -1.0), valid=(True, True, True), **changes):
    """An order of a, b and c, drawn by their scores."""
    order = draw(scores, number, valid)
    probabilities = first_probabilities(scores, valid)
    candidates = tuple(
        Candidate(
            candidate_id="abc"[place],
            release_version=0,
            release_digest="",
            tokens=(place, 9),
            logprobs_raw=(),
            logprobs_sampled=(scores[place],),
            text="abc"[place],
            displayed_text="abc"[place],
            finish_reason=None,
            sampling=Sampling(),
            seed=0,
            width=0,
            probability=probabilities[place],
            propensity=propensity,
            valid=valid[place],
            option_id="abc"[place],
            place=place,
        )
        for place, propensity in zip(order.places, order.propensities, strict=True)
    )
    facts = {
        "interaction_id": f"i{number:04d}",
        "channel": Channel("verdicts", "default"),
        "purpose": Purpose.EXPLORE,
        "action": Action.CHOICE,
        "messages": (Message("user", "which?"),),
        "prompt_group": "which?",
        "candidates": candidates,
        "completed_at": NOW + dt.timedelta(seconds=number),
        "prompt_tokens": (1, 2),
        "order_logprob": order.logprob,
    }
    return Interaction(**{**facts, **changes})


def data_of(*reacted):
    """A data set of (interaction, who, evidence, split of its group)."""
    rows = tuple(
        EvidenceRow(
            interaction_id=each.interaction_id,
            feedback_id=f"f{number}",
            index=0,
            kind=FeedbackKind.SIGNAL,
            evidence=evidence,
            who=who,
            accepted_at=NOW,
            rater_split=Split.TRAIN,
            group_split=split,
            prompt_group=each.prompt_group,
        )
        for number, (each, who, evidence, split) in enumerate(reacted)
    )
    interactions = MappingProxyType({each.interaction_id: each for each, *_ in reacted})
    return FrozenDataSet(
        channel=Channel("verdicts", "default"),
        as_of=NOW,
        digest="",
        offsets=(),
        rows=rows,
        interactions=interactions,
    )


@pytest.mark.parametrize(
    ("evidence", "rewards"),
    [
        ([Binary(candidate="a", positive=True)], {"a": 1.0}),
        ([Binary(candidate="a", positive=False)], {"a": 0.0}),
        ([Scalar(candidate="b", value=0.3), Binary(candidate="b", positive=True)], {"b": 0.65}),
        ([Pair(first="a", second="c", outcome=PairOutcome.SECOND)], {"a": 0.0, "c": 1.0}),
        ([Pair(first="a", second="c", outcome=PairOutcome.TIE, tie_offered=True)], {"a": 0.5, "c": 0.5}),
        ([RankingEvidence(order=("c", "a", "b"))], {"c": 1.0, "a": 0.5, "b": 0.0}),
        ([RankingEvidence(order=("c", "a", "b"), observed=1)], {"c": 1.0, "a": 0.0, "b": 0.0}),
        # Of the dearest mistake's cost of 4: deciding b for a costs all of it, c for a a quarter.
        ([Label(candidate="a", value="a")], {"a": 1.0, "b": 0.0, "c": 0.75}),
    ],
)
def test_what_people_say_becomes_a_reward_between_none_and_one(evidence, rewards):
    assert rewards_of(evidence, interaction(), VERDICTS, COSTS) == pytest.approx(rewards)


def test_a_label_says_nothing_about_options_that_are_no_verdicts():
    assert rewards_of([Label(candidate="a", value="a")], interaction(), SLATES, {}) == {}


def test_reactions_are_to_drawn_orders_of_gate_groups_alone():
    good = Binary(candidate="a", positive=True)
    drawn = interaction(1)
    first, *others = interaction(4).candidates
    redacted = (dataclasses.replace(first, redacted=True), *others)
    found = reactions(
        data_of(
            (drawn, "kept", good, Split.GATE),
            (drawn, "kept too", good, Split.GATE),
            (drawn, "learnt from", good, Split.TRAIN),
            (interaction(2, purpose=Purpose.SERVE), "served", good, Split.GATE),
            (interaction(3, action=Action.COMPLETION), "completion", good, Split.GATE),
            (interaction(4, candidates=redacted), "redacted", good, Split.GATE),
        ),
        VERDICTS,
        {},
        most=10,
    )
    assert [each.who for each in found] == ["kept", "kept too"]


def test_the_newest_reactions_count_if_there_are_many():
    good = Binary(candidate="a", positive=True)
    data = data_of(*((interaction(n), f"r{n}", good, Split.GATE) for n in range(5)))
    assert [each.who for each in reactions(data, VERDICTS, {}, most=2)] == ["r3", "r4"]


def log_of(count=200, declared=VERDICTS, **changes):
    """Everybody likes b, and nothing else."""
    drawn = [interaction(n, **changes) for n in range(count)]
    likes = [
        (each, f"r{each.interaction_id}", Binary(candidate=c.candidate_id, positive=c.candidate_id == "b"), Split.GATE)
        for each in drawn
        for c in each.candidates
    ]
    return OffPolicyLog(reactions(data_of(*likes), declared, {}, most=count), declared, {}, seed=0), drawn


def scores_of(drawn, **by_id):
    return {each.interaction_id: [by_id[c.candidate_id] for c in each.candidates] for each in drawn}


def test_a_verdict_is_weighed_by_its_exact_first_place():
    log, drawn = log_of()
    same = log.shown(scores_of(drawn, a=1.0, b=0.0, c=-1.0), Shows.DRAWN)
    assert all(each.logged == pytest.approx(each.target) for each in same)
    assert [each.logged[0] for each in same] == pytest.approx([each.candidates[0].propensity for each in drawn])
    other = log.shown(scores_of(drawn, a=0.0, b=math.log(2), c=-50.0), Shows.DRAWN)
    # A release that shows b two times in three is worth two thirds.
    assert estimate(other, min_ess=10).snips.value == pytest.approx(2 / 3, abs=0.12)


def test_a_release_that_serves_shows_its_decision():
    log, drawn = log_of()
    served = log.shown(scores_of(drawn, a=0.0, b=0.1, c=0.0), Shows.SERVED)
    assert {each.target for each in served} == {(0.0,), (1.0,)}
    assert estimate(served, min_ess=10).snips.value == 1.0
    dear = OffPolicyLog(log.reacted, VERDICTS, {("a", "b"): 50.0}, seed=0)
    assert estimate(dear.shown(scores_of(drawn, a=0.0, b=0.1, c=0.0), Shows.SERVED), min_ess=10).snips.value == 0.0


def test_an_option_that_is_not_valid_has_no_chance_before_a_valid_one():
    log, drawn = log_of(valid=(True, True, False))
    for how in Shows:
        shown = log.shown(scores_of(drawn, a=0.0, b=0.0, c=9.0), how)
        first = [each.candidates[0].candidate_id for each in drawn]
        assert set(first) == {"a", "b"}
        assert sum(each.target[0] for each in shown) > 0
    assert [each.logged[0] for each in shown] == pytest.approx([each.candidates[0].propensity for each in drawn])


def test_a_slate_is_weighed_place_by_place():
    log, drawn = log_of(declared=SLATES)
    shown = log.shown(scores_of(drawn, a=0.0, b=0.0, c=0.0), Shows.DRAWN)
    assert all(each.target == pytest.approx((1 / 3, 1 / 3)) for each in shown)
    assert all(len(each.rewards) == 2 for each in shown)
    # b stands first a third of the time and second a third: 1/3 + .5/3.
    found = estimate(shown, place_weights=SLATES.place_weights, min_ess=10)
    assert found.snips.value == pytest.approx(0.5, abs=0.1)
    served = log.shown(scores_of(drawn, a=0.0, b=1.0, c=-1.0), Shows.SERVED)
    assert estimate(served, place_weights=SLATES.place_weights, min_ess=10).snips.value == 1.0


def test_a_slate_with_fewer_options_than_places_leaves_the_last_places_out():
    drawn = interaction(0)
    short = interaction(0, candidates=drawn.candidates[:1])
    data = data_of((short, "r", Binary(candidate=short.candidates[0].candidate_id, positive=True), Split.GATE))
    log = OffPolicyLog(reactions(data, SLATES, {}, most=1), SLATES, {}, seed=0)
    (shown,) = log.shown({short.interaction_id: [0.0]}, Shows.DRAWN)
    assert (shown.rewards, shown.target) == ((1.0, None), (1.0, 0.0))


def test_invalid_options_are_reckoned_by_the_mean_if_the_draw_did():
    # Two invalid options of one score per token, one of four hundred tokens and one of three: as likely in their place.
    declared = dataclasses.replace(SLATES, option_score=OptionScore.MEAN, place_weights=(1.0, 0.8, 0.6))
    drawn = interaction(scores=(0.0, -2.0, -2.0), valid=(True, False, False))
    long = {"b": (-2.0,) * 400, "c": (-2.0,) * 3}
    candidates = tuple(
        dataclasses.replace(each, logprobs_sampled=long.get(each.option_id, each.logprobs_sampled))
        for each in drawn.candidates
    )
    drawn = dataclasses.replace(drawn, candidates=candidates)
    reacted = [Reacted(interaction=drawn, who="ann", rewards={"a": 1.0})]
    (shown,) = OffPolicyLog(reacted, declared, {}, seed=0).shown({drawn.interaction_id: [0.0] * 3}, Shows.DRAWN)
    assert shown.logged[1] == pytest.approx(0.5, abs=0.1)
