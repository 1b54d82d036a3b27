"""What a turn asks of a kind of action, and what the steps of a turn hand on to each other.

An action's policy says which prompts may be asked again, what scores are centred on, how a candidate is made and what
the gate is told. Splits, fits, registration and the decision are the same for every kind.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from plaudit.evidence.store import FrozenDataSet, PromptRow
from plaudit.learner.context import Turn
from plaudit.learner.references import References
from plaudit.policy.optimizer import Optimised
from plaudit.policy.rollout import TrainPrompt
from plaudit.release.gate import Measurements
from plaudit.release.gate_reward import SliceAccuracy
from plaudit.release.manifest import Probe
from plaudit.release.probes import FailedAnswer
from plaudit.reward.calibration import RewardReport
from plaudit.reward.model import RewardModel


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Fitted:
    """Two reward models: `reward` steers the policy, `judge` is the gate's.

    `report` is the first one's, on calibration raters; `live_outcomes` are the live release's reward model on the
    same comparisons, None if the base is live. `slices` is its accuracy on the domain's slices.
    """

    reward: RewardModel
    judge: RewardModel
    report: RewardReport
    live_outcomes: tuple[tuple[str, float], ...] | None
    slices: tuple[SliceAccuracy, ...]

    def close(self) -> None:
        """Take both models off the base."""
        self.reward.close()
        self.judge.close()


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What the gate decides by. `kl` is the mean to the base, nats per sequence; `proof` is for the replicas.

    `failed` are answers that did harm, for an operator.
    """

    measurements: Measurements
    kl: float
    proof: tuple[Probe, ...]
    failed: tuple[FailedAnswer, ...]


class ActionPolicy(Protocol):
    """What a turn does differently by kind of action."""

    def prompts(self, turn: Turn, rows: Sequence[PromptRow]) -> tuple[list[TrainPrompt], Counter[str]]:
        """Prompts that people sent, as they would be asked today, and how many cannot be, by the reason."""

    def references(self, turn: Turn, data: FrozenDataSet, prompts: Sequence[TrainPrompt]) -> References:
        """What scores are centred on, from frozen evidence and the turn's prompts."""

    def optimise(self, turn: Turn, frozen: Frozen, fitted: Fitted) -> Optimised:
        """The candidate's adapter out of prompts of train groups."""

    def measure(self, turn: Turn, frozen: Frozen, fitted: Fitted, optimised: Optimised) -> Measured:
        """The candidate beside base and live on gate prompts, and the proof's log-probs."""
