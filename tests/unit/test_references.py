"""References are the base's answers of exactly the channel's sampling, in an order of their own."""

import dataclasses
import datetime as dt
import itertools
from types import SimpleNamespace

import pytest
from plaudit.engine.protocol import EncodedPrompt
from plaudit.learner.kept import Answer
from plaudit.learner.references import SampledReferences, said
from plaudit.policy.rollout import TrainPrompt
from plaudit.release import texts
from plaudit.testing.training import Letters
from plaudit.types import (
    Action,
    Candidate,
    Channel,
    FinishReason,
    Interaction,
    Message,
    Passage,
    Prompt,
    Purpose,
    Sampling,
)

OURS = Sampling(temperature=0.7, max_tokens=32)
# As the log keeps it: 0.7 in float32.
LOGGED = dataclasses.replace(OURS, temperature=0.699999988079071)
PROMPT = TrainPrompt(
    rendered=Prompt(messages=(Message("user", "Hi."),), group="g"), encoded=EncodedPrompt(tokens=(1, 2))
)


def test_an_answer_that_quotes_a_passage_is_no_echo_of_the_question():
    """Questions with passages stand in one turn; what the gate calls an echo, or masks, is the question's own words."""
    fact, question = "The shop in Elm Road opens at nine on weekdays.", "When does the shop in Elm Road open?"
    passages = (Passage("p1", fact), Passage("p2", "The bakery sells rye bread and plum cake."))
    turn = Message("user", f"[1] {passages[0].text}\n[2] {passages[1].text}\n\n{question}")
    rendered = Prompt(messages=(turn,), passages=passages, group="g")
    prompt = TrainPrompt(rendered=rendered, encoded=EncodedPrompt(tokens=(1, 2)))
    assert texts.degenerate(said(prompt, fact)) == ""
    assert texts.degenerate(said(prompt, question)) == "echo"
    rye = said(prompt, "It sells rye bread.")
    assert texts.masked(rye.text, rye.prompt) == "it sells rye bread"


def _interaction(number, text, sampling=LOGGED, version=0):
    candidate = Candidate(
        candidate_id="c",
        release_version=version,
        release_digest="d",
        tokens=tuple(map(ord, text)),
        logprobs_raw=(0.0,) * len(text),
        logprobs_sampled=(0.0,) * len(text),
        text=text,
        displayed_text=text,
        finish_reason=FinishReason.EOS,
        sampling=sampling,
        seed=0,
        width=4,
    )
    return Interaction(
        interaction_id=f"i{number}",
        channel=Channel("instruction", "default"),
        purpose=Purpose.SERVE,
        action=Action.COMPLETION,
        messages=(Message("user", "Hi."),),
        prompt_group="g",
        prompt_tokens=(1, 2),
        candidates=(candidate,),
        completed_at=dt.datetime(2026, 1, 1, tzinfo=dt.UTC),
    )


def _texts(interactions):
    references = SampledReferences(Letters(), None, None, OURS)
    references.take_from(SimpleNamespace(interactions={each.interaction_id: each for each in interactions}))
    return [text for _, text in references.of(PROMPT)]


@pytest.mark.parametrize(
    "other",
    [{"temperature": 0.0}, {"max_tokens": 64}, {"top_p": 0.5}, {"top_k": 5}, {"stop": ("END",)}],
    ids=lambda each: next(iter(each)),
)
def test_answers_of_another_sampling_are_no_references(other):
    foreign = _interaction(1, "foreign", dataclasses.replace(LOGGED, **other))
    assert _texts([foreign, _interaction(2, "ours")]) == ["ours"]


def test_answers_of_a_release_are_no_references():
    assert _texts([_interaction(1, "theirs", version=1), _interaction(2, "ours")]) == ["ours"]


def test_answers_that_somebody_stopped_are_no_references():
    stopped = _interaction(1, "I will te")
    (candidate,) = stopped.candidates
    candidate = dataclasses.replace(candidate, finish_reason=FinishReason.CANCELLED)
    assert _texts([dataclasses.replace(stopped, candidates=(candidate,)), _interaction(2, "ours")]) == ["ours"]


def test_the_order_in_which_answers_arrived_does_not_matter_and_equal_ones_stay():
    several = [_interaction(1, "a"), _interaction(2, "b"), _interaction(3, "a")]
    assert {tuple(_texts(order)) for order in itertools.permutations(several)} == {("a", "b", "a")}


def test_only_what_a_prompt_lacks_is_drawn_and_more_of_it_goes_on():
    asked = []

    class Drawn:
        def of(self, prompts, count, sampling, *, progress=None):
            asked.append((len(prompts), count))
            return [[Answer(tuple(map(ord, f"{n}")), f"{n}") for n in range(count)] for _ in prompts]

    plugin = SimpleNamespace(parse=lambda prompt, text: SimpleNamespace(displayed=text))
    references = SampledReferences(Letters(), plugin, Drawn(), OURS)
    references.take_from(SimpleNamespace(interactions={"i1": _interaction(1, "served")}))
    other = dataclasses.replace(PROMPT, encoded=EncodedPrompt(tokens=(3,)))
    references.complete([PROMPT, other], 2)
    references.complete([PROMPT, other], 4)
    assert [text for _, text in references.of(PROMPT)] == ["served", "0", "1", "2"]
    assert [text for _, text in references.of(other)] == ["0", "1", "2", "3"]
    assert asked == [(1, 1), (1, 2), (1, 3), (1, 4)]
