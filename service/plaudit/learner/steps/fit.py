"""Step 2: the reward model of train raters, judged by calibration raters, and the gate's own of gate raters."""

from __future__ import annotations

import contextlib
import tempfile
from dataclasses import dataclass
from pathlib import Path

import structlog

from plaudit.evidence.splits import Split
from plaudit.learner.context import Turn
from plaudit.learner.outcome import Need, TurnEnded, TurnOutcome, require
from plaudit.learner.steps.freeze import Frozen
from plaudit.release import gate
from plaudit.reward.calibration import RewardReport, calibrate, measure
from plaudit.reward.dataset import Comparison, collect, comparisons
from plaudit.reward.fit import fit_reward
from plaudit.reward.model import RewardModel, trunk_cache

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fitted:
    """Two reward models: `reward` steers the policy, `judge` is the gate's.

    `report` is the first one's, on calibration raters; `live_outcomes` are the live release's reward model on the
    same comparisons, None if the base is live.
    """

    reward: RewardModel
    judge: RewardModel
    report: RewardReport
    live_outcomes: tuple[tuple[str, float], ...] | None

    def close(self) -> None:
        """Take both models off the base."""
        self.reward.close()
        self.judge.close()


def fit(turn: Turn, frozen: Frozen) -> Fitted:
    """Fit both models; waits without enough to judge them by, and ends the turn if the first may steer nothing."""
    turn.begin(2, "reward")
    settings, base, data = turn.settings, turn.base, frozen.data
    held_out = comparisons(collect(data, Split.CALIBRATION, base, settings.reward))
    require(*_needs(turn, frozen, held_out))
    cache = trunk_cache(base, settings.reward)
    with contextlib.ExitStack() as unless_whole:
        reward = fit_reward(
            base,
            data,
            frozen.references.by_group(),
            settings.reward,
            settings.model,
            split=Split.TRAIN,
            seed=turn.seed,
            name="reward",
            progress=lambda step, steps, loss: turn.tell(f"reward model: step {step}/{steps}, loss {loss:.3f}"),
            cache=cache,
        )
        unless_whole.callback(reward.close)
        turn.tell("calibration")
        report = calibrate(reward, data, cache=cache)
        live_outcomes = _live_outcomes(turn, held_out)
        _allow(turn, report, live_outcomes)
        turn.tell("the gate's reward model")
        judge = fit_reward(
            base,
            data,
            frozen.references.by_group(),
            # Heads alone: gate raters are a fifth of all, and an adapter would have little to learn from.
            settings.reward.model_copy(update={"adapter": False}),
            settings.model,
            split=Split.GATE,
            seed=turn.seed + 1,
            name="gate",
            treatment=reward.treatment,
            cache=cache,
        )
        unless_whole.pop_all()
    return Fitted(reward=reward, judge=judge, report=report, live_outcomes=live_outcomes)


def _needs(turn: Turn, frozen: Frozen, held_out: list[Comparison]) -> tuple[Need, ...]:
    """What both fits and the judgement need, so that none ends in an error for want of evidence."""
    settings = turn.settings
    usable = {
        split: collect(frozen.data, split, turn.base, settings.reward).events for split in (Split.TRAIN, Split.GATE)
    }
    return (
        Need("calibration comparisons", len(held_out), settings.gate.reward_comparisons),
        Need("calibration raters", len({each.who for each in held_out}), settings.gate.reward_raters),
        Need("usable acts of train raters", usable[Split.TRAIN], 1),
        Need("usable acts of gate raters", usable[Split.GATE], 1),
    )


def _live_outcomes(turn: Turn, held_out: list[Comparison]) -> tuple[tuple[str, float], ...] | None:
    """The live release's reward model on the comparisons; None if the base is live."""
    if turn.state.live == 0:
        return None
    with tempfile.TemporaryDirectory(dir=turn.folder) as folder:
        release = turn.learner.registry.fetch(turn.channel, turn.state.live, Path(folder) / "release")
        # It reads the layers that it was fitted on, which need not be those of today's settings.
        with contextlib.closing(RewardModel.load(turn.base, release / "reward", name="live-reward")) as live:
            return measure(live, held_out, fit=False).outcomes


def _allow(turn: Turn, report: RewardReport, live_outcomes: tuple[tuple[str, float], ...] | None) -> None:
    """End the turn unless the reward model may steer a policy."""
    metrics, channel = turn.learner.metrics, str(turn.channel)
    metrics.reward_accuracy.labels(channel).set(report.accuracy)
    metrics.reward_calibration_error.labels(channel).set(report.ece)
    checks = gate.reward_gate(
        report.outcomes, live_outcomes, turn.settings.gate, rater_cap=turn.settings.reward.rater_cap
    )
    outcome = gate.reward_outcome(checks)
    log.info("reward model", outcome=str(outcome), accuracy=report.accuracy, ece=report.ece)
    if outcome is gate.Outcome.ACCEPT:
        return
    failed = "; ".join(f"{check.name} {check.value:.3g} ({check.note})" for check in checks if not check.passed)
    raise TurnEnded(TurnOutcome.REFUSED, f"the reward model may not steer a policy: {failed}")
