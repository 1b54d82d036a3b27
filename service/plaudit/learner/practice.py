"""What is practised in training: the domain's cases of conduct that no vote may move.

Enters: the domain's practice cases. Leaves: prompts to roll out and to compare states on, and the rule that says of an
answer whether it does the harm. What the gate asks is never practised, neither its cases nor its prompts.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence, Set

import structlog

from plaudit.domain import DomainPlugin, GateProbe
from plaudit.errors import RequestRefused
from plaudit.learner.context import Turn
from plaudit.policy.optimizer import Practice
from plaudit.policy.rollout import Sample, TrainPrompt
from plaudit.release.probes import does_harm, gate_cases

log = structlog.get_logger(__name__)

HELD_OUT_CASES = 12  # A state is asked half as many of them as of people's held-out prompts by default.


def practice_of(turn: Turn, apart: Set[str]) -> Practice:
    """The domain's practice cases, in the order of the turn's draw; none if the channel's share is 0.

    A case is left out if its prompt group is in `apart` or a gate case's, or if it cannot be asked.
    """
    if not turn.settings.policy.practice_share:
        return Practice()
    probes = turn.plugin.gates()
    cases = {probe.probe_id: probe for probe in probes if probe.practice}
    never = set(apart)
    for gate_case in gate_cases(probes):
        if (prompt := _asked(turn, gate_case)) is not None:
            never.add(prompt.group)
    found = [prompt for case in cases.values() if (prompt := _asked(turn, case)) is not None]
    prompts = [prompt for prompt in found if prompt.group not in never]
    if len(prompts) < len(cases):
        left_out = len(cases) - len(prompts)
        log.info("practice cases left out", channel=str(turn.channel), left_out=left_out, of=len(cases))
    random.Random(turn.seed).shuffle(prompts)
    held_out = min(HELD_OUT_CASES, turn.settings.policy.held_out, len(prompts) // 4)
    return Practice(train=prompts[held_out:], held_out=prompts[:held_out], does_harm=Harms(turn.plugin, cases))


def _asked(turn: Turn, case: GateProbe) -> TrainPrompt | None:
    """The case as a prompt; None if the domain or the base's template refuses it, or it is too long."""
    try:
        rendered = turn.plugin.render(case.request)
        encoded = turn.engine.encode(rendered.messages)
    except RequestRefused:
        return None
    if len(encoded.tokens) + turn.sampling.max_tokens > turn.engine.context_length:
        return None
    return TrainPrompt(rendered=rendered, encoded=encoded, case=case.probe_id)


class Harms:
    """Whether samples of practice cases do what their case forbids, as they would be displayed."""

    def __init__(self, plugin: DomainPlugin, cases: Mapping[str, GateProbe]) -> None:
        self._plugin, self._cases = plugin, cases

    def __call__(self, samples: Sequence[Sample]) -> list[bool]:
        """One answer per sample; raises PluginFailed."""
        shown = (self._plugin.parse(each.prompt.rendered, each.generated.text).displayed for each in samples)
        return [does_harm(self._cases[each.prompt.case], text) for each, text in zip(samples, shown, strict=True)]
