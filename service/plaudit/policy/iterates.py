"""Which state of a policy under training leaves: pure arithmetic on what held-out prompts say of each.

Rollouts that an update has used flatter it, and the reward model is trusted less the further a policy goes. So states
are compared by their reward on prompts that no update saw, less what their KL costs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

# One-sided 95%: of policies that did not improve, one in twenty passes at each comparison.
CERTAIN = 1.645


@dataclass(frozen=True, slots=True, kw_only=True)
class Iterate:
    """A policy after so many iterations; 0 is the start.

    `rewards`: its mean reward on each held-out prompt. KL in nats per sequence, on its own answers to them.
    """

    iteration: int
    rewards: tuple[float, ...]
    kl_base: float
    kl_live: float

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
        }


@dataclass(frozen=True, slots=True)
class Rise:
    """How much more reward one policy has than another on the same prompts: the mean and its standard error."""

    mean: float
    error: float

    @property
    def certain(self) -> bool:
        """Whether the mean is above 0 by more than chance explains."""
        return self.mean > CERTAIN * self.error


def best(iterates: Sequence[Iterate], *, kl_coef: float, kl_live_coef: float) -> Iterate:
    """The iterate with the most reward - kl_coef KL(base) - kl_live_coef KL(live); of equals the earliest."""
    return max(iterates, key=lambda it: (it.reward - kl_coef * it.kl_base - kl_live_coef * it.kl_live, -it.iteration))


def rise(start: Iterate, iterate: Iterate) -> Rise:
    """Paired by prompt. With fewer than two prompts the error is infinite."""
    differences = [after - before for before, after in zip(start.rewards, iterate.rewards, strict=True)]
    count = len(differences)
    mean = sum(differences) / count
    if count < 2:
        return Rise(mean, math.inf)
    variance = sum((each - mean) ** 2 for each in differences) / (count - 1)
    return Rise(mean, math.sqrt(variance / count))
