"""Step 1: evidence, its offsets and digest in one read, and the prompts by what they serve."""

from __future__ import annotations

import random
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

    `train` and `gate` are prompts in the turn's order, which does not depend on when they came; `too_long` counts
    those that leave no room for an answer.
    """

    data: FrozenDataSet
    references: References
    train: tuple[TrainPrompt, ...]
    gate: tuple[TrainPrompt, ...]
    too_long: int


def freeze(turn: Turn) -> Frozen:
    """Read the channel's evidence and prompts; waits if nothing could be rolled out or asked."""
    turn.begin(1, "freeze")
    learner, few_raters = turn.learner, turn.plugin.declaration.few_raters
    salt = learner.registry.salt(turn.channel)
    data = learner.store.freeze(turn.channel, salt, turn.as_of, few_raters=few_raters)
    prompts: dict[Split, list[TrainPrompt]] = {split: [] for split in Split}
    too_long = refused = 0
    for row in learner.store.prompts(turn.channel):
        rendered = turn.plugin.render(Request(messages=row.messages, passages=row.passages))
        try:
            encoded = turn.engine.encode(rendered.messages)
        except RequestRefused:
            # Another base took it: this one's chat template does not.
            refused += 1
            continue
        if len(encoded.tokens) + turn.sampling.max_tokens > turn.engine.context_length:
            too_long += 1
            continue
        split = group_split(salt, row.group, few_raters)
        prompts[split].append(TrainPrompt(rendered=rendered, encoded=encoded))
    draw = random.Random(turn.seed)
    for several in prompts.values():
        several.sort(key=lambda prompt: prompt.group)
        draw.shuffle(several)
    gate = turn.settings.gate
    left_out = f" ({too_long} more are too long for the context)" if too_long else ""
    left_out += f" ({refused} more are refused by the model's chat template)" if refused else ""
    require(
        Need(f"prompts to train on{left_out}", len(prompts[Split.TRAIN]), 1),
        Need("gate prompts", len(prompts[Split.GATE]), gate.min_prompts),
    )
    references = References(turn.base, turn.plugin, turn.engine, turn.base_key, turn.sampling)
    references.take_from(data)
    return Frozen(
        data=data,
        references=references,
        train=tuple(prompts[Split.TRAIN]),
        gate=tuple(prompts[Split.GATE][: gate.prompts]),
        too_long=too_long,
    )
