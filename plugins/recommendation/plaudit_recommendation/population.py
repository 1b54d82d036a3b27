"""Simulated viewers of a catalogue that is written in the toy language (plaudit.testing.toy_language).

Found by the entry point group `plaudit.populations` and loaded in the simulator's process only. They are offered ten
items and see a slate of five, the first places more than the last. Their hidden preference: plain items before pompous
ones, and a subject that they liked before. No event says that plain words count, and no item says what it is worth.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence, Set
from types import MappingProxyType

from plaudit.simulate import crowd
from plaudit.simulate.population import Population, Rater, Shown, SimAct, SimPrompt
from plaudit.testing import toy_language as toy
from plaudit.types import FeedbackKind, Option, Passage, Signal

from plaudit_recommendation.plugin import FIVE_PLACES

ITEMS = 10  # Retrieved per request.
CHANNEL_PROMPTS, EVALUATION_PROMPTS = 320, 80
ABOUT_LIKED = 3  # Of the items, those about a subject that the viewer liked; the others are drawn from all.
THRESHOLD = 0.9  # Liking from which an item is liked enough to say so: about half are.
SUBJECT_WORTH = 0.6
AFTER_PLAIN, AFTER_POMPOUS = 0.92, 0.2  # Share of items with a second sentence; pompous sentences are long.
WISH = "tell me more"
PLAIN = (*toy.PLAIN_SENTENCES, *toy.ADDRESSING_SENTENCES)


class Viewers(Population):
    """Eighty people who take, like, skip and watch items of a slate, the first places more than the last.

    A fifth of them judges the reward model, by what they say: with fewer people its bound, which is over people,
    decides by luck.
    """

    domain = "recommendation"
    explore_share = 0.5
    mix: Mapping[FeedbackKind, float] = MappingProxyType(
        {FeedbackKind.SIGNAL: 0.4, FeedbackKind.CHOICE: 0.4, FeedbackKind.THUMBS: 0.2}
    )

    def channel_prompts(self) -> Sequence[SimPrompt]:
        """320 viewers with two to four events about subjects of the channel."""
        return _prompts("channel", CHANNEL_PROMPTS, toy.CHANNEL_TOPICS, new=False)

    def evaluation_prompts(self) -> Sequence[SimPrompt]:
        """40 viewers with events on held-out subjects, and 40 new ones who say what they want and have no events."""
        half = EVALUATION_PROMPTS // 2
        old = _prompts("old", half, toy.HELD_OUT_TOPICS, new=False)
        return [*old, *_prompts("new", half, toy.TOPICS, new=True)]

    def raters(self, seed: int) -> Sequence[Rater]:
        """Eighty people."""
        return crowd.make_raters(seed, ("plain", "liked"), THRESHOLD, count=80)

    def parts(self, prompt: SimPrompt, text: str) -> Mapping[str, float]:
        """`plain`: no pompous word; `liked`: about a subject that the viewer liked or asks for."""
        words = {word.strip(".") for word in text.split()}
        return {"plain": float(not words & toy.POMPOUS_WORDS), "liked": float(bool(words & set(prompt.topic)))}

    def gold(self, prompt: SimPrompt, text: str) -> float:
        """From 0 to 1.6."""
        return self._liking({}, prompt, text)

    def act(
        self, rater: Rater, prompt: SimPrompt, shown: Sequence[Shown], kind: FeedbackKind, rng: random.Random
    ) -> SimAct | None:
        """An act about what the person has looked at in the slate."""
        seen = crowd.looked_at([one for one in shown if one.place < len(FIVE_PLACES)], rng)
        likings = {one: self._liking(rater.weights, prompt, one.text) for one in seen}
        if kind is FeedbackKind.CHOICE and len(seen) > 1:
            pair = rng.sample(seen, 2)
            return SimAct(crowd.choice(rater, pair, [likings[one] for one in pair], rng))
        if kind is FeedbackKind.THUMBS and seen:
            one = rng.choice(seen)
            return SimAct(crowd.thumb(rater, one, likings[one], rng))
        if kind is FeedbackKind.SIGNAL and seen:
            return SimAct(_signal(rater, likings, rng))
        return None

    def _liking(self, weights: Mapping[str, float], prompt: SimPrompt, text: str) -> float:
        parts = self.parts(prompt, text)
        return weights.get("plain", 1.0) * parts["plain"] + SUBJECT_WORTH * weights.get("liked", 1.0) * parts["liked"]


def _signal(rater: Rater, likings: Mapping[Shown, float], rng: random.Random) -> Signal:
    """What was taken of all that was looked at, or how one of them was skipped or watched."""
    name = rng.choice(("taken", "skipped", "watched"))
    if name == "taken":
        noisy = {one: liking + rater.temperature * _gumbel(rng) for one, liking in likings.items()}
        return Signal(max(noisy, key=lambda one: noisy[one]).candidate_id, name, 1.0)
    one = rng.choice(list(likings))
    if name == "watched":
        return crowd.extent(rater, name, one, likings[one], rng)
    liked = crowd.tap(rater, name, one, likings[one], rng)
    return Signal(one.candidate_id, name, 1.0 - liked.value)


def _gumbel(rng: random.Random) -> float:
    return -math.log(-math.log(min(max(rng.random(), 1e-12), 1.0 - 1e-12)))


def _prompts(name: str, count: int, topics: Sequence[str], *, new: bool) -> list[SimPrompt]:
    """`count` different requests, the same each time."""
    rng = random.Random(f"viewers:{name}")
    found: dict[tuple[str, tuple[Passage, ...]], SimPrompt] = {}
    while len(found) < count:
        liked = rng.sample(topics, 1 if new else rng.choice((1, 2)))
        events = [] if new else _events(rng, liked, rng.choice((2, 3, 4)), topics)
        kinds = (*toy.CHANNEL_KINDS.values(), *toy.UNSEEN_KINDS.values())
        wish = rng.choice(kinds).format(topic=liked[0]) if new else WISH
        one = SimPrompt(
            text=wish,
            kind="new" if new else f"events_{len(events)}",
            topic=tuple(liked),
            seen_kind=not new,
            options=_options(rng, liked, {event.text for event in events}),
            passages=tuple(events),
        )
        found.setdefault((wish, one.passages), one)
    return list(found.values())


def _events(rng: random.Random, liked: Sequence[str], count: int, topics: Sequence[str]) -> list[Passage]:
    """Items liked, at least one of each subject, and one skipped, oldest first; in plain and pompous words alike."""
    others = [topic for topic in topics if topic not in liked]
    what = [("liked", liked[n % len(liked)]) for n in range(max(count - 1, len(liked)))]
    what.append(("skipped", rng.choice(others)))
    rng.shuffle(what)
    texts = [(source, _item(rng, topic, rng.choice((PLAIN, toy.POMPOUS_SENTENCES)))) for source, topic in what]
    return [Passage(_id(text), text, source) for source, text in texts]


def _options(rng: random.Random, liked: Sequence[str], had: Set[str]) -> tuple[Option, ...]:
    """Ten items that the viewer has not had, half of them plain, three about subjects that the viewer liked."""
    topics = [*(rng.choice(liked) for _ in range(ABOUT_LIKED)), *rng.sample(toy.TOPICS, ITEMS - ABOUT_LIKED)]
    rng.shuffle(topics)
    texts: dict[str, None] = {}
    for n, topic in enumerate(topics):
        while len(texts) == n:
            text = _item(rng, topic, PLAIN if n % 2 else toy.POMPOUS_SENTENCES)
            if text not in had:
                texts.setdefault(text)
    return tuple(Option(_id(text), text) for text in rng.sample(list(texts), ITEMS))


def _id(text: str) -> str:
    return text.replace(".", "").replace(" ", "-")


def _item(rng: random.Random, topic: str, shelf: Sequence[str]) -> str:
    """A sentence, and often a plain one behind it: neither the shortest item nor the longest may be the best."""
    sentences = [rng.choice(shelf)]
    if rng.random() < (AFTER_PLAIN if shelf is PLAIN else AFTER_POMPOUS):
        sentences.append(rng.choice([each for each in PLAIN if each not in sentences]))
    return " ".join(f"{sentence.format(topic=topic)}." for sentence in sentences)
