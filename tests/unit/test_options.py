"""Options of logged requests as the learner reads them: what they are centred on, and what labels they have."""

import dataclasses
import datetime as dt

import pytest
from plaudit.engine.protocol import EncodedPrompt
from plaudit.evidence.splits import Split
from plaudit.evidence.store import EvidenceRow, FrozenDataSet
from plaudit.learner.actions.choices import labels
from plaudit.learner.references import MOST_OPTIONS, OptionReferences
from plaudit.plugins import load_plugins
from plaudit.policy.rollout import TrainPrompt
from plaudit.reward.completion import Completion
from plaudit.settings import RewardSettings
from plaudit.testing.evidence import CHANNEL, START, make_candidate, make_interaction
from plaudit.testing.training import Letters
from plaudit.types import FeedbackKind, Label, Message, Option, Prompt

OPTIONS = (Option("yes", "ja"), Option("no", "nein"))


def _prompt(group, options=OPTIONS):
    return TrainPrompt(
        rendered=Prompt(messages=(Message("user", group),), options=options, group=group),
        encoded=EncodedPrompt(tokens=(1, 2, 3)),
        options=tuple(Letters().encode_text(option.text) for option in options),
    )


def _choice(name, group, options=OPTIONS):
    """An interaction whose options were shown in reverse."""
    shown = tuple(
        dataclasses.replace(
            make_candidate(f"{name}-{option.option_id}"), tokens=(*map(ord, option.text), 0), text=option.text,
            displayed_text=option.text, option_id=option.option_id, place=place,
        )
        for place, option in reversed(list(enumerate(options)))
    )  # fmt: skip
    return dataclasses.replace(make_interaction(name, group=group), candidates=shown)


def _data(*given):
    """Labels (group, value, rater, split of the rater, split of the group), each about an interaction of its own."""
    rows, interactions = [], {}
    for number, (group, value, who, rater_split, group_split) in enumerate(given):
        name = f"i{number}"
        interactions[name] = _choice(name, group)
        rows.append(
            EvidenceRow(
                interaction_id=name, feedback_id="f", index=0, kind=FeedbackKind.LABEL,
                evidence=Label(candidate=f"{name}-yes", value=value), who=who, accepted_at=START,
                rater_split=rater_split, group_split=group_split, prompt_group=group,
            )
        )  # fmt: skip
    return FrozenDataSet(
        channel=CHANNEL, as_of=START + dt.timedelta(seconds=1), digest="", offsets=(), rows=tuple(rows),
        interactions=interactions,
    )  # fmt: skip


def test_labels_of_train_raters_alone_weigh_options_and_no_prompt_more_than_one():
    train, gate = Split.TRAIN, Split.GATE
    data = _data(
        ("few", "no", "ann", train, train),
        *(("many", value, who, train, train) for value, who in (("yes", "ann"), ("yes", "bob"), ("no", "eve"))),
        ("by text", "ja", "ann", train, train),
        ("of none", "perhaps", "ann", train, train),
        ("gate rater", "yes", "gus", gate, train),
        ("gate group", "yes", "ann", train, gate),
    )
    groups = ("few", "many", "by text", "of none", "gate rater", "gate group", "without")
    found = labels(data, [_prompt(group) for group in groups], Letters(), RewardSettings())
    assert found.keys() == {"few", "many", "by text"}
    assert found["few"] == pytest.approx((0.0, 1.0))
    assert found["many"] == pytest.approx((2 / 3, 1 / 3))
    assert found["by text"] == pytest.approx((1.0, 0.0))


def test_a_label_of_another_prompt_of_the_group_teaches_nothing():
    data = _data(("one", "no", "ann", Split.TRAIN, Split.TRAIN))
    other = dataclasses.replace(_prompt("one"), encoded=EncodedPrompt(tokens=(9,)))
    assert labels(data, [other], Letters(), RewardSettings()) == {}


def test_references_of_a_choice_are_all_its_options():
    older = (Option("yes", "ja"), Option("maybe", "vielleicht"))
    plugin = load_plugins(("echo-choice",))["echo-choice"]
    prompts = [_prompt("one"), _prompt("two")]
    references = OptionReferences(Letters(), plugin, prompts)
    references.complete(prompts, 4)
    own = [(Completion((1, 2, 3), tuple(map(ord, option.text))), option.text) for option in OPTIONS]
    assert references.of(prompts[0]) == references.of(prompts[1]) == own
    assert references.of(_prompt("one", older)) == []
    assert references.by_group() == {group: [tuple(each) for each, _ in own] for group in ("one", "two")}
    assert references.most == MOST_OPTIONS
