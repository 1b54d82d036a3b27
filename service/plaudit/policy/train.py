"""The PPO recipe, top to bottom: a task in, a policy adapter out.

Each iteration: (1) rollout on the serving engine under the newest weights, of what people asked and of the domain's
practice cases, (2) log-probs of the same tokens with the adapter off and under the live one, (3) rewards, less a
penalty for harm on a practice case, (4) advantages, (5) clipped updates until the policy has moved `update_kl` nats per
token, the KL controller acting at each. Every so often the policy is sampled on the held-out
prompts; the best of these iterates is what leaves. The reward function is a closure that this module cannot look
into. See docs/papers.md for the sources.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import NamedTuple

import torch

from plaudit.engine import adapters
from plaudit.engine.protocol import UNREGISTERED, ReleaseKey
from plaudit.engine.ranks import Alone, split
from plaudit.engine.targets import start_layer
from plaudit.policy import ppo
from plaudit.policy.iterates import Iterate
from plaudit.policy.loop import LIVE, NAME, Steps, controlled, draws, keep, on_the_base, run
from plaudit.policy.optimizer import CompletionTask, Optimised
from plaudit.policy.rollout import Rollout, Sample, TrainPrompt, collate, passes
from plaudit.policy.shares import Asked, Scored, logprobs_of, sampled
from plaudit.policy.value import LinearValue, features
from plaudit.settings import PolicySettings

REFERENCES = 2  # Base answers of a prompt with which rewards are centred.
GAMMA = 1.0  # A completion is short and has one reward: nothing is discounted.
HELD_OUT_SAMPLES = 4  # Completions of a held-out prompt.


@dataclass(frozen=True, slots=True, kw_only=True)
class IterationStats:
    """What one iteration did. Means are over all its completions or all its updates' minibatches.

    `reward` is that of answers to people's prompts; of those to practice cases, `practice_failed` did harm.
    """

    iteration: int
    reward: float
    practice_asked: int
    practice_failed: int
    kl_nats_per_sequence: float
    kl_live_nats_per_sequence: float
    kl_coef: float
    updates: int
    approx_kl_per_token: float
    clip_fraction: float
    explained_variance: float
    mean_tokens: float
    ended: float
    parity: float

    def as_dict(self) -> dict[str, float]:
        """For manifests and reports."""
        return asdict(self)


class _Moved(NamedTuple):
    """How far a pass of an update found the policy: parts of a minibatch's figures that add up to them.

    `kl` to the base, nats, summed over the sequences; `approx_kl` to the sampling policy, nats per token, and
    `clip_fraction` are weighed by the pass's share of tokens. `parity` is the largest change of a log-prob.
    """

    kl: float
    approx_kl: float
    clip_fraction: float
    parity: float


class Ppo:
    """PPO from the live adapter, or from one that changes nothing yet."""

    def optimise(self, task: CompletionTask) -> Optimised:
        """See `Optimizer.optimise`."""
        with on_the_base(task):
            trainer = PolicyTrainer(task)
            try:
                drawn = with_practice(task)
                task.progress("references")
                every = {prompt.encoded.tokens: prompt for prompts in [*drawn, task.held_out] for prompt in prompts}
                task.references.complete(list(every.values()), REFERENCES)
                task.references.complete(task.held_out, HELD_OUT_SAMPLES)
                return run(task, trainer, drawn)
            finally:
                trainer.unstage()


def with_practice(task: CompletionTask) -> list[list[TrainPrompt]]:
    """The prompts of each iteration: what people asked, and in their place a share of practice cases."""
    settings = task.settings
    practised = practice_prompts(settings) if task.practice.train else 0
    asked = draws(task, task.train, settings.prompts - practised)
    cases = draws(task, task.practice.train, practised)
    return [[*people, *own] for people, own in zip(asked, cases, strict=True)]


def practice_prompts(settings: PolicySettings) -> int:
    """Practice cases of an iteration: at least one unless the share is 0, and always fewer than there are prompts."""
    if not settings.practice_share:
        return 0
    return min(settings.prompts - 1, max(1, round(settings.practice_share * settings.prompts)))


class PolicyTrainer:
    """PPO on the task's adapter, which must be on the base under NAME (and the live one, if any, under LIVE)."""

    def __init__(self, task: CompletionTask) -> None:
        settings = task.settings
        self.task, self.base, self.engine, self.settings = task, task.base, task.engine, settings
        self._start = start_layer(self.base, task.model.adapter_layers)
        self._ranks = task.ranks or Alone(task.base, task.engine)
        self._steps = Steps(self.base, settings)
        # Advantages are linear in rewards: score, KL to the base and KL to live each have their own, and the
        # controller may weigh them again at each update.
        self._values = [LinearValue() for _ in range(3)]
        self._kl_coef = settings.kl_coef
        self._random = random.Random(task.seed)
        self._staged: ReleaseKey | None = None

    def stage(self) -> ReleaseKey:
        """Put the newest weights into the engine, under a key of their own, and forget the previous ones."""
        key = ReleaseKey(str(self.task.channel), UNREGISTERED, f"{NAME}-{self.task.seed}-{self._steps.taken}")
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

    def sampled(self, prompts: Sequence[TrainPrompt], seed: int, samples: int | None = None) -> Rollout:
        """Completions of prompts under the newest weights; `samples` of each, or as many as the settings say."""
        # What an engine does not capture, or captures elsewhere, is computed in `collate`.
        capture = self.engine.capture_layer == self._start
        made = self._made(prompts, seed, samples or self.settings.samples, capture=capture)
        return collate(made, self.base, self._start)

    def _made(self, prompts: Sequence[TrainPrompt], seed: int, samples: int, *, capture: bool) -> list[Sample]:
        parts = split(len(prompts), self._ranks.samplers)
        asked = [
            Asked([prompts[i] for i in part], self.stage(), self.task.sampling, samples, seed, part.start, capture)
            for part in parts
        ]
        shares: list[Asked | None] = [each if each.prompts else None for each in asked]
        shares += [None] * (self._ranks.size - len(shares))
        made = self._ranks.spread(sampled, shares, NAME)
        generated = [each for several in made for each in several]
        return [Sample(prompt=prompts[i // samples], generated=each) for i, each in enumerate(generated)]

    def keep(self, iteration: int) -> None:
        """Write the newest weights to the place from which they can be chosen later."""
        keep(self.task, iteration)

    def look(self, iteration: int) -> Iterate:
        """Keep the newest weights and sample them on the held-out prompts, each time with the same draws."""
        self.keep(iteration)
        rollout = self.sampled(self.task.held_out, self.task.seed * 1013, HELD_OUT_SAMPLES)
        rewards = self.task.reward(rollout.samples).totals.view(-1, HELD_OUT_SAMPLES).mean(dim=1)
        kl_base = kl_live = self._kl(rollout, None)
        if self.task.live is not None:
            kl_live = self._kl(rollout, LIVE)
        iterate = Iterate(
            iteration=iteration,
            rewards=tuple(rewards.tolist()),
            kl_base=kl_base,
            kl_live=kl_live,
            refused=self.task.text_checks(rollout.samples),
            harms=self._harms(),
        )
        self.task.looked(iterate, rollout.samples)
        return iterate

    def _harms(self) -> tuple[float, ...]:
        """Of each held-out practice case the share of answers that do harm, under the newest weights."""
        cases = self.task.practice.held_out
        if not cases:
            return ()
        made = self._made(cases, self.task.seed * 1013, HELD_OUT_SAMPLES, capture=False)
        failed = torch.tensor(self.task.practice.does_harm(made), dtype=torch.float64)
        return tuple(failed.view(-1, HELD_OUT_SAMPLES).mean(dim=1).tolist())

    def _kl(self, rollout: Rollout, adapter: str | None) -> float:
        other = self.logprobs_under(rollout, adapter)
        return float(ppo.sequence_kl(rollout.logprobs, other, rollout.mask).mean())

    def iterate(self, prompts: Sequence[TrainPrompt], iteration: int) -> IterationStats:
        """Run one iteration on `prompts`."""
        # 1. Rollout.
        rollout, parity = self._by_own_pass(self.sampled(prompts, self.task.seed * 1009 + iteration))
        mask = rollout.mask
        # 2. Anchors.
        anchors = [self.logprobs_under(rollout, None)]
        if self.task.live is not None:
            anchors.append(self.logprobs_under(rollout, LIVE))
        # 3. Rewards.
        scores, outlook = self.task.reward(rollout.samples)
        practised, harmful = self._practised(rollout.samples)
        reward = float(scores[~practised].mean())
        scores = scores - self.settings.practice_penalty * harmful
        kls = [ppo.token_kl(rollout.logprobs, anchor, mask) for anchor in anchors]
        # 4. Advantages.
        inputs = None
        if self.settings.advantage == "gae":
            padded = torch.nn.utils.rnn.pad_sequence(list(outlook), batch_first=True)
            inputs = features(padded, mask, self.task.sampling.max_tokens)
        parts, explained = self._advantages(rollout, [ppo.terminal_rewards(scores, mask), *(-kl for kl in kls)], inputs)
        # 5. Updates.
        coef = self._kl_coef
        updates, approx_kl, clip_fraction, first = self._update(rollout, parts, anchors[0])
        to_base, to_live = kls[0].sum(1).mean(), kls[-1].sum(1).mean()
        return IterationStats(
            iteration=iteration,
            reward=reward,
            practice_asked=int(practised.sum()),
            practice_failed=int(harmful.sum()),
            kl_nats_per_sequence=float(to_base),
            kl_live_nats_per_sequence=float(to_live),
            kl_coef=coef,
            updates=updates,
            approx_kl_per_token=approx_kl,
            clip_fraction=clip_fraction,
            explained_variance=explained,
            mean_tokens=float(mask.sum(1).float().mean()),
            ended=sum(s.generated.finish_reason == "eos" for s in rollout.samples) / len(rollout.samples),
            parity=max(parity, first),
        )

    def _by_own_pass(self, rollout: Rollout) -> tuple[Rollout, float]:
        """The rollout with log-probs by the trainer's own pass if it or the engine rounds; how far apart they were.

        Roundings are as large as a small update, and would be clipped as one: a ratio is of two policies that are
        computed alike. Its denominator is then the policy near the one that sampled (Hilton et al. 2021,
        arXiv:2110.00641).
        """
        if self.base.format == torch.float32 and self.engine.base_dtype == "float32":
            return rollout, 0.0
        own = self.logprobs_under(rollout, NAME)
        apart = torch.where(rollout.mask, own - rollout.logprobs, 0.0).abs().max()
        return rollout._replace(logprobs=own), float(apart)

    def _practised(self, samples: Sequence[Sample]) -> tuple[torch.Tensor, torch.Tensor]:
        """Which samples (B,) are of practice cases, and which of them do harm."""
        practised = torch.tensor([bool(each.prompt.case) for each in samples])
        harmful = torch.zeros(len(samples), dtype=torch.bool)
        if practised.any():
            own = [each for each in samples if each.prompt.case]
            harmful[practised] = torch.tensor(self.task.practice.does_harm(own))
        return practised, harmful

    @torch.no_grad()
    def logprobs_under(self, rollout: Rollout, adapter: str | None) -> torch.Tensor:
        """Log-probs (B, C) of a rollout's tokens under an adapter (None: the base)."""
        logprobs = torch.zeros_like(rollout.logprobs)
        with adapters.active(self.base, adapter):
            for rows in self._passes(rollout, range(len(rollout.hidden))):
                mask = rollout.mask[rows]
                part = torch.zeros(mask.shape)
                part[mask] = torch.cat(self._ranks.spread(logprobs_of, self._shares(rollout, rows), adapter))
                logprobs[rows] = part
        return logprobs

    def _shares(self, rollout: Rollout, rows: Sequence[int]) -> list[Scored | None]:
        """Rows of a rollout by rank: those of the first stay in place."""
        temperature, shares = self.task.sampling.temperature, list[Scored | None]()
        for rank, part in enumerate(split(len(rows), self._ranks.size)):
            own = [rows[i] for i in part]
            if rank and own:
                shares.append(Scored(rollout.part(own), range(len(own)), self._start, temperature))
            else:
                shares.append(Scored(rollout, own, self._start, temperature) if own else None)
        return shares

    def _batches(self, rows: Sequence[int]) -> Iterator[Sequence[int]]:
        size = self.settings.minibatch
        return (rows[i : i + size] for i in range(0, len(rows), size))

    def _advantages(
        self, rollout: Rollout, rewards: Sequence[torch.Tensor], inputs: torch.Tensor | None
    ) -> tuple[list[torch.Tensor], float]:
        """Advantages (B, C) of each part of the reward, and the share of the score's variance that was foreseen."""
        mask, samples = rollout.mask, self.settings.samples
        if inputs is None:
            loo = [ppo.leave_one_out(part.sum(dim=1), samples)[:, None].expand(mask.shape) for part in rewards]
            return loo, 0.0
        second = torch.arange(len(mask)) // samples % 2 == 1
        found, explained = [], []
        for value, part in zip(self._values, rewards, strict=False):
            returns = part.flip(1).cumsum(1).flip(1)
            values = value.foresee(inputs, returns, mask, second)
            found.append(ppo.gae(part, values, mask, GAMMA, self.settings.gae_lambda)[0])
            explained.append(ppo.explained_variance(returns, values, mask))
        return found, explained[0]

    def _weighed(self, parts: Sequence[torch.Tensor], mask: torch.Tensor) -> torch.Tensor:
        """Whitened advantages (B, C) under the coefficients of this moment."""
        weights = [1.0, self._kl_coef, self.settings.kl_live_coef]
        total = torch.stack([w * part for w, part in zip(weights, parts, strict=False)]).sum(dim=0)
        return ppo.whiten(total, mask).float()

    def _update(
        self, rollout: Rollout, parts: Sequence[torch.Tensor], reference: torch.Tensor
    ) -> tuple[int, float, float, float]:
        """Clipped updates; returns their number, KL per token to where they began, clip fraction, parity."""
        parity = 0.0
        kls: list[float] = []
        clipped: list[float] = []
        with adapters.active(self.base, NAME), torch.enable_grad():
            for rows in self._minibatches(rollout):
                # As the controller left them at the update before: a pass's slope is taken before the next pass.
                advantages = self._weighed(parts, rollout.mask)
                self._steps.zero()
                moved = [
                    self._slope(rollout, part, advantages, reference, int(rollout.mask[rows].sum()))
                    for part in self._passes(rollout, rows)
                ]
                if not kls:
                    parity = max(each.parity for each in moved)
                self._control(sum(each.kl for each in moved) / len(rows))
                kls.append(sum(each.approx_kl for each in moved))
                clipped.append(sum(each.clip_fraction for each in moved))
                if kls[-1] > self.settings.update_kl:
                    break
                self._steps.take()
        # The last pass saw every completion, each under newer weights than the one before.
        last = kls[-len(rollout.hidden) // self.settings.minibatch :]
        return len(kls), sum(last) / len(last), sum(clipped) / len(clipped), parity

    def _slope(
        self, rollout: Rollout, rows: Sequence[int], advantages: torch.Tensor, reference: torch.Tensor, tokens: int
    ) -> _Moved:
        """Add the rows' part of the gradient of a minibatch of so many completion tokens; see `_Moved`."""
        mask = rollout.mask[rows]
        old = rollout.logprobs[rows][mask]
        logprobs = self._ranks.forward(logprobs_of, self._shares(rollout, rows), NAME)
        result = ppo.policy_loss(
            logprobs, old, advantages[rows][mask], torch.ones_like(old).bool(), self.settings.clip_range
        )
        share = len(old) / tokens
        (share * result.loss).backward()  # type: ignore[no-untyped-call]
        self._ranks.backward(NAME)
        own = logprobs.detach()
        return _Moved(
            kl=ppo.moved_kl(own, old, reference[rows][mask]),
            approx_kl=share * float(result.approx_kl),
            clip_fraction=share * float(result.clip_fraction),
            parity=float((own - old).abs().max()),
        )

    def _passes(self, rollout: Rollout, rows: Sequence[int]) -> Sequence[Sequence[int]]:
        """Rows by pass; a pass of several processes costs them an exchange, so that theirs are of a minibatch."""
        return passes(rollout, rows) if self._ranks.size == 1 else list(self._batches(rows))

    def _control(self, kl: float) -> None:
        self._kl_coef = controlled(self._kl_coef, kl, self.settings.kl_target)

    def _minibatches(self, rollout: Rollout) -> Iterator[Sequence[int]]:
        """Rows in a fresh order of prompts each epoch; those of one prompt stay together, for they share its tokens."""
        for _ in range(self.settings.epochs):
            starts = list(range(0, len(rollout.hidden), self.settings.samples))
            self._random.shuffle(starts)
            yield from self._batches([row for s in starts for row in range(s, s + self.settings.samples)])
