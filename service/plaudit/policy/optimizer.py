"""What an optimiser is: the seam between a turn and whatever moves the policy.

In: a `PolicyTask`: where to start from, prompts, and what the kind of action adds to that. Out: an `Optimised`: an
adapter's folder and how it came about. PPO on completions (`train.Ppo`) and the optimiser of ordered choices
(`choose.ChoiceOptimizer`) are the implementations; one that learns from pairs or thumbs without rollouts reads `data`
and leaves `reward` alone. An optimiser draws nothing but from `seed`: the same task gives the same adapter on the same
machine.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol, TypeVar

import torch

from plaudit.engine.base import Base
from plaudit.engine.protocol import Engine
from plaudit.engine.ranks import Ranks
from plaudit.evidence.store import FrozenDataSet
from plaudit.policy.iterates import Iterate
from plaudit.policy.rollout import Sample, TrainPrompt
from plaudit.settings import ModelSettings, PolicySettings
from plaudit.types import Channel, Sampling


class Rewarded(NamedTuple):
    """What completions come to: `totals` (B,), after shaping and the plugin's terms, bounded.

    `outlook` holds for each completion (C,) the shaped score that its tokens before each token would get; it is
    empty if advantages are leave-one-out, which do not ask for it.
    """

    totals: torch.Tensor
    outlook: list[torch.Tensor]


RewardFunction = Callable[[Sequence[Sample]], Rewarded]

TextChecks = Callable[[Sequence[Sample]], tuple[str, ...]]
"""Names of the gate's checks on texts that completions of held-out prompts fail; empty if they pass."""


Looked = Callable[[Iterate, Sequence[Sample]], None]
"""Is told of each state that was compared, with its answers to the held-out prompts."""


def unheard(iterate: Iterate, samples: Sequence[Sample]) -> None:
    """For a task whose states nobody else wants to see."""


def no_text_checks(samples: Sequence[Sample]) -> tuple[str, ...]:
    """For a policy that writes no texts: passes everything."""
    return ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Practice:
    """Cases of conduct that training asks beside what people asked, so that no vote moves it.

    `train` may be rolled out; on `held_out`, which no update uses, states are compared. `does_harm` says of each sample
    of such a prompt whether it does what its case forbids.
    """

    train: Sequence[TrainPrompt] = ()
    held_out: Sequence[TrainPrompt] = ()
    does_harm: Callable[[Sequence[Sample]], Sequence[bool]] = lambda samples: [False] * len(samples)


class References(Protocol):
    """The base's answers by prompt, with which rewards are centred."""

    def complete(self, prompts: Sequence[TrainPrompt], least: int) -> None:
        """Sample what is missing until each prompt has `least` answers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyTask:
    """One policy to be made.

    `live`: the live release's adapter in PEFT's format, from which the policy starts; None if the base is live.
    `train`: prompts that may be sampled, in the order of the turn's draw. `held_out`: prompts of train groups that
    no update may use; iterates are compared on them. `progress` gets a line about the state for people.
    """

    channel: Channel
    base: Base
    live: Path | None
    train: Sequence[TrainPrompt]
    held_out: Sequence[TrainPrompt]
    model: ModelSettings
    settings: PolicySettings
    seed: int
    folder: Path
    progress: Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class CompletionTask(PolicyTask):
    """A policy of completions, which `engine` samples.

    `text_checks` says which checks of the gate their texts fail on held-out prompts. `practice` is asked beside
    `train`. `looked` hears of each state that is compared. `ranks`: processes that share out sampling and passes; None:
    this one alone.
    """

    engine: Engine
    data: FrozenDataSet
    references: References
    reward: RewardFunction
    sampling: Sampling
    text_checks: TextChecks = no_text_checks
    practice: Practice = Practice()
    looked: Looked = unheard
    ranks: Ranks | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Optimised:
    """What came of a task.

    `adapter`: its folder in PEFT's format, below the task's `folder`. `statistics`: one mapping per iteration, and
    `iterates`: one per state that was compared, for the manifest. `chosen`: how many iterations are behind the adapter
    (0: it is the start). `progressed`: False if nothing beat the start on the held-out prompts, so that there is no
    candidate; `why` then says it with numbers.
    """

    adapter: Path
    statistics: tuple[Mapping[str, float], ...]
    iterates: tuple[Mapping[str, float], ...]
    chosen: int
    progressed: bool
    why: str = ""


Task = TypeVar("Task", bound=PolicyTask, contravariant=True)


class Optimizer(Protocol[Task]):
    """Makes a policy."""

    def optimise(self, task: Task) -> Optimised:
        """The policy of a task; raises EngineFault, BadArtifact or whatever the reward raises."""


def hold_out(prompts: Sequence[TrainPrompt], settings: PolicySettings) -> tuple[list[TrainPrompt], list[TrainPrompt]]:
    """Prompts to sample from and prompts to compare iterates on, disjoint by group.

    `settings.held_out` groups are held out, but never more than a quarter. The order is kept.
    """
    groups = list(dict.fromkeys(prompt.group for prompt in prompts))
    count = min(settings.held_out, len(groups) // 4)
    apart = set(groups[len(groups) - count :])
    return [p for p in prompts if p.group not in apart], [p for p in prompts if p.group in apart]
