"""Step 3: the optimiser makes a candidate adapter out of prompts of train groups and the reward model."""

from __future__ import annotations

import dataclasses

from plaudit.learner.context import Turn
from plaudit.learner.outcome import TurnEnded, TurnOutcome
from plaudit.learner.rewards import ModelReward
from plaudit.learner.steps.fit import Fitted
from plaudit.learner.steps.freeze import Frozen
from plaudit.policy.optimizer import Optimised, PolicyTask, hold_out
from plaudit.policy.train import Ppo


def optimise(turn: Turn, frozen: Frozen, fitted: Fitted) -> Optimised:
    """The candidate's adapter; ends the turn if nothing was better than what is live."""
    turn.begin(3, "policy")
    settings, learner = turn.settings, turn.learner
    live = None
    if turn.state.live:
        folder = turn.folder / "live"
        live = learner.registry.fetch(turn.channel, turn.state.live, folder, base_digest=turn.base.digest) / "policy"
    train, held_out = hold_out(frozen.train, settings.policy)
    optimised = Ppo().optimise(
        PolicyTask(
            channel=turn.channel,
            engine=turn.engine,
            base=turn.base,
            live=live,
            data=frozen.data,
            references=frozen.references,
            train=train,
            held_out=held_out,
            reward=ModelReward(
                fitted.reward,
                turn.plugin,
                frozen.references,
                most_references=settings.reward.references,
                outlook=settings.policy.advantage == "gae",
            ),
            # Ratios and KL are those of the whole distribution: rollouts are never truncated.
            sampling=dataclasses.replace(turn.sampling, top_p=1.0, top_k=0),
            model=settings.model,
            settings=settings.policy,
            seed=turn.seed,
            folder=turn.folder,
            progress=turn.tell,
        )
    )
    if not optimised.progressed:
        raise TurnEnded(TurnOutcome.NO_PROGRESS, optimised.why)
    return optimised
