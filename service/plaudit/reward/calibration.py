"""Measures a reward model on raters that no model has learnt from.

Enters: a fitted model and calibration raters' units. Leaves: the temperature that makes its differences of score
log-odds, and a RewardReport with what the gate needs. Ground for judgement is comparisons only: thumbs of different
raters cannot be compared, and corrections are recognised by their style.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from plaudit.errors import BadArtifact
from plaudit.evidence.splits import Split
from plaudit.reward.comparisons import Comparison, comparisons
from plaudit.reward.completion import Completion
from plaudit.reward.dataset import collect
from plaudit.reward.model import RewardModel
from plaudit.reward.trunk import TrunkCache

if TYPE_CHECKING:
    from plaudit.evidence.store import FrozenDataSet

BINS = 10
# Between these the temperature is sought; at either end the scores carry no information or contradict the labels.
TEMPERATURES = (0.02, 50.0)
SEARCH_STEPS = 80

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardReport:
    """What a reward model is worth on comparisons of calibration raters.

    outcomes: (rater, 1 if the score ordered it right, .5 if it scored both alike, else 0), one per comparison. nll,
    ece and brier are of calibrated probabilities, each half of the raters under the temperature of the other half.
    Figures that need comparisons are NaN (null in JSON) if there are none.
    """

    comparisons: int
    raters: int
    accuracy: float
    outcomes: tuple[tuple[str, float], ...]
    temperature: float
    nll_uncalibrated: float
    nll: float
    ece: float
    brier: float
    length_correlation: float
    longer_accuracy: float
    treatment: str
    nu: float
    kappa: float
    scales: tuple[float, ...]
    facts: dict[str, Any]

    def to_json(self) -> str:
        """Canonical JSON; raters are numbered, for the file travels with the release and pseudonyms must not."""
        numbers = {who: f"rater-{n}" for n, who in enumerate(dict.fromkeys(who for who, _ in self.outcomes), start=1)}
        numbered = dataclasses.replace(self, outcomes=tuple((numbers[who], right) for who, right in self.outcomes))
        plain = {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in asdict(numbered).items()}
        return json.dumps(plain, sort_keys=True, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> RewardReport:
        """Inverse of `to_json`; raises BadArtifact for anything else."""
        figures = ("accuracy", "nll_uncalibrated", "nll", "ece", "brier", "length_correlation", "longer_accuracy")
        try:
            plain = json.loads(text)
            plain |= {key: math.nan for key in figures if plain[key] is None}
            plain["outcomes"] = tuple((str(who), float(right)) for who, right in plain["outcomes"])
            plain["scales"] = tuple(plain["scales"])
            return cls(**plain)
        except (ValueError, TypeError, KeyError) as error:
            raise BadArtifact(f"this is not the report of a reward model ({error}); train the release anew") from error


def calibrate(
    model: RewardModel,
    data: FrozenDataSet,
    *,
    split: Split = Split.CALIBRATION,
    cache: TrunkCache | None = None,
) -> RewardReport:
    """Set the model's temperature from the comparisons of `split`, and report on them."""
    units = collect(data, split, model.base, model.settings)
    return measure(model, comparisons(units), cache=cache)


def measure(
    model: RewardModel, found: Sequence[Comparison], *, cache: TrunkCache | None = None, fit: bool = True
) -> RewardReport:
    """Report on comparisons; with `fit` the model's temperature is set from them, else the one it has is used."""
    sides = ((c.better, c.worse, *c.better_references, *c.worse_references) for c in found)
    completions = list(dict.fromkeys(each for side in sides for each in side))
    scores = dict(zip(completions, model.scores(completions, cache).mean(1).double().tolist(), strict=True))

    def centred(completion: Completion, references: Sequence[Completion]) -> float:
        mean: float = np.mean([scores[each] for each in references]).item() if references else 0.0
        return float(scores[completion]) - mean

    leads = [centred(c.better, c.better_references) - centred(c.worse, c.worse_references) for c in found]
    lead = np.array(leads, dtype=np.float64)
    who = [c.who for c in found]
    if fit and len(lead):
        model.temperature = fit_temperature(lead)
    chance = _held_out_chances(lead, who) if fit else _sigmoid(lead / model.temperature)
    # Equal scores order nothing: half right.
    right = (np.sign(lead) + 1) / 2
    longer = np.array([np.sign(len(c.better.shown) - len(c.worse.shown)) for c in found], dtype=np.float64)
    return RewardReport(
        comparisons=len(found),
        raters=len(set(who)),
        accuracy=_mean(right),
        outcomes=tuple(zip(who, right.tolist(), strict=True)),
        temperature=model.temperature,
        nll_uncalibrated=_mean(np.logaddexp(0.0, -lead)),
        nll=_mean(-np.log(np.clip(chance, 1e-300, 1.0))),
        ece=expected_calibration_error(np.maximum(chance, 1 - chance), right),
        brier=_mean((1 - chance) ** 2),
        length_correlation=_within_prompt_correlation(scores),
        # A comparison of equal lengths counts half: the length says nothing about it.
        longer_accuracy=_mean((longer + 1) / 2),
        treatment=model.treatment.value,
        nu=model.shared.log_nu.exp().item(),
        kappa=model.shared.log_kappa.exp().item(),
        scales=tuple(model.scales.tolist()),
        facts=dict(model.facts),
    )


def fit_temperature(lead: Floats) -> float:
    """T that minimises the mean of -log sigmoid(lead / T). Guo et al. 2017, arXiv:1706.04599, section 4.2.

    lead: (n,), better less worse. Golden-section search over 1/T, in which the loss is convex.
    """
    low, high = 1 / TEMPERATURES[1], 1 / TEMPERATURES[0]
    golden = (math.sqrt(5) - 1) / 2
    for _ in range(SEARCH_STEPS):
        left, right = high - golden * (high - low), low + golden * (high - low)
        if np.logaddexp(0.0, -lead * left).mean() <= np.logaddexp(0.0, -lead * right).mean():
            high = right
        else:
            low = left
    return 2 / (low + high)


def expected_calibration_error(confidence: Floats, correct: Floats) -> float:
    """Mean over equal-mass bins of |share correct - mean confidence|, weighed by mass; NaN without any.

    correct: 1 (right), 0 (wrong) or .5 (both sides alike, and a confidence of .5).
    Nixon et al. 2019, arXiv:1904.01685 (adaptive calibration error), for the predicted side alone.
    """
    if not len(confidence):
        return math.nan
    order = np.argsort(confidence, kind="stable")
    total = 0.0
    for part in np.array_split(order, min(BINS, len(order))):
        total += len(part) * abs(float(correct[part].mean()) - float(confidence[part].mean()))
    return total / len(order)


def _held_out_chances(lead: Floats, who: Sequence[str]) -> Floats:
    """P(better preferred), each rater's under a temperature that the other half of the raters chose."""
    raters = sorted(set(who))
    half = {rater: index % 2 for index, rater in enumerate(raters)}
    fold = np.array([half[each] for each in who], dtype=np.int64)
    if len(raters) < 2:
        return _sigmoid(lead / fit_temperature(lead)) if len(lead) else lead
    chance = np.empty_like(lead)
    for side in (0, 1):
        chance[fold == side] = _sigmoid(lead[fold == side] / fit_temperature(lead[fold != side]))
    return chance


def _within_prompt_correlation(scores: dict[Completion, float]) -> float:
    """Pearson correlation of score with length in tokens, both less their prompt's mean; 0 without spread.

    Across prompts raw scores are not comparable.
    """
    by_prompt: dict[tuple[int, ...], list[tuple[float, float]]] = defaultdict(list)
    for completion, score in scores.items():
        by_prompt[completion.prompt].append((score, float(len(completion.shown))))
    if not by_prompt:
        return math.nan
    centred = np.concatenate([np.array(rows) - np.mean(rows, axis=0) for rows in by_prompt.values()])
    spread = np.sqrt((centred**2).mean(0))
    if min(spread) == 0:
        return 0.0
    return float((centred[:, 0] * centred[:, 1]).mean() / (spread[0] * spread[1]))


def _sigmoid(x: Floats) -> Floats:
    result: Floats = 1.0 / (1.0 + np.exp(-np.clip(x, -700.0, 700.0)))
    return result


def _mean(values: NDArray[Any]) -> float:
    return float(values.mean()) if len(values) else math.nan
