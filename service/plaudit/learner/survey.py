"""How far a channel is from its next turn, without a model: every need at once, before the first turn is due.

Enters: the stores. Leaves: needs in numbers. Asked by the learner at its looks, by `plaudit status` and by tests; the
turn itself asks the same rules (`needs`) of what the model reads. Imports no torch.
"""

from __future__ import annotations

from dataclasses import dataclass

from plaudit.domain import Declaration
from plaudit.evidence.splits import Split
from plaudit.evidence.store import EvidenceStore
from plaudit.learner import needs
from plaudit.learner.outcome import Need
from plaudit.learner.since import learnt_until, settings_digest
from plaudit.release.moves import ChannelState
from plaudit.release.registry import Registry
from plaudit.reward.dataset import collect
from plaudit.settings import Settings
from plaudit.store.outcomes import TurnOutcomes
from plaudit.types import FeedbackKind


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """What the next turn needs, acts with evidence by kind, and in words what feedback would do."""

    needs: tuple[Need, ...]
    acts: dict[FeedbackKind, int]
    advice: str

    @property
    def words(self) -> str:
        """Every need, and what would meet those that are short."""
        said = ", ".join(str(need) for need in self.needs)
        return f"{said}; to do: {self.advice}" if self.advice else said


def survey(
    store: EvidenceStore,
    registry: Registry,
    outcomes: TurnOutcomes,
    settings: Settings,
    declaration: Declaration,
    state: ChannelState,
) -> Survey:
    """The survey of one channel; `settings` are the channel's."""
    channel, salt, few = state.channel, registry.salt(state.channel), declaration.few_raters
    since = learnt_until(registry, outcomes, state, settings_digest(settings, declaration, registry, state))
    version = declaration.policy_version
    events = store.count_new(channel, salt, since, few_raters=few, policy_version=version)
    groups = store.count_groups(channel, salt, few_raters=few)
    tallies = store.tally(channel, salt, few_raters=few, policy_version=version)
    data = store.freeze(channel, salt, few_raters=few, policy_version=version, only=Split.CALIBRATION)
    held_out = collect(data, Split.CALIBRATION, needs.PlainText(), settings.reward)

    def acts(rater: Split, group: Split | None) -> int:
        return sum(each.acts for each in tallies if each.rater_split is rater and group in (None, each.group_split))

    found = (
        *needs.of_events(events, settings.learn),
        *needs.of_prompts(groups[Split.TRAIN], groups[Split.GATE], settings.gate),
        *needs.of_evidence(held_out, acts(Split.TRAIN, Split.TRAIN), acts(Split.GATE, None), settings.gate),
    )
    by_kind: dict[FeedbackKind, int] = {}
    for each in tallies:
        by_kind[each.kind] = by_kind.get(each.kind, 0) + each.acts
    return Survey(needs=found, acts=by_kind, advice=needs.advice(found, sum(by_kind.values()), declaration))
