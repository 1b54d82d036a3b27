"""Step 1: evidence, its offsets and digest in one read, and the prompts by what they serve."""

from __future__ import annotations

import random

from plaudit.engine.sampling import is_greedy
from plaudit.evidence.anomalies import anomalies
from plaudit.evidence.quarantine import Quarantine
from plaudit.evidence.splits import Split, group_split
from plaudit.evidence.store import FrozenDataSet
from plaudit.learner import actions, needs
from plaudit.learner.actions.protocol import Frozen
from plaudit.learner.context import Turn
from plaudit.learner.outcome import TurnEnded, TurnOutcome, require
from plaudit.policy.rollout import TrainPrompt


def freeze(turn: Turn) -> Frozen:
    """Read the channel's evidence and prompts; waits if nothing could be rolled out or asked."""
    turn.begin(1, "freeze")
    if is_greedy(turn.sampling.temperature):
        raise TurnEnded(
            TurnOutcome.WAITED,
            "waits: the domain takes the most probable token each time (temperature 0 in decode_spec), and a policy "
            "learns from what it draws; give it a temperature, or leave that to policy.temperature",
        )
    learner, gate = turn.learner, turn.settings.gate
    declared = turn.plugin.declaration
    few_raters = declared.few_raters
    salt = learner.registry.salt(turn.channel)
    data = _data(turn, salt)
    if put_in_quarantine(turn, data):
        data = _data(turn, salt)
    turn.tell(f"{len(data.rows)} pieces of evidence" + _of_other_rules(data.left_out) + _quarantined(data.quarantined))
    action = actions.of(declared.action)
    rows = data.prompts
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


def put_in_quarantine(turn: Turn, data: FrozenDataSet) -> int:
    """Puts raters with an anomaly in quarantine as of the turn, but for those whom an operator let out; how many."""
    wanted = turn.settings.learn
    found = anomalies(
        data.rows, acts_per_minute=wanted.quarantine_acts_per_minute, one_answer=wanted.quarantine_one_answer
    )
    quarantine = Quarantine(turn.learner.store.database)
    judged = quarantine.judged(turn.channel) if found else frozenset()
    return sum(
        quarantine.put(turn.channel, each.rater, each.why, by="learner", since=turn.as_of)
        for each in found
        if each.rater not in judged
    )


def _data(turn: Turn, salt: bytes) -> FrozenDataSet:
    declared = turn.plugin.declaration
    return turn.learner.store.freeze(
        turn.channel,
        salt,
        turn.as_of,
        few_raters=declared.few_raters,
        policy_version=declared.policy_version,
        with_prompts=True,
    )


def _quarantined(count: int) -> str:
    return f"; {count} more are of raters in quarantine (plaudit raters list)" if count else ""


def _of_other_rules(left_out: int) -> str:
    return f"; {left_out} more are of another policy version and teach nothing" if left_out else ""
