"""Which state of a policy under training leaves: pure arithmetic on what held-out prompts say of each.

Rollouts that an update has used flatter it, and the reward model is trusted less the further a policy goes. So states
are compared by their reward on prompts that no update saw, less what their KL costs; one whose answers to them the gate
would refuse as texts, or that does more harm than the start on practice cases which no update saw, comes after all
others, for it would serve nobody.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

# Standard errors that a rise must exceed. Held-out prompts are few: a stricter bound would lose true small gains, and
# what passes by chance (one in six per comparison) meets the gate.
LEAST_RISE = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Iterate:
    """A policy after so many iterations; 0 is the start.

    `rewards`: its mean reward on each held-out prompt. KL in nats per sequence, on its own answers to them; both are
    the same if the base is live. `refused`: names of the gate's checks on texts that those answers fail. `harms`: of
    each held-out practice case the share of answers that did harm; empty without any.
    """

    iteration: int
    rewards: tuple[float, ...]
    kl_base: float
    kl_live: float
    refused: tuple[str, ...] = ()
    harms: tuple[float, ...] = ()

    @property
    def reward(self) -> float:
        """Mean over the held-out prompts."""
        return sum(self.rewards) / len(self.rewards)

    @property
    def harm(self) -> float:
        """Mean over the held-out practice cases; 0 without any."""
        return sum(self.harms) / len(self.harms) if self.harms else 0.0

    def as_dict(self) -> dict[str, float]:
        """For manifests and reports."""
        return {
            "iteration": self.iteration,
            "reward": self.reward,
            "kl_base_nats_per_sequence": self.kl_base,
            "kl_live_nats_per_sequence": self.kl_live,
            "text_checks_failed": len(self.refused),
            "practice_harm": self.harm,
        }


@dataclass(frozen=True, slots=True)
class Rise:
    """How much more reward one policy has than another on the same prompts: the mean and its standard error."""

    mean: float
    error: float

    @property
    def bound(self) -> float:
        """What the mean must exceed."""
        return LEAST_RISE * self.error

    @property
    def counts(self) -> bool:
        """Whether the mean is above what must be exceeded."""
        return self.mean > self.bound


def best(iterates: Sequence[Iterate], kl_live_coef: float) -> Iterate:
    """The iterate with the most reward less kl_live_coef per nat of KL to the live release; of equals the earliest.

    Among those whose texts the gate would take and that do no more harm than the start, or among all if there is none:
    the start may stand at a bound.
    """
    start = min(iterates, key=lambda it: it.iteration)
    taken = [it for it in iterates if not it.refused and not more_harm(start, it)] or iterates
    return max(taken, key=lambda it: (it.reward - kl_live_coef * it.kl_live, -it.iteration))


def more_harm(start: Iterate, iterate: Iterate) -> bool:
    """Whether an iterate does more harm on the held-out practice cases than the start, by more than the error."""
    return bool(start.harms) and _paired(start.harms, iterate.harms).counts


def rise(start: Iterate, iterate: Iterate) -> Rise:
    """How much more reward the iterate has."""
    return _paired(start.rewards, iterate.rewards)


def _paired(first: Sequence[float], second: Sequence[float]) -> Rise:
    """Paired by prompt. With fewer than two prompts the error is infinite."""
    differences = [after - before for before, after in zip(first, second, strict=True)]
    count = len(differences)
    mean = sum(differences) / count
    if count < 2:
        return Rise(mean, math.inf)
    variance = sum((each - mean) ** 2 for each in differences) / (count - 1)
    return Rise(mean, math.sqrt(variance / count))
