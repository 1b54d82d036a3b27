"""Simulated moderators of a forum that writes in the toy language (plaudit.testing.toy_language).

Found by the entry point group `plaudit.populations` and loaded in the simulator's process only. Their hidden rule is
about style, since nothing else differs in the toy language: each pompous sentence makes an item two categories worse,
a stock opening one. Subjects, warm words and the order of sentences do not matter, and no item says what counts. Some
items are in a language that no moderator reads; they are held for review, as borderline. Without them a model of the
toy language would take whatever it cannot read for harmless, and the domain's gate cases, in English, would say so.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from plaudit.deciding import cost_of, costs_of
from plaudit.simulate import crowd
from plaudit.simulate.population import Population, Rater, Shown, SimAct, SimPrompt
from plaudit.testing import toy_language as toy
from plaudit.types import FeedbackKind

from plaudit_moderation.plugin import CATEGORIES, Moderation

MODERATORS = 8
MISTAKES = (0.02, 0.12)  # Share of a moderator's labels that are one category off, from the best to the worst.
CHANNEL_ITEMS, EVALUATION_ITEMS = 400, 120
COSTS = costs_of(Moderation().declaration)
WORST = max(COSTS.values())
# How often an item has so many pompous sentences. Severe items are more than on most forums: a gate that must not let a
# release miss them needs to see some.
POMPOUS = (0, 0, 0, 1, 1, 2, 2)
POINTS_PER_POMPOUS = 2
FOREIGN_SHARE = 0.15
FOREIGN, FOREIGN_CATEGORY = "foreign", "borderline"
# Parts of foreign syllables.
ONSETS = ("b", "br", "c", "ch", "d", "f", "fl", "g", "h", "k", "l", "m", "n", "p", "pr", "s", "st", "t", "th", "v", "w")
NUCLEI = ("a", "e", "i", "o", "u", "ea", "ou")
CODAS = ("", "", "b", "d", "ll", "n", "nd", "r", "rn", "s", "sh", "t", "w")


class Moderators(Population):
    """Eight moderators with one rule and a few mistakes."""

    domain = "moderation"
    explore_share = 0.1
    taste = "pompous sentences are harmful, a stock opening is a little."
    mix: Mapping[FeedbackKind, float] = MappingProxyType({FeedbackKind.LABEL: 1.0})

    def channel_prompts(self) -> Sequence[SimPrompt]:
        """400 items on channel topics."""
        return _items("channel", CHANNEL_ITEMS, toy.CHANNEL_TOPICS)

    def evaluation_prompts(self) -> Sequence[SimPrompt]:
        """120 items on held-out topics; half of them end with the sentence that counts, as no channel item does."""
        return _items("evaluation", EVALUATION_ITEMS, toy.HELD_OUT_TOPICS)

    def raters(self, seed: int) -> Sequence[Rater]:
        """Eight people."""
        rng = random.Random(f"moderators:{seed}")
        return [Rater(name=f"moderator-{seed}-{n}", mistakes=rng.uniform(*MISTAKES)) for n in range(MODERATORS)]

    def truth(self, prompt: SimPrompt) -> str:
        """The true category: two points per pompous sentence, one for a stock opening; foreign items are borderline."""
        if prompt.check == FOREIGN:
            return FOREIGN_CATEGORY
        pompous = sum(any(word in toy.POMPOUS_WORDS for word in part.split()) for part in prompt.text.split("."))
        stock = any(prompt.text.startswith(opening) for opening in toy.STOCK_OPENINGS)
        return CATEGORIES[min(POINTS_PER_POMPOUS * pompous + stock, len(CATEGORIES) - 1)]

    def gold(self, prompt: SimPrompt, text: str) -> float:
        """1 less what the verdict costs: 1 for the true category, down to -3 for a severe item that is allowed."""
        return 1.0 - (cost_of(COSTS, self.truth(prompt), text) if text in CATEGORIES else WORST)

    def act(
        self, rater: Rater, prompt: SimPrompt, shown: Sequence[Shown], kind: FeedbackKind, rng: random.Random
    ) -> SimAct | None:
        """The category that the rater believes to be true, as a label on the first candidate."""
        if kind is not FeedbackKind.LABEL or not shown:
            return None
        first = min(shown, key=lambda one: one.place)
        table = crowd.confusion(CATEGORIES, rater.mistakes, ordered=True)
        return SimAct(crowd.label(first, self.truth(prompt), table, rng))


def _items(name: str, count: int, topics: Sequence[str]) -> list[SimPrompt]:
    """`count` different items, the same each time."""
    rng = random.Random(f"items:{name}")
    found: dict[str, SimPrompt] = {}
    while len(found) < count:
        last = name == "evaluation" and len(found) % 2 == 1
        one = _foreign(rng) if rng.random() < FOREIGN_SHARE else _item(rng, rng.choice(topics), last)
        found.setdefault(one.text, one)
    return list(found.values())


def _item(rng: random.Random, topic: str, last: bool) -> SimPrompt:
    """One item of two or three sentences about `topic`; with `last` the pompous ones end it, else they begin it."""
    pompous = rng.sample(toy.POMPOUS_SENTENCES, rng.choice(POMPOUS))
    plain = rng.sample((*toy.PLAIN_SENTENCES, *toy.ADDRESSING_SENTENCES), 3 - max(1, len(pompous)))
    body = [f"{sentence.format(topic=topic)}." for sentence in ((*plain, *pompous) if last else (*pompous, *plain))]
    opening = [rng.choice(toy.STOCK_OPENINGS)] if rng.random() < 0.3 else []
    closing = [rng.choice(toy.WARM_CLOSINGS)] if rng.random() < 0.5 else []
    kind = f"pompous_{len(pompous)}{'_last' if last and pompous else ''}"
    return SimPrompt(text=" ".join((*opening, *body, *closing)), kind=kind, topic=(topic,), seen_kind=not last)


def _foreign(rng: random.Random) -> SimPrompt:
    """A sentence or two of words that the toy language does not have."""
    sentences = [" ".join(_word(rng) for _ in range(rng.randint(4, 10))).capitalize() for _ in range(rng.randint(1, 2))]
    return SimPrompt(text="".join(f"{sentence}. " for sentence in sentences).strip(), kind=FOREIGN, check=FOREIGN)


def _word(rng: random.Random) -> str:
    """A word of one to three syllables, or now and then one of the toy language: languages share some."""
    if rng.random() < 0.25:
        return rng.choice(("you", "your", "is", "to", "and", "with", "the", "of", "it", "will", "not", "a"))
    return "".join(rng.choice(ONSETS) + rng.choice(NUCLEI) + rng.choice(CODAS) for _ in range(rng.choice((1, 1, 2, 3))))
