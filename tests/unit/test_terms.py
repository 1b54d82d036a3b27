"""The domain's own reward terms, candidate beside base, as the gate gets them."""

from types import SimpleNamespace

import pytest
from plaudit.engine.protocol import EncodedPrompt
from plaudit.learner.measure import Measurer
from plaudit.plugins import load_plugins
from plaudit.policy.rollout import TrainPrompt
from plaudit.release.texts import Sample
from plaudit.types import Message, Passage, Request
from plaudit_instruction.plugin import GROUNDED_WEIGHT

TEA = "Green tea is brewed at eighty degrees."


def test_terms_are_differences_by_prompt_of_those_prompts_that_have_them():
    plugin = load_plugins(("instruction",))["instruction"]

    def prompt(*passages):
        rendered = plugin.render(Request(messages=(Message("user", "How is green tea brewed?"),), passages=passages))
        return TrainPrompt(rendered=rendered, encoded=EncodedPrompt((1,)))

    prompts = [prompt(Passage("p", TEA)), prompt()]
    held, made_up = f"{TEA[:-1]} [1].", "Boil the kettle twice and add lemon [1]."
    measurer = object.__new__(Measurer)
    measurer.plugin, measurer.samples = plugin, 2
    measurer.references = SimpleNamespace(of=lambda _: [(None, made_up), (None, made_up)])
    candidate = [Sample("q", text) for text in (held, made_up, held, held)]
    # One of two answers keeps to the passage; the second prompt has no passage, and so no such term.
    assert measurer.terms(prompts, candidate) == {"grounded": (pytest.approx(GROUNDED_WEIGHT / 2),)}
