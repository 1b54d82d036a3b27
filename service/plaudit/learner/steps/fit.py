"""Step 2: the reward model of train raters, judged by calibration raters, and the gate's own of gate raters."""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import structlog

from plaudit.evidence.splits import Split
from plaudit.learner import needs
from plaudit.learner.actions.protocol import Fitted, Frozen
from plaudit.learner.context import Turn
from plaudit.learner.outcome import TurnEnded, TurnOutcome, require
from plaudit.learner.slices import slice_accuracies
from plaudit.release.decision import Outcome
from plaudit.release.gate_reward import SliceAccuracy, reward_gate, reward_outcome
from plaudit.release.reading import failed_checks, refusals
from plaudit.reward.batch import Treatment
from plaudit.reward.calibration import RewardReport, measure
from plaudit.reward.comparisons import Comparison, complete_references, thumb_contrasts
from plaudit.reward.completion import Completion
from plaudit.reward.dataset import collect
from plaudit.reward.fit import NothingToFit, fit_reward
from plaudit.reward.model import RewardModel, trunk_cache, trunk_layers
from plaudit.reward.units import Units

log = structlog.get_logger(__name__)


def fit(turn: Turn, frozen: Frozen) -> Fitted:
    """Fit both models; waits without enough to judge them by, and ends the turn if the first may steer nothing."""
    turn.begin(2, "reward")
    settings, base, data = turn.settings, turn.base, frozen.data
    units = {split: collect(data, split, base, settings.reward) for split in Split}
    held_out = units[Split.CALIBRATION]
    notes = {split: _left_out(of) for split, of in units.items()}
    train, gates = units[Split.TRAIN].events, units[Split.GATE].events
    require(*needs.of_evidence(held_out, train, gates, settings.gate, notes))
    pairs, by_pairs = needs.judged_by(held_out, settings.gate)
    _complete_references(turn, frozen, units)
    kept = turn.kept.features(trunk_layers(base, settings.reward))
    cache = trunk_cache(base, settings.reward, kept, turn.learner.ranks)
    with contextlib.ExitStack() as unless_whole, _waits_for_contrast():
        unless_whole.callback(kept.keep, cache)
        reward = fit_reward(
            base,
            data,
            frozen.references.by_group(),
            settings.reward,
            settings.model,
            split=Split.TRAIN,
            seed=turn.seed,
            name="reward",
            most_references=frozen.references.most,
            progress=lambda step, steps, loss: turn.tell(f"reward model: step {step}/{steps}, loss {loss:.3f}"),
            cache=cache,
        )
        unless_whole.callback(reward.close)
        turn.tell("calibration")
        ground = pairs if by_pairs else thumb_contrasts(held_out, _cited(turn, frozen, reward))
        report = measure(reward, ground, cache=cache)
        slices = _slices(turn, frozen, ground, report)
        report.facts["slices"] = [dataclasses.asdict(each) for each in slices]
        live_outcomes = _live_outcomes(turn, ground)
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
            most_references=frozen.references.most,
            treatment=reward.treatment,
            cache=cache,
        )
        kept.keep(cache)
        unless_whole.pop_all()
    return Fitted(reward=reward, judge=judge, report=report, live_outcomes=live_outcomes, slices=slices)


@contextlib.contextmanager
def _waits_for_contrast() -> Iterator[None]:
    """Acts may be many and compare nothing: thumbs that all point one way, one thumb per rater."""
    try:
        yield
    except NothingToFit as error:
        raise TurnEnded(TurnOutcome.WAITED, f"waits: {error}") from error


def _left_out(units: Units) -> str:
    """Acts that were left out, by reason; empty if there are none."""
    counts = [f"{count} {reason}" for reason, count in sorted(units.left_out.items())]
    return f"left out: {', '.join(counts)}" if counts else ""


def _complete_references(turn: Turn, frozen: Frozen, units: Mapping[Split, Units]) -> None:
    """Sample what the log lacks, so that the scores of all thumbs can be centred on their prompt's references."""
    groups = {thumb.event.group for of in units.values() for unit in of.thumbs for thumb in unit.thumbs}
    frozen.references.complete(
        [prompt for prompt in frozen.prompts if prompt.group in groups],
        frozen.references.most,
        progress=lambda done, every: turn.tell(f"references: {done}/{every} base answers"),
    )


def _cited(turn: Turn, frozen: Frozen, reward: RewardModel) -> Mapping[str, Sequence[Completion]] | None:
    """References that contrasts are centred on; None under the treatment that compares scores as they are."""
    if reward.treatment is Treatment.PLAIN:
        return None
    return complete_references(
        frozen.data,
        turn.base,
        frozen.references.by_group(),
        groups={prompt.group for prompt in frozen.prompts},
        most=frozen.references.most,
    )


def _slices(
    turn: Turn, frozen: Frozen, ground: Sequence[Comparison], report: RewardReport
) -> tuple[SliceAccuracy, ...]:
    """Accuracy on the domain's slices, for the reports."""
    interactions, cap = frozen.data.interactions, turn.settings.reward.rater_cap
    return slice_accuracies(turn.plugin, interactions, ground, report.outcomes, rater_cap=cap)


def _live_outcomes(turn: Turn, held_out: list[Comparison]) -> tuple[tuple[str, float], ...] | None:
    """The live release's reward model on the comparisons; None if it has none (the base, an imported adapter)."""
    if turn.state.live == 0 or turn.learner.registry.manifest(turn.channel, turn.state.live).reward_model is None:
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
    checks = reward_gate(report.outcomes, live_outcomes, turn.settings.gate, rater_cap=turn.settings.reward.rater_cap)
    outcome = reward_outcome(checks)
    log.info("reward model", outcome=str(outcome), accuracy=report.accuracy, ece=report.ece)
    if outcome is Outcome.ACCEPT:
        return
    reason = f"the reward model may not steer a policy: {failed_checks(checks)}"
    raise TurnEnded(TurnOutcome.REFUSED, reason, refusals=refusals(checks))
