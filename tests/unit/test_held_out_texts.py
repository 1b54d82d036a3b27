"""What the gate would say of held-out answers' texts: names of checks, with room to each bound."""

from types import SimpleNamespace

import pytest
from plaudit.engine.protocol import EncodedPrompt, Generated, ReleaseKey
from plaudit.learner.held_out import ROOM, HeldOutTexts
from plaudit.policy.rollout import Sample, TrainPrompt
from plaudit.reward.completion import Completion
from plaudit.settings import GateSettings
from plaudit.testing.training import Letters
from plaudit.types import Message, Outcome, Prompt

SUBJECTS = [f"{letter}berries" for letter in "abcdefghijklmnopqrst"]
KEY = ReleaseKey("toy/default", 1, "d")


PLUGIN = SimpleNamespace(parse=lambda prompt, output: Outcome(displayed=output, valid=True))


def _prompt(subject):
    asked = Prompt(messages=(Message("user", f"tips for {subject}"),), group=subject)
    return TrainPrompt(rendered=asked, encoded=EncodedPrompt(tokens=(1, 2)))


def _sample(subject, text):
    tokens = tuple(map(ord, text))
    generated = Generated(
        tokens=tokens,
        logprobs_raw=(0.0,) * len(tokens),
        logprobs_sampled=(0.0,) * len(tokens),
        text=text,
        finish_reason="eos",
        release=KEY,
        width=4,
    )
    return Sample(prompt=_prompt(subject), generated=generated)


class Bases:
    """Answers of the base, all different."""

    def of(self, prompt):
        text = f"well {prompt.group} differ {SUBJECTS.index(prompt.group)} ways"
        return [(Completion((1, 2), tuple(map(ord, text))), text)]


def _failed(texts, **settings):
    checks = HeldOutTexts(Letters(), PLUGIN, Bases(), GateSettings(**settings))
    return checks([_sample(subject, text) for subject, text in zip(SUBJECTS, texts, strict=True)])


def test_answers_as_varied_as_the_base_s_pass():
    assert _failed([f"{subject} grow {n} times" for n, subject in enumerate(SUBJECTS)]) == ()


def test_one_pattern_for_everything_is_named():
    same = _failed([f"you will love {subject}" for subject in SUBJECTS])
    assert same == ("distinct_2", "distinct_masked", "commonest_opening")
    assert _failed(["" for _ in SUBJECTS])[-1] == "degenerate"


@pytest.mark.parametrize(("alike", "failed"), [(5, ()), (6, ("commonest_opening",)), (8, ("commonest_opening",))])
def test_there_is_room_to_each_bound(alike, failed):
    """The gate allows .3, 6 of 20; few answers must not stand at its bound."""
    texts = [f"you will love {subject}" if n < alike else f"{subject} has {n}" for n, subject in enumerate(SUBJECTS)]
    assert _failed(texts, distinct_ratio=0.0, masked_ratio=0.0, opening_share=0.3) == failed
    assert 0.3 - ROOM == 5 / 20
