"""Which state of a policy under training leaves: pure arithmetic on what held-out prompts say of each.

Rollouts that an update has used flatter it, and the reward model is trusted less the further a policy goes. So states
are compared by their reward on prompts that no update saw, less what their KL costs; one whose answers to them the gate
would refuse as texts comes after all others, for it would serve nobody.
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
    the same if the base is live. `refused`: names of the gate's checks on texts that those answers fail.
    """

    iteration: int
    rewards: tuple[float, ...]
    kl_base: float
    kl_live: float
    refused: tuple[str, ...] = ()

    @property
    def reward(self) -> float:
        """Mean over the held-out prompts."""
        return sum(self.rewards) / len(self.rewards)

    def as_dict(self) -> dict[str, float]:
        """For manifests and reports."""
        return {
            "iteration": self.iteration,
            "reward": self.reward,
            "kl_base_nats_per_sequence": self.kl_base,
            "kl_live_nats_per_sequence": self.kl_live,
            "text_checks_failed": len(self.refused),
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

    Among those whose texts the gate would take, or among all if it would take none: the start may stand at a bound.
    """
    taken = [it for it in iterates if not it.refused] or iterates
    return max(taken, key=lambda it: (it.reward - kl_live_coef * it.kl_live, -it.iteration))


def rise(start: Iterate, iterate: Iterate) -> Rise:
    """Paired by prompt. With fewer than two prompts the error is infinite."""
    differences = [after - before for before, after in zip(start.rewards, iterate.rewards, strict=True)]
    count = len(differences)
    mean = sum(differences) / count
    if count < 2:
        return Rise(mean, math.inf)
    variance = sum((each - mean) ** 2 for each in differences) / (count - 1)
    return Rise(mean, math.sqrt(variance / count))
