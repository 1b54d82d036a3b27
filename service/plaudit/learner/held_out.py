"""What the gate would say of texts while a policy is still being made.

Enters: completions of held-out prompts, which are of train groups, and the base's answers to them. Leaves: names of the
gate's checks that they fail, so that an optimiser proposes no state that the gate refuses. Gate prompts stay unseen.
"""

from __future__ import annotations

from collections.abc import Sequence

from plaudit.domain import DomainPlugin
from plaudit.learner.references import References, as_shown, said
from plaudit.policy.rollout import Sample
from plaudit.release import gate
from plaudit.reward.shown import Text
from plaudit.settings import GateSettings

# Held-out answers are fewer than the gate's, and the best of several states is chosen by them. On the quick demo (23
# turns) the gate found the chosen state's ratios lower by .04 and .05 on average, with a deviation of .07, and the
# share of its commonest opening the same, with a deviation of .04.
ROOM = 0.05


class HeldOutTexts:
    """The gate's checks on texts, asked of held-out answers with ROOM to each bound: a TextChecks."""

    def __init__(self, text: Text, plugin: DomainPlugin, references: References, settings: GateSettings) -> None:
        self._text, self._plugin, self._references = text, plugin, references
        self._settings = settings.model_copy(
            update={
                "distinct_ratio": min(1.0, settings.distinct_ratio + ROOM),
                "masked_ratio": min(1.0, settings.masked_ratio + ROOM),
                "opening_share": max(0.0, settings.opening_share - ROOM),
            }
        )

    def __call__(self, samples: Sequence[Sample]) -> tuple[str, ...]:
        """Names of the failed checks; raises PluginFailed."""
        ours = [said(each.prompt, as_shown(self._text, self._plugin, each)[1]) for each in samples]
        prompts = {each.prompt.group: each.prompt for each in samples}.values()
        bases = [said(prompt, text) for prompt in prompts for _, text in self._references.of(prompt)]
        return tuple(check.name for check in gate.text_checks(ours, bases, self._settings) if not check.passed)
