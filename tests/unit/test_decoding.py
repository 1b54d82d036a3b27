"""One sampling per channel: what a caller who asks for nothing is served with is what the learner samples with."""

import dataclasses

import pytest
from plaudit.decoding import channel_sampling, channel_spec
from plaudit.domain import DecodeSpec, Mode
from plaudit.errors import InvalidField
from plaudit.serving.generation import resolve
from plaudit.serving.validate import SamplingWish
from plaudit.settings import PolicySettings
from plaudit.types import Message, Request, Sampling
from plaudit_instruction.plugin import Instruction

PLUGIN = Instruction()
PROMPT = PLUGIN.render(Request(messages=(Message("user", "Hi."),)))


class Terse(Instruction):
    def decode_spec(self, prompt, mode):
        return DecodeSpec(temperature=0.25, sampling=Sampling(max_tokens=7, stop=("END",)))


@pytest.mark.parametrize("plugin", [PLUGIN, Terse()])
@pytest.mark.parametrize("policy", [PolicySettings(), PolicySettings(max_tokens=20, temperature=0.5)])
def test_the_learner_samples_as_callers_are_served(plugin, policy):
    spec = channel_spec(plugin, PROMPT, Mode.SERVE, policy)
    # The release's temperature is what the learner writes into its manifest: that of the sampling itself.
    ours = channel_sampling(plugin, policy)
    served = resolve(SamplingWish(), spec, ours.temperature, 512)
    # The log keeps numbers as float32, and serving samples from what the log will say.
    assert served.temperature == pytest.approx(ours.temperature, rel=1e-6)
    assert dataclasses.replace(served, temperature=ours.temperature) == ours


def test_a_channels_settings_come_before_its_domain_in_serving_too():
    assert channel_sampling(PLUGIN, PolicySettings()).max_tokens == 64
    assert channel_sampling(PLUGIN, PolicySettings(max_tokens=20)).max_tokens == 20
    assert channel_sampling(Terse(), PolicySettings()) == Sampling(temperature=0.25, max_tokens=7, stop=("END",))


class Strict(Instruction):
    def render(self, request):
        raise InvalidField("a question needs passages", field="passages")


def test_a_domain_that_refuses_a_bare_request_has_a_sampling_all_the_same():
    assert channel_sampling(Strict(), PolicySettings()).max_tokens == 64
