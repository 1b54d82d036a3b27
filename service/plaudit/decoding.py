"""How a channel's policy is sampled: one answer for serving, learning, the gate and the proof.

Enters: a domain's decode_spec and the channel's settings. Leaves: a spec for a request, and the sampling that the
learner uses, which is what a caller who asks for nothing is served with. What the gate judges is then what is served.
"""

from __future__ import annotations

from dataclasses import replace

from plaudit.domain import DecodeSpec, DomainPlugin, Mode
from plaudit.settings import PolicySettings
from plaudit.types import Message, Prompt, Sampling

# The learner samples many prompts in one way, that of this one, and leaves out those that the domain samples otherwise.
# It is not rendered: a domain may refuse a bare request.
_PLAIN = Prompt(messages=(Message("user", "Name three colours."),), group="sampling")


def channel_spec(plugin: DomainPlugin, prompt: Prompt, mode: Mode, policy: PolicySettings) -> DecodeSpec:
    """The domain's spec for a prompt, with the channel's own length if its settings name one."""
    spec = plugin.decode_spec(prompt, mode)
    if policy.max_tokens is None:
        return spec
    return replace(spec, sampling=replace(spec.sampling, max_tokens=policy.max_tokens))


def channel_sampling(plugin: DomainPlugin, policy: PolicySettings, prompt: Prompt = _PLAIN) -> Sampling:
    """Sampling in force for a caller who asks for nothing: the domain's, at the channel's temperature and length."""
    spec = channel_spec(plugin, prompt, Mode.SERVE, policy)
    temperature = policy.temperature if spec.temperature is None else spec.temperature
    return replace(spec.sampling, temperature=temperature)


def policy_temperature(plugin: DomainPlugin, policy: PolicySettings) -> float:
    """The temperature that a channel's releases are given: that of `channel_sampling`.

    If that is 0 (always the most probable token) it is the settings' temperature: log-probabilities need one above 0.
    """
    return channel_sampling(plugin, policy).temperature or policy.temperature


def untruncated(sampling: Sampling) -> Sampling:
    """The same over the whole distribution: ratios and KL are of that, and of what was drawn from it."""
    return replace(sampling, top_p=1.0, top_k=0)
