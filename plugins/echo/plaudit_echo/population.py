"""Simulated people for `echo-choice`: a double for tests of the core, and the shortest population of a choice domain.

They ask in the toy language (plaudit.testing.toy_language) and are offered four sentences to read. Their hidden
preference: plain sentences before pompous ones, and a little for the subject that they asked about.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from plaudit.simulate import crowd
from plaudit.simulate.population import Population, Rater, Shown, SimAct, SimPrompt
from plaudit.testing import toy_language as toy
from plaudit.types import FeedbackKind, Option

OPTIONS = 4
_PLAIN = [f"{one}." for one in (*toy.PLAIN_SENTENCES, *toy.ADDRESSING_SENTENCES)]
THRESHOLD = 1.0  # Liking from which a sentence is liked enough to say so: about half are.


class Readers(Population):
    """People who compare sentences, and like some of those that they look at."""

    domain = "echo-choice"
    explore_share = 0.5
    mix: Mapping[FeedbackKind, float] = MappingProxyType({FeedbackKind.CHOICE: 0.6, FeedbackKind.SIGNAL: 0.4})

    def channel_prompts(self) -> Sequence[SimPrompt]:
        """304 requests of 8 kinds, each with four sentences to choose from."""
        return [_prompt(each, seen=True) for each in toy.channel_prompts()]

    def evaluation_prompts(self) -> Sequence[SimPrompt]:
        """80 requests: 40 of channel kinds on held-out topics, 40 of 4 unseen kinds."""
        return [_prompt(each, seen=each.kind in toy.CHANNEL_KINDS) for each in toy.evaluation_prompts()]

    def raters(self, seed: int) -> Sequence[Rater]:
        """Forty people."""
        return crowd.make_raters(seed, ("plain", "topic"), THRESHOLD, count=40)

    def parts(self, prompt: SimPrompt, text: str) -> Mapping[str, float]:
        """`plain`: no pompous word; `topic`: about what was asked."""
        words = {word.strip(".") for word in text.split()}
        return {"plain": float(not words & toy.POMPOUS_WORDS), "topic": float(prompt.topic[0] in words)}

    def gold(self, prompt: SimPrompt, text: str) -> float:
        """From 0 to 1.5."""
        return self._liking({}, prompt, text)

    def act(
        self, rater: Rater, prompt: SimPrompt, shown: Sequence[Shown], kind: FeedbackKind, rng: random.Random
    ) -> SimAct | None:
        """A choice between two sentences, or a like of one that the person has looked at."""
        if kind is FeedbackKind.CHOICE:
            pair = rng.sample(shown, 2)
            likings = [self._liking(rater.weights, prompt, one.text) for one in pair]
            return SimAct(crowd.choice(rater, pair, likings, rng))
        if kind is FeedbackKind.SIGNAL and (seen := crowd.looked_at(shown, rng)):
            one = rng.choice(seen)
            return SimAct(crowd.tap(rater, "like", one, self._liking(rater.weights, prompt, one.text), rng))
        return None

    def _liking(self, weights: Mapping[str, float], prompt: SimPrompt, text: str) -> float:
        parts = self.parts(prompt, text)
        return weights.get("plain", 1.0) * parts["plain"] + 0.5 * weights.get("topic", 1.0) * parts["topic"]


def _prompt(asked: toy.ToyPrompt, *, seen: bool) -> SimPrompt:
    """Two options of each style in an order drawn by lot, about the subject or another; the same each time.

    A plain one is often two sentences, so that length says little: pompous words are long.
    """
    rng = random.Random(f"options:{asked.text}")
    drawn = rng.sample(_PLAIN, OPTIONS)
    plain = [" ".join(drawn[place :: OPTIONS // 2][: rng.choice((1, 2))]) for place in range(OPTIONS // 2)]
    styles = [*plain, *(f"{one}." for one in rng.sample(toy.POMPOUS_SENTENCES, OPTIONS // 2))]
    texts = [style.format(topic=rng.choice((asked.topic, rng.choice(toy.TOPICS)))) for style in styles]
    rng.shuffle(texts)
    return SimPrompt(
        text=asked.text,
        kind=asked.kind,
        topic=(asked.topic,),
        seen_kind=seen,
        options=tuple(Option(f"option-{number}", text) for number, text in enumerate(texts)),
    )
