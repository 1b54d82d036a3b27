"""Completions: prompts are sampled again on the engine, by PPO and for the gate."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence

from plaudit.decoding import channel_sampling, untruncated
from plaudit.errors import RequestRefused
from plaudit.evidence.store import FrozenDataSet, PromptRow
from plaudit.learner import staging
from plaudit.learner.actions.protocol import Fitted, Frozen, Measured
from plaudit.learner.compared import ComparedStates
from plaudit.learner.context import Turn
from plaudit.learner.held_out import HeldOutTexts
from plaudit.learner.measure import Measurer, kl_by_prompt, logprobs_of
from plaudit.learner.practice import practice_of
from plaudit.learner.references import SampledReferences
from plaudit.learner.rewards import ModelReward
from plaudit.policy.optimizer import CompletionTask, Optimised, hold_out
from plaudit.policy.rollout import Rollout, TrainPrompt, collate
from plaudit.policy.train import Ppo
from plaudit.release.gate import CompletionMeasurements
from plaudit.release.probes import samples_needed
from plaudit.reward.fit import FIT_REFERENCES
from plaudit.types import Request


class Completions:
    """An ActionPolicy."""

    def prompts(self, turn: Turn, rows: Sequence[PromptRow]) -> tuple[list[TrainPrompt], Counter[str]]:
        """Prompts that the plugin and the chat template take and that leave room for a completion."""
        found, left_out, sampling = [], Counter[str](), turn.sampling
        for row in rows:
            try:
                rendered = turn.plugin.render(Request(messages=row.messages, passages=row.passages))
                encoded = turn.engine.encode(rendered.messages)
            except RequestRefused:  # another version of the plugin took it, or another base's chat template
                left_out["are refused by the plugin or the chat template"] += 1
                continue
            if len(encoded.tokens) + sampling.max_tokens > turn.engine.context_length:
                left_out["are too long for the context"] += 1
                continue
            if channel_sampling(turn.plugin, turn.settings.policy, rendered) != sampling:
                left_out["are sampled in a way of their own (decode_spec)"] += 1
                continue
            # Its evidence is sorted by the logged group: another version of the plugin may name it otherwise.
            rendered = dataclasses.replace(rendered, group=row.group)
            found.append(TrainPrompt(rendered=rendered, encoded=encoded))
        return found, left_out

    def references(self, turn: Turn, data: FrozenDataSet, prompts: Sequence[TrainPrompt]) -> SampledReferences:
        """The base's answers: those that were served, and as many more as are asked for."""
        references = SampledReferences(
            turn.base,
            turn.plugin,
            turn.kept.answers,
            turn.sampling,
            most=min(turn.settings.reward.references, FIT_REFERENCES),
        )
        references.take_from(data)
        return references

    def optimise(self, turn: Turn, frozen: Frozen, fitted: Fitted) -> Optimised:
        """PPO on fresh completions."""
        settings = turn.settings
        train, held_out = hold_out(frozen.train, settings.policy)
        practice = practice_of(turn, {prompt.group for prompt in frozen.prompts} - {prompt.group for prompt in train})
        states = ComparedStates(turn, frozen.references)
        optimised = Ppo().optimise(
            CompletionTask(
                channel=turn.channel,
                engine=turn.engine,
                base=turn.base,
                live=staging.live_adapter(turn),
                data=frozen.data,
                references=frozen.references,
                train=train,
                held_out=held_out,
                reward=ModelReward(
                    fitted.reward,
                    turn.plugin,
                    frozen.references,
                    most_references=settings.reward.references,
                    outlook=settings.policy.advantage == "gae",
                ),
                practice=practice,
                looked=states.looked,
                text_checks=HeldOutTexts(turn.base, turn.plugin, frozen.references, settings.gate),
                sampling=untruncated(turn.sampling),
                model=settings.model,
                settings=settings.policy,
                seed=turn.seed,
                folder=turn.folder,
                progress=turn.tell,
                ranks=turn.learner.ranks,
            )
        )
        states.leave(optimised)
        return optimised

    def measure(self, turn: Turn, frozen: Frozen, fitted: Fitted, optimised: Optimised) -> Measured:
        """Answers to gate prompts beside those of base and live, judged by the gate's reward model."""
        settings, references = turn.settings.gate, frozen.references
        measurer = Measurer(
            turn.base,
            turn.engine,
            turn.plugin,
            fitted.judge,
            references,
            turn.sampling,
            samples=settings.samples,
            start_layer=turn.start_layer,
            seed=turn.seed * 7919 + 1,
            answers=turn.kept.answers,
            probe_seed=turn.base_seed,
            detail=turn.tell,
        )
        with (
            staging.candidate(turn, optimised.adapter) as key,
            staging.loaded(turn, "policy", optimised.adapter),
        ):
            made = drawn = measurer.sampled(frozen.gate, key, "candidate")
            if turn.sampling != untruncated(turn.sampling):
                # What was drawn from a part of the distribution says nothing of the KL of all of it.
                drawn = measurer.sampled(frozen.gate, key, "candidate, untruncated", untruncated(turn.sampling))
            needed = samples_needed(settings.probe_rate, settings.probe_power)
            with staging.live(turn) as live:
                if live is not None:
                    measurer.served[live] = turn.served(live.version)
                probes, failed = measurer.probes(key, turn.base_key, live, needed, settings.probe_rate)
            proof = measurer.proof(key, "policy", turn.sampling.temperature)
        references.complete(frozen.gate, min(2, settings.samples))
        scores, said = measurer.judged(made)
        base_scores, base_said = measurer.base_answers(frozen.gate)
        rollout = collate(drawn, turn.base, turn.start_layer)
        kl_base = _kl(turn, rollout, None)
        wins_base = measurer.wins(scores, base_scores)
        wins_live, kl_live = wins_base, kl_base
        if turn.state.live:
            wins_live, kl_live = _against_live(turn, frozen, measurer, scores, rollout)
        elif (served := turn.served(0)) != turn.sampling:
            # The base answers callers at another temperature than it is the reference at.
            live_scores, _ = measurer.judged(measurer.sampled(frozen.gate, turn.base_key, "live", served))
            wins_live = measurer.wins(scores, live_scores)
        measurements = CompletionMeasurements(
            wins_base=wins_base,
            wins_live=wins_live,
            kl_base=kl_base,
            kl_live=kl_live,
            candidate=tuple(said),
            base=tuple(base_said),
            probes=probes,
            comparisons=tuple(fitted.report.outcomes),
            live_comparisons=fitted.live_outcomes,
            live_is_base=not turn.state.live,
            rater_cap=turn.settings.reward.rater_cap,
            terms=measurer.terms(frozen.gate, said),
        )
        return Measured(measurements=measurements, kl=sum(kl_base) / len(kl_base), proof=proof, failed=failed)


def _against_live(
    turn: Turn, frozen: Frozen, measurer: Measurer, scores: list[list[float]], rollout: Rollout
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Win-rates by prompt against what the live release answers callers, and KL at the policy's temperature."""
    adapter = staging.live_adapter(turn)
    with staging.live(turn) as key:
        assert key is not None, "asked only if a release is live"
        assert adapter is not None, "asked only if a release is live"
        live_scores, _ = measurer.judged(measurer.sampled(frozen.gate, key, "live"))
    with staging.loaded(turn, "live", adapter):
        return measurer.wins(scores, live_scores), _kl(turn, rollout, "live")


def _kl(turn: Turn, rollout: Rollout, adapter: str | None) -> tuple[float, ...]:
    """KL of the candidate to the base (None) or to a loaded adapter, by prompt, nats per sequence."""
    other = logprobs_of(turn.base, rollout, adapter, turn.start_layer, turn.sampling.temperature)
    return kl_by_prompt(rollout, other, turn.settings.gate.samples)
