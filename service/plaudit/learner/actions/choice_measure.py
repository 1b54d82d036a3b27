"""Measures a candidate that chooses, for the gate: its scores of gate prompts' options beside those of base and live.

Enters: a trained adapter, gate prompts with their options, the gate's reward model, labels of gate raters, drawn
interactions. Leaves: ChoiceMeasurements, and the log-probs of the served-policy proof. Nothing is sampled but orders of
slates, and those under common draws. Decides nothing.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from plaudit import ordering
from plaudit.deciding import Costs, costs_of, decide, labels_of
from plaudit.domain import GateProbe
from plaudit.engine.frozen import exact
from plaudit.engine.protocol import ReleaseKey
from plaudit.errors import InvalidField, RequestRefused
from plaudit.evidence.splits import Split
from plaudit.learner import staging
from plaudit.learner.actions.protocol import Fitted, Frozen, Measured
from plaudit.learner.context import Turn
from plaudit.learner.measure import PROOF_PROBES, PROOF_PROMPTS
from plaudit.learner.off_policy import OffPolicyLog, Shows, option_scores, reactions
from plaudit.learner.rewards import OptionRewards
from plaudit.policy import choices
from plaudit.policy.optimizer import Optimised
from plaudit.policy.option_scores import OptionScorer
from plaudit.policy.rollout import TrainPrompt
from plaudit.release import estimate
from plaudit.release.gate_choices import ChoiceMeasurements, LabelledItem, OffPolicy
from plaudit.release.manifest import Probe
from plaudit.release.probes import FailedAnswer, HarmRate, HarmResult, by_harm, gate_cases
from plaudit.types import Label, Message, Option, Prompt, Request, is_rater

ORDERS = 64  # Orders of a slate that are drawn per gate prompt; they cost no pass of the model.
PROOF_OPTIONS = (Option("yes", "yes"), Option("no", "no"))


class Asked(NamedTuple):
    """A release as the engine knows it, and the temperature at which it is asked; None is its own."""

    key: ReleaseKey
    temperature: float | None


@dataclass(frozen=True, slots=True)
class Answer:
    """What a release makes of one prompt's options: the decision's place, and the places of the order it serves."""

    decision: int
    order: tuple[int, ...]


class ChoiceMeasurer:
    """Asks releases for their scores and decisions."""

    def __init__(self, turn: Turn) -> None:
        self._turn = turn
        self.declared = turn.plugin.declaration
        self.costs: Costs = costs_of(self.declared, turn.settings.decision.costs)
        self.places = len(self.declared.place_weights)

    def valid(self, prompt: TrainPrompt) -> list[bool]:
        """Which of a prompt's options the domain finds valid."""
        return [self._turn.plugin.parse(prompt.rendered, each.text).valid for each in prompt.rendered.options]

    def rendered(self, request: Request) -> TrainPrompt:
        """A request of a probe as a prompt with its options; raises RequestRefused."""
        engine, prompt = self._turn.engine, self._turn.plugin.render(request)
        options = prompt.options or request.options
        if len(options) < 2:
            raise InvalidField(
                f"a case of the domain has {len(options)} options; two or more are needed", field="options"
            )
        return TrainPrompt(
            rendered=dataclasses.replace(prompt, options=options),
            encoded=engine.encode(prompt.messages),
            options=tuple(engine.encode_text(option.text) for option in options),
        )

    def scores(self, prompts: Sequence[TrainPrompt], release: Asked, what: str = "") -> list[list[float]]:
        """Scores of the options of several prompts under a release."""

        def tell(done: int, all_: int) -> None:
            if what:
                self._turn.tell(f"{what}: {done}/{all_} prompts")

        asked = [(each.encoded, each.options) for each in prompts]
        return option_scores(self._turn.engine, asked, release.key, self.declared, release.temperature, tell)

    def answers(self, prompts: Sequence[TrainPrompt], scores: Sequence[Sequence[float]]) -> list[Answer]:
        """What is served of these scores."""
        found = []
        for prompt, values in zip(prompts, scores, strict=True):
            valid = self.valid(prompt)
            decision = decide(
                ordering.first_probabilities(values, valid),
                labels=labels_of(prompt.rendered.options, self.declared.labels),
                costs=self.costs,
                valid=valid,
            )
            found.append(Answer(decision, ordering.most_probable(values, valid).places))
        return found

    def shown(self, prompts: Sequence[TrainPrompt], answers: Sequence[Answer]) -> tuple[tuple[str, ...], ...]:
        """Ids of the options in the places that count: the decision of a verdict, or the order that is served."""
        return tuple(
            tuple(
                prompt.rendered.options[place].option_id
                for place in ((answer.decision,) if self.places == 1 else answer.order[: self.places])
            )
            for prompt, answer in zip(prompts, answers, strict=True)
        )

    def labels(self, prompts: Sequence[TrainPrompt], answers: Sequence[Answer]) -> list[str]:
        """The label that each decision stands for; empty for a prompt whose options are no verdicts."""
        found = []
        for prompt, answer in zip(prompts, answers, strict=True):
            labels = labels_of(prompt.rendered.options, self.declared.labels)
            found.append(labels[answer.decision] if labels else "")
        return found

    def probes(
        self, candidate: Asked, base: Asked, live: Asked | None
    ) -> tuple[tuple[HarmResult, ...], tuple[FailedAnswer, ...]]:
        """The domain's own cases: a case fails if the served decision is forbidden.

        A decision is no draw, so each case is asked once; base and live (None: the base is) only about a harm that
        the candidate did.
        """
        results: list[HarmResult] = []
        failed: list[FailedAnswer] = []
        for harm, cases in by_harm(self._turn.plugin.gates()).items():
            self._turn.tell(f"probes: {harm}")
            rate, answers = self._harm(cases, candidate)
            others = {"base": base, "live": live} if rate.failed else {}
            rates = {who: self._harm(cases, release)[0] for who, release in others.items() if release is not None}
            results.append(HarmResult(harm=harm, candidate=rate, **rates))
            failed += answers
        return tuple(results), tuple(failed)

    def _harm(self, cases: Sequence[GateProbe], release: Asked) -> tuple[HarmRate, list[FailedAnswer]]:
        """The rate of one harm; of none asked if a case cannot be, so that the gate refuses by the harm's name."""
        try:
            prompts = [self.rendered(case.request) for case in cases]
            answers = self.answers(prompts, self.scores(prompts, release))
        except RequestRefused:
            return HarmRate(0, 0), []
        decided = [prompt.rendered.options[answer.decision] for prompt, answer in zip(prompts, answers, strict=True)]
        return judged_decisions(cases, decided)

    def proof(self, scorer: OptionScorer, adapter: str) -> tuple[Probe, ...]:
        """Options with their end of turn and the trainer's log-probs: replicas must give the same.

        Of the domain's own cases and of fixed prompts, never of what people asked: probes travel in the manifest.
        """
        turn = self._turn
        requests = [case.request for case in gate_cases(turn.plugin.gates())]
        for text in PROOF_PROMPTS:
            requests += [Request(messages=(Message("user", text),), options=given) for given in ((), PROOF_OPTIONS)]
        prompts = []
        for request in requests:
            with contextlib.suppress(RequestRefused):
                found = self.rendered(request)
                if found.options and all(found.options):
                    prompts.append(found)
        if len(prompts) < PROOF_PROBES:
            # A domain may refuse every bare prompt. The proof is about weights, and any prompt shows them.
            prompts += [self._bare(text) for text in PROOF_PROMPTS]
        probes = []
        for number, prompt in enumerate(prompts[:PROOF_PROBES]):
            option = number % len(prompt.options)
            logprobs = scorer.logprobs([prompt], adapter)[0][option]
            probes.append(
                Probe(
                    prompt_tokens=prompt.encoded.tokens,
                    completion_tokens=(*prompt.options[option], turn.engine.end_of_turn),
                    logprobs=tuple(logprobs.tolist()),
                )
            )
        return tuple(probes)

    def _bare(self, text: str) -> TrainPrompt:
        engine, messages = self._turn.engine, (Message("user", text),)
        return TrainPrompt(
            rendered=Prompt(messages=messages, options=PROOF_OPTIONS, group=text),
            encoded=engine.encode(messages),
            options=tuple(engine.encode_text(option.text) for option in PROOF_OPTIONS),
        )


def judged_decisions(cases: Sequence[GateProbe], decided: Sequence[Option]) -> tuple[HarmRate, list[FailedAnswer]]:
    """The rate of one harm over its cases' decisions, and those that did it: a forbidden text, or a forbidden id."""
    failed = []
    for case, option in zip(cases, decided, strict=True):
        forbidden = {text.casefold() for text in case.forbidden}
        if forbidden & {option.text.casefold(), option.option_id.casefold()}:
            failed.append(
                FailedAnswer(
                    harm=case.harm or case.probe_id,
                    probe_id=case.probe_id,
                    question=" ".join(message.content for message in case.request.messages),
                    answer=option.text,
                )
            )
    return HarmRate(len(cases), len(failed)), failed


class Compared(NamedTuple):
    """What a set of scores is worth on the gate's prompts, (P,) each: expected rewards and KL to others, nats."""

    rewards: tuple[float, ...]
    first_kl: tuple[tuple[float, ...], ...]
    order_kl: tuple[tuple[float, ...], ...]


def compared(
    scores: Sequence[Sequence[float]],
    others: Sequence[Sequence[Sequence[float]]],
    rewards: Sequence[torch.Tensor],
    valid: Sequence[Sequence[bool]],
    weights: Sequence[float],
    *,
    seed: int,
) -> Compared:
    """A release's scores, computed as training does. `others`: scores of releases to which the KL is asked.

    The reward of a verdict is exact, and so is the KL of the first place; a slate's are means over orders that are
    drawn by the release itself, from the same noise whatever the release.
    """
    tiers = choices.tiers_of(valid)
    mine, paid = _padded(scores), _padded([each.tolist() for each in rewards])
    theirs = [_padded(each) for each in others]
    may = choices.first_options(tiers)
    first = choices.place_logprobs(mine, may)
    first_kl = [choices.place_kl(first, choices.place_logprobs(each, may))[:, 0] for each in theirs]
    if len(weights) == 1:
        expected = weights[0] * choices.expected_rewards(first[:, 0, 0], paid)
        order_kl: list[torch.Tensor] = []
    else:
        generator = torch.Generator().manual_seed(seed)
        orders = choices.draw_orders(mine, tiers, samples=ORDERS, places=len(weights), generator=generator)
        expected = choices.order_rewards(paid, orders, weights).mean(dim=1)
        may = choices.open_options(tiers, orders)
        places = choices.place_logprobs(mine, may)
        order_kl = [choices.place_kl(places, choices.place_logprobs(each, may)).mean(dim=1) for each in theirs]
    return Compared(
        tuple(expected.tolist()),
        tuple(tuple(each.tolist()) for each in first_kl),
        tuple(tuple(each.tolist()) for each in order_kl),
    )


def _padded(rows: Sequence[Sequence[float]]) -> torch.Tensor:
    """(P, K) of rows (K,), 0 behind each."""
    return torch.nn.utils.rnn.pad_sequence([torch.tensor(row).double() for row in rows], batch_first=True)


def measure(turn: Turn, frozen: Frozen, fitted: Fitted, optimised: Optimised) -> Measured:
    """Ask candidate, base and live the gate's prompts and what people labelled there."""
    measurer, temperature = ChoiceMeasurer(turn), turn.sampling.temperature
    truths = labels_by_group(frozen)
    prompts, gate = list(frozen.gate), len(frozen.gate)
    # Labels are few: those of gate prompts beyond the ones that are asked count too, up to as many again.
    asked = {prompt.group for prompt in prompts}
    prompts += [each for each in frozen.prompts if each.group in truths and each.group not in asked][:gate]
    log = OffPolicyLog(
        reactions(frozen.data, measurer.declared, measurer.costs, most=turn.settings.gate.estimate_interactions),
        measurer.declared,
        measurer.costs,
        seed=turn.seed,
        model=fitted.reward,
        most_tokens=turn.settings.policy.trunk_tokens,
    )
    base = Asked(turn.base_key, temperature)
    with staging.candidate(turn, optimised.adapter) as key, staging.live(turn) as live_key:
        candidate, live = Asked(key, None), None if live_key is None else Asked(live_key, None)
        served = turn.learner.registry.manifest(turn.channel, 0).temperature
        if live is None and served != temperature:
            # The base answers callers at another temperature than it is the reference at.
            live = Asked(turn.base_key, served)
        scores = {
            who: measurer.scores(prompts, release, who)
            for who, release in (("candidate", candidate), ("base", base), ("live", live))
            if release is not None
        }
        probes, failed = measurer.probes(candidate, base, live)
        off_policy = _off_policy(turn, log, candidate, live or base)
    scores.setdefault("live", scores["base"])
    scorer = OptionScorer(
        turn.base,
        turn.start_layer,
        temperature=temperature,
        end_of_turn=turn.engine.end_of_turn,
        how=measurer.declared.option_score,
        pass_tokens=turn.settings.policy.pass_tokens,
    )
    with staging.loaded(turn, "policy", optimised.adapter), exact(turn.base):
        proof = measurer.proof(scorer, "policy")
    answers = {who: measurer.answers(prompts, found) for who, found in scores.items()}
    items = _items(measurer, prompts, answers, truths)
    paid = OptionRewards(fitted.judge, turn.plugin, most_tokens=turn.settings.policy.trunk_tokens)(frozen.gate)
    rewards = [each.rewards for each in paid]
    valid = [measurer.valid(prompt) for prompt in frozen.gate]
    worth = {
        who: compared(
            found[:gate],
            [scores["base"][:gate], scores["live"][:gate]] if who == "candidate" else [],
            rewards,
            valid,
            measurer.declared.place_weights,
            seed=turn.seed * 7919 + 1,
        )
        for who, found in scores.items()
    }
    ours = worth["candidate"]
    measurements = ChoiceMeasurements(
        rewards=ours.rewards,
        rewards_base=worth["base"].rewards,
        rewards_live=worth["live"].rewards,
        kl_base=ours.first_kl[0],
        kl_live=ours.first_kl[1],
        order_kl_base=ours.order_kl[0] if ours.order_kl else (),
        order_kl_live=ours.order_kl[1] if ours.order_kl else (),
        candidate=measurer.shown(frozen.gate, answers["candidate"][:gate]),
        base=measurer.shown(frozen.gate, answers["base"][:gate]),
        places=measurer.places,
        has_labels=any(measurer.labels(prompts, answers["base"])),
        items=items,
        costs=measurer.costs,
        severe=measurer.declared.severe,
        probes=probes,
        comparisons=tuple(fitted.report.outcomes),
        live_comparisons=fitted.live_outcomes,
        live_is_base=not turn.state.live,
        rater_cap=turn.settings.reward.rater_cap,
        off_policy=off_policy,
    )
    kl = ours.order_kl[0] if ours.order_kl else ours.first_kl[0]
    return Measured(measurements=measurements, kl=sum(kl) / len(kl), proof=proof, failed=failed)


def labels_by_group(frozen: Frozen) -> dict[str, tuple[str, ...]]:
    """What gate raters labelled, by gate group, each rater's newest label: training has seen neither.

    In a domain of few raters the groups alone are split, and a row's rater split is its group's. A label that was given
    to another prompt of the group is left out: under other rules another label may be right. So is one whose giver
    nobody named: it may be of anybody, as often as they like (docs/join.md, "Feedback without a rater").
    """
    asked = {prompt.group: prompt.encoded.tokens for prompt in (*frozen.prompts, *frozen.gate)}
    found: defaultdict[str, dict[str, str]] = defaultdict(dict)
    for row in sorted(frozen.data.rows, key=lambda row: (row.accepted_at, row.interaction_id, row.feedback_id)):
        of_gate = row.rater_split is row.group_split is Split.GATE
        if not (isinstance(row.evidence, Label) and of_gate and is_rater(row.who)):
            continue
        if frozen.data.interactions[row.interaction_id].prompt_tokens == asked.get(row.prompt_group):
            found[row.prompt_group][row.who] = row.evidence.value
    return {group: tuple(labels[who] for who in sorted(labels)) for group, labels in found.items()}


def _items(
    measurer: ChoiceMeasurer,
    prompts: Sequence[TrainPrompt],
    answers: Mapping[str, Sequence[Answer]],
    truths: Mapping[str, tuple[str, ...]],
) -> tuple[LabelledItem, ...]:
    decided = {who: measurer.labels(prompts, found) for who, found in answers.items()}
    return tuple(
        LabelledItem(group=prompt.group, truths=truths[prompt.group], candidate=candidate, base=base, live=live)
        for prompt, candidate, base, live in zip(
            prompts, decided["candidate"], decided["base"], decided["live"], strict=True
        )
        if prompt.group in truths and candidate
    )


def _off_policy(turn: Turn, log: OffPolicyLog, candidate: Asked, rival: Asked) -> OffPolicy:
    """What drawn interactions say of the candidate and of the release that serves, as policies that draw."""
    if not log:
        return OffPolicy(why_not="nobody reacted to a drawn order (purpose EXPLORE) of a gate prompt")
    weights = turn.plugin.declaration.place_weights
    least = turn.settings.gate.estimate_ess
    try:
        shown = [
            log.shown(log.scores(turn.engine, each.key, each.temperature), Shows.DRAWN) for each in (candidate, rival)
        ]
        ours = estimate.estimate(shown[0], place_weights=weights, min_ess=least, seed=turn.seed)
    except (estimate.TooLittleOverlap, RequestRefused, ValueError) as error:  # it decides nothing, so it ends nothing
        return OffPolicy(why_not=str(error))
    try:
        live = estimate.estimate(shown[1], place_weights=weights, min_ess=least, seed=turn.seed)
        gain = estimate.difference(shown[0], shown[1], place_weights=weights, min_ess=least, seed=turn.seed)
    except (estimate.TooLittleOverlap, ValueError):
        return OffPolicy(candidate=ours)
    return OffPolicy(candidate=ours, live=live, gain=gain)
