"""Measures a candidate release for the gate.

Enters: a trained adapter, the gate's prompts and its own reward model. Leaves: what CompletionMeasurements
hold, and the probes of the served-policy proof. Decides nothing.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping, Sequence

import torch

from plaudit.domain import DomainPlugin, GateProbe
from plaudit.engine import adapters
from plaudit.engine.base import Base
from plaudit.engine.frozen import exact
from plaudit.engine.protocol import Engine, ReleaseKey
from plaudit.errors import InvalidField, RequestRefused
from plaudit.learner.kept import Answers
from plaudit.learner.references import References, as_shown, said
from plaudit.policy.ppo import sequence_kl
from plaudit.policy.rollout import Rollout, Sample, TrainPrompt, collate, completion_logprobs, sample
from plaudit.release import texts
from plaudit.release.gate import win_rates
from plaudit.release.manifest import Probe
from plaudit.release.probes import (
    MORE_ANSWERS,
    FailedAnswer,
    HarmRate,
    HarmResult,
    by_harm,
    gate_cases,
    judged,
    served_rate,
)
from plaudit.reward.completion import Completion
from plaudit.reward.model import RewardModel
from plaudit.types import Message, Request, Sampling

PROOF_PROBES = 8
# Asked of every candidate, so that each release has probes, also of a domain without cases of its own.
PROOF_PROMPTS = (
    "Name three colours.",
    "What is tea made of?",
    "Tell me about the sea.",
    "How does a bicycle work?",
    "Write one sentence about a garden.",
    "What do people do in winter?",
    "List two kinds of bread.",
    "Why is the sky blue?",
)
BATCH = 16
SCORE_TERM = "score"  # As the contract's default reward names what the reward model says.
NEUTRAL_SCORE = 0.5


def logprobs_of(
    base: Base, rollout: Rollout, adapter: str | None, start_layer: int, temperature: float
) -> torch.Tensor:
    """Log-probs (B, C) of a rollout's tokens under an adapter (None: the base), by the trainer's own pass."""
    found = torch.zeros_like(rollout.logprobs)
    rows = list(range(len(rollout.hidden)))
    with adapters.active(base, adapter), torch.no_grad():
        for i in range(0, len(rows), BATCH):
            part = rows[i : i + BATCH]
            mask = rollout.mask[part]
            values = torch.zeros(mask.shape)
            values[mask] = completion_logprobs(base, rollout, part, start_layer, temperature).cpu()
            found[part] = values
    return found


def kl_by_prompt(rollout: Rollout, other: torch.Tensor, samples: int) -> tuple[float, ...]:
    """KL of the sampling policy to another, one number per prompt: the mean over its samples, nats per sequence."""
    sequences = sequence_kl(rollout.logprobs, other, rollout.mask)
    return tuple(sequences.view(-1, samples).mean(dim=1).tolist())


class _Asked:
    """The cases of one harm, and what was answered so far: who is asked more goes on from there."""

    def __init__(
        self,
        measurer: Measurer,
        cases: Sequence[GateProbe],
        releases: Mapping[str, ReleaseKey | None],
        base: ReleaseKey,
    ) -> None:
        self._measurer, self._cases, self._releases, self._base = measurer, cases, releases, base
        self._prompts: list[TrainPrompt] | None
        try:
            rendered = [measurer.plugin.render(case.request) for case in cases]
            self._prompts = [TrainPrompt(rendered=r, encoded=measurer.engine.encode(r.messages)) for r in rendered]
        except RequestRefused:
            self._prompts = None
        self._displayed: dict[str, list[list[str]]] = {who: [[] for _ in cases] for who in releases}

    def result(self, harm: str, needed: int) -> tuple[HarmResult, list[FailedAnswer]]:
        """Rates of at least `needed` answers each: of the candidate, and of the others if it did the harm."""
        rate, failed = self._rate("candidate", needed)
        others = [who for who, key in self._releases.items() if who != "candidate" and key is not None]
        rates = {who: self._rate(who, needed)[0] for who in others if rate.failed}
        return HarmResult(harm=harm, candidate=rate, **rates), failed

    def _rate(self, who: str, needed: int) -> tuple[HarmRate, list[FailedAnswer]]:
        """The rate of one; of none asked if a case cannot be, so that the gate refuses by the harm's name."""
        release, held = self._releases[who], self._displayed[who]
        assert release is not None, "asked only of what is there"
        if self._prompts is None:
            return HarmRate(0, 0), []
        first, last = len(held[0]), math.ceil(needed / len(self._cases))
        try:
            more = self._measurer.answers_to(self._prompts, release, self._base, first, last) if last > first else []
        except RequestRefused:
            return HarmRate(0, 0), []
        for displayed, prompt, texts_ in zip(held, self._prompts, more, strict=False):
            displayed += [self._measurer.plugin.parse(prompt.rendered, text).displayed for text in texts_]
        return judged(self._cases, {case.probe_id: held[i] for i, case in enumerate(self._cases)})


class Measurer:
    """Samples a candidate on the gate's prompts and compares it with base and live."""

    def __init__(
        self,
        base: Base,
        engine: Engine,
        plugin: DomainPlugin,
        judge: RewardModel,
        references: References,
        sampling: Sampling,
        *,
        samples: int,
        start_layer: int,
        seed: int,
        answers: Answers,
        probe_seed: int,
        detail: Callable[[str], None],
    ) -> None:
        self.base, self.engine, self.plugin, self.judge = base, engine, plugin, judge
        self.references, self.sampling = references, sampling
        self.samples, self.start_layer, self.seed = samples, start_layer, seed
        # Sampling of releases that answer callers at a temperature of their own, and not by `sampling`.
        self.served: dict[ReleaseKey, Sampling] = {}
        # The base's, and the seed that they are drawn with: candidate and live are probed with the same draws.
        self._answers, self._probe_seed = answers, probe_seed
        self._detail = detail

    def sampled(
        self, prompts: Sequence[TrainPrompt], release: ReleaseKey, what: str, sampling: Sampling | None = None
    ) -> list[Sample]:
        """Answers of a release to the gate's prompts, with trunk activations; as they are served if None is given."""
        return sample(
            self.engine,
            prompts,
            release,
            sampling or self.served.get(release, self.sampling),
            samples=self.samples,
            seed=self.seed,
            capture=True,
            progress=lambda done, all_: self._detail(f"{what}: {done}/{all_} answers"),
        )

    def judged(self, made: Sequence[Sample]) -> tuple[list[list[float]], list[texts.Sample]]:
        """Scores by the gate's reward model, a list for each prompt, and the texts as displayed."""
        shown = [as_shown(self.base, self.plugin, each) for each in made]
        scores = self._scores([completion for completion, _ in shown])
        rows = [scores[i : i + self.samples] for i in range(0, len(scores), self.samples)]
        return rows, [said(each.prompt, text) for each, (_, text) in zip(made, shown, strict=True)]

    def base_answers(self, prompts: Sequence[TrainPrompt]) -> tuple[list[list[float]], list[texts.Sample]]:
        """The same for the base's answers, which the references hold."""
        answers = [self.references.of(p)[: self.samples] for p in prompts]
        scores = iter(self._scores([completion for several in answers for completion, _ in several]))
        rows = [[next(scores) for _ in several] for several in answers]
        return rows, [said(p, text) for p, several in zip(prompts, answers, strict=True) for _, text in several]

    def terms(self, prompts: Sequence[TrainPrompt], candidate: Sequence[texts.Sample]) -> dict[str, tuple[float, ...]]:
        """Each of the domain's own reward terms, candidate less base: one number per prompt that has the term."""
        base = [[text for _, text in self.references.of(p)[: self.samples]] for p in prompts]
        mine = [candidate[i : i + self.samples] for i in range(0, len(candidate), self.samples)]
        found: dict[str, list[float]] = {}
        for prompt, ours, theirs in zip(prompts, mine, base, strict=True):
            after, before = self._mean_terms(prompt, [each.text for each in ours]), self._mean_terms(prompt, theirs)
            for name in sorted(after.keys() & before.keys()):
                found.setdefault(name, []).append(after[name] - before[name])
        return {name: tuple(differences) for name, differences in found.items()}

    def _mean_terms(self, prompt: TrainPrompt, displayed: Sequence[str]) -> dict[str, float]:
        """Means over one prompt's answers of the terms that are not the score, which the judge has already."""
        values: dict[str, list[float]] = {}
        for text in displayed:
            outcome = self.plugin.parse(prompt.rendered, text)
            for name, value in self.plugin.reward(prompt.rendered, outcome, NEUTRAL_SCORE).terms:
                if name != SCORE_TERM:
                    values.setdefault(name, []).append(value)
        return {name: sum(several) / len(several) for name, several in values.items()}

    def _scores(self, completions: Sequence[Completion]) -> list[float]:
        found: list[float] = self.judge.scores(completions).mean(dim=-1).tolist()
        return found

    def wins(self, candidate: list[list[float]], other: list[list[float]]) -> tuple[float, ...]:
        """Win-rate of the candidate by prompt."""
        return win_rates(candidate, other)

    def probes(
        self, candidate: ReleaseKey, base: ReleaseKey, live: ReleaseKey | None, needed: int, bound: float
    ) -> tuple[tuple[HarmResult, ...], tuple[FailedAnswer, ...]]:
        """The domain's own cases, at least `needed` answers per harm, and the answers that did harm.

        Base and live (None: the base is) are asked only about a harm that the candidate did. If what serves now does it
        in more than `bound` of its answers, all are asked MORE_ANSWERS times as often.
        """
        results: list[HarmResult] = []
        failed: list[FailedAnswer] = []
        for harm, cases in by_harm(self.plugin.gates()).items():
            self._detail(f"probes: {harm}")
            asked = _Asked(self, cases, {"candidate": candidate, "base": base, "live": live}, base)
            result, answers = asked.result(harm, needed)
            served = served_rate(result)
            if served is not None and served.rate > bound:
                result, answers = asked.result(harm, MORE_ANSWERS * needed)
            results.append(result)
            failed += answers
        return tuple(results), tuple(failed)

    def answers_to(
        self, prompts: Sequence[TrainPrompt], release: ReleaseKey, base: ReleaseKey, first: int, last: int
    ) -> list[list[str]]:
        """Texts of the answers first..last-1 of a release to each prompt; the base's may be those of earlier turns."""
        if release == base:
            several = self._answers.of(prompts, last, self.sampling, many=True)
            return [[answer.text for answer in each[first:]] for each in several]
        count = last - first
        made = sample(
            self.engine,
            prompts,
            release,
            self.served.get(release, self.sampling),
            samples=count,
            first=first,
            seed=self._probe_seed,
            seeded_by_prompt=True,
        )
        return [[each.generated.text for each in made[i * count : (i + 1) * count]] for i in range(len(prompts))]

    def proof(self, release: ReleaseKey, adapter: str, temperature: float) -> tuple[Probe, ...]:
        """Completions with the trainer's log-probs, longest first, one per prompt: replicas must give the same.

        Of the domain's own cases and of fixed prompts, never of what people asked: probes travel in the manifest.
        """
        requests = [case.request for case in gate_cases(self.plugin.gates())]
        requests += [Request(messages=(Message("user", text),)) for text in PROOF_PROMPTS]
        prompts = []
        for request in requests:
            # A domain may refuse a bare prompt, and a base's template a conversation.
            with contextlib.suppress(RequestRefused):
                rendered = self.plugin.render(request)
                prompts.append(TrainPrompt(rendered=rendered, encoded=self.engine.encode(rendered.messages)))
        if not prompts:
            raise InvalidField("the domain refuses every prompt of the served-policy proof; give it gate cases")
        made = sample(self.engine, prompts, release, self.sampling, samples=1, seed=self.seed)
        chosen = sorted(made, key=lambda each: -len(each.generated.tokens))[:PROOF_PROBES]
        # Nothing of the engine's own, which is what will be compared.
        with exact(self.base):
            rollout = collate(chosen, self.base, self.start_layer)
            logprobs = logprobs_of(self.base, rollout, adapter, self.start_layer, temperature)
        return tuple(
            Probe(
                prompt_tokens=each.prompt.encoded.tokens,
                completion_tokens=each.generated.tokens,
                logprobs=tuple(row[: len(each.generated.tokens)].tolist()),
            )
            for each, row in zip(chosen, logprobs, strict=True)
        )
