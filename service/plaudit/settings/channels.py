"""`channels.*`: what a channel has otherwise than the process."""

from __future__ import annotations

from typing import Any

from pydantic import model_serializer

from plaudit.settings.decision import DecisionSettings
from plaudit.settings.gate import GateSettings
from plaudit.settings.learn import ChannelLearnSettings
from plaudit.settings.policy import PolicySettings
from plaudit.settings.privacy import ChannelPrivacySettings
from plaudit.settings.reward import RewardSettings
from plaudit.settings.section import Section
from plaudit.settings.serve import ChannelServeSettings


class ChannelSettings(Section):
    """What a channel has otherwise than the process; only what is set counts."""

    serve: ChannelServeSettings = ChannelServeSettings()
    reward: RewardSettings = RewardSettings()
    policy: PolicySettings = PolicySettings()
    gate: GateSettings = GateSettings()
    learn: ChannelLearnSettings = ChannelLearnSettings()
    decision: DecisionSettings = DecisionSettings()
    privacy: ChannelPrivacySettings = ChannelPrivacySettings()

    @model_serializer
    def _only_what_is_set(self) -> dict[str, Any]:
        return {
            name: getattr(self, name).model_dump(mode="json", exclude_unset=True)
            for name in type(self).model_fields
            if name in self.model_fields_set
        }

    @property
    def values(self) -> dict[str, dict[str, Any]]:
        """What is set, by section."""
        return {name: _set_values(getattr(self, name)) for name in type(self).model_fields}


def _set_values(section: Section) -> dict[str, Any]:
    return {name: getattr(section, name) for name in sorted(section.model_fields_set)}
