"""How simulated people turn what they like into acts of feedback.

A rater's liking of each shown text enters, an act leaves. What the liking is, a population decides; the noise, the
ties and the thresholds are the same for all. Every draw comes from the generator passed in.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence

from plaudit.simulate.population import Rater, Shown
from plaudit.types import Choice, LabelAct, Ranking, Rating, Signal, Thumbs

RATERS = 60
WEIGHT_SPREAD = 0.3
TEMPERATURE = 0.6
TEMPERATURE_SPREAD = 0.3
THRESHOLD_SPREAD = 0.8
LENGTH_BIAS = 0.015
LENGTH_BIAS_SPREAD = 0.01
TIE_WITHIN = 0.25
# How fast people stop looking down a list, and the share of implicit signals that mean nothing.
POSITION_BIAS = 1.0
SIGNAL_NOISE = 0.05

Confusion = Mapping[str, Mapping[str, float]]
"""For each true label the probability of each label given."""


def make_raters(seed: int, parts: Sequence[str], threshold: float, count: int = RATERS) -> list[Rater]:
    """`count` people whose weights, noise, thumb thresholds and liking of length differ."""
    rng = random.Random(f"raters:{seed}")
    return [
        Rater(
            name=f"rater-{seed}-{number:03d}",
            weights={part: math.exp(rng.gauss(0.0, WEIGHT_SPREAD)) for part in parts},
            temperature=math.exp(rng.gauss(math.log(TEMPERATURE), TEMPERATURE_SPREAD)),
            threshold=rng.gauss(threshold, THRESHOLD_SPREAD),
            length_bias=rng.gauss(LENGTH_BIAS, LENGTH_BIAS_SPREAD),
        )
        for number in range(count)
    ]


def thumb(rater: Rater, shown: Shown, liking: float, rng: random.Random) -> Thumbs:
    """Up with probability sigmoid((liking - threshold) / temperature)."""
    noise = _logistic(rng) * rater.temperature
    return Thumbs(shown.candidate_id, up=liking + noise > rater.threshold)


def choice(rater: Rater, pair: Sequence[Shown], likings: Sequence[float], rng: random.Random) -> Choice:
    """The text that is liked more, with logistic noise (Bradley-Terry); a tie if the two come too close."""
    difference = likings[0] - likings[1] + _logistic(rng) * rater.temperature
    better, worse = pair if difference > 0 else (pair[1], pair[0])
    tie = pair[0].text == pair[1].text or abs(difference) < TIE_WITHIN
    return Choice(better.candidate_id, worse.candidate_id, tie=tie, tie_offered=True)


def ranking(rater: Rater, shown: Sequence[Shown], likings: Sequence[float], rng: random.Random) -> Ranking:
    """All texts, best first, with Gumbel noise (Plackett-Luce)."""
    noisy = [liking - math.log(-math.log(_open(rng))) * rater.temperature for liking in likings]
    order = sorted(range(len(shown)), key=lambda index: -noisy[index])
    return Ranking(tuple(shown[index].candidate_id for index in order))


def rating(rater: Rater, shown: Shown, liking: float, rng: random.Random) -> Rating:
    """Whole stars from 1 to 5; the threshold of a thumb is the middle of the scale."""
    noisy = liking - rater.threshold + _logistic(rng) * rater.temperature
    return Rating(shown.candidate_id, float(min(5, max(1, round(3 + noisy)))))


def confusion(labels: Sequence[str], mistakes: float, *, ordered: bool = False) -> Confusion:
    """A rater's table: the true label with probability 1 - `mistakes`, and the mistakes shared evenly.

    Among all other labels, or, if the labels are `ordered`, among those next to the true one.
    """
    table = {}
    for place, true in enumerate(labels):
        near = [other for at, other in enumerate(labels) if at != place and (not ordered or abs(at - place) == 1)]
        table[true] = {true: 1.0 - mistakes, **{other: mistakes / len(near) for other in near}}
    return table


def label(shown: Shown, truth: str, table: Confusion, rng: random.Random) -> LabelAct:
    """The label that a rater with this table gives if `truth` is true (Dawid and Skene 1979, eq. 2.1)."""
    given, shares = zip(*table[truth].items(), strict=True)
    return LabelAct(shown.candidate_id, str(rng.choices(given, shares)[0]))


def looked_at(shown: Sequence[Shown], rng: random.Random, bias: float = POSITION_BIAS) -> list[Shown]:
    """Those of a list that a person looks at: place k (from 0) with probability (1 + k)^-bias, each by its own draw.

    The position-based model of clicks (Joachims, Swaminathan and Schnabel 2017, arXiv:1608.04468, section 5.1). 0 looks
    at all; the first is always looked at.
    """
    return [one for one in shown if rng.random() < (1 + one.place) ** -bias]


def tap(
    rater: Rater, name: str, shown: Shown, liking: float, rng: random.Random, noise: float = SIGNAL_NOISE
) -> Signal:
    """A signal of 1 or 0, such as a like or a skip: as a thumb, but with probability `noise` it is drawn by a coin."""
    on = rng.random() < 0.5 if rng.random() < noise else thumb(rater, shown, liking, rng).up
    return Signal(shown.candidate_id, name, float(on))


def extent(rater: Rater, name: str, shown: Shown, liking: float, rng: random.Random, most: float = 1.0) -> Signal:
    """A signal from 0 to `most`, such as the share watched: the sigmoid of the noisy liking above the threshold."""
    noisy = (liking - rater.threshold) / rater.temperature + _logistic(rng)
    return Signal(shown.candidate_id, name, most / (1.0 + math.exp(-max(-500.0, min(500.0, noisy)))))


def _open(rng: random.Random) -> float:
    """Uniform on (0, 1), both ends left out."""
    return min(max(rng.random(), 1e-12), 1.0 - 1e-12)


def _logistic(rng: random.Random) -> float:
    draw = _open(rng)
    return math.log(draw / (1.0 - draw))
