"""What optimisers share that iterate from a start: the adapters on the base, the steps, and the loop over iterations.

Every so often the policy is compared on the held-out prompts; the best of these iterates is what leaves.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

import structlog
import torch

from plaudit.engine import adapters
from plaudit.engine.base import Base
from plaudit.policy import ppo
from plaudit.policy.iterates import Iterate, Rise, best, more_harm, rise
from plaudit.policy.optimizer import Optimised, PolicyTask
from plaudit.policy.rollout import TrainPrompt
from plaudit.settings import PolicySettings

log = structlog.get_logger(__name__)

NAME, LIVE = "policy", "policy-live"  # The adapters' names on the base.
ADAM_BETAS = (0.9, 0.95)
ADAM_EPS = 1e-8  # Gradients of A begin near 1e-5: the customary 1e-5 here would take part of their step away.
KL_GAIN, KL_COEF_LOW, KL_COEF_HIGH = 0.04, 0.005, 0.2


class Stats(Protocol):
    """What one iteration did."""

    @property
    def reward(self) -> float:
        """Mean reward of its actions."""

    @property
    def kl_nats_per_sequence(self) -> float:
        """KL to the base, nats per action."""

    def as_dict(self) -> dict[str, float]:
        """For manifests and reports."""


class Trainer(Protocol):
    """Moves the adapter NAME of a task."""

    def look(self, iteration: int) -> Iterate:
        """Keep the newest weights, and compare them on the held-out prompts."""

    def keep(self, iteration: int) -> None:
        """Write the newest weights to the place from which they can be chosen later."""

    def iterate(self, prompts: Sequence[TrainPrompt], iteration: int) -> Stats:
        """Run one iteration on `prompts`."""


def run(task: PolicyTask, trainer: Trainer, drawn: Sequence[Sequence[TrainPrompt]]) -> Optimised:
    """One iteration on each of `drawn`, and the best of the states that were compared."""
    settings = task.settings
    compared = _compared(settings.iterations, settings.compared)
    found: list[Stats] = []
    iterates: list[Iterate] = []
    if task.held_out:
        iterates.append(trainer.look(0))
    for iteration, prompts in enumerate(drawn):
        stats = trainer.iterate(prompts, iteration)
        found.append(stats)
        log.info("iteration", channel=str(task.channel), **stats.as_dict())
        task.progress(
            f"iteration {iteration + 1}/{settings.iterations}: reward {stats.reward:.3f}, "
            f"KL {stats.kl_nats_per_sequence:.1f} nats"
        )
        if task.held_out and iteration + 1 in compared:
            iterates.append(trainer.look(iteration + 1))
            log.info("held out", channel=str(task.channel), **iterates[-1].as_dict())
    if not task.held_out:
        # Nothing can be compared: the last one leaves, and the gate decides.
        trainer.keep(settings.iterations)
        return _optimised(task, found, iterates, settings.iterations, True, "")
    chosen = best(iterates, settings.kl_live_coef)
    gain = rise(iterates[0], chosen)
    log.info("chosen", channel=str(task.channel), iteration=chosen.iteration, rise=gain.mean, error=gain.error)
    return _optimised(task, found, iterates, chosen.iteration, gain.counts, _why(iterates, gain))


def draws(task: PolicyTask, prompts: Sequence[TrainPrompt], most: int) -> list[list[TrainPrompt]]:
    """For each iteration at most `most` prompts, in their order; it begins again if there are too few."""
    size = min(most, len(prompts))
    return [
        [prompts[(iteration * size + i) % len(prompts)] for i in range(size)]
        for iteration in range(task.settings.iterations)
    ]


def _optimised(
    task: PolicyTask, found: Sequence[Stats], iterates: Sequence[Iterate], chosen: int, rose: bool, why: str
) -> Optimised:
    return Optimised(
        adapter=kept(task, chosen),
        statistics=tuple(stats.as_dict() for stats in found),
        iterates=tuple(iterate.as_dict() for iterate in iterates),
        chosen=chosen,
        progressed=rose,
        why="" if rose else why,
    )


def _why(iterates: Sequence[Iterate], gain: Rise) -> str:
    refused = sorted({name for iterate in iterates for name in iterate.refused})
    more = f"; other states fail {', '.join(refused)} of the gate on them" if refused else ""
    if any(more_harm(iterates[0], iterate) for iterate in iterates):
        more += "; other states do more harm than the start on held-out practice cases"
    return (
        f"reward on {len(iterates[0].rewards)} held-out prompts rose by {gain.mean:.3f} at best, which must exceed "
        f"{gain.bound:.3f}{more}; more feedback on the live release's own answers would show where to go"
    )


def _compared(iterations: int, count: int) -> set[int]:
    """Iterations after which the policy is compared: `count` of them, evenly spread, the last one included."""
    return {round(k * iterations / count) for k in range(1, count + 1)} - {0}


@contextlib.contextmanager
def on_the_base(task: PolicyTask) -> Iterator[None]:
    """The task's adapter under NAME for a block, and the live one under LIVE if there is one."""
    base, model = task.base, task.model
    with contextlib.ExitStack() as cleanup:
        if task.live is None:
            layers, rank, alpha = model.adapter_layers, model.adapter_rank, model.adapter_alpha
            adapters.inject(base, NAME, layers=layers, rank=rank, alpha=alpha, seed=task.seed)
        else:
            adapters.load(base, NAME, task.live)
        cleanup.callback(adapters.remove, base, NAME)
        if task.live is not None:
            adapters.load(base, LIVE, task.live)
            cleanup.callback(adapters.remove, base, LIVE)
        yield


def kept(task: PolicyTask, iteration: int) -> Path:
    """Where the policy after so many iterations is kept."""
    return task.folder / f"iterate-{iteration}"


def keep(task: PolicyTask, iteration: int) -> None:
    """Write the newest weights there."""
    adapters.save(task.base, NAME, kept(task, iteration))


def controlled(kl_coef: float, kl: float, target: float) -> float:
    """The coefficient of the KL to the base after an update at which that KL was `kl`."""
    return ppo.next_kl_coef(kl_coef, kl, target, gain=KL_GAIN, low=KL_COEF_LOW, high=KL_COEF_HIGH)


class Steps:
    """AdamW on the adapter NAME, with a warm-up and a bound on the gradient."""

    def __init__(self, base: Base, settings: PolicySettings) -> None:
        self.taken = 0
        self._settings = settings
        self._parameters = adapters.parameters(base, NAME)
        self._optimizer = torch.optim.AdamW(
            self._parameters, lr=settings.lr, betas=ADAM_BETAS, eps=ADAM_EPS, weight_decay=0.0
        )

    def zero(self) -> None:
        """Forget the gradient."""
        self._optimizer.zero_grad(set_to_none=True)

    def take(self) -> None:
        """One step along the gradient that has come together since."""
        self.taken += 1
        warm = min(1.0, self.taken / max(1, self._settings.warmup_updates))
        for group in self._optimizer.param_groups:
            group["lr"] = self._settings.lr * warm
        torch.nn.utils.clip_grad_norm_(self._parameters, self._settings.max_grad_norm)
        self._optimizer.step()
