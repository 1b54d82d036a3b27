"""The PPO recipe, top to bottom: prompts and a reward in, a policy adapter out.

Each iteration: (1) rollout on the serving engine under the newest weights, (2) reference log-probs with the adapter
off, (3) rewards, (4) advantages, (5) a few epochs of clipped updates, (6) the KL controller. The reference is always
the base; the reward function is a closure that this module cannot look into. See docs/papers.md for the sources.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import NamedTuple

import torch

from plaudit.engine import adapters
from plaudit.engine.base import Base
from plaudit.engine.protocol import ReleaseKey
from plaudit.engine.torch_engine import TorchEngine
from plaudit.policy import ppo
from plaudit.policy.rollout import Rollout, Sample, TrainPrompt, collate, completion_logprobs, sample
from plaudit.policy.value import LinearValue, features
from plaudit.settings import PolicySettings
from plaudit.types import Sampling

GAMMA = 1.0  # A completion is short and has one reward: nothing is discounted.
ADAM_BETAS = (0.9, 0.95)
ADAM_EPS = 1e-8  # Gradients of A begin near 1e-5: the customary 1e-5 here would take part of their step away.
KL_GAIN, KL_COEF_LOW, KL_COEF_HIGH = 0.3, 0.005, 0.2
STOP_KL_PER_TOKEN = 0.2  # Short answers of a small model move far in few updates; beyond this an epoch only clips.


class Rewarded(NamedTuple):
    """What completions come to: `totals` (B,), after shaping and the plugin's terms, bounded.

    `outlook` holds for each completion (C,) the shaped score that its tokens before each token would get; it is
    empty where advantages are leave-one-out, which do not ask for it.
    """

    totals: torch.Tensor
    outlook: list[torch.Tensor]


RewardFunction = Callable[[Sequence[Sample]], Rewarded]


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


class PolicyTrainer:
    """PPO on one adapter of a base. `name` is the adapter's name on the base; it must be injected."""

    def __init__(
        self,
        base: Base,
        engine: TorchEngine,
        settings: PolicySettings,
        *,
        name: str,
        channel: str,
        layers: int,
        seed: int,
    ) -> None:
        self.base, self.engine, self.settings = base, engine, settings
        self.name, self.channel, self.seed = name, channel, seed
        self._layers = layers
        self._start = adapters.start_layer(base, layers)
        assert engine.capture_layer == self._start, "the engine captures the input of the first adapter layer"
        self._parameters = adapters.parameters(base, name)
        self._optimizer = torch.optim.AdamW(
            self._parameters, lr=settings.lr, betas=ADAM_BETAS, eps=ADAM_EPS, weight_decay=0.0
        )
        self._value = LinearValue()
        self._kl_coef = settings.kl_coef
        self._updates = 0
        self._random = random.Random(seed)
        self._staged: ReleaseKey | None = None

    @property
    def sampling(self) -> Sampling:
        """How rollouts are sampled: untruncated, at the policy's own temperature."""
        return Sampling(temperature=self.settings.temperature, max_tokens=self.settings.max_tokens)

    def stage(self) -> ReleaseKey:
        """Put the newest weights into the engine, under a key of their own, and forget the previous ones."""
        config, state = adapters.export(self.base, self.name)
        key = ReleaseKey(self.channel, 0, f"{self.name}-{self.seed}-{self._updates}")
        if key != self._staged:
            self.unstage()
            self.engine.stage_weights(key, config, state, temperature=self.settings.temperature)
            self._staged = key
        return key

    def unstage(self) -> None:
        """Take the weights out of the engine."""
        if self._staged is not None:
            self.engine.unstage(self._staged)
            self._staged = None

    def iterate(self, prompts: Sequence[TrainPrompt], reward: RewardFunction, iteration: int) -> IterationStats:
        """Run one iteration on `prompts`."""
        settings = self.settings
        # 1. Rollout.
        samples = sample(
            self.engine,
            prompts,
            self.stage(),
            self.sampling,
            samples=settings.samples,
            seed=self.seed * 1009 + iteration,
            capture=True,
        )
        rollout = collate(samples)
        # 2. Reference.
        ref_logprobs = self._reference(rollout)
        # 3. Rewards.
        scores, outlook = reward(samples)
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
                part[mask] = completion_logprobs(self.base, rollout, rows, self._start, self.settings.temperature).cpu()
                logprobs[rows] = part
        return logprobs

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
        with adapters.active(self.base, self.name), torch.enable_grad():
            for _ in range(settings.epochs):
                for rows in self._batches(rollout, self._shuffled(rollout)):
                    mask = rollout.mask[rows]
                    old = rollout.logprobs[rows][mask]
                    logprobs = completion_logprobs(self.base, rollout, rows, self._start, settings.temperature).cpu()
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
