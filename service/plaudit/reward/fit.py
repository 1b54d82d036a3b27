"""Fits a reward model from the base on one split of a frozen data set.

 1. Units of the split, and of calibration raters.     4. Heads on the base's own features, at their optimum.
 2. References of the prompts that thumbs are about.   5. Adapter and heads together, from there.
 3. Offsets of places and treatment of thumbs, on      6. Scales from a bank of references.
    the base's own features.

Always from base: a model never continues from an older one, so that erasure reaches it. The same evidence, settings,
seed, machine and thread count give the same model. Nothing here reads raters of the gate, unless the split is theirs.
"""

from __future__ import annotations

import dataclasses
import hashlib
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from plaudit.engine.base import Base
from plaudit.evidence.splits import Split
from plaudit.reward.batch import MOST_CITED, MOST_CONTRASTS, Batch, Shared, Treatment, with_references
from plaudit.reward.comparisons import References, complete_references, thumb_contrasts
from plaudit.reward.completion import Completion
from plaudit.reward.dataset import collect
from plaudit.reward.heads import LEAST_PAIRS, TreatmentChoice, choose_treatment, fit_heads, fit_offsets
from plaudit.reward.model import RewardModel
from plaudit.reward.trunk import TrunkCache
from plaudit.reward.units import RankingUnit, ThumbsUnit, Unit, Units, said_pairs
from plaudit.settings import ModelSettings, RewardSettings

if TYPE_CHECKING:
    from plaudit.evidence.store import FrozenDataSet

BETAS = (0.9, 0.99)
WEIGHT_DECAY = 0.01
WARMUP_STEPS = 5
LEAST_RATE = 0.05  # share of the step size that is left at the end
MOST_GRADIENT_NORM = 1.0
# References of a thumb's prompt while fitting: each costs a pass of its own, and the first two centre it already.
FIT_REFERENCES = 2
# A step ends early rather than hold more: activations of the upper layers of a 135M model take 10 MB a completion.
MOST_STEP_COMPLETIONS = 96
# Prompts whose references measure the scales.
BANK_PROMPTS = 64

Progress = Callable[[int, int, float], None]


class NothingToFit(ValueError):
    """The evidence of a split compares nothing. The message counts what was left out, by reason."""

    def __init__(self, split: Split, units: Units, references: Mapping[str, Sequence[Completion]]) -> None:
        reasons = Counter(units.left_out)
        for unit in units.thumbs:
            with_reference = len(with_references(unit, references).thumbs)
            reasons["no_reference"] += len(unit.thumbs) - with_reference
            reasons["thumbs_of_a_rater_without_contrast"] += with_reference
        left_out = ", ".join(f"{count} {reason}" for reason, count in sorted((+reasons).items()))
        super().__init__(f"no act of {split!s} raters compares anything; left out: {left_out or 'none'}")


def fit_reward(
    base: Base,
    data: FrozenDataSet,
    references: References,
    settings: RewardSettings,
    model_settings: ModelSettings,
    *,
    split: Split = Split.TRAIN,
    seed: int = 0,
    cache: TrunkCache | None = None,
    progress: Progress | None = None,
    treatment: Treatment | None = None,
    name: str = "reward",
    most_references: int | None = None,
) -> RewardModel:
    """A frozen reward model under the adapter `name`, fitted on the evidence of `split`.

    references: by prompt group, (prompt tokens, shown tokens) of base samples; a group without any falls back to its
    own candidates. most_references: how many of a prompt centre its thumbs; None: two, or as few as the settings allow.
    treatment: None chooses by calibration raters; one that leaves nothing to fit on gives way to another. progress is
    called with (step, steps, loss).
    Raises NothingToFit if the evidence of the split compares nothing.
    """
    started = time.perf_counter()
    units = collect(data, split, base, settings)
    held_out = collect(data, Split.CALIBRATION, base, settings)
    groups = {thumb.event.group for unit in units.thumbs for thumb in unit.thumbs}
    groups |= {thumb.event.group for unit in held_out.thumbs for thumb in unit.thumbs}
    bank_groups = _bank(references) or sorted(groups)[:BANK_PROMPTS]
    most = min(settings.references, FIT_REFERENCES) if most_references is None else most_references
    found = complete_references(data, base, references, groups=groups, most=most)
    usable = [each for each in Treatment if _compares(units, found, each)]
    if not usable:
        raise NothingToFit(split, units, found)
    bank = complete_references(data, base, references, groups=bank_groups, most=max(settings.references, most))
    model = RewardModel(base, settings, model_settings, name=name, seed=seed, cache=cache)
    features = _features(model, units, held_out, found)
    choice: TreatmentChoice | None = None
    if treatment not in (None, *usable):
        treatment = usable[-1]
    if treatment is None and Treatment.CONTRAST not in usable:
        treatment = usable[0]
    offsets = fit_offsets(units, features, found, treatment=treatment or usable[0], center=settings.center)
    model.shared = Shared.start(base.device, offsets=offsets)
    if treatment is None and split is not Split.CALIBRATION:
        choice = choose_treatment(units, held_out, features, found, center=settings.center, offsets=offsets)
    model.treatment = treatment or (choice.chosen if choice else Treatment.CONTRAST)
    chosen_at = time.perf_counter()
    _fit_heads(model, units, features, found, seed)
    steps = _train(model, units, found, seed, progress) if model.adapter is not None else 0
    model.freeze()
    fitted_at = time.perf_counter()
    model.measure_scales(bank)
    model.facts = {
        "split": split.value,
        "seed": seed,
        "steps": steps,
        "events": units.events,
        "pairs": len(units.pairs),
        "rankings": len(units.rankings),
        "demos": len(units.demos),
        "thumbs": sum(len(unit.thumbs) for unit in units.thumbs),
        "left_out": {**units.left_out, **_uncentred(model.treatment, units, found)},
        "place_offsets": [round(offset, 4) for offset in offsets.tolist()] if units.drawn else [],
        "signal_noise": {source: dataclasses.asdict(noise) for source, noise in units.noise.items()},
        "treatment_choice": dataclasses.asdict(choice) if choice else None,
    }
    ended = time.perf_counter()
    model.seconds = {"choose": chosen_at - started, "fit": fitted_at - chosen_at, "scales": ended - fitted_at}
    return model


def _compares(units: Units, references: Mapping[str, Sequence[Completion]], treatment: Treatment) -> bool:
    """Whether anything is left to fit on under a treatment of thumbs."""
    if units.pairs or units.rankings or units.demos:
        return True
    for unit in units.thumbs:
        thumbs = (unit if treatment is Treatment.PLAIN else with_references(unit, references)).thumbs
        # Contrasts need an up and a down of one rater; scores centred within the rater do not.
        if len(thumbs) > 1 and (treatment is Treatment.CENTRED or len({thumb.positive for thumb in thumbs}) == 2):
            return True
    return False


def _bank(references: References) -> list[str]:
    """Prompt groups whose references measure the scales: those with two or more, drawn by a hash of their names.

    One answer has no spread, and the first of the alphabet are all of one kind.
    """
    several = [group for group, answers in references.items() if len(answers) >= 2]
    return sorted(several, key=lambda group: hashlib.sha256(group.encode()).digest())[:BANK_PROMPTS]


def _uncentred(treatment: Treatment, units: Units, references: Mapping[str, Sequence[Completion]]) -> dict[str, int]:
    """How many thumbs took no part for want of a reference."""
    if treatment is Treatment.PLAIN:
        return {}
    whole = sum(len(unit.thumbs) for unit in units.thumbs)
    count = whole - sum(len(with_references(unit, references).thumbs) for unit in units.thumbs)
    return {"no_reference": count} if count else {}


def _features(
    model: RewardModel, units: Units, held_out: Units, references: Mapping[str, Sequence[Completion]]
) -> dict[Completion, torch.Tensor]:
    """What steps 3 and 4 read; before its first step an adapter changes nothing, so these are the base's own."""
    # Each treatment draws its own part of a keen rater's thumbs.
    train = [Batch(units.all, references, heads=1, seed=0, treatment=each, bootstrap=False) for each in Treatment]
    said = said_pairs(held_out)
    pairs = Batch(said, {}, heads=1, seed=0, treatment=Treatment.CENTRED, bootstrap=False)
    contrasts = thumb_contrasts(held_out, references) if len(said) < LEAST_PAIRS else []
    sides = [(c.better, c.worse, *c.better_references, *c.worse_references) for c in contrasts]
    every = [*(each for batch in train for each in batch.completions), *pairs.completions]
    needed = list(dict.fromkeys([*every, *(each for side in sides for each in side)]))
    return dict(zip(needed, model.plain_features(needed).cpu(), strict=True))


def _fit_heads(
    model: RewardModel,
    units: Units,
    features: Mapping[Completion, torch.Tensor],
    references: Mapping[str, Sequence[Completion]],
    seed: int,
) -> None:
    """Step 4: an adapter trained beside random heads would first distort what they read (docs/papers.md)."""
    settings = model.settings
    batch = Batch(units.all, references, heads=settings.heads, seed=seed, treatment=model.treatment)
    read = torch.stack([features[each] for each in batch.completions])
    held = model.shared.offsets
    heads = fit_heads(batch, read, heads=settings.heads, center=settings.center, offsets=held)
    found = [heads.weight, heads.bias, *heads.shared.all]
    for parameter, value in zip(model.head_parameters(), found, strict=True):
        parameter.data = value.to(parameter.device)


def _train(
    model: RewardModel,
    units: Units,
    references: Mapping[str, Sequence[Completion]],
    seed: int,
    progress: Progress | None,
) -> int:
    """Step 5: AdamW over minibatches of units with their references; returns the steps taken."""
    settings = model.settings
    rng = np.random.default_rng(seed)
    per_epoch = len(list(_steps(units.all, settings.units_per_step, None)))
    steps = max(1, round(settings.epochs * per_epoch))
    optimiser = torch.optim.AdamW(
        [
            {"params": model.adapter_parameters(), "lr": settings.adapter_lr},
            {"params": [model.weight, model.bias], "lr": settings.head_lr},
            {"params": model.shared.all, "lr": settings.head_lr, "weight_decay": 0.0},
        ],
        betas=BETAS,
        weight_decay=WEIGHT_DECAY,
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: _rate(step, steps))
    trained = [*model.adapter_parameters(), *model.head_parameters()]
    # Weights have mean 1 over the set, so the mean number of events a step makes the loss one of a single event;
    # dividing by a step's own weights would undo decay and caps.
    events_per_step = units.events / per_epoch
    # The adapter stays on until the last gradient has flowed back through it.
    with model.switched_on():
        for step, several in enumerate(_epochs(units.all, settings.units_per_step, rng, steps), start=1):
            batch = Batch(
                several,
                references,
                heads=settings.heads,
                seed=seed,
                treatment=model.treatment,
                rng=rng,
                device=model.base.device,
            )
            value = 0.0
            # A step may be raters without a contrast alone: nothing to score, nothing to learn.
            if batch.completions:
                scores = model.score(model.features(batch.completions))
                loss = batch.loss(scores, model.shared, center=settings.center) / events_per_step
                optimiser.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                model.collect()
                torch.nn.utils.clip_grad_norm_(trained, MOST_GRADIENT_NORM)
                optimiser.step()
                value = loss.item()
            schedule.step()
            if progress is not None:
                progress(step, steps, value)
    return steps


def _rate(step: int, steps: int) -> float:
    """Share of the step size: a linear rise over the warm-up, then a linear fall to LEAST_RATE at the last step."""
    warm = min(1.0, (step + 1) / WARMUP_STEPS)
    return warm * (1.0 - (1.0 - LEAST_RATE) * min(1.0, step / max(1, steps - 1)))


def _epochs(units: Sequence[Unit], size: int, rng: np.random.Generator, steps: int) -> Iterator[list[Unit]]:
    """Minibatches of fresh permutations until `steps` of them are drawn: epochs may be fractional."""
    left = steps
    while left > 0:
        for several in _steps(units, size, rng):
            yield several
            left -= 1
            if not left:
                return


def _steps(units: Sequence[Unit], size: int, rng: np.random.Generator | None) -> Iterator[list[Unit]]:
    """Minibatches of one pass, at most `size` units and MOST_STEP_COMPLETIONS completions each."""
    order = range(len(units)) if rng is None else rng.permutation(len(units)).tolist()
    held: list[Unit] = []
    load = 0
    for index in order:
        cost = _cost(units[index])
        if held and (len(held) >= size or load + cost > MOST_STEP_COMPLETIONS):
            yield held
            held, load = [], 0
        held.append(units[index])
        load += cost
    if held:
        yield held


def _cost(unit: Unit) -> int:
    """Most completions that a unit brings to a step."""
    if isinstance(unit, ThumbsUnit):
        return min(len(unit.thumbs), 2 * MOST_CONTRASTS) * (1 + MOST_CITED)
    return len(unit.order) if isinstance(unit, RankingUnit) else 2
