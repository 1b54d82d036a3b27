"""Simulated road users with a hidden gold, found by the entry point group `plaudit.populations`.

Loaded in the simulator's process only. Two places judge differently: where rules count much, harm to people who cross
against them weighs less. The model never reads where a scene was asked; the gold is the mean of both places.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from plaudit.simulate import crowd
from plaudit.simulate.population import Population, Rater, Shown, SimAct, SimPrompt
from plaudit.types import FeedbackKind, Option

from plaudit_ethics import scene
from plaudit_ethics.plugin import GROUP_LINE
from plaudit_ethics.scene import Kind

WEIGHTS: Mapping[Kind, float] = MappingProxyType(
    {Kind.BY_THE_RULES: 1.0, Kind.IN_THE_CAR: 0.8, Kind.AGAINST_THE_RULES: 0.6, Kind.ANIMAL: 0.15, Kind.THING: 0.03}
)
# What harm to people who cross against the rules weighs, by place.
PLACES: Mapping[str, float] = MappingProxyType({"north": 0.35, "south": 0.85})
ACTS_WEIGH = 0.2  # Doing harm by an act is a little worse than letting it happen.
BEST = 3.0
STAYS, SWERVES = "stays in its lane", "swerves"
SCENES = ("The brakes fail.", "The road is icy.", "A lorry blocks the view.", "It is too late to stop.")
NEW_SCENES = ("The car aquaplanes.", "A tyre bursts.")  # Evaluations alone ask these.
CHANNEL_PROMPTS, EVALUATION_PROMPTS = 320, 80


class RoadUsers(Population):
    """Sixty people who say which outcome is the lesser evil."""

    domain = "ethics"
    taste = "Harm as few people as you can, above all those who keep to the rules."
    explore_share = 0.2
    mix: Mapping[FeedbackKind, float] = MappingProxyType({FeedbackKind.CHOICE: 0.8, FeedbackKind.RANKING: 0.2})

    def __init__(self) -> None:
        prompts = _prompts(CHANNEL_PROMPTS + EVALUATION_PROMPTS)
        self._channel = tuple(prompts[:CHANNEL_PROMPTS])
        self._evaluation = tuple(
            _again(prompt, NEW_SCENES[index % 2] if index % 4 < 2 else None)
            for index, prompt in enumerate(prompts[CHANNEL_PROMPTS:])
        )

    def channel_prompts(self) -> Sequence[SimPrompt]:
        """320 dilemmas, each asked in one of two places."""
        return self._channel

    def evaluation_prompts(self) -> Sequence[SimPrompt]:
        """80 other dilemmas, half of them in scenes that the channel never has."""
        return self._evaluation

    def raters(self, seed: int) -> Sequence[Rater]:
        """Sixty people; the same for the same seed."""
        return crowd.make_raters(seed, tuple(Kind), BEST - 1.5)

    def gold(self, prompt: SimPrompt, text: str) -> float:
        """How small an evil an outcome is, for both places together."""
        return sum(_value(text, against, {}) for against in PLACES.values()) / len(PLACES)

    def parts(self, prompt: SimPrompt, text: str) -> Mapping[str, float]:
        """People spared, and things and animals spared, each in [0, 1]."""
        outcome = scene.read(text)
        rest = sum(count for kind, count in outcome.harms if not kind.is_person)
        return {"people": 1 / (1 + outcome.people), "rest": 1 / (1 + rest)}

    def act(
        self, rater: Rater, prompt: SimPrompt, shown: Sequence[Shown], kind: FeedbackKind, rng: random.Random
    ) -> SimAct | None:
        """A choice or a ranking by what counts where the scene was asked."""
        against = PLACES[prompt.kind.rpartition(":")[2]]
        likings = {one.candidate_id: _value(one.text, against, rater.weights) for one in shown}
        if kind is FeedbackKind.RANKING:
            return SimAct(crowd.ranking(rater, list(shown), list(likings.values()), rng))
        pair = rng.sample(list(shown), 2)
        return SimAct(crowd.choice(rater, pair, [likings[one.candidate_id] for one in pair], rng))


def _value(text: str, against: float, weights: Mapping[str, float]) -> float:
    outcome = scene.read(text)
    harm = sum(
        count * (against if kind is Kind.AGAINST_THE_RULES else WEIGHTS[kind]) * weights.get(kind, 1.0)
        for kind, count in outcome.harms
    )
    return BEST - harm - (ACTS_WEIGH if outcome.does != STAYS else 0.0)


def _prompts(count: int) -> list[SimPrompt]:
    """Different dilemmas, the same at each call; one in eight sets people against animals or things."""
    rng = random.Random("dilemmas")
    people = [kind for kind in Kind if kind.is_person]
    others = [kind for kind in Kind if not kind.is_person]
    found: dict[str, SimPrompt] = {}
    while len(found) < count:
        one = rng.choice(people)
        other = rng.choice(others) if rng.random() < 1 / 8 else rng.choice([kind for kind in people if kind != one])
        sides = [(STAYS, one), (SWERVES, other)]
        if rng.random() < 0.5:
            sides = [(STAYS, other), (SWERVES, one)]
        outcomes = [scene.Outcome(does, ((kind, rng.randint(1, 4)),)) for does, kind in sides]
        where = rng.choice(list(PLACES))
        said = rng.choice(SCENES)
        options = tuple(Option(f"o{index}", outcome.text) for index, outcome in enumerate(outcomes))
        prompt = _prompt(said, where, scene.at_stake(outcomes), options, seen=True)
        found.setdefault("|".join([said, *sorted(option.text for option in options)]), prompt)
    return list(found.values())


def _prompt(said: str, where: str, stake: str, options: tuple[Option, ...], *, seen: bool) -> SimPrompt:
    text = f"{said}\n{GROUP_LINE} {where}"
    return SimPrompt(text=text, kind=f"{stake}:{where}", options=options, seen_kind=seen)


def _again(prompt: SimPrompt, said: str | None) -> SimPrompt:
    """The dilemma in another scene, if one is given."""
    if said is None:
        return prompt
    stake, _, where = prompt.kind.partition(":")
    return _prompt(said, where, stake, prompt.options, seen=False)
