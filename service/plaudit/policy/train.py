"""The PPO recipe, top to bottom: prompts and a reward in, a policy adapter out.

Each iteration: (1) rollout on the serving engine under the newest weights, (2) reference log-probs with the adapter
off, (3) rewards, (4) advantages, (5) a few epochs of clipped updates, (6) the KL controller. The reference is always
the base; the reward function is a closure that this module cannot look into. See docs/papers.md for the sources.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import structlog
import torch

from plaudit.engine import adapters
from plaudit.engine.protocol import UNREGISTERED, ReleaseKey
from plaudit.policy import ppo
from plaudit.policy.optimizer import Optimised, PolicyTask
from plaudit.policy.rollout import Rollout, TrainPrompt, collate, completion_logprobs, sample
from plaudit.policy.value import LinearValue, features

log = structlog.get_logger(__name__)

NAME = "policy"  # The adapter's name on the base.
REFERENCES = 2  # Base answers of a prompt with which rewards are centred.
GAMMA = 1.0  # A completion is short and has one reward: nothing is discounted.
ADAM_BETAS = (0.9, 0.95)
ADAM_EPS = 1e-8  # Gradients of A begin near 1e-5: the customary 1e-5 here would take part of their step away.
KL_GAIN, KL_COEF_LOW, KL_COEF_HIGH = 0.3, 0.005, 0.2
STOP_KL_PER_TOKEN = 0.2  # Short answers of a small model move far in few updates; beyond this an epoch only clips.


@dataclass(frozen=True, slots=True, kw_only=True)
class IterationStats:
    """What one iteration did."""

    iteration: int
    reward: float
    kl_nats_per_sequence: float
    kl_coef: float
    approx_kl_per_token: float
    clip_fraction: float
    explained_variance: float
    mean_tokens: float
    ended: float
    parity: float

    def as_dict(self) -> dict[str, float]:
        """For manifests and reports."""
        return asdict(self)


class Ppo:
    """PPO from the live adapter, or from one that changes nothing yet."""

    def optimise(self, task: PolicyTask) -> Optimised:
        """See `Optimizer.optimise`."""
        settings, base = task.settings, task.base
        if task.live is not None:
            adapters.load(base, NAME, task.live)
        else:
            model = task.model
            adapters.inject(
                base,
                NAME,
                layers=model.adapter_layers,
                rank=model.adapter_rank,
                alpha=model.adapter_alpha,
                seed=task.seed,
            )
        trainer = PolicyTrainer(task)
        try:
            drawn = [_drawn(task.train, settings.prompts, iteration) for iteration in range(settings.iterations)]
            every = {prompt.group: prompt for prompts in drawn for prompt in prompts}
            task.progress("references")
            task.references.complete(list(every.values()), REFERENCES, seed=task.seed * 31)
            found: list[IterationStats] = []
            for iteration, prompts in enumerate(drawn):
                stats = trainer.iterate(prompts, iteration)
                found.append(stats)
                log.info("iteration", channel=str(task.channel), **stats.as_dict())
                task.progress(
                    f"iteration {iteration + 1}/{settings.iterations}: reward {stats.reward:.3f}, "
                    f"KL {stats.kl_nats_per_sequence:.1f} nats"
                )
            adapters.save(base, NAME, task.folder / "policy")
        finally:
            trainer.unstage()
            adapters.remove(base, NAME)
        return Optimised(
            adapter=task.folder / "policy",
            statistics=tuple(stats.as_dict() for stats in found),
            chosen=len(found),
            progressed=bool(found),
        )


def _drawn(prompts: Sequence[TrainPrompt], most: int, iteration: int) -> list[TrainPrompt]:
    """The next prompts of the turn's order; it begins again if there are too few."""
    size = min(most, len(prompts))
    return [prompts[(iteration * size + i) % len(prompts)] for i in range(size)]


class PolicyTrainer:
    """PPO on the task's adapter, which must be on the base under NAME."""

    def __init__(self, task: PolicyTask) -> None:
        settings = task.settings
        self.task, self.base, self.engine, self.settings = task, task.base, task.engine, settings
        self._start = adapters.start_layer(self.base, task.model.adapter_layers)
        self._parameters = adapters.parameters(self.base, NAME)
        self._optimizer = torch.optim.AdamW(
            self._parameters, lr=settings.lr, betas=ADAM_BETAS, eps=ADAM_EPS, weight_decay=0.0
        )
        self._value = LinearValue()
        self._kl_coef = settings.kl_coef
        self._updates = 0
        self._random = random.Random(task.seed)
        self._staged: ReleaseKey | None = None

    def stage(self) -> ReleaseKey:
        """Put the newest weights into the engine, under a key of their own, and forget the previous ones."""
        key = ReleaseKey(str(self.task.channel), UNREGISTERED, f"{NAME}-{self.task.seed}-{self._updates}")
        if key != self._staged:
            self.unstage()
            folder = self.task.folder / "staged"
            adapters.save(self.base, NAME, folder)
            self.engine.stage(key, folder, temperature=self.task.sampling.temperature)
            self._staged = key
        return key

    def unstage(self) -> None:
        """Take the weights out of the engine."""
        if self._staged is not None:
            self.engine.unstage(self._staged)
            self._staged = None

    def iterate(self, prompts: Sequence[TrainPrompt], iteration: int) -> IterationStats:
        """Run one iteration on `prompts`."""
        settings = self.settings
        # 1. Rollout.
        samples = sample(
            self.engine,
            prompts,
            self.stage(),
            self.task.sampling,
            samples=settings.samples,
            seed=self.task.seed * 1009 + iteration,
            # An engine that stops elsewhere, or returns nothing, is made up for in `collate`.
            capture=self.engine.capture_layer == self._start,
        )
        rollout = collate(samples, self.base, self._start)
        # 2. Reference.
        ref_logprobs = self._reference(rollout)
        # 3. Rewards.
        scores, outlook = self.task.reward(samples)
        rewards = ppo.token_rewards(scores, rollout.logprobs, ref_logprobs, rollout.mask, self._kl_coef)
        # 4. Advantages.
        advantages, explained = self._advantages(rollout, rewards, outlook)
        # 5. Updates.
        approx_kl, clip_fraction, parity = self._update(rollout, advantages)
        # 6. KL controller.
        kl = float(ppo.sequence_kl(rollout.logprobs, ref_logprobs, rollout.mask).mean())
        stats = IterationStats(
            iteration=iteration,
            reward=float(scores.mean()),
            kl_nats_per_sequence=kl,
            kl_coef=self._kl_coef,
            approx_kl_per_token=approx_kl,
            clip_fraction=clip_fraction,
            explained_variance=explained,
            mean_tokens=float(rollout.mask.sum(1).float().mean()),
            ended=sum(s.generated.finish_reason == "eos" for s in samples) / len(samples),
            parity=parity,
        )
        self._kl_coef = ppo.next_kl_coef(
            self._kl_coef, kl, settings.kl_target, gain=KL_GAIN, low=KL_COEF_LOW, high=KL_COEF_HIGH
        )
        return stats

    @torch.no_grad()
    def _reference(self, rollout: Rollout) -> torch.Tensor:
        """Log-probs (B, C) of the base with the adapter off."""
        logprobs = torch.zeros_like(rollout.logprobs)
        with adapters.active(self.base, None):
            for rows in self._batches(rollout):
                mask = rollout.mask[rows]
                part = torch.zeros(mask.shape)
                part[mask] = self._logprobs(rollout, rows)
                logprobs[rows] = part
        return logprobs

    def _logprobs(self, rollout: Rollout, rows: Sequence[int]) -> torch.Tensor:
        """Log-probs (N,) of the rows' completion tokens under the active adapter, on the CPU."""
        return completion_logprobs(self.base, rollout, rows, self._start, self.task.sampling.temperature).cpu()

    def _batches(self, rollout: Rollout, order: Sequence[int] | None = None) -> list[list[int]]:
        rows = list(order) if order is not None else list(range(len(rollout.hidden)))
        size = self.settings.minibatch
        return [rows[i : i + size] for i in range(0, len(rows), size)]

    def _advantages(
        self, rollout: Rollout, rewards: torch.Tensor, outlook: Sequence[torch.Tensor]
    ) -> tuple[torch.Tensor, float]:
        """Whitened advantages (B, C) and the share of the returns' variance that the values explain."""
        mask = rollout.mask
        if self.settings.advantage == "rloo":
            loo = ppo.leave_one_out(rewards.sum(dim=1), self.settings.samples)
            return ppo.whiten(loo[:, None].expand(mask.shape), mask), 0.0
        inputs = features(torch.nn.utils.rnn.pad_sequence(list(outlook), batch_first=True), mask)
        self._value.learn(inputs, rewards.flip(1).cumsum(1).flip(1), mask)
        values = torch.where(mask, self._value(inputs), 0.0)
        advantages, returns = ppo.gae(rewards, values, mask, GAMMA, self.settings.gae_lambda)
        spread = float(returns[mask].var())
        explained = 1.0 - float((returns - values)[mask].var()) / spread if spread > 0 else 0.0
        return ppo.whiten(advantages, mask), explained

    def _update(self, rollout: Rollout, advantages: torch.Tensor) -> tuple[float, float, float]:
        """Clipped updates; returns approx KL a token, clip fraction, and engine against trainer at the first one."""
        settings = self.settings
        parity = approx_kl = clip_fraction = 0.0
        first = True
        with adapters.active(self.base, NAME), torch.enable_grad():
            for _ in range(settings.epochs):
                for rows in self._batches(rollout, self._shuffled(rollout)):
                    mask = rollout.mask[rows]
                    old = rollout.logprobs[rows][mask]
                    logprobs = self._logprobs(rollout, rows)
                    if first:
                        parity = float((logprobs.detach() - old).abs().max())
                        first = False
                    result = ppo.policy_loss(
                        logprobs,
                        old,
                        advantages[rows][mask],
                        torch.ones_like(old, dtype=torch.bool),
                        settings.clip_range,
                    )
                    self._step(result.loss)
                    approx_kl, clip_fraction = float(result.approx_kl), float(result.clip_fraction)
                if approx_kl > STOP_KL_PER_TOKEN:
                    break
        return approx_kl, clip_fraction, parity

    def _shuffled(self, rollout: Rollout) -> list[int]:
        """Rows in a fresh order of prompts; completions of one prompt stay together, for they share its tokens."""
        starts = list(range(0, len(rollout.hidden), self.settings.samples))
        self._random.shuffle(starts)
        return [row for start in starts for row in range(start, start + self.settings.samples)]

    def _step(self, loss: torch.Tensor) -> None:
        self._updates += 1
        warm = min(1.0, self._updates / max(1, self.settings.warmup_updates))
        for group in self._optimizer.param_groups:
            group["lr"] = self.settings.lr * warm
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self._parameters, self.settings.max_grad_norm)
        self._optimizer.step()
