"""Step 1: evidence, its offsets and digest in one read, and the prompts by what they serve."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass

from plaudit.errors import RequestRefused
from plaudit.evidence.splits import Split, group_split
from plaudit.evidence.store import FrozenDataSet
from plaudit.learner.context import Turn
from plaudit.learner.outcome import Need, require
from plaudit.learner.references import References
from plaudit.policy.rollout import TrainPrompt
from plaudit.types import Request


@dataclass(frozen=True, slots=True, kw_only=True)
class Frozen:
    """What a turn learns from.

    `train` and `gate` are prompts, in an order that does not depend on when they came; `prompts` are all of them.
    """

    data: FrozenDataSet
    references: References
    train: tuple[TrainPrompt, ...]
    gate: tuple[TrainPrompt, ...]
    prompts: tuple[TrainPrompt, ...]


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
    usable, left_out = _prompts(turn)
    prompts: dict[Split, list[TrainPrompt]] = {split: [] for split in Split}
    for each in usable:
        prompts[group_split(salt, each.group, few_raters)].append(each)
    draw = random.Random(turn.seed)
    for several in prompts.values():
        several.sort(key=lambda prompt: prompt.group)
        draw.shuffle(several)
    note = ", ".join(f"{count} more {why}" for why, count in sorted(left_out.items()))
    require(
        Need("prompts to train on", len(prompts[Split.TRAIN]), 1, note),
        Need("gate prompts", len(prompts[Split.GATE]), gate.min_prompts, note),
    )
    references = References(turn.base, turn.plugin, turn.engine, turn.base_key, turn.sampling)
    references.take_from(data)
    return Frozen(
        data=data,
        references=references,
        train=tuple(prompts[Split.TRAIN]),
        gate=tuple(prompts[Split.GATE][: gate.prompts]),
        prompts=tuple(prompt for several in prompts.values() for prompt in several),
    )


def _prompts(turn: Turn) -> tuple[list[TrainPrompt], Counter[str]]:
    """Prompts that people sent, and how many cannot be asked again, by the reason."""
    found, left_out = [], Counter[str]()
    for row in turn.learner.store.prompts(turn.channel):
        if row.policy_version != turn.plugin.declaration.policy_version:
            left_out["are of another policy version"] += 1
            continue
        try:
            rendered = turn.plugin.render(Request(messages=row.messages, passages=row.passages))
            encoded = turn.engine.encode(rendered.messages)
        except RequestRefused:  # another version of the plugin took it, or another base's chat template
            left_out["are refused by the plugin or the chat template"] += 1
            continue
        if len(encoded.tokens) + turn.sampling.max_tokens > turn.engine.context_length:
            left_out["are too long for the context"] += 1
            continue
        found.append(TrainPrompt(rendered=rendered, encoded=encoded))
    return found, left_out


def _of_other_rules(left_out: int) -> str:
    return f"; {left_out} more are of another policy version and teach nothing" if left_out else ""
