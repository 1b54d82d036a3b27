"""Step 1: evidence, its offsets and digest in one read, and the prompts by what they serve."""

from __future__ import annotations

import random

from plaudit.evidence.splits import Split, group_split
from plaudit.learner import actions, needs
from plaudit.learner.actions.protocol import Frozen
from plaudit.learner.context import Turn
from plaudit.learner.outcome import require
from plaudit.policy.rollout import TrainPrompt


def freeze(turn: Turn) -> Frozen:
    """Read the channel's evidence and prompts; waits if nothing could be rolled out or asked."""
    turn.begin(1, "freeze")
    learner, gate = turn.learner, turn.settings.gate
    declared = turn.plugin.declaration
    few_raters = declared.few_raters
    salt = learner.registry.salt(turn.channel)
    data = learner.store.freeze(
        turn.channel, salt, turn.as_of, few_raters=few_raters, policy_version=declared.policy_version
    )
    turn.tell(f"{len(data.rows)} pieces of evidence" + _of_other_rules(data.left_out))
    action = actions.of(declared.action)
    rows = learner.store.prompts(turn.channel)
    current = [row for row in rows if row.policy_version == declared.policy_version]
    usable, left_out = action.prompts(turn, current)
    left_out["are of another policy version"] = len(rows) - len(current)
    prompts: dict[Split, list[TrainPrompt]] = {split: [] for split in Split}
    for each in usable:
        prompts[group_split(salt, each.group, few_raters)].append(each)
    draw = random.Random(turn.seed)
    for several in prompts.values():
        several.sort(key=lambda prompt: prompt.group)
        draw.shuffle(several)
    note = ", ".join(f"{count} more {why}" for why, count in sorted((+left_out).items()))
    require(*needs.of_prompts(len(prompts[Split.TRAIN]), len(prompts[Split.GATE]), gate, note))
    return Frozen(
        data=data,
        references=action.references(turn, data, usable),
        train=tuple(prompts[Split.TRAIN]),
        gate=tuple(prompts[Split.GATE][: gate.prompts]),
        prompts=tuple(prompt for several in prompts.values() for prompt in several),
    )


def _of_other_rules(left_out: int) -> str:
    return f"; {left_out} more are of another policy version and teach nothing" if left_out else ""
