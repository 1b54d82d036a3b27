"""Ordered choices: nothing is decoded. Options of a replayed request are scored, by the trainer and for the gate."""

from __future__ import annotations

import dataclasses
from collections import Counter, defaultdict
from collections.abc import Sequence

from plaudit.engine.base import Base
from plaudit.errors import RequestRefused
from plaudit.evidence.splits import Split
from plaudit.evidence.store import FrozenDataSet, PromptRow
from plaudit.learner import staging
from plaudit.learner.actions.choice_measure import measure
from plaudit.learner.actions.protocol import Fitted, Frozen, Measured
from plaudit.learner.context import Turn
from plaudit.learner.references import MOST_OPTIONS, OptionReferences
from plaudit.learner.rewards import OptionRewards
from plaudit.policy.choose import ChoiceOptimizer, ChoiceTask
from plaudit.policy.optimizer import Optimised, hold_out
from plaudit.policy.rollout import TrainPrompt
from plaudit.reward.dataset import collect
from plaudit.settings import RewardSettings
from plaudit.types import Label, Request


class Choices:
    """An ActionPolicy."""

    def prompts(self, turn: Turn, rows: Sequence[PromptRow]) -> tuple[list[TrainPrompt], Counter[str]]:
        """Prompts that the plugin and the chat template take, with 2 to 50 options that fit behind them."""
        found, left_out = [], Counter[str]()
        engine = turn.engine
        for row in rows:
            try:
                rendered = turn.plugin.render(
                    Request(messages=row.messages, passages=row.passages, options=row.options)
                )
                encoded = engine.encode(rendered.messages)
            except RequestRefused:  # another version of the plugin took it, or another base's chat template
                left_out["are refused by the plugin or the chat template"] += 1
                continue
            options = rendered.options or row.options
            tokens = tuple(engine.encode_text(option.text) for option in options)
            if not 2 <= len(options) <= MOST_OPTIONS or not all(tokens):
                left_out["have too few or too many options, or one without tokens"] += 1
                continue
            # With the end of turn after each, as the engine counts them.
            lengths = [len(each) + 1 for each in tokens]
            if len(encoded.tokens) + max(lengths) > engine.context_length:
                left_out["are too long for the context"] += 1
                continue
            if 1 + sum(lengths) > turn.settings.engine.score_tokens:
                left_out["have options of more tokens than engine.score_tokens"] += 1
                continue
            # Its evidence is sorted by the logged group: another version of the plugin may name it otherwise.
            rendered = dataclasses.replace(rendered, options=options, group=row.group)
            found.append(TrainPrompt(rendered=rendered, encoded=encoded, options=tokens))
        return found, left_out

    def references(self, turn: Turn, data: FrozenDataSet, prompts: Sequence[TrainPrompt]) -> OptionReferences:
        """All options of each prompt."""
        return OptionReferences(turn.base, turn.plugin, prompts)

    def optimise(self, turn: Turn, frozen: Frozen, fitted: Fitted) -> Optimised:
        """The reward of what is shown, exactly if that is possible, and people's labels."""
        settings, declared = turn.settings, turn.plugin.declaration
        train, held_out = hold_out(frozen.train, settings.policy)
        return ChoiceOptimizer().optimise(
            ChoiceTask(
                channel=turn.channel,
                base=turn.base,
                live=staging.live_adapter(turn),
                train=train,
                held_out=held_out,
                model=settings.model,
                settings=settings.policy,
                seed=turn.seed,
                folder=turn.folder,
                progress=turn.tell,
                judge=OptionRewards(fitted.reward, turn.plugin, most_tokens=settings.policy.trunk_tokens),
                labels=labels(frozen.data, frozen.train, turn.base, settings.reward),
                place_weights=declared.place_weights,
                option_score=declared.option_score,
                end_of_turn=turn.engine.end_of_turn,
                temperature=turn.sampling.temperature,
            )
        )

    def measure(self, turn: Turn, frozen: Frozen, fitted: Fitted, optimised: Optimised) -> Measured:
        """Decisions on gate prompts beside those of base and live."""
        return measure(turn, frozen, fitted, optimised)


def labels(
    data: FrozenDataSet, prompts: Sequence[TrainPrompt], base: Base, settings: RewardSettings
) -> dict[str, tuple[float, ...]]:
    """By prompt group, the weight of each option of its prompt in the labels that train raters gave it.

    An event weighs as it does for the reward model (decay, caps per rater). A group's weights add up to 1, or to less
    if its labels weigh less than one event in all: what many people labelled is not worth more steps than what one
    did. A label is of the option whose id or text it is; one that is of none is left out, and so is one that was given
    to another prompt of the group: under other rules another label may be right.
    """
    given = {f"{r.interaction_id}/{r.feedback_id}/{r.index}": r.evidence for r in data.rows}
    found: defaultdict[tuple[str, tuple[int, ...]], defaultdict[str, float]] = defaultdict(lambda: defaultdict(float))
    for unit in collect(data, Split.TRAIN, base, settings).rankings:
        evidence = given[unit.event.event_id]
        if isinstance(evidence, Label):
            asked = data.interactions[unit.event.interaction_id].prompt_tokens
            found[unit.event.group, asked][evidence.value] += unit.event.weight
    weights = {}
    for prompt in prompts:
        of_value = found[prompt.group, prompt.encoded.tokens]
        own = [of_value[o.option_id] or of_value[o.text] for o in prompt.rendered.options]
        total = sum(own)
        if total > 0:
            weights[prompt.group] = tuple(each / max(1.0, total) for each in own)
    return weights
