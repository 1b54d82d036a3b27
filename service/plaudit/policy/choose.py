"""The recipe for ordered choices, top to bottom: a task in, a policy adapter out. Nothing is decoded.

Each iteration: (1) rewards of the prompts' options, once per turn, for options do not change; (2) their scores under
the newest weights, and for slates orders drawn by them; (3) updates until the policy has moved `choice_update_kl` nats
per choice: the reward of a verdict is expected exactly over all options, that of a slate by drawn orders under PPO's
clipped ratio; the KL to the base and to the live release of what is shown, and the cross-entropy of people's labels,
stand beside it. The KL controller acts at each update. Every so often the policy is compared on the held-out prompts.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import NamedTuple

import torch

from plaudit.domain import OptionScore
from plaudit.engine.targets import start_layer
from plaudit.policy import choices, ppo
from plaudit.policy.iterates import Iterate
from plaudit.policy.loop import LIVE, NAME, Steps, controlled, draws, keep, on_the_base, run
from plaudit.policy.optimizer import Optimised, PolicyTask
from plaudit.policy.option_scores import OptionScorer
from plaudit.policy.rollout import TrainPrompt

HELD_OUT_ORDERS = 16  # Orders drawn of a slate's held-out prompt; they need no pass of the model.


class Judged(NamedTuple):
    """What a prompt's options are worth: rewards (K,) within the bounds of the contract, and which are valid."""

    rewards: torch.Tensor
    valid: tuple[bool, ...]


Judge = Callable[[Sequence[TrainPrompt]], Sequence[Judged]]


@dataclass(frozen=True, slots=True, kw_only=True)
class ChoiceTask(PolicyTask):
    """A policy of ordered choices.

    `judge` is asked once for each prompt. `labels`: by prompt group the weight (K,) that people's labels give each
    option of its prompt, in all at most 1. `end_of_turn` is the token behind an option.
    """

    judge: Judge
    labels: Mapping[str, tuple[float, ...]]
    place_weights: tuple[float, ...]
    option_score: OptionScore
    end_of_turn: int
    temperature: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ChoiceStats:
    """What one iteration did: means over its prompts as it began, but for the updates."""

    iteration: int
    reward: float
    kl_nats_per_sequence: float
    kl_live_nats_per_sequence: float
    label_cross_entropy: float
    labelled: int
    kl_coef: float
    updates: int
    moved_nats: float
    clip_fraction: float

    def as_dict(self) -> dict[str, float]:
        """For manifests and reports."""
        return asdict(self)


class ChoiceOptimizer:
    """An Optimizer of ordered choices, from the live adapter or from one that changes nothing yet."""

    def optimise(self, task: ChoiceTask) -> Optimised:
        """See `Optimizer.optimise`."""
        with on_the_base(task):
            return run(task, ChoiceTrainer(task), _draws(task))


def _draws(task: ChoiceTask) -> list[list[TrainPrompt]]:
    """Prompts of each iteration: half of them have labels, as far as there are such, and half have none.

    So that labels are there in every iteration: what one teaches, the KL to the base takes back in those without.
    """
    size = task.settings.choice_prompts
    labelled = [prompt for prompt in task.train if prompt.group in task.labels]
    others = [prompt for prompt in task.train if prompt.group not in task.labels]
    half = min(len(labelled), max(size // 2, size - len(others)))
    found = [draws(task, several, most) for several, most in ((labelled, half), (others, size - half)) if several]
    return [[prompt for part in parts for prompt in part] for parts in zip(*found, strict=True)]


class _Known(NamedTuple):
    """What does not change in a turn, of one prompt's options, (K,) each."""

    judged: Judged
    base: torch.Tensor
    live: torch.Tensor
    targets: torch.Tensor


class _Batch(NamedTuple):
    """Prompts with what is known of them, (P, K) each, and the orders (P, S, M) that their update uses.

    A verdict whose expectation is exact has no drawn orders: S and M are 1 and `orders` says which place is asked.
    `old`: scores under which the iteration began.
    """

    prompts: list[TrainPrompt]
    tiers: torch.Tensor
    rewards: torch.Tensor
    base: torch.Tensor
    live: torch.Tensor
    targets: torch.Tensor
    old: torch.Tensor
    orders: torch.Tensor

    def rows(self, rows: Sequence[int]) -> _Batch:
        """Some of its prompts."""
        return _Batch([self.prompts[row] for row in rows], *(each[list(rows)] for each in self[1:]))


class _Parts(NamedTuple):
    """What an objective is made of, (P,) each, and the share of clipped orders."""

    reward: torch.Tensor
    kl_base: torch.Tensor
    kl_live: torch.Tensor
    labels: torch.Tensor
    moved: torch.Tensor
    surrogate: torch.Tensor
    clip_fraction: float


class ChoiceTrainer:
    """Moves the task's adapter, which must be on the base under NAME (and the live one, if any, under LIVE)."""

    def __init__(self, task: ChoiceTask) -> None:
        self.task, self.settings = task, task.settings
        self.exact = len(task.place_weights) == 1 and task.settings.first_place == "exact"
        self.scorer = OptionScorer(
            task.base,
            start_layer(task.base, task.model.adapter_layers),
            temperature=task.temperature,
            end_of_turn=task.end_of_turn,
            how=task.option_score,
            pass_tokens=task.settings.pass_tokens,
        )
        self._steps = Steps(task.base, task.settings)
        self._kl_coef = task.settings.kl_coef
        self._known: dict[tuple[str, tuple[tuple[int, ...], ...]], _Known] = {}
        self._random = random.Random(task.seed)

    def keep(self, iteration: int) -> None:
        """Write the newest weights to the place from which they can be chosen later."""
        keep(self.task, iteration)

    def look(self, iteration: int) -> Iterate:
        """Keep the newest weights; their reward on the held-out prompts, less what disagreement with labels costs.

        Slates are compared under common draws.
        """
        self.keep(iteration)
        batch = self.batch(self.task.held_out, self.task.seed * 1013, HELD_OUT_ORDERS)
        parts = self.parts(batch, batch.old)
        rewards = parts.reward - self.settings.label_coef * parts.labels
        return Iterate(
            iteration=iteration,
            rewards=tuple(rewards.tolist()),
            kl_base=float(parts.kl_base.mean()),
            kl_live=float(parts.kl_live.mean()),
        )

    def iterate(self, prompts: Sequence[TrainPrompt], iteration: int) -> ChoiceStats:
        """Run one iteration on `prompts`."""
        batch = self.batch(prompts, self.task.seed * 1009 + iteration, max(2, self.settings.samples))
        before = self.parts(batch, batch.old)
        coef = self._kl_coef
        moved, clipped = self._update(batch)
        self.scorer.forget(self.settings.trunk_tokens)
        return ChoiceStats(
            iteration=iteration,
            reward=float(before.reward.mean()),
            kl_nats_per_sequence=float(before.kl_base.mean()),
            kl_live_nats_per_sequence=float(before.kl_live.mean()),
            label_cross_entropy=float(before.labels.sum() / batch.targets.sum().clamp(min=1e-9)),
            labelled=int((batch.targets.sum(dim=1) > 0).sum()),
            kl_coef=coef,
            updates=len(moved),
            moved_nats=moved[-1],
            clip_fraction=sum(clipped) / len(clipped),
        )

    def batch(
        self, prompts: Sequence[TrainPrompt], seed: int, samples: int, scores: torch.Tensor | None = None
    ) -> _Batch:
        """Prompts with their scores (P, K), None for those under the newest weights, and orders drawn from `seed`."""
        known = self._facts(prompts)
        old = _padded(self.scorer.scores(prompts, NAME)) if scores is None else scores
        tiers = choices.tiers_of([each.judged.valid for each in known])
        places = len(self.task.place_weights)
        if self.exact:
            orders = torch.full((len(prompts), 1, 1), choices.NONE)
        else:
            generator = torch.Generator().manual_seed(seed)
            orders = choices.draw_orders(old, tiers, samples=samples, places=places, generator=generator)
        return _Batch(
            list(prompts),
            tiers,
            _padded([each.judged.rewards for each in known]),
            _padded([each.base for each in known]),
            _padded([each.live for each in known]),
            _padded([each.targets for each in known]),
            old,
            orders,
        )

    def slopes(self, batch: _Batch) -> tuple[torch.Tensor, float, float]:
        """What each score (P, K) of a minibatch adds to the loss under the newest weights.

        And the nats that the policy has moved since the iteration began, and the share of clipped orders.
        """
        scores = _padded(self.scorer.scores(batch.prompts, NAME)).requires_grad_(True)
        parts = self.parts(batch, scores)
        self._kl_coef = controlled(self._kl_coef, float(parts.kl_base.detach().mean()), self.settings.choice_kl_target)
        loss = parts.surrogate + self._kl_coef * parts.kl_base + self.settings.label_coef * parts.labels
        if self.task.live is not None:
            loss = loss + self.settings.kl_live_coef * parts.kl_live
        (slopes,) = torch.autograd.grad(loss.mean(), scores)
        return slopes, float(parts.moved.detach().mean()), parts.clip_fraction

    def _update(self, batch: _Batch) -> tuple[list[float], list[float]]:
        """Updates in a fresh order each epoch; the nats moved and the share of clipped orders, at each."""
        moved: list[float] = []
        clipped: list[float] = []
        for rows in self._minibatches(len(batch.prompts)):
            part = batch.rows(rows)
            slopes, nats, share = self.slopes(part)
            moved.append(nats)
            clipped.append(share)
            if nats > self.settings.choice_update_kl:
                break
            self._steps.zero()
            self.scorer.backward(
                part.prompts, [row[: len(p.options)] for row, p in zip(slopes, part.prompts, strict=True)], NAME
            )
            self._steps.take()
        return moved, clipped

    def _minibatches(self, count: int) -> Iterator[list[int]]:
        size = self.settings.minibatch
        for _ in range(self.settings.epochs):
            rows = list(range(count))
            self._random.shuffle(rows)
            yield from (rows[i : i + size] for i in range(0, count, size))

    def parts(self, batch: _Batch, scores: torch.Tensor) -> _Parts:
        """What the objective is made of under some scores (P, K), with their gradient."""
        may = choices.open_options(batch.tiers, batch.orders)
        logprobs, old, base, live = (
            choices.place_logprobs(each, may) for each in (scores, batch.old, batch.base, batch.live)
        )
        kl_base, kl_live = (choices.place_kl(logprobs, each).mean(dim=1) for each in (base, live))
        first = choices.first_logprobs(scores, batch.tiers)
        if len(self.task.place_weights) == 1:
            reward = self.task.place_weights[0] * choices.expected_rewards(first, batch.rewards)
        else:
            reward = choices.order_rewards(batch.rewards, batch.orders, self.task.place_weights).mean(dim=1)
        surrogate, clip_fraction = -reward, 0.0
        if not self.exact:
            surrogate, clip_fraction = self._surrogate(batch, logprobs, old, base, live)
        return _Parts(
            reward=reward,
            kl_base=kl_base,
            kl_live=kl_live,
            labels=choices.label_cross_entropy(first, batch.targets),
            moved=choices.place_kl(old, logprobs).mean(dim=1),
            surrogate=surrogate,
            clip_fraction=clip_fraction,
        )

    def _surrogate(
        self,
        batch: _Batch,
        logprobs: torch.Tensor,
        old: torch.Tensor,
        base: torch.Tensor,
        live: torch.Tensor,
    ) -> tuple[torch.Tensor, float]:
        """PPO's clipped loss of drawn orders, and the share of them that is clipped.

        The KL of a place is exact given those before it, and its gradient stands beside this loss; that which places
        before it have by leading there is the return's.
        """
        rewards = choices.order_rewards(batch.rewards, batch.orders, self.task.place_weights)
        returns = rewards - self._kl_coef * choices.place_kl(old, base)
        if self.task.live is not None:
            returns = returns - self.settings.kl_live_coef * choices.place_kl(old, live)
        advantages = ppo.leave_one_out(returns.flatten(), returns.shape[1]).view_as(returns)
        loss = choices.order_loss(
            choices.order_logprobs(logprobs, batch.orders),
            choices.order_logprobs(old, batch.orders),
            advantages,
            self.settings.clip_range,
        )
        return loss.loss, float(loss.clip_fraction)

    def _facts(self, prompts: Sequence[TrainPrompt]) -> list[_Known]:
        fresh = {_key(prompt): prompt for prompt in prompts if _key(prompt) not in self._known}
        asked = list(fresh.values())
        base = self.scorer.scores(asked, None)
        live = base if self.task.live is None else self.scorer.scores(asked, LIVE)
        for prompt, judged, one, other in zip(asked, self.task.judge(asked), base, live, strict=True):
            targets = self.task.labels.get(prompt.group, (0.0,) * len(prompt.options))
            self._known[_key(prompt)] = _Known(judged, one, other, torch.tensor(targets, dtype=torch.float64))
        return [self._known[_key(prompt)] for prompt in prompts]


def _key(prompt: TrainPrompt) -> tuple[str, tuple[tuple[int, ...], ...]]:
    return prompt.group, prompt.options


def _padded(rows: Sequence[torch.Tensor]) -> torch.Tensor:
    """(P, K) of rows (K,), fp64, 0 behind each."""
    return torch.nn.utils.rnn.pad_sequence([row.detach().double() for row in rows], batch_first=True)
