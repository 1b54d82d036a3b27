"""What people gave to options that were drawn, and what another release would have been given.

Enters: frozen evidence, an engine with releases staged, a reward model. Leaves: `Shown` for `release.estimate`, on
prompt groups of the gate alone: no release and no judge has learnt from what train raters gave there. Decides nothing.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from plaudit import ordering
from plaudit.deciding import Costs, cost_of, decide, labels_of
from plaudit.domain import Declaration, OptionScore
from plaudit.engine.protocol import EncodedPrompt, Engine, ReleaseKey, ScoreTicket
from plaudit.engine.threads import release_team
from plaudit.evidence.splits import Split
from plaudit.evidence.store import FrozenDataSet
from plaudit.release.estimate import Shown, place_probabilities
from plaudit.reward.completion import Completion
from plaudit.reward.model import RewardModel
from plaudit.types import (
    Binary,
    Evidence,
    Interaction,
    Label,
    Option,
    Pair,
    PairOutcome,
    Purpose,
    RankingEvidence,
    Scalar,
)

# Options of so many prompts wait in the engine at once: it is never idle, and nobody else waits long.
_ASKED_AT_ONCE = 4
# An option that is not valid never stands before a valid one: its score is lowered by more than any score is apart.
_LAST = 1e4
# Log of the smallest probability that a record can hold; rounding to 0 does not make an option impossible.
_LEAST_LOG = -700.0


class Shows(StrEnum):
    """What a release does with its scores."""

    DRAWN = "drawn"
    """It draws the order, as training and EXPLORE do."""
    SERVED = "served"
    """It shows what it serves: the decision first, or the most probable order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reacted:
    """What one person gave to one drawn interaction: rewards in [0, 1] by candidate id."""

    interaction: Interaction
    who: str
    rewards: dict[str, float]


def reactions(data: FrozenDataSet, declared: Declaration, costs: Costs, *, most: int) -> list[Reacted]:
    """The newest `most` reactions to drawn interactions of gate groups, in the order of the data set."""
    rows: defaultdict[tuple[str, str], list[Evidence]] = defaultdict(list)
    for row in data.rows:
        interaction = data.interactions[row.interaction_id]
        if row.group_split is Split.GATE and _usable(interaction):
            rows[row.interaction_id, row.who].append(row.evidence)
    found = []
    for (name, who), evidence in rows.items():
        interaction = data.interactions[name]
        rewards = rewards_of(evidence, interaction, declared, costs)
        found.append(Reacted(interaction=interaction, who=who, rewards=rewards))
    found = [each for each in found if each.rewards]
    newest = sorted(found, key=lambda each: (each.interaction.completed_at, each.interaction.interaction_id))[-most:]
    return sorted(newest, key=lambda each: (each.interaction.interaction_id, each.who))


def _usable(interaction: Interaction) -> bool:
    return (
        bool(interaction.options)
        and interaction.purpose is Purpose.EXPLORE
        and bool(interaction.prompt_tokens)
        and not any(candidate.redacted for candidate in interaction.candidates)
    )


def rewards_of(
    evidence: Sequence[Evidence], interaction: Interaction, declared: Declaration, costs: Costs
) -> dict[str, float]:
    """Reward in [0, 1] of each candidate that evidence speaks about; the mean if it does more than once.

    Good 1 and bad 0; a value its own; of two or more compared the best 1, the last 0, and those between evenly; a label
    gives every option 1 minus the cost of deciding it, as a share of the most expensive mistake.
    """
    found: defaultdict[str, list[float]] = defaultdict(list)
    for each in evidence:
        match each:
            case Binary(candidate=candidate, positive=positive):
                found[candidate].append(float(positive))
            case Scalar(candidate=candidate, value=value):
                found[candidate].append(value)
            case Pair(first=first, second=second, outcome=outcome):
                share = {PairOutcome.FIRST: 1.0, PairOutcome.SECOND: 0.0, PairOutcome.TIE: 0.5}[outcome]
                found[first].append(share)
                found[second].append(1 - share)
            case RankingEvidence(order=order, observed=observed):
                last = min(len(order) if observed is None else observed, len(order) - 1)
                for place, candidate in enumerate(order):
                    found[candidate].append(1 - min(place, last) / max(1, last))
            case Label(value=truth):
                worst = max([1.0, *costs.values()])
                for option, decided in zip(interaction.candidates, _labels(interaction, declared), strict=False):
                    found[option.candidate_id].append(1 - cost_of(costs, truth, decided) / worst)
    return {candidate: math.fsum(several) / len(several) for candidate, several in found.items()}


def _labels(interaction: Interaction, declared: Declaration) -> tuple[str, ...]:
    """The label of each option in the order shown; empty if they are no verdicts."""
    options = [Option(candidate.option_id, candidate.text) for candidate in interaction.candidates]
    return labels_of(options, declared.labels)


def option_scores(
    engine: Engine,
    asked: Sequence[tuple[EncodedPrompt, Sequence[Sequence[int]]]],
    release: ReleaseKey,
    declared: Declaration,
    temperature: float | None,
    progress: Callable[[int, int], None] | None = None,
) -> list[list[float]]:
    """Scores (nats) of the options of several prompts under a release, as serving computes them."""
    release_team()
    found: list[list[float]] = []
    waiting: list[ScoreTicket] = []

    def take() -> None:
        logprobs = waiting.pop(0).result()
        found.append([ordering.score_of(each, declared.option_score) for each in logprobs])
        if progress is not None:
            progress(len(found), len(asked))

    try:
        for prompt, options in asked:
            waiting.append(engine.score_options(prompt, options, release, temperature))
            if len(waiting) >= _ASKED_AT_ONCE:
                take()
        while waiting:
            take()
    except BaseException:
        for ticket in waiting:
            ticket.cancel()
        raise
    return found


class OffPolicyLog:
    """Reactions with what drew them; told a release's scores, it says what the release would have shown."""

    def __init__(
        self,
        reacted: Sequence[Reacted],
        declared: Declaration,
        costs: Costs,
        *,
        seed: int,
        model: RewardModel | None = None,
        most_tokens: int = 0,
    ) -> None:
        self.reacted = list(reacted)
        self._declared, self._costs, self._seed = declared, costs, seed
        self._places = len(declared.place_weights)
        distinct = {each.interaction.interaction_id: each.interaction for each in reacted}
        self._interactions = list(distinct.values())
        self._logged = {
            each.interaction_id: self._marginals(_logged_scores(each, declared.option_score), each)
            for each in distinct.values()
        }
        self._estimates = _estimates(model, self._interactions, most_tokens) if model is not None else {}

    def __len__(self) -> int:
        return len(self.reacted)

    def scores(
        self,
        engine: Engine,
        release: ReleaseKey,
        temperature: float | None,
        progress: Callable[[int, int], None] | None = None,
    ) -> dict[str, list[float]]:
        """Scores of the options by interaction id, in the order shown, under a release."""
        asked = [
            (EncodedPrompt(each.prompt_tokens), [candidate.tokens[:-1] for candidate in each.candidates])
            for each in self._interactions
        ]
        found = option_scores(engine, asked, release, self._declared, temperature, progress)
        return {each.interaction_id: scores for each, scores in zip(self._interactions, found, strict=True)}

    def shown(self, scores: dict[str, list[float]], how: Shows) -> list[Shown]:
        """What `release.estimate` asks for about a release with these scores."""
        target = {
            each.interaction_id: self._target(scores[each.interaction_id], each, how) for each in self._interactions
        }
        found = []
        for each in self.reacted:
            name, candidates = each.interaction.interaction_id, each.interaction.candidates
            places = range(min(self._places, len(candidates)))
            estimates = self._estimates.get(name)
            padding = self._places - len(places)
            rewards = [each.rewards.get(candidates[place].candidate_id) for place in places]
            found.append(
                Shown(
                    unit=each.who,
                    rewards=(*rewards, *[None] * padding),
                    logged=(*(self._logged[name][place][place] for place in places), *[1.0] * padding),
                    target=(*(target[name][place][place] for place in places), *[0.0] * padding),
                    predicted=() if estimates is None else (*(estimates[place] for place in places), *[0.0] * padding),
                    expected=()
                    if estimates is None
                    else (
                        *(math.fsum(p * q for p, q in zip(target[name][k], estimates, strict=True)) for k in places),
                        *[0.0] * padding,
                    ),
                )
            )
        return found

    def _target(self, scores: Sequence[float], interaction: Interaction, how: Shows) -> list[list[float]]:
        if how is Shows.DRAWN:
            return self._marginals(scores, interaction)
        valid = [candidate.valid for candidate in interaction.candidates]
        if self._places == 1:
            labels = _labels(interaction, self._declared)
            probabilities = ordering.first_probabilities(scores, valid)
            order = [decide(probabilities, labels=labels, costs=self._costs, valid=valid)]
        else:
            order = list(ordering.most_probable(scores, valid).places)
        return [[float(place == held) for place in range(len(scores))] for held in order[: self._places]]

    def _marginals(self, scores: Sequence[float], interaction: Interaction) -> list[list[float]]:
        """Probability of each option to stand in each place that counts."""
        lowered = [
            score if candidate.valid else score - _LAST
            for score, candidate in zip(scores, interaction.candidates, strict=True)
        ]
        found: list[list[float]] = place_probabilities(lowered, self._places, seed=self._seed).tolist()
        return found


def _logged_scores(interaction: Interaction, how: OptionScore) -> list[float]:
    """Scores up to a constant of what drew the order; those of invalid options as the draw computed them."""
    found = []
    for candidate in interaction.candidates:
        if candidate.valid:
            found.append(max(_LEAST_LOG, math.log(candidate.probability)) if candidate.probability > 0 else _LEAST_LOG)
        else:
            found.append(ordering.score_of(candidate.logprobs_sampled, how))
    return found


def _estimates(model: RewardModel, interactions: Sequence[Interaction], most_tokens: int) -> dict[str, list[float]]:
    """The reward model's shaped score of each option in the order shown, centred on the interaction's options."""
    asked = (
        [Completion(each.prompt_tokens, option.tokens[:-1]) for option in each.candidates] for each in interactions
    )
    scores = model.shaped_among(asked, most_tokens)
    return {each.interaction_id: own for each, own in zip(interactions, scores, strict=True)}
