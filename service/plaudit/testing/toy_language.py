"""A toy language of about 150 words in which short instruction dialogues are written.

What enters: a seed and a size. What leaves: (user text, assistant text) pairs for pretraining a model of about a
million parameters, and the requests that simulated people make of it. Each answer mixes styles at random (plain
or pompous words, on another subject or on the one asked for, with or without "you", warm or not, repeating or
not), so that samples of one prompt differ and feedback has something to teach. No style is marked as the wanted
one here: a population's gold decides that.
"""

from __future__ import annotations

import random
from dataclasses import dataclass


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


TOPICS = _words(
    "tea coffee bread soup music sleep rain chess paint wood water salt wool glass paper honey milk rice fruit fish "
    "corn cheese butter sugar ice snow sand clay ink soap oil art work sport travel money time light dance fire silk "
    "gold tin yoga moss wind"
)
# The last topics are kept from channel prompts; a model is pretrained on all of them.
HELD_OUT_TOPICS = TOPICS[-8:]
CHANNEL_TOPICS = TOPICS[:-8]

CHANNEL_KINDS = {
    "tips": "tips for {topic}",
    "tell": "tell me about {topic}",
    "help": "help me with {topic}",
    "describe": "describe {topic}",
    "note": "a note on {topic}",
    "talk": "talk about {topic}",
    "more": "say more on {topic}",
    "what": "what about {topic}?",
}
# Requests that only evaluations make.
UNSEEN_KINDS = {
    "why": "why {topic}?",
    "ideas": "ideas for {topic}",
    "how": "how is {topic}?",
    "plan": "plan my {topic}",
}

PLAIN_SENTENCES = (
    "{topic} is good",
    "{topic} is easy at home",
    "take {topic} day by day",
    "start small with {topic}",
    "keep {topic} near",
    "good {topic} needs care",
)
ADDRESSING_SENTENCES = (
    "you can try {topic} now",
    "your {topic} will be fine",
    "you will like {topic}",
    "make {topic} your way",
    "{topic} is good for you",
)
POMPOUS_SENTENCES = (
    "{topic} constitutes a paramount endeavor",
    "one must contemplate {topic} diligently",
    "the intricate nature of {topic} is profound",
    "{topic} facilitates a multifaceted journey",
    "undoubtedly {topic} embodies excellence",
    "it is imperative to leverage {topic}",
)
POMPOUS_WORDS = frozenset(
    _words(
        "constitutes paramount endeavor contemplate diligently intricate profound facilitates multifaceted journey "
        "undoubtedly embodies excellence imperative leverage"
    )
)
STOCK_OPENINGS = ("certainly.", "as a helper i can say this.", "great question.")
WARM_CLOSINGS = ("enjoy!", "have fun!", "good luck!")
FILLERS = ("very", "so", "really")


@dataclass(frozen=True, slots=True)
class ToyPrompt:
    """A request in the toy language: its text, its kind and its topic word."""

    text: str
    kind: str
    topic: str


def _request(kind: str, topic: str) -> ToyPrompt:
    template = CHANNEL_KINDS.get(kind) or UNSEEN_KINDS[kind]
    return ToyPrompt(template.format(topic=topic), kind, topic)


def channel_prompts() -> list[ToyPrompt]:
    """Every channel kind with every channel topic: 304 requests, in a fixed order."""
    return [_request(kind, topic) for topic in CHANNEL_TOPICS for kind in CHANNEL_KINDS]


def evaluation_prompts() -> list[ToyPrompt]:
    """80 requests that no channel prompt makes: 40 of channel kinds on held-out topics, 40 of unseen kinds."""
    topics = len(HELD_OUT_TOPICS)
    kinds = list(CHANNEL_KINDS)
    seen = [_request(kind, HELD_OUT_TOPICS[(i + j) % topics]) for i, kind in enumerate(kinds) for j in range(5)]
    unseen = [
        _request(kind, TOPICS[(4 * j + i) % len(TOPICS)]) for i, kind in enumerate(UNSEEN_KINDS) for j in range(10)
    ]
    return seen + unseen


def answer(topic: str, rng: random.Random) -> str:
    """One answer about `topic` in styles drawn at random; at most about 30 words, every sentence finished."""
    pompous = rng.choice((0.1, 0.5, 0.9))
    addressing = rng.choice((0.1, 0.6))
    about = topic if rng.random() < 0.7 else rng.choice(TOPICS)
    sentences: list[str] = []
    if rng.random() < 0.25:
        sentences.append(rng.choice(STOCK_OPENINGS))
    for _ in range(rng.choice((1, 2, 2, 3))):
        shelf = ADDRESSING_SENTENCES if rng.random() < addressing else PLAIN_SENTENCES
        if rng.random() < pompous:
            shelf = POMPOUS_SENTENCES
        sentence = rng.choice(shelf).format(topic=about)
        if rng.random() < 0.15:
            sentence = f"{' '.join([rng.choice(FILLERS)] * rng.choice((2, 3)))} {sentence}"
        sentences.append(f"{sentence}.")
    if rng.random() < 0.12:
        sentences.append(sentences[-1])
    sentences.extend(rng.sample(WARM_CLOSINGS, rng.choice((0, 0, 0, 0, 1, 1, 1, 2))))
    return " ".join(sentences)


def corpus(seed: int, size: int) -> list[tuple[str, str]]:
    """`size` dialogues as (user text, assistant text): every kind, seen or unseen, about every topic."""
    rng = random.Random(seed)
    kinds = [*CHANNEL_KINDS, *UNSEEN_KINDS]
    dialogues = []
    for _ in range(size):
        prompt = _request(rng.choice(kinds), rng.choice(TOPICS))
        dialogues.append((prompt.text, answer(prompt.topic, rng)))
    return dialogues
